"""The results of a grid: tables of rates at equal accuracy, and a plot.

A method's curve of one seed is the upper envelope of all of its files, of every
operating point and step. The validation split decides which files are on it;
the accuracy shown is that of the test split.
"""

import json
import pathlib
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import ml_collections

from experiments import atomic, plots, report
from experiments.frontier import bjontegaard
from experiments.frontier.rows import Row, write_csv

Curves = dict[str, dict[int, bjontegaard.Curve]]  # Of method and seed.


def write(
  rows: Sequence[Row],
  grid: ml_collections.ConfigDict,
  task: str,
  directory: pathlib.Path,
) -> None:
  """Writes frontier.csv, frontier.md and frontier.png into directory.

  The tables of frontier.md are also in rates.md, accuracies.md and best.md.

  Args:
    rows: of `rows.of_cell`, of all cells so far.
    grid: of the config.
    task: its name.
    directory: an existing one.
  """
  curves = make_curves(rows)
  tables = make_tables(curves, grid, task)
  atomic.write(directory / "frontier.csv", lambda file: write_csv(file, rows))
  atomic.write_text(directory / "frontier.md", _markdown(tables, grid, task))
  for name, table in tables.items():
    atomic.write_text(directory / f"{name}.md", report.markdown(table))
  atomic.write(
    directory / "frontier.png",
    lambda file: plots.write_frontier(file, curves, grid.baseline, task),
  )


def make_curves(rows: Iterable[Row]) -> Curves:
  """The curve of every method and seed, methods in the order of the rows."""
  groups: dict[str, dict[int, list[Row]]] = {}
  for row in rows:
    groups.setdefault(row["method"], {}).setdefault(row["seed"], []).append(row)
  return {
    method: {seed: _curve(files) for seed, files in seeds.items()}
    for method, seeds in groups.items()
  }


def make_tables(
  curves: Curves, grid: ml_collections.ConfigDict, task: str
) -> dict[str, report.Table]:
  """Rates at equal accuracy, accuracies at equal rate, and the best method's.

  Args:
    curves: of `make_curves`; those of the baseline are compared with, seed by
      seed.
    grid: its fields baseline, plain, best, bits and floor.
    task: its name.

  Returns:
    The tables "rates", "accuracies" and, where `best` was run, "best".
  """
  baseline = curves[grid.baseline]
  floors = {s: grid.floor * curve.metric[-1] for s, curve in baseline.items()}
  plain = None if grid.plain == grid.baseline else curves.get(grid.plain)
  differences, accuracies = [], []
  for method, own in curves.items():
    seeds = [s for s in own if s in baseline]
    differences.append(
      [method, *_difference(baseline, own, floors)]
      + ([] if plain is None else [_difference(plain, own, floors)[1]])
      + [
        report.spread(
          [_at_equal_metric(baseline[s], own[s], b) for s in seeds], "+.1f"
        )
        for b in grid.bits
      ]
    )
    accuracies.append(
      [method, str(len(own))]
      + [
        report.spread([_percent(c, b) for c in own.values()], ".1f")
        for b in grid.bits
      ]
    )
  at = [f"at {b:g} bits" for b in grid.bits]
  mean = ["seeds", "mean", "accuracies"]
  beside = [] if plain is None else [f"against {grid.plain}"]
  tables = {
    "rates": report.Table(
      f"{task}: % of rate at equal accuracy, against {grid.baseline}",
      ["method", *mean, *beside, *at],
      differences,
    ),
    "accuracies": report.Table(
      f"{task}: test accuracy, %", ["method", "seeds", *at], accuracies
    ),
  }
  best = curves.get(grid.best)
  if best:
    tables["best"] = report.Table(
      f"{task}: % of rate at equal accuracy, {grid.best} against the others",
      ["against", *mean],
      [
        [method, *_difference(own, best, floors)]
        for method, own in curves.items()
        if method != grid.best
      ],
    )
  return tables


def _difference(baseline, own, floors):
  """Seeds compared, mean difference of the rate, accuracies in common."""
  seeds = [s for s in own if s in baseline and s in floors]
  found = [
    bjontegaard.rate_difference(baseline[s], own[s], low=floors[s])
    for s in seeds
  ]
  good = [f for f in found if f is not None]
  compared = "no overlap"
  if good:
    low, high = (
      100 * statistics.mean(x) for x in zip(*[f[1:] for f in good], strict=True)
    )
    compared = f"{low:.1f} to {high:.1f}"
  percents = report.spread([f.percent for f in good], "+.1f")
  return [f"{len(good)} of {len(seeds)}", percents, compared]


def write_tuning(
  rows: Sequence[Row],
  grid: ml_collections.ConfigDict,
  task: str,
  directory: pathlib.Path,
) -> None:
  """Writes tuning.json, see `tuned`, and tuning.md into directory.

  Args:
    rows: of the methods with the candidates; what is missing is shown as "-".
    grid: of the config.
    task: its name.
    directory: an existing one.
  """
  found = tuned(rows, grid)
  table = report.Table(
    f"{task}: scores of learning rates, %",
    ["method", "point", "best", *[f"{r:g}" for r in grid.learning_rates]],
    [
      [method, grid.methods[method].tuned_at, f"{of['learning_rate']:g}"]
      + [_score(of["scores"].get(r)) for r in grid.learning_rates]
      for method, of in found.items()
    ],
  )
  text = json.dumps(found, indent=2) + "\n"
  atomic.write_text(directory / "tuning.json", text)
  atomic.write_text(directory / "tuning.md", report.markdown(table))


def tuned(
  rows: Sequence[Row], grid: ml_collections.ConfigDict
) -> dict[str, Any]:
  """Each method's best learning rate, and the scores of all candidates.

  A score is the best validation accuracy of a file of at most so many bits per
  parameter, averaged over grid.bits and the seeds. As in the tables, accuracies
  below a floor, grid.floor times the best of the baseline of that seed, do not
  count: less than that, or no file as small, is as good as the floor.
  """
  groups: dict[str, dict[float, dict[int, list[Row]]]] = {}
  floors: dict[int, float] = {}
  for row in rows:
    seed, of_method = row["seed"], groups.setdefault(row["method"], {})
    of_rate = of_method.setdefault(row["learning_rate"], {})
    of_rate.setdefault(seed, []).append(row)
    if row["method"] == grid.baseline:
      own = grid.floor * row["validation_accuracy"]
      floors[seed] = max(own, floors.get(seed, 0.0))

  def best(files, seed, bits):
    small = [f["validation_accuracy"] for f in files if f["bits"] <= bits]
    return max([floors.get(seed, 0.0), *small])

  result = {}
  for method, candidates in groups.items():
    scores = {
      rate: statistics.mean(
        best(files, seed, b) for seed, files in seeds.items() for b in grid.bits
      )
      for rate, seeds in sorted(candidates.items())
    }
    chosen = max(scores, key=lambda rate: scores[rate])
    result[method] = {"learning_rate": chosen, "scores": scores}
  return result


def _score(fraction):
  return "-" if fraction is None else f"{100 * fraction:.1f}"


def _curve(files):
  rates = [f["bits"] for f in files]
  chosen = bjontegaard.front(rates, [f["validation_accuracy"] for f in files])
  return bjontegaard.curve(
    [rates[i] for i in chosen], [files[i]["test_accuracy"] for i in chosen]
  )


def _at_equal_metric(baseline, own, bits):
  """% of rate that is saved where the baseline takes so many bits, or None."""
  metric = bjontegaard.metric_at(baseline, bits)
  if metric is None:
    return None
  # Where a curve is flat, this is not quite `bits`.
  before = bjontegaard.rate_at(baseline, metric)
  rate = bjontegaard.rate_at(own, metric)
  return None if not (rate and before) else 100 * (rate / before - 1)


def _percent(curve, bits):
  metric = bjontegaard.metric_at(curve, bits)
  return None if metric is None else 100 * metric


_LEGEND = """\
Each method's curve is the upper envelope of its coded files, of all operating
points and quantization steps. It is chosen on the validation split; the numbers
are those of the test split. Bits are those of the whole file, per parameter of
the model. The mean is the Bjontegaard difference of the rate, over the
accuracies (%) that both curves reach, without those below {floor:.0%} of the
best of {baseline}; -30 means 30% smaller files. The same against {plain} is
beside it, where that was run. The columns after it are the difference at the
accuracy that {baseline} has at so many bits. Nothing is extrapolated: "-" means
that a curve does not reach the value. ± is the standard deviation over the
seeds. The second table has the accuracy of files of so many bits. The third, if
{best} was run, is its mean difference against each of the others.
"""


def _markdown(tables, grid, task):
  legend = _LEGEND.format(
    floor=grid.floor, baseline=grid.baseline, plain=grid.plain, best=grid.best
  )
  parts = [f"# The frontier of {task}\n", legend]
  parts += [report.markdown(table) for table in tables.values()]
  parts.append("![Accuracy against bits per parameter](frontier.png)\n")
  return "\n".join(parts)
