"""Checkpoints: parameters, optimizer state, step and the place in the data.

A checkpoint is written beside its final name and renamed, so a run that is
killed while writing leaves none that is half there. One that cannot be read
all the same (a damaged disk, a deleted file) is an error and not skipped: to
fall back to an older one in silence would hide the damage.
"""

import contextlib
import pathlib
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp

from experiments import settings


class Checkpoints:
  """The checkpoints of one training, newest `keep` of them."""

  def __init__(self, directory: pathlib.Path, keep: int):
    self.directory = directory.absolute()
    with _explained("open the checkpoints in", self.directory):
      self._manager = ocp.CheckpointManager(
        self.directory,
        options=ocp.CheckpointManagerOptions(max_to_keep=keep),
      )

  def __enter__(self):
    return self

  def __exit__(self, kind, error, traceback):
    # What failed first is what the user should read.
    if error is None:
      with _explained("write a checkpoint in", self.directory):
        self._manager.close()

  @property
  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def reached_preemption(self, step: int) -> bool:
    """Whether the processes agreed to stop after `step`; all must ask."""
    return self._manager.reached_preemption(step)

  def save(self, step: int, state: Any, batches: grain.DatasetIterator):
    """Begins to write the checkpoint of `step`; goes on in the background."""
    if step in self._manager.all_steps():
      return
    self.wait()  # An error of the one before is not this one's.
    with _explained("write the checkpoint", self.directory / str(step)):
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          batches=grain.checkpoint.CheckpointSave(batches),
        ),
        force=True,
      )

  def wait(self):
    """Returns when the checkpoints that were begun are on the disk."""
    with _explained("write a checkpoint in", self.directory):
      self._manager.wait_until_finished()

  def restore(
    self, step: int, state: Any, batches: grain.DatasetIterator
  ) -> Any:
    """The state of `step`, shaped and placed as `state` is.

    Args:
      step: one there is a checkpoint of.
      state: a tree of arrays; only shapes, dtypes and shardings are read.
      batches: the iterator, which is set to where it was then.

    Raises:
      UserError: the checkpoint cannot be read.
    """
    args = ocp.args.Composite(
      state=ocp.args.StandardRestore(
        jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
      ),
      batches=grain.checkpoint.CheckpointRestore(batches),
    )
    path = self.directory / str(step)
    older = [s for s in self._manager.all_steps() if s < step]
    advice = (
      f"; delete that folder to go on from"
      f" {f'step {max(older)}' if older else 'the start'}"
    )
    with _explained("read the checkpoint", path, advice):
      return self._manager.restore(step, args=args)["state"]


@contextlib.contextmanager
def _explained(doing, path, advice=""):
  """Turns whatever orbax and tensorstore raise into one UserError."""
  try:
    yield
  except Exception as error:
    reason = " ".join(str(error).split()) or repr(error)
    if len(reason) > 300:  # The cause comes last.
      reason = f"{reason[:100]} ... {reason[-200:]}"
    raise settings.UserError(
      f"cannot {doing} {path}: {reason}{advice}"
    ) from error
