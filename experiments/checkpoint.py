"""Checkpoints: parameters, optimizer state and the position in the data.

A checkpoint is written under another name and renamed, so a run that is killed
while it writes leaves no incomplete one. A checkpoint that cannot be read (a
damaged disk, a deleted file) is an error: falling back to an older one in
silence would hide the damage.
"""

import contextlib
import pathlib
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp

from experiments import settings


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
    return self

  def __exit__(self, kind, error, traceback):
    # The first error is the one to report.
    if error is None:
      with _explained("write a checkpoint in", self.directory):
        self._manager.close()

  @property
  def latest_update(self) -> int | None:
    return self._manager.latest_step()

  def reached_preemption(self, update: int) -> bool:
    """Whether the processes agreed to stop after `update`; all must ask."""
    return self._manager.reached_preemption(update)

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
    )
    path = self.directory / str(update)
    older = [u for u in self._manager.all_steps() if u < update]
    advice = (
      f"; delete that folder to resume from"
      f" {f'update {max(older)}' if older else 'the start'}"
    )
    with _explained("read the checkpoint", path, advice):
      return self._manager.restore(update, args=args)["state"]


@contextlib.contextmanager
def _explained(doing, path, advice=""):
  """Turns any error of orbax and tensorstore into a UserError."""
  try:
    yield
  except Exception as error:
    reason = " ".join(str(error).split()) or repr(error)
    if len(reason) > 300:  # The cause stands at the end.
      reason = f"{reason[:100]} ... {reason[-200:]}"
    raise settings.UserError(
      f"cannot {doing} {path}: {reason}{advice}"
    ) from error
