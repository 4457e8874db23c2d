"""The grid: methods x operating points x seeds, coded to real files."""

import copy
import dataclasses
import itertools
import pathlib
from typing import Any

import ml_collections

from experiments import cells, evaluate, resume, settings
from experiments.frontier import report, rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell(cells.Cell):
  """A cell of the grid."""

  method: str
  point: str
  seed: int
  learning_rate: float


def run(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  *,
  train: bool = True,
  earlier: pathlib.Path | None = None,
) -> list[dict[str, Any]]:
  """Trains, codes and compares every cell of the grid.

  Args:
    config: of configs/default.py, with a `grid`.
    workdir: gets cells/, frontier.csv, frontier.md and frontier.png; where
      config.grid.tune is set, cells/, tuning.json and tuning.md.
    train: False leaves out the cells that are not finished.
    earlier: frontier.csv of an earlier run of the grid; its rows of cells that
      are not in this workdir are shown as well.

  Returns:
    The rows of the tables, see `rows.of_cell`.

  Raises:
    UserError: what the user can fix, with the field or path that it is about.
  """
  if "grid" not in config:
    raise settings.UserError(
      "config.grid is missing: --config must be one of configs/frontier_*.py"
    )
  if config.grid.tune and earlier is not None:
    raise settings.UserError(
      "--rows shows an earlier grid, but config.grid.tune compares learning"
      " rates: leave one of them out"
    )
  planned, baseline = plan(config, workdir), config.grid.baseline
  before = [] if earlier is None else rows.read_csv(earlier)
  if not train:
    planned = [c for c in planned if (c.directory / evaluate.SHIPPED).exists()]
    shown = {c.method for c in planned} | {row["method"] for row in before}
    if baseline not in shown:
      raise settings.UserError(
        f"{workdir / 'cells'} has no finished cell, or none of {baseline};"
        " leave out --norun to train them"
      )
  resume.prepare_directory(workdir)
  found: dict[pathlib.Path, list[dict[str, Any]]] = {}
  scores: cells.Scores = {}
  table = rows.merge(before, [], baseline)

  def write():
    # Another process may still train the baseline.
    comparable = any(row["method"] == baseline for row in table)
    if comparable and not config.grid.tune:
      report.write(table, config.grid, config.data.name, workdir)

  write()
  with cells.take(planned) as taken:
    for number, cell in enumerate(taken, start=1):
      print(f"cell {number} of {len(planned)}", flush=True)
      evaluation = cells.finish(cell, scores)
      found[cell.directory] = rows.of_cell(cell, evaluation)
      done = [c.directory for c in planned if c.directory in found]
      table = [row for directory in done for row in found[directory]]
      table = rows.merge(before, table, baseline)
      write()
  if config.grid.tune:
    report.write_tuning(table, config.grid, config.data.name, workdir)
    print((workdir / "tuning.md").read_text(), flush=True)
  return table


def plan(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> list[Cell]:
  """The cells in their order: a whole grid of the first seed, then the next.

  With grid.tune, every method is trained with each candidate of the learning
  rate, at one of its operating points.

  Raises:
    UserError: a field of the grid is unknown or its value is not usable.
  """
  grid = config.grid
  if grid.baseline not in grid.methods:
    raise settings.UserError(
      f"config.grid.baseline is {grid.baseline!r}, wanted one of"
      f" config.grid.methods: {', '.join(grid.methods)}"
    )
  base = copy.deepcopy(config).unlock()
  del base.grid
  usual = base.optimizer.learning_rate
  planned: list[Cell] = []
  for seed in grid.seeds:
    # These come first, since all others are compared with them.
    first = grid.plain, grid.baseline
    for name in sorted(
      grid.methods, key=lambda n: (n != first[0], n != first[1])
    ):
      method = grid.methods[name]
      points, rates = sorted(method.points), [method.learning_rate or usual]
      if grid.tune:
        points, rates = [method.tuned_at], grid.learning_rates
      for point, rate in itertools.product(points, rates):
        label = f"{name}-{point}-seed{seed}"
        # Tuning and the grid that follows it, in one workdir, share trainings.
        if rate != usual:
          label += f"-rate{rate:g}"
        directory = workdir / "cells" / label
        own = settings.changed(
          base,
          f"grid.methods.{name}, point {point}",
          f"{name}-{point}",
          method.fields,
          method.points[point],
          {"seed": seed, "optimizer": {"learning_rate": rate}},
        )
        planned.append(
          Cell(
            name=label,
            config=own,
            directory=directory,
            training=directory,
            method=name,
            point=point,
            seed=seed,
            learning_rate=rate,
          )
        )
  return cells.share(planned)
