"""The comparison of the trainings: terminal, Markdown, JSON and plots.

All of them show the same numbers; report.json has them in full precision, and
the plots are drawn from it.
"""

import dataclasses
import itertools
import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

import rich.console
import rich.table

from experiments import atomic, include, plots

# Key of an evaluated file -> how the tables show its value.
_QUANTIZERS = {
  "step": "{:.4g}",
  "levels": "max / {}",
  "scale": "{:.4g} x fitted",
}


@dataclasses.dataclass(frozen=True)
class Run:
  """A finished training: `evaluate.evaluate`'s result, records, parameters.

  `params` is a tree of arrays, or of `stored.Tensor`.
  """

  evaluation: dict[str, Any]
  history: list[dict[str, Any]]
  params: Any


@dataclasses.dataclass(frozen=True)
class Table:
  """A title, column names, and rows of formatted cells."""

  title: str
  header: list[str]
  rows: list[list[str]]


def write(
  runs: dict[str, Run], task: str, workdir: pathlib.Path
) -> dict[str, Any]:
  """Writes report.json, report.md and the plots; prints the tables.

  Args:
    runs: by name; the others are compared with the first.
    task: its name.
    workdir: where the files go.

  Returns:
    What report.json holds.
  """
  report = compare({name: run.evaluation for name, run in runs.items()}, task)
  tables = make_tables(report)
  text = json.dumps(report, indent=2) + "\n"
  atomic.write_text(workdir / "report.json", text)
  atomic.write_text(workdir / "report.md", _markdown(report, tables))
  plots.write(report, runs, workdir)
  console = rich.console.Console()
  for table in tables[:3]:
    _print(console, table)
  console.print(f"The rest is in {workdir / 'report.md'}", soft_wrap=True)
  return report


def compare(evaluations: dict[str, Any], task: str) -> dict[str, Any]:
  """Every evaluation, and each shipped file against the first training.

  "comparison" holds, per training,

    quantizer: of the shipped file, as in its evaluation: "step", or "levels"
      on each side of 0, or "scale" of the steps that training fitted;
    bytes, accuracy: of the shipped file, on the test split,
    file_bits: 8 bytes / parameters,
    accuracy_error: standard error of accuracy; None if the evaluation, of an
      earlier version, has none,
    exact_accuracy: unquantized; accuracy_change: of the file against the
      unquantized model of the first training,
    fp16_bytes: 2 for every parameter; fp16_saving: 1 - bytes / fp16_bytes,
    baseline_bytes: of the first training's file that is as accurate, see
      `baseline_bytes`; baseline_reached: whether there is one;
      baseline_saving: 1 - bytes / baseline_bytes; None for the first itself,
    pruned_accuracy: at pruned_rate, the pruning rate nearest to 0.8.
  """
  first = next(iter(evaluations.values()))
  points = [(q["bytes"], q["test"]["accuracy"]) for q in first["quantized"]]
  comparison = {}
  for name, e in evaluations.items():
    shipped = e["quantized"][e["shipped"]]
    size, accuracy = shipped["bytes"], shipped["test"]["accuracy"]
    fp16 = 2 * e["parameters"]
    baseline, reached = None, None
    if e is not first:
      baseline, reached = baseline_bytes(points, accuracy)
    pruned = min(e["pruned"], key=lambda p: abs(p["rate"] - 0.8), default=None)
    comparison[name] = {
      "quantizer": {u: shipped[u] for u in _QUANTIZERS if u in shipped},
      "bytes": size,
      "accuracy": accuracy,
      "file_bits": 8 * size / e["parameters"],
      "exact_accuracy": e["exact"]["test"]["accuracy"],
      "accuracy_error": shipped["test"].get("accuracy_error"),
      "accuracy_change": accuracy - first["exact"]["test"]["accuracy"],
      "fp16_bytes": fp16,
      "fp16_saving": 1 - size / fp16,
      "baseline_bytes": baseline,
      "baseline_reached": reached,
      "baseline_saving": None if baseline is None else 1 - size / baseline,
      "pruned_rate": pruned and pruned["rate"],
      "pruned_accuracy": pruned and pruned["test"]["accuracy"],
    }
  return {"task": task, "comparison": comparison, "evaluations": evaluations}


def baseline_bytes(
  points: list[tuple[float, float]], accuracy: float
) -> tuple[float, bool]:
  """The smallest size at which a model reaches an accuracy.

  Between neighbouring files the size is interpolated linearly in the accuracy,
  so a coarse grid of steps is no disadvantage.

  Args:
    points: (bytes, accuracy) of the model's files, in the order of their steps.
    accuracy: to reach.

  Returns:
    The size, and True. If no file is accurate enough, the size of the smallest
    of the most accurate files, and False.
  """
  sizes = [size for size, a in points if a >= accuracy]
  if not sizes:
    best = max(a for _, a in points)
    return min(size for size, a in points if a == best), False
  for (size_0, a_0), (size_1, a_1) in itertools.pairwise(points):
    if min(a_0, a_1) < accuracy < max(a_0, a_1):
      sizes.append(size_0 + (size_1 - size_0) * (accuracy - a_0) / (a_1 - a_0))
  return min(sizes), True


def make_tables(report: dict[str, Any]) -> list[Table]:
  """The report as tables of formatted cells: a summary of three, details."""
  comparison, evaluations = report["comparison"], report["evaluations"]
  first = next(iter(comparison))
  accuracy, size, bits = [], [], []
  for name, c in comparison.items():
    e = evaluations[name]
    pruned = "-"
    if c["pruned_rate"] is not None:
      pruned = f"{_percent(c['pruned_accuracy'])} at {c['pruned_rate']:.0%}"
    change = f"{100 * c['accuracy_change']:+.1f} points"
    shown = [c["exact_accuracy"], c["accuracy"]]
    accuracy.append([name, *map(_percent, shown), change, pruned])
    baseline = ["-", "-"]
    if c["baseline_bytes"] is not None:
      note = "" if c["baseline_reached"] else " (less accurate)"
      saving = _percent(c["baseline_saving"])
      baseline = [_bytes(c["baseline_bytes"]) + note, saving]
    fp16 = [_bytes(c["fp16_bytes"]), _percent(c["fp16_saving"])]
    size.append([name, _bytes(c["bytes"]), *fp16, *baseline])
    shipped = e["quantized"][e["shipped"]]["bits"]
    bits.append(
      [
        name,
        _quantizer(c["quantizer"]),
        *_bits(shipped),
        f"{c['file_bits']:.2f}",
      ]
    )
  rates = [f"{p['rate']:.0%}" for p in evaluations[first]["pruned"]]
  pruning = [
    [name, *(_percent(p["test"]["accuracy"]) for p in e["pruned"])]
    for name, e in evaluations.items()
  ]
  return [
    Table(
      f"{report['task']}, test accuracy{_error(comparison)}",
      ["training", "float32", "coded", f"vs {first} float32", "pruned"],
      accuracy,
    ),
    Table(
      "bytes of the coded file",
      ["training", "coded", "fp16", "saved", f"{first}, as accurate", "saved"],
      size,
    ),
    Table(
      "bits per parameter",
      ["training", "step", "FL", "EG", "HM", "entropy", "file"],
      bits,
    ),
    *(_steps_table(name, e) for name, e in evaluations.items()),
    Table("test accuracy after pruning", ["training", *rates], pruning),
  ]


def _steps_table(name, evaluation):
  rows = [
    [_quantizer(q), _percent(q["validation"]["accuracy"])]
    + [_percent(q["test"]["accuracy"]), f"{q['test']['loss']:.3f}"]
    + [*_bits(q["bits"])]
    + [f"{8 * q['bytes'] / evaluation['parameters']:.2f}", _bytes(q["bytes"])]
    for q in evaluation["quantized"]
  ]
  header = ["step", "validation", "test", "test loss", "FL", "EG", "HM"]
  return Table(
    f"{name}, every file", [*header, "entropy", "file", "bytes"], rows
  )


_LEGEND = """\
Accuracy is on the test split. The shipped file was chosen on the validation
split. Its step is one for all matrices, or a fraction of each matrix's largest
value ("max / levels"), or a multiple of the step that training fitted to each
matrix. FL (fixed length), EG (exp-Golomb, order 0), HM (Huffman) and entropy
are bits per parameter of the quantized matrices; file is the bits of the whole
file, with everything in it, per parameter of the model. The savings compare the
bytes of that file with two bytes for every parameter (fp16), and with the
{first} model, coded with the same coder and with the coarsest step that keeps
the same accuracy.
"""


def _markdown(report, tables):
  first = next(iter(report["comparison"]))
  parts = [f"# {report['task']}\n", _LEGEND.format(first=first)]
  parts += [markdown(table) for table in tables]
  parts += [f"![{title}]({name})\n" for name, title in plots.TITLES.items()]
  return "\n".join(parts)


def markdown(table: Table) -> str:
  """A table under its title."""
  return f"## {table.title}\n\n{include.table(table.header, table.rows)}\n"


def spread(values: Sequence[float | None], form: str) -> str:
  """The mean over the seeds ± their standard deviation.

  Args:
    values: of the seeds; without a value, or with a None, the result is "-".
    form: format of the numbers, such as ".1f"; "+" applies to the mean alone.
  """
  found = [v for v in values if v is not None]
  if not found or len(found) < len(values):
    return "-"
  text = f"{statistics.fmean(found):{form}}"
  if len(found) > 1:
    text += f" ± {statistics.stdev(found):{form.lstrip('+')}}"
  return text


def _print(console, table):
  shown = rich.table.Table(title=table.title, title_justify="left")
  for i, name in enumerate(table.header):
    shown.add_column(name, justify="left" if i == 0 else "right")
  for row in table.rows:
    shown.add_row(*row)
  console.print(shown)


def _error(comparison):
  """The largest standard error of an accuracy, for a title."""
  errors = [c["accuracy_error"] for c in comparison.values()]
  if None in errors:
    return ""
  return f" (standard error {100 * max(errors):.1f} points)"


def _percent(fraction):
  return f"{100 * fraction:.1f}%"


def _bytes(count):
  return f"{count:,.0f}"


def _quantizer(found):
  """The quantizer of an evaluated file, in a few characters."""
  return next(f.format(found[u]) for u, f in _QUANTIZERS.items() if u in found)


def _bits(bits):
  names = "fixed", "exp_golomb", "huffman", "entropy"
  return [f"{bits[name]:.2f}" for name in names]
