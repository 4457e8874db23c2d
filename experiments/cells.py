"""Cells: a training and its evaluation, each done once.

The arms of an experiment, the cells of a grid and the cells of the paper are
lists of cells. `share` lets cells with the same training share it. `take`
divides a list between processes. `finish` trains and evaluates a cell.
"""

import contextlib
import dataclasses
import fcntl
import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import ml_collections
from jax.sharding import Mesh

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
  stored,
  train,
)

TRAINED = "trained.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
  """One training and its evaluation.

  Attributes:
    name: for messages and the progress bar.
    config: of both.
    directory: gets the coded file that is shipped and evaluation.json.
    training: gets the checkpoints, the metrics and the trained parameters; the
      same directory, unless another cell has the same training.
  """

  name: str
  config: ml_collections.ConfigDict
  directory: pathlib.Path
  training: pathlib.Path


AnyCell = TypeVar("AnyCell", bound=Cell)
# The compiled functions and the base of cells, by their model and data.
Scores = dict[str, tuple[scoring.Score, learner.Params]]


def of_arms(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> dict[str, Cell]:
  """The cells of an experiment by the names of its arms, the baseline first.

  Each arm has its own directory in workdir. A config without arms is one
  training in workdir itself.

  Raises:
    UserError: a field is unknown or its value is not usable.
  """
  cells = []
  for name, arm in settings.arms(config).items():
    directory = workdir / name if config.arms else workdir
    cells.append(
      Cell(name=name, config=arm, directory=directory, training=directory)
    )
  return {cell.name: cell for cell in share(cells)}


def share(cells: Iterable[AnyCell]) -> list[AnyCell]:
  """The cells; those with the same training use the directory of the first."""
  first: dict[str, pathlib.Path] = {}
  result = []
  for cell in cells:
    key = json.dumps(resume.decisive(cell.config), sort_keys=True)
    training = first.setdefault(key, cell.training)
    result.append(dataclasses.replace(cell, training=training))
  return result


@contextlib.contextmanager
def take(cells: Sequence[AnyCell]) -> Iterator[Iterable[AnyCell]]:
  """Yields an iterable of the cells; each is this process's while it is at it.

  First come the cells that nobody works at, in their order, then the others,
  as soon as they are free. A process that leaves or is killed frees its cell.
  """
  with contextlib.closing(_taken(cells)) as taken:
    yield taken


def _taken(cells):
  for wait in (False, True):
    busy = []
    for cell in cells:
      with _claim(cell.training, wait=wait) as free:
        if free:
          yield cell
        else:
          busy.append(cell)
    cells = busy


def finish(cell: Cell, scores: Scores) -> dict[str, Any]:
  """Returns the evaluation of a cell, and trains it first where necessary.

  A finished training keeps its exact parameters in place of its checkpoints,
  which are three times as large, so that it can be evaluated at other steps.

  Args:
    cell: what to train and evaluate.
    scores: those of earlier cells. Those of this cell are added.

  Returns:
    See `evaluate.evaluate`.
  """
  config, trained = cell.config, cell.training / TRAINED
  for directory in (cell.training, cell.directory):
    resume.prepare_directory(directory)
  kind = json.dumps(
    [f.to_dict() for f in (config.model, config.data, config.mesh)]
  )
  mesh = sharding.make_mesh(config)
  is_trained = bool(distributed.agree(trained.exists()))
  if is_trained:
    resume.check_same(config, cell.training)
  if not is_trained or kind not in scores:
    forward, params, base = _build(config)
    if kind not in scores:
      base = jax.device_get(base)
      scores[kind] = scoring.make_score(config, forward, mesh, base), base
    score, base = scores[kind]
    if not is_trained:
      params, steps = train.train(
        config, cell.training, cell.name, forward, params, score, mesh, base
      )
      _keep(trained, params, steps)
      del params
  if distributed.is_main():
    shutil.rmtree(cell.training / "checkpoints", ignore_errors=True)
    resume.save_config(config, cell.directory)
  # The evaluation is of what the file holds.
  params, steps = load(cell, mesh)
  source = None
  if jax.process_count() > 1:
    source = stored.like(params, stored_params(cell))
  score, base = scores[kind]
  resume.check_base(config, base, cell.training)
  return evaluate.evaluate(
    config, cell.directory, cell.name, params, score, steps, base, source
  )


def load(
  cell: Cell, mesh: Mesh | None = None
) -> tuple[learner.Params, learner.Steps]:
  """The result of a cell's training, as `train.train` returned it.

  Args:
    cell: a cell that is trained.
    mesh: over which the parameters are split; None: NumPy arrays.

  Raises:
    UserError: the file is damaged.
  """
  path = cell.training / TRAINED
  try:
    kept = bs.load(path) if mesh is None else stored.load(path, mesh)
  except bs.ArchiveError as error:
    raise settings.UserError(
      f"{error}; delete {path.parent} to train it again"
    ) from error
  return kept["params"], kept["steps"]


def stored_params(cell: Cell) -> dict[str, stored.Tensor]:
  """The trained parameters of a cell by name, each read when it is used."""
  return stored.tensors(cell.training / TRAINED, "params/")


@contextlib.contextmanager
def _claim(directory, *, wait):
  """Holds directory/lock; yields False if another process holds it."""
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
  """The model, what is trained and the base, see `learner.build_parts`."""
  try:
    task = data.load_task(config.data)
    if task.num_train < config.data.batch_size:
      raise ValueError(
        f"config.data.batch_size is {config.data.batch_size}, but {task.name}"
        f" has {task.num_train} training examples: choose a smaller one"
      )
    return learner.build_parts(config, task)
  except (ValueError, OSError) as error:
    raise settings.UserError(str(error)) from error


def _keep(path, params, steps):
  """Writes the result of a training; process 0 does it for all."""
  try:
    stored.save(path, params, steps)
  except OSError as error:
    raise settings.UserError(
      f"cannot write {path}: {error.strerror or error}"
    ) from error
  distributed.barrier("trained")
