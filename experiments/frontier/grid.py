"""The grid: methods x operating points x seeds, each coded to real files."""

import copy
import dataclasses
import itertools
import json
import pathlib
import re
from typing import Any

import ml_collections

from experiments import cells, evaluate, resume, scoring, settings
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
    The rows that the tables are made of, see `rows.of_cell`.

  Raises:
    UserError: what the user can mend, with the field or path it is about.
  """
  if "grid" not in config:
    raise settings.UserError(
      "config.grid is missing: --config must be one of configs/frontier_*.py"
    )
  if config.grid.tune and earlier is not None:
    raise settings.UserError(
      "--rows is for showing a grid; config.grid.tune compares learning rates"
    )
  planned, baseline = plan(config, workdir), config.grid.baseline
  before = [] if earlier is None else rows.read_csv(earlier)
  if not train:
    planned = [c for c in planned if (c.directory / evaluate.SHIPPED).exists()]
    shown = {c.method for c in planned} | {row["method"] for row in before}
    if not planned or baseline not in shown:
      raise settings.UserError(
        f"in {workdir / 'cells'} no cell, or none of {baseline}, is finished:"
        " without --norun they are trained"
      )
  resume.prepare_directory(workdir)
  found: dict[pathlib.Path, list[dict[str, Any]]] = {}
  table: list[dict[str, Any]] = []
  scores: dict[str, scoring.Score] = {}
  for number, cell in enumerate(cells.take(planned), start=1):
    print(f"cell {number} of {len(planned)}", flush=True)
    evaluation = cells.finish(cell, scores)
    found[cell.directory] = rows.of_cell(cell, evaluation)
    done = [c.directory for c in planned if c.directory in found]
    table = [row for directory in done for row in found[directory]]
    table = rows.merge(before, table, baseline)
    # Another process may still be at the baseline.
    comparable = any(row["method"] == baseline for row in table)
    if comparable and not config.grid.tune:
      report.write(table, config.grid, config.data.name, workdir)
  if config.grid.tune:
    report.write_tuning(table, config.grid, config.data.name, workdir)
    print((workdir / "tuning.md").read_text(), flush=True)
  return table


def plan(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> list[Cell]:
  """The cells in their order: a whole grid of the first seed, then the next.

  To tune the learning rates, every method is trained with each candidate at
  one of its operating points.

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
  trainings: dict[str, pathlib.Path] = {}
  for seed in grid.seeds:
    # The baseline first, since all others are compared with it.
    for name in sorted(grid.methods, key=lambda n: n != grid.baseline):
      method = grid.methods[name]
      points, rates = sorted(method.points), [method.learning_rate or usual]
      if grid.tune:
        points, rates = [method.tuned_at], grid.learning_rates
      for point, rate in itertools.product(points, rates):
        own = _cell_config(base, name, method, point)
        own.seed, own.optimizer.learning_rate = seed, rate
        label = f"{name}-{point}-seed{seed}"
        # Tuning and the grid that follows it, in one workdir, share trainings.
        if rate != usual:
          label += f"-rate{rate:g}"
        directory = workdir / "cells" / label
        key = json.dumps(resume.decisive(own), sort_keys=True)
        training = trainings.setdefault(key, directory)
        planned.append(
          Cell(
            config=own,
            directory=directory,
            training=training,
            method=name,
            point=point,
            seed=seed,
            learning_rate=rate,
          )
        )
  return planned


def _cell_config(base, name, method, point):
  """The checked config of an operating point; seed and rate are still open."""
  if not re.fullmatch(r"[A-Za-z0-9_]+", name + point):
    raise settings.UserError(
      f"config.grid.methods: {name!r}, {point!r} name a directory; use"
      " letters, digits, _"
    )
  own = copy.deepcopy(base).lock()
  try:
    own.update(method.fields)
    own.update(method.points[point])
    settings.check(own)
  except (KeyError, TypeError, ValueError, settings.UserError) as error:
    text = error.args[0] if error.args else error
    raise settings.UserError(
      f"in config.grid.methods.{name}, point {point}: {text}"
    ) from error
  return own
