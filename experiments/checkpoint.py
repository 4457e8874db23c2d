"""Checkpoints: parameters, optimizer state and the position in the data.

A checkpoint is written under another name and renamed, so a run that is killed
while it writes leaves no incomplete one. It holds a digest of every array. A
checkpoint that cannot be read or differs from its digests (a damaged disk, a
deleted file) is an error: falling back to an older one in silence would hide
the damage.
"""

import asyncio
import contextlib
import gc
import itertools
import pathlib
import re
import sys
import time
import traceback
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp

from experiments import digest, distributed, settings

# Seconds that the readers of a refused checkpoint get to end.
_PATIENCE = 10.0

# Numbers the questions whether to stop, in all trainings of this process. The
# processes agree on the question after the last that one of them has asked: the
# update's number would never be that if the signal came before the first one.
_asked = itertools.count(1)


class Checkpoints:
  """The checkpoints of one training; the newest `keep` stay."""

  def __init__(self, directory: pathlib.Path, keep: int):
    self.directory = directory.absolute()
    with _explained("open the checkpoints in", self.directory):
      self._manager = ocp.CheckpointManager(
        self.directory,
        options=ocp.CheckpointManagerOptions(max_to_keep=keep),
      )

  def __enter__(self):
    self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
    return self

  def __exit__(self, kind, error, traceback):
    try:
      # The first error is the one to report.
      if error is None:
        with _explained("write a checkpoint in", self.directory):
          self._manager.close()
    finally:
      sys.unraisablehook = self._hook

  def _unraisable(self, found):
    """Hides what threads of tensorstore report after a failure."""
    if str(found.exc_value) != "Event loop is closed":
      self._hook(found)

  @property
  def latest_update(self) -> int | None:
    return self._manager.latest_step()

  def reached_preemption(self) -> bool:
    """Whether the processes agreed to stop now; all must ask equally often."""
    return self._manager.reached_preemption(next(_asked))

  def save(self, update: int, state: Any, batches: grain.DatasetIterator):
    """Starts to write the checkpoint of `update`, in the background."""
    if update in self._manager.all_steps():
      return
    self.wait()  # Reports an error of the previous checkpoint as its own.
    with _explained("write the checkpoint", self.directory / str(update)):
      self._manager.save(
        update,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          batches=grain.checkpoint.CheckpointSave(batches),
          written=ocp.args.JsonSave(_written(state, batches)),
        ),
        force=True,
      )

  def wait(self):
    """Returns when every checkpoint that was started is on the disk."""
    with _explained("write a checkpoint in", self.directory):
      self._manager.wait_until_finished()

  def restore(
    self, update: int, state: Any, batches: grain.DatasetIterator
  ) -> Any:
    """The state of `update`, shaped and placed as `state` is.

    Args:
      update: one that has a checkpoint.
      state: a tree of arrays; only shapes, dtypes and shardings are read.
      batches: the iterator, which is set to its position at that update.

    Raises:
      UserError: the checkpoint cannot be read.
    """
    args = ocp.args.Composite(
      state=ocp.args.StandardRestore(
        jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
      ),
      batches=grain.checkpoint.CheckpointRestore(batches),
      written=ocp.args.JsonRestore(),
    )
    path = self.directory / str(update)
    older = [u for u in self._manager.all_steps() if u < update]
    advice = (
      f"; delete that folder to resume from"
      f" {f'update {max(older)}' if older else 'the start'}"
    )
    with _explained("read the checkpoint", path, advice):
      restored = self._manager.restore(update, args=args)
      _verify(restored["written"], _written(restored["state"], batches))
      return restored["state"]


def _written(state, batches):
  """What tells a checkpoint from a damaged one, as JSON holds it.

  All processes are at the same position in the data.
  """
  return {"arrays": digest.of(state), "batches": batches.get_state()}


def _verify(wanted, found):
  """Raises ValueError if a checkpoint is not what was written."""
  before, now = wanted.get("arrays", {}), found["arrays"]
  damaged = [name for name in now if before.get(name) != now[name]]
  if damaged:
    more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
    raise ValueError(f"the array {damaged[0]}{more} differs from its digest")
  if wanted.get("batches") != found["batches"]:
    raise ValueError(
      f"the position in the data is {found['batches']}, written was"
      f" {wanted.get('batches')}"
    )


@contextlib.contextmanager
def _explained(doing, path, advice=""):
  """Turns any error of orbax and tensorstore into a UserError."""
  try:
    with distributed.waiting(f"{doing} {path}"):
      yield
    return
  except Exception as error:
    reason = _reason(error)
    details = "".join(traceback.format_exception(error))
    # The frames hold what orbax left behind.
    traceback.clear_frames(error.__traceback__)
  _end_readers()
  raise settings.UserError(f"cannot {doing} {path}: {reason}{advice}", details)


def _reason(error):
  """The first cause in one line, without the specification of the array."""
  while cause := error.__cause__ or error.__context__:
    error = cause
  text = re.split(r" \[[a-z_ ]+=|\{", str(error))[0]
  text = " ".join(text.split())
  return text[:300] if " " in text else repr(error)  # Of a key, only a name.


def _end_readers():
  """Waits for the reads that orbax began, and collects what waits for them.

  Orbax closes its event loop at the first error. The other reads end later, in
  threads of tensorstore. The coroutines that waited for them complain when they
  are collected.
  """
  before = sys.unraisablehook
  sys.unraisablehook = lambda found: None
  try:
    end = time.monotonic() + _PATIENCE
    gc.collect()
    while _readers() and time.monotonic() < end:
      time.sleep(0.01)
      gc.collect()
  finally:
    sys.unraisablehook = before


def _readers():
  """How many coroutines wait in an event loop that is closed."""
  tasks = (x for x in gc.get_objects() if isinstance(x, asyncio.Task))
  return sum(not t.done() and t.get_loop().is_closed() for t in tasks)
