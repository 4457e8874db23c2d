"""How small a fine-tune becomes before it loses what it has learned.

python -m experiments.frontier.kept runs/frontier_sst2_delta

reads the finished cells of a grid of fine-tunes and writes two tables beside
them: files.md, with every file, and kept.md.

For classes, kept.md has the smallest file of a method whose validation accuracy
is within half a point, and within one point, of that of the unquantized model
of the baseline, and its test accuracy. For a language model, it has the bits
per parameter at which a file keeps a part of what training gained on the base,
between the files on a logarithmic scale of bits.
"""

import argparse
import json
import math
import pathlib
from typing import Any

import numpy as np

from experiments import atomic, program, report, settings

BASELINE = "delta"
POINTS = (0.5, 1.0)
PARTS = (0.5, 0.9, 0.99)

Cell = dict[str, Any]


def read(workdir: pathlib.Path) -> list[Cell]:
  """Method, point, seed and evaluation of every finished cell.

  Raises:
    UserError: there is none of the baseline.
  """
  found = []
  for path in sorted(workdir.glob("cells/*/evaluation.json")):
    name, _, rest = path.parent.name.rpartition("-seed")
    method, _, point = name.partition("-")
    found.append(
      {
        "method": method,
        "point": point,
        "seed": int(rest.partition("-")[0]),
        **json.loads(path.read_text())["evaluation"],
      }
    )
  if not any(cell["method"] == BASELINE for cell in found):
    raise settings.UserError(f"{workdir / 'cells'} has no finished {BASELINE}")
  return sorted(found, key=lambda c: (c["method"] != BASELINE, c["method"]))


def files_of(cells: list[Cell], method: str, seed: int) -> list[dict[str, Any]]:
  """The files of a method and seed, of all points, the smallest first."""
  files = [
    q | {"bits": 8 * q["bytes"] / cell["parameters"]}
    for cell in cells
    if (cell["method"], cell["seed"]) == (method, seed)
    for q in cell["quantized"]
  ]
  return sorted(files, key=lambda file: file["bits"])


def files_table(cells: list[Cell], *, loss: bool) -> report.Table:
  """Every file, with its test accuracy, or its loss in nats."""
  header = ["method", "point", "seed", "step", "bits", "bytes"]
  header += ["test loss" if loss else "test accuracy, %"]

  def shown(scores):
    return (
      f"{scores['loss']:.4f}" if loss else f"{100 * scores['accuracy']:.1f}"
    )

  body = []
  for cell in cells:
    name = [cell["method"], cell["point"], str(cell["seed"])]
    body.append([*name, "float32", "32", "-", shown(cell["exact"]["test"])])
    for q in cell["quantized"]:
      step = f"{q['step']:.4f}" if "step" in q else "fitted"
      bits = f"{8 * q['bytes'] / cell['parameters']:.4f}"
      body.append([*name, step, bits, f"{q['bytes']:,}", shown(q["test"])])
  return report.Table("the files", header, body)


def classes_table(cells: list[Cell], examples: int) -> report.Table:
  """The smallest files that keep the accuracy.

  Args:
    cells: of `read`.
    examples: in the test split.
  """
  header = ["method", "seed", "float32"]
  for points in POINTS:
    header += [f"-{points:g}: bits", "bytes", "test"]
  body = []
  for method, seed in _groups(cells):
    exact = _baseline(cells, seed)
    own = [c for c in cells if (c["method"], c["seed"]) == (method, seed)]
    best = max(c["exact"]["test"]["accuracy"] for c in own)
    line = [method, str(seed), _percent(best, examples)]
    for points in POINTS:
      wanted = exact["validation"]["accuracy"] - points / 100
      good = [
        file
        for file in files_of(cells, method, seed)
        if file["validation"]["accuracy"] >= wanted - 1e-9
      ]
      if not good:
        line += ["-", "-", "-"]
        continue
      test = _percent(good[0]["test"]["accuracy"], examples)
      line += [f"{good[0]['bits']:.3f}", f"{good[0]['bytes']:,}", test]
    body.append(line)
  return report.Table("the smallest file within so many points", header, body)


def language_table(cells: list[Cell]) -> report.Table:
  """The bits that keep a part of what training gained."""
  header = ["method", "seed", "loss", "gain"]
  header += [f"{part:.0%}" for part in PARTS]
  body = []
  for method, seed in _groups(cells):
    # The coarsest file of the baseline has no difference left: the base.
    base = files_of(cells, BASELINE, seed)[0]["test"]["loss"]
    gain = base - _baseline(cells, seed)["test"]["loss"]
    files = files_of(cells, method, seed)
    own = [c for c in cells if (c["method"], c["seed"]) == (method, seed)]
    best = min(c["exact"]["test"]["loss"] for c in own)
    kept = [(base - file["test"]["loss"]) / gain for file in files]
    kept = np.maximum.accumulate(kept)
    logs = [math.log2(file["bits"]) for file in files]
    line = [method, str(seed), f"{best:.4f}", f"{base - best:.4f}"]
    for part in PARTS:
      if kept[-1] < part:
        line.append("-")
      elif kept[0] >= part:
        line.append(f"< {files[0]['bits']:.3f}")
      else:
        i = int(np.argmax(kept >= part))
        at = np.interp(part, kept[i - 1 : i + 1], logs[i - 1 : i + 1])
        line.append(f"{2 ** float(at):.3f}")
    body.append(line)
  return report.Table(
    "bits per parameter that keep a part of the gain", header, body
  )


def _groups(cells):
  return dict.fromkeys((cell["method"], cell["seed"]) for cell in cells)


def _baseline(cells, seed):
  """Scores of the unquantized model of the baseline."""
  return next(
    cell["exact"]
    for cell in cells
    if (cell["method"], cell["seed"]) == (BASELINE, seed)
  )


def _percent(accuracy, examples):
  error = math.sqrt(accuracy * (1 - accuracy) / examples)
  return f"{100 * accuracy:.1f} ± {100 * error:.1f}"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("workdir", type=pathlib.Path)
  parser.add_argument("--examples", type=int, default=872, help="of a split")
  parser.add_argument("--language", action="store_true")
  options = parser.parse_args()
  cells = read(options.workdir)
  if options.language:
    table = language_table(cells)
  else:
    table = classes_table(cells, options.examples)
  files = files_table(cells, loss=options.language)
  for name, shown in (("files", files), ("kept", table)):
    text = report.markdown(shown)
    atomic.write_text(options.workdir / f"{name}.md", text)
    print(text)


if __name__ == "__main__":
  program.end(main)
