"""A training and its evaluation in directories of their own, done once.

A plan may have many of them; those that learn the same share one training.
"""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import ml_collections

import backslash_jax as bs
from experiments import (
  data,
  distributed,
  evaluate,
  learner,
  resume,
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


def finish(cell: Cell, scores: dict[str, evaluate.Score]) -> dict[str, Any]:
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
