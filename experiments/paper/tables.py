"""The paper's Tables 3 to 6 and its lambda sweep, with our measurements.

python -m experiments.paper.tables --table=4 --profile=small --source=DATA

Runs or resumes the cells that are missing, and writes table_4.md and
table_4.csv. "--table=sweep" has the numbers of Figures 4 and 5. See
docs/reproduction.md.
"""

import csv
import dataclasses
import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

from configs.paper import numbers, ours, sweep
from experiments import atomic, report
from experiments.paper import plan, reproduce

Measured = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Column:
  """A column: `source` "paper" or "ours", `key` of Numbers or `measure`."""

  title: str
  source: str
  key: str
  digits: int = 2


@dataclasses.dataclass(frozen=True)
class Spec:
  """A table: its rows are the cells of these names.

  `paper` has the paper's rows; it is empty where the paper has no such table.
  """

  title: str
  names: tuple[str, ...]
  paper: Mapping[str, Any]
  columns: tuple[Column, ...]


def _compared(key: str, short: str, *, paper_too: bool = True) -> list[Column]:
  """Columns of the paper, of ours, and of the normal model at coarser steps."""
  columns = [
    Column(f"{short} ours", "ours", key),
    Column(f"{short} coarser", "ours", f"coarser_{key}"),
  ]
  if paper_too:
    columns.insert(0, Column(f"{short} paper", "paper", key))
  return columns


_BITS = (
  *_compared("exp_golomb", "EG"),
  *_compared("huffman", "HM"),
  *_compared("file", "file", paper_too=False),
)
_ACCURACY = (
  Column("accuracy paper", "paper", "accuracy", 2),
  Column("accuracy ours", "ours", "accuracy", 1),
)
_FIXED = (
  Column("FL paper", "paper", "fixed", 0),
  Column("FL ours", "ours", "fixed", 1),
)
_SHIPPED = (
  Column("own coarsest step: file", "ours", "shipped_file"),
  Column("accuracy", "ours", "shipped_accuracy", 1),
  Column("normal as accurate", "ours", "coarser_shipped_file"),
)


def _rows(*modules: str) -> tuple[str, ...]:
  arms = "normal", "backslash", "algorithm1"
  return tuple(f"{module}/{arm}" for module in modules for arm in arms)


SPECS = {
  "4": Spec(
    "Table 4, sentiment of IMDB",
    _rows("table4_bert", "table4_gpt2", "table4_llama3", "table4_gemma2"),
    numbers.TABLE_4,
    (*_FIXED, *_BITS, *_ACCURACY, *_SHIPPED),
  ),
  "5": Spec(
    "Table 5, five tasks",
    _rows(
      "table4_bert",
      "table5_enron",
      "table5_newsgroups",
      "table5_squad",
      "table5_wmt19",
    ),
    numbers.TABLE_5,
    (*_FIXED, *_BITS, *_ACCURACY, *_SHIPPED),
  ),
  "6": Spec(
    "Table 6, what the regularizer is (BERT, IMDB)",
    ("table6/normal", *numbers.TABLE_6, "table6/l0p5_equal", "table6/l2_equal"),
    numbers.TABLE_6,
    (
      Column("nu paper", "paper", "nu"),
      Column("nu ours", "ours", "nu"),
      *_BITS,
      *_ACCURACY,
    ),
  ),
  "sweep": Spec(
    "The weight of the rate (BERT, IMDB)",
    tuple(f"sweep/{arm}" for arm in sweep.ARMS),
    numbers.SWEEP,
    (
      *_BITS,
      *_ACCURACY,
      Column("train paper", "paper", "train_accuracy", 2),
      Column("train ours", "ours", "train_accuracy", 1),
      *_SHIPPED,
    ),
  ),
  "ours": Spec(
    "This library's recipes (BERT, IMDB)",
    tuple(f"ours/{arm}" for arm in ours.ARMS),
    {},
    _SHIPPED,
  ),
}
NAMES = ("3", *SPECS)


def cell_names(table: str) -> tuple[str, ...]:
  """The cells that a table of NAMES shows."""
  return tuple(numbers.TABLE_3) if table == "3" else SPECS[table].names


def measure(record: Mapping[str, Any], normal: Mapping[str, Any]) -> Measured:
  """The numbers of a cell and a seed that the tables show.

  Args:
    record: of the cell, see `plan.read`.
    normal: of the normal training with the same seed.

  Returns:
    "fixed", "exp_golomb", "huffman", "entropy": bits per parameter of the
      matrices, quantized with `plan.STEP`; "file": bits per parameter of the
      whole file; "accuracy": of that model, in %. Absent where the cell has
      steps of its own.
    "coarser_*": the same bits of the normal model at the coarsest step with
      that accuracy; "reached": whether it has that accuracy at any step.
    "shipped_step", "shipped_file", "shipped_accuracy": of the coarsest step
      within the tolerance on the validation split; "coarser_shipped_file" and
      "shipped_reached": as above, at the accuracy of the shipped file.
    "nu": at the end.
    "train_accuracy": over the last quarter of the updates, in %.
  """
  found: Measured = {}
  quantized = record["evaluation"]["quantized"]
  if any(q.get("step") == plan.STEP for q in quantized):
    at_step = plan.quantized(record)
    accuracy = at_step["test"]["accuracy"]
    found = _sizes(record, at_step) | {"accuracy": 100 * accuracy}
    for key in ("exp_golomb", "huffman", "entropy", "file"):
      found[f"coarser_{key}"], found["reached"] = _coarser(
        normal, key, accuracy
      )
  shipped = quantized[record["evaluation"]["shipped"]]
  if "step" in shipped:
    found["shipped_step"] = shipped["step"]
  found["shipped_file"] = _sizes(record, shipped)["file"]
  found["shipped_accuracy"] = 100 * shipped["test"]["accuracy"]
  found["coarser_shipped_file"], found["shipped_reached"] = _coarser(
    normal, "file", shipped["test"]["accuracy"]
  )
  history = record["history"]
  last = [r["accuracy"] for r in history[3 * len(history) // 4 :]]
  return found | {
    "nu": record["distribution"]["nu"],
    "train_accuracy": 100 * statistics.mean(last),
  }


def measured(records: reproduce.Records, name: str) -> list[Measured]:
  """`measure` of the seeds that have the cell and its normal training."""
  module = name.partition("/")[0]
  normal = records.get(f"{module}/normal", {})
  own = records.get(name, {})
  return [measure(own[s], normal[s]) for s in sorted(own) if s in normal]


def make(table: str, records: reproduce.Records) -> report.Table:
  """A table of NAMES; cells that were not run are "-"."""
  if table == "3":
    return _table_3(records)
  spec = SPECS[table]
  rows = []
  for name in spec.names:
    found = measured(records, name)
    stated = spec.paper.get(name)
    if found or stated or not spec.paper:
      values = [_cell(column, stated, found) for column in spec.columns]
      rows.append([name, str(len(found)), *values])
  header = ["cell", "seeds", *(column.title for column in spec.columns)]
  return report.Table(spec.title, header, rows)


def write(
  table: str, records: reproduce.Records, results: pathlib.Path
) -> None:
  """Writes table_NAME.md and table_NAME.csv into results."""
  made = make(table, records)
  names = numbers.TABLE_3
  if table != "3":
    names = SPECS[table].paper or SPECS[table].names
  lacking = [n for n in names if not records.get(n)]
  note = f"\nNot run: {', '.join(lacking)}.\n" if lacking else ""
  text = report.markdown(made) + note
  atomic.write_text(results / f"table_{table}.md", text)
  atomic.write(
    results / f"table_{table}.csv",
    lambda file: _write_csv(file, table, records),
  )


def _sizes(record, found) -> Measured:
  bits = 8 * found["bytes"] / record["evaluation"]["parameters"]
  return {**found["bits"], "file": bits}


def _coarser(normal, key, accuracy) -> tuple[float, bool]:
  points = [
    (_sizes(normal, q)[key], q["test"]["accuracy"])
    for q in normal["evaluation"]["quantized"]
  ]
  return report.baseline_bytes(points, accuracy)


def _cell(column, stated, found) -> str:
  if column.source == "paper":
    value = getattr(stated, column.key, None)
    return "-" if value is None else f"{value:.{column.digits}f}"
  text = report.spread([m[column.key] for m in found], f".{column.digits}f")
  if column.key.startswith("coarser_"):
    flag = "shipped_reached" if "shipped" in column.key else "reached"
    if not all(m[flag] for m in found):
      text += " †"  # The normal model is less accurate at every step.
  return text


def _table_3(records) -> report.Table:
  rows = []
  for name, stated in numbers.TABLE_3.items():
    found = [r["exp_golomb_orders"] for r in records.get(name, {}).values()]
    orders = [[bits[k] for bits in found] for k in plan.ORDERS]
    ours = [report.spread(bits, ".2f") for bits in orders]
    rows.append([name, "paper", *(f"{bits:.2f}" for bits in stated)])
    rows.append([name, f"ours, seeds: {len(found)}", *ours])
  header = ["cell", "", *(f"k = {k}" for k in plan.ORDERS)]
  return report.Table("Table 3, exp-Golomb codes of order k", header, rows)


def _write_csv(path, table, records) -> None:
  """One line per cell, quantity and seed; the paper's have no seed."""
  with path.open("w", newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["cell", "quantity", "seed", "value"])
    for name in cell_names(table):
      if table == "3":
        stated = numbers.TABLE_3[name]
        for k, bits in enumerate(stated):
          writer.writerow([name, f"order_{k}", "paper", bits])
        for seed, record in records.get(name, {}).items():
          for k, bits in enumerate(record["exp_golomb_orders"]):
            writer.writerow([name, f"order_{k}", seed, bits])
        continue
      stated = SPECS[table].paper.get(name)
      for key, value in stated._asdict().items() if stated else ():
        if value is not None:
          writer.writerow([name, key, "paper", value])
      seeds = sorted(records.get(name, {}))
      for seed, values in zip(seeds, measured(records, name), strict=False):
        for key, value in values.items():
          writer.writerow([name, key, seed, value])


if __name__ == "__main__":
  reproduce.launch("table", NAMES, cell_names, write)
