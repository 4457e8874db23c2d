"""The frontier: methods x operating points x seeds, each coded to real files.

python -m experiments.frontier --config=configs/frontier_modules.py \\
  --workdir=runs/frontier_modules

The grid is data, `config.grid`, as configs/frontier.py describes it. Every cell
trains and evaluates in a directory of its own, as in experiments.main. A grid
that was stopped goes on where it was, and the results are written after every
cell.
"""

import copy
import dataclasses
import itertools
import json
import pathlib
import re
import shutil
from typing import Any

import ml_collections

import backslash_jax as bs
from experiments import (
  data,
  distributed,
  evaluate,
  frontier_report,
  learner,
  main,
  settings,
  sharding,
  train,
)

TRAINED = "trained.safetensors"


@dataclasses.dataclass(frozen=True)
class Cell:
  """One training and its evaluation.

  `training` is the directory of the first cell with the same training: cells
  that differ only in how their model is coded share it.
  """

  method: str
  point: str
  seed: int
  learning_rate: float
  config: ml_collections.ConfigDict
  directory: pathlib.Path
  training: pathlib.Path


def run(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> list[dict[str, Any]]:
  """Trains, codes and compares every cell of the grid.

  Args:
    config: of configs/default.py, with a `grid`.
    workdir: gets cells/, frontier.csv, frontier.md and frontier.png; where
      config.grid.tune is set, cells/ and tuning.json.

  Returns:
    The rows that the tables are made of, see `frontier_report.rows`.

  Raises:
    UserError: what the user can mend, with the field or path it is about.
  """
  if "grid" not in config:
    raise settings.UserError(
      "config.grid is missing: --config must be one of configs/frontier_*.py"
    )
  cells = plan(config, workdir)
  settings.prepare_directory(workdir)
  rows: list[dict[str, Any]] = []
  scores: dict[str, evaluate.Score] = {}
  for number, cell in enumerate(cells, start=1):
    print(f"cell {number} of {len(cells)}", flush=True)
    evaluation = finish(cell, scores)
    rows += frontier_report.rows(cell, evaluation)
    if not config.grid.tune:
      frontier_report.write(rows, config.grid, config.data.name, workdir)
  if config.grid.tune:
    _write_tuning(frontier_report.tuned(rows, config.grid.bits), workdir)
  return rows


def plan(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> list[Cell]:
  """The cells in their order: a whole grid of the first seed, then the next.

  To tune the learning rates, every method is trained with each candidate at
  one of its operating points, with the first seed.

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
  cells: list[Cell] = []
  trainings: dict[str, pathlib.Path] = {}
  for seed in grid.seeds[:1] if grid.tune else grid.seeds:
    # The baseline first, since all others are compared with it.
    for name in sorted(grid.methods, key=lambda n: n != grid.baseline):
      method = grid.methods[name]
      points, rates = sorted(method.points), [method.learning_rate]
      if grid.tune:
        points, rates = [method.tuned_at], grid.learning_rates
      for point, rate in itertools.product(points, rates):
        own = _cell_config(base, name, method, point)
        own.seed, own.optimizer.learning_rate = seed, rate
        label = f"{name}-{point}-seed{seed}"
        if grid.tune:
          label += f"-rate{rate:g}"
        directory = workdir / "cells" / label
        key = json.dumps(settings.decisive(own), sort_keys=True)
        training = trainings.setdefault(key, directory)
        cells.append(Cell(name, point, seed, rate, own, directory, training))
  return cells


def finish(cell: Cell, scores: dict[str, evaluate.Score]) -> dict[str, Any]:
  """The evaluation of a cell, trained if it is not yet.

  The exact parameters are kept in place of the checkpoints, a third of their
  size, so that other steps can be evaluated later.

  Args:
    cell: of `plan`.
    scores: what was compiled for other cells and serves this one too, or gets
      what was compiled for this one.
  """
  config, trained = cell.config, cell.training / TRAINED
  name = cell.directory.name
  settings.prepare_directory(cell.training)
  settings.prepare_directory(cell.directory)
  kind = json.dumps(
    [f.to_dict() for f in (config.model, config.data, config.mesh)]
  )
  mesh = sharding.make_mesh(config)
  is_trained = trained.exists()
  if is_trained:
    settings.check_same(config, cell.training)
  if not is_trained or kind not in scores:
    forward, params = _build(config)
    scores.setdefault(kind, evaluate.make_score(config, forward, mesh))
    if not is_trained:
      params = train.train(
        config, cell.training, name, forward, params, scores[kind], mesh
      )
      _save(trained, distributed.gather(params))
  shutil.rmtree(cell.training / "checkpoints", ignore_errors=True)
  # Read back, so that the evaluation is of what is kept.
  params = _load(trained)
  return evaluate.evaluate(config, cell.directory, name, params, scores[kind])


def _build(config):
  """The model and its initial parameters."""
  try:
    return learner.build(config, data.load_task(config.data))
  except (ValueError, OSError) as error:
    raise settings.UserError(str(error)) from error


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


def _save(path, params):
  try:
    bs.save(path, params, select=())
  except OSError as error:
    raise settings.UserError(
      f"cannot write {path}: {error.strerror or error}"
    ) from error


def _load(path):
  try:
    return bs.load(path)
  except bs.ArchiveError as error:
    raise settings.UserError(
      f"{error}; delete {path.parent} to train it again"
    ) from error


def _write_tuning(tuned, workdir):
  text = json.dumps(tuned, indent=2)
  try:
    (workdir / "tuning.json").write_text(text + "\n")
  except OSError as error:
    raise settings.UserError(
      f"cannot write in {workdir}: {error.strerror or error}"
    ) from error
  for method, found in tuned.items():
    print(f"{method}: learning rate {found['learning_rate']:g}")


if __name__ == "__main__":
  main.launch(run)
