"""The tables of docs/memory.md, of what the benchmarks found.

python -m experiments.bench.memory

MB are 10^6 bytes. The benchmarks, `answers`, `batches` and `coded`, do this at
their end.
"""

import json
import pathlib
from typing import Any

from experiments import include, program
from experiments.bench import timing

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "memory.md"
DENSE = ("float32", "bfloat16")
SMALL = ("packed", "coded")


def update() -> None:
  """Puts the tables into the document."""
  include.update(DOCS, tables())


def tables() -> dict[str, str]:
  """All tables in Markdown, by name."""
  found = {}
  for kind, rows in {"answers": answers, "batches": batches}.items():
    for path in sorted(timing.RESULTS.glob(f"{kind}_*_cpu.json")):
      name = path.stem.removesuffix("_cpu").replace("_", " ", 1)
      found[name] = _table(path, rows)
  path = timing.RESULTS / "coded_cpu.json"
  if path.exists():
    found["coded matrices"] = _table(path, matrices)
    found["coded models"] = _table(path, models)
  return found


def _table(path: pathlib.Path, rows) -> str:
  """The command and the machine, and the table of a file's results."""
  document = json.loads(path.read_text())
  machine = document["machine"]
  head, *body = rows(document["results"])
  return "\n\n".join(
    [
      f"    {document['command']}",
      f"{machine['host']}, jax {machine['jax']}, {document['date']}.",
      include.table(head, body),
    ]
  )


def answers(results: dict[str, Any]) -> list[list[str]]:
  """Rows of a table of `experiments.bench.answers`, the head first."""
  rows = [
    [
      "weights",
      "in memory, MB",
      "temporaries of a token, MB",
      "of the prompt, MB",
      "peak of the process while loading, MB",
      "while answering, MB",
      "tokens per second",
      "processor seconds per token",
    ]
  ]
  for kind in ("dense", *SMALL):
    median = {
      fact: x["median"]
      for fact, x in results[kind].items()
      if fact != "answers"
    }
    sizes = (
      f"{median[name] / 1e6:,.1f}"
      for name in (
        "weights_bytes",
        "temporary_bytes",
        "prompt_temporary_bytes",
        "loading_peak_bytes",
        "peak_bytes",
      )
    )
    times = (
      f"{median[name]:.3g}"
      for name in ("tokens_per_second", "processor_seconds_per_token")
    )
    rows.append([kind, *sizes, *times])
  return rows


def batches(results: dict[str, Any]) -> list[list[str]]:
  """Rows of a table of `experiments.bench.batches`, the head first."""
  head = ["weights", "in memory, MB", "less than float32"]
  for count in results["batches"]:
    rows = f"{count} rows" if count != "1" else "1 row"
    head += [f"{rows}, processor ms", "times float32"]
  found = [head]
  for kind in (*DENSE, *SMALL):
    size = results["bytes"][kind]
    cells = [f"{size / 1e6:.3g}", f"{results['bytes']['float32'] / size:.1f}"]
    for times in results["batches"].values():
      own = times[kind]["processor"]
      ms = 1000 * own["seconds"]["median"]
      cells.append(f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}")
      cells.append(f"{own['ratio']['median']:.2f}")
    found.append([kind, *cells])
  return found


def matrices(results: dict[str, Any]) -> list[list[str]]:
  """Rows of a table of the matrices of `experiments.bench.coded`."""
  rows = [
    [
      "bits in the file",
      "packed",
      "coded",
      "coded, % more than the file",
      "million weights per second, unpacked",
      "decoded",
      "by `bs.load`",
    ]
  ]
  for own in results["matrices"].values():
    speeds = own["million_weights_per_processor_second"]
    rows.append(
      [f"{own[f'{name}_bits']:.2f}" for name in ("file", *SMALL)]
      + [f"{100 * (own['coded_over_file'] - 1):.1f}"]
      + [f"{speeds[name]:,.0f}" for name in (*SMALL, "load")]
    )
  return rows


def models(results: dict[str, Any]) -> list[list[str]]:
  """Rows of a table of the models of `experiments.bench.coded`."""
  rows = [
    [
      "weights",
      "bits in the file",
      "in memory, MB",
      "less than float32",
      "process grows by, MB",
      "at most, while computing, MB",
      "processor seconds per batch",
    ]
  ]
  found = results["models"]
  dense = found["dense"]
  for bits, own in [("", dense), *found.items()]:
    if bits == "dense":
      continue
    for kind in SMALL if bits else DENSE:
      held = own[kind]
      size = held["weights_bytes"]
      rows.append(
        [
          kind,
          f"{own['file_bits']:.2f}" if bits else "",
          f"{size / 1e6:,.0f}",
          f"{dense['float32']['weights_bytes'] / size:.1f}",
          f"{held['resident_bytes'] / 1e6:,.0f}",
          f"{held['peak_bytes_of_forward'] / 1e6:,.0f}",
          f"{held['seconds']['processor']:.2f}",
        ]
      )
  return rows


if __name__ == "__main__":
  program.end(update)
