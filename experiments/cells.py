"""A training and its evaluation in directories of their own, done once.

A plan may have many of them; those that learn the same share one training.
Several processes may work at one plan: each takes what no other works at.
"""

import contextlib
import dataclasses
import fcntl
import json
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import jax
import ml_collections

import backslash_jax as bs
from experiments import (
  data,
  distributed,
  evaluate,
  learner,
  resume,
  scoring,
  settings,
  sharding,
  train,
)

TRAINED = "trained.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
  """One training and its evaluation.

  `training` is the directory of the first cell with the same training: cells
  that differ only in how their model is coded share it.
  """

  config: ml_collections.ConfigDict
  directory: pathlib.Path
  training: pathlib.Path


AnyCell = TypeVar("AnyCell", bound=Cell)


def finish(cell: Cell, scores: dict[str, scoring.Score]) -> dict[str, Any]:
  """The evaluation of a cell, trained if it is not yet.

  The exact parameters are kept in place of the checkpoints, a third of their
  size, so that other steps can be evaluated later.

  Args:
    cell: what to train and evaluate.
    scores: what was compiled for other cells and serves this one too, or gets
      what was compiled for this one.
  """
  config, trained = cell.config, cell.training / TRAINED
  name = cell.directory.name
  resume.prepare_directory(cell.training)
  resume.prepare_directory(cell.directory)
  kind = json.dumps(
    [f.to_dict() for f in (config.model, config.data, config.mesh)]
  )
  mesh = sharding.make_mesh(config)
  is_trained = trained.exists()
  if is_trained:
    resume.check_same(config, cell.training)
  if not is_trained or kind not in scores:
    forward, params = _build(config)
    scores.setdefault(kind, scoring.make_score(config, forward, mesh))
    if not is_trained:
      params, steps = train.train(
        config, cell.training, name, forward, params, scores[kind], mesh
      )
      _save(trained, {"params": distributed.gather(params), "steps": steps})
  shutil.rmtree(cell.training / "checkpoints", ignore_errors=True)
  # Read back, so that the evaluation is of what is kept.
  params, steps = load(cell)
  return evaluate.evaluate(
    config, cell.directory, name, params, scores[kind], steps
  )


def load(cell: Cell) -> tuple[learner.Params, learner.Steps]:
  """What a cell's training has left: see `train.train`.

  Raises:
    UserError: the file is damaged.
  """
  path = cell.training / TRAINED
  try:
    kept = bs.load(path)
  except bs.ArchiveError as error:
    raise settings.UserError(
      f"{error}; delete {path.parent} to train it again"
    ) from error
  return kept["params"], kept["steps"]


def take(planned: Sequence[AnyCell]) -> Iterator[AnyCell]:
  """Yields every cell, each while no other process works at its training.

  First come those that nobody works at, in their order; then the others, once
  they are free. A process that is killed frees its cell.
  """
  for wait in (False, True):
    busy = []
    for cell in planned:
      with _claim(cell.training, wait=wait) as free:
        if free:
          yield cell
        else:
          busy.append(cell)
    planned = busy


@contextlib.contextmanager
def _claim(directory, *, wait):
  """Holds directory/lock; False where another process does, unless we wait."""
  if jax.process_count() > 1:  # These work at every cell together.
    yield True
    return
  resume.prepare_directory(directory)
  with (directory / "lock").open("w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
      yield False
      return
    yield True


def _build(config):
  """The model and its initial parameters."""
  try:
    return learner.build(config, data.load_task(config.data))
  except (ValueError, OSError) as error:
    raise settings.UserError(str(error)) from error


def _save(path, kept):
  try:
    bs.save(path, kept, select=())
  except OSError as error:
    raise settings.UserError(
      f"cannot write {path}: {error.strerror or error}"
    ) from error
