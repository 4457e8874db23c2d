"""The quickstart's numbers in the README, from runs with several seeds.

for s in 0 1 2; do
  make quickstart WORKDIR=runs/seed$s ARGS=--config.seed=$s
done
python -m experiments.bench.quickstart runs/seed0 runs/seed1 runs/seed2

Writes results/quickstart_cpu.json, the tables of README.md and, from the first
run, the figures docs/quickstart_*.png.
"""

import json
import pathlib
import shutil
import sys
from typing import Any

from experiments import include, program, report, settings
from experiments.bench import timing

ROOT = pathlib.Path(__file__).parents[2]
README = ROOT / "README.md"
RESULTS = timing.RESULTS / "quickstart_cpu.json"
_SHOWN = ("accuracy", "bytes", "bits")  # The report's first tables.
_FIGURES = ("accuracy_bits", "accuracy_pruning")


def main(runs: list[pathlib.Path]) -> None:
  found = {run.name: _read(run) for run in runs}
  command = "python -m experiments.bench.quickstart RUN..."
  timing.write("quickstart", command, found)
  include.update(README, tables(found))
  for name in _FIGURES:
    shutil.copy(
      runs[0] / f"{name}.png", ROOT / "docs" / f"quickstart_{name}.png"
    )


def tables(found: dict[str, Any]) -> dict[str, str]:
  """The README's tables: of all runs, and as the first run printed them."""
  first = next(iter(found.values()))["tables"]
  shown = {f"quickstart {k}": include.table(*first[k]) for k in _SHOWN}
  return {"quickstart seeds": _of_runs(found)} | shown


def _read(run: pathlib.Path) -> dict[str, Any]:
  own = json.loads((run / "report.json").read_text())
  made = zip(_SHOWN, report.make_tables(own), strict=False)
  return {
    "comparison": own["comparison"],
    "tables": {name: [table.header, table.rows] for name, table in made},
  }


def _of_runs(found: dict[str, Any]) -> str:
  """A row per run, and the mean over the runs with the standard deviation."""
  columns = []
  for own in found.values():
    normal, backslash = own["comparison"].values()
    columns.append(
      [
        100 * normal["exact_accuracy"],
        100 * backslash["accuracy"],
        100 * backslash["accuracy_change"],
        backslash["file_bits"],
        100 * backslash["fp16_saving"],
        100 * backslash["baseline_saving"],
      ]
    )
  header = ["run", "normal, float32, %", "backslash, file, %", "points"]
  header += ["bits per parameter", "smaller than fp16, %"]
  header += ["than normal, as accurate, %"]
  forms = (".1f", ".1f", "+.1f", ".2f", ".1f", ".1f")
  rows = [
    [name, *(f"{x:{form}}" for x, form in zip(own, forms, strict=True))]
    for name, own in zip(found, columns, strict=True)
  ]
  by_column = zip(zip(*columns, strict=True), forms, strict=True)
  rows.append(["mean", *(report.spread(own, form) for own, form in by_column)])
  return include.table(header, rows)


def _main() -> None:
  if len(sys.argv) < 2:
    raise settings.UserError(
      "usage: python -m experiments.bench.quickstart RUN..."
    )
  main([pathlib.Path(run) for run in sys.argv[1:]])


if __name__ == "__main__":
  program.end(_main)
