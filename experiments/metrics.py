"""Outputs of a training: JSON lines, TensorBoard events and the terminal.

metrics.jsonl holds no wall-clock time, so a run that was killed and resumed
ends with the same file as an unbroken one.
"""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping

import rich.console
import rich.progress
import tensorboardX

from experiments import atomic, settings


class Writer:
  """Appends records to metrics.jsonl and to TensorBoard event files."""

  def __init__(self, directory: pathlib.Path, update: int):
    """Continues after `update`; drops later records, of a run cut off."""
    self.path = directory / "metrics.jsonl"
    kept = [r for r in read(self.path) if r["update"] <= update]
    atomic.write_text(self.path, "".join(json.dumps(r) + "\n" for r in kept))
    try:
      self._file = self.path.open("a")
      self._events = tensorboardX.SummaryWriter(
        str(directory / "tensorboard"), purge_step=update + 1
      )
    except OSError as error:
      raise self._unwritable(error) from error

  def __enter__(self):
    return self

  def __exit__(self, kind, error, traceback):
    # After a failed write closing fails again; the first error says why.
    with contextlib.suppress(*([] if error is None else [OSError])):
      self._events.close()
      self._file.close()

  def write(self, update: int, split: str, values: Mapping[str, float]):
    """Writes one record: update, split and the values."""
    try:
      self._file.write(
        json.dumps({"update": update, "split": split, **values}) + "\n"
      )
      self._file.flush()
    except OSError as error:
      raise self._unwritable(error) from error
    for name, value in values.items():
      self._events.add_scalar(f"{split}/{name}", value, update)

  def flush(self):
    """Returns when every record is on the disk."""
    try:
      self._file.flush()
      os.fsync(self._file.fileno())
    except OSError as error:
      raise self._unwritable(error) from error

  def _unwritable(self, error):
    return settings.UserError(
      f"cannot write {self.path}: {error.strerror or error}"
    )


def read(path: pathlib.Path) -> list[dict]:
  """The records of a metrics.jsonl, oldest first; [] if the file is missing.

  An incomplete last line is left out.

  Raises:
    UserError: another line is not a record.
  """
  lines = path.read_text().splitlines() if path.exists() else []
  records = []
  for number, line in enumerate(lines, 1):
    try:
      record = json.loads(line)
      record["update"], record["split"]
    except (ValueError, KeyError, TypeError):
      if number < len(lines):
        raise settings.UserError(
          f"{path}, line {number}, is not a record of metrics: {line[:60]!r}"
        ) from None
    else:
      records.append(record)
  return records


class Progress:
  """A bar in a terminal; otherwise a line at every log interval."""

  def __init__(self, name: str, start: int, total: int, log_every: int):
    self._name, self._start, self._total = name, start, total
    self._log_every = log_every
    self._rate = {"nu": math.nan, "bits": math.nan}
    self._began = time.monotonic()
    self._console = console = rich.console.Console()
    self._bar = None
    if console.is_terminal:
      self._bar = rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width=None),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[values]}"),
        rich.progress.TimeRemainingColumn(),
        console=console,
      )
      self._task = self._bar.add_task(
        name, total=total, completed=start, values=""
      )

  def __enter__(self):
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, kind, error, traceback):
    # After a failure the terminal may be gone too; the first error says why.
    with contextlib.suppress(*([] if error is None else [OSError])):
      if self._bar:
        self._bar.stop()

  def show(self, update: int, values: Mapping[str, float]):
    """Shows the progress after `update`."""
    if update == self._total and values.get("unmet"):
      way = "above" if values["unmet"] > 0 else "below"
      self._console.print(
        f"{self._name} {update}/{self._total}  the target was missed:"
        f" {values['bits']:.2f} bits per parameter are {way}"
        " config.rate.target",
        soft_wrap=True,
      )
    # Normal training measures them at some updates; show the latest values.
    known = {k: values[k] for k in self._rate if math.isfinite(values[k])}
    self._rate |= known
    text = (
      f"loss {values['loss']:.3f}  accuracy {values['accuracy']:.1%}"
      f"  nu {self._rate['nu']:.2f}  bits {self._rate['bits']:.2f}"
    )
    if self._bar:
      self._bar.update(self._task, completed=update, values=text)
    elif update % self._log_every == 0 or update == self._total:
      elapsed = time.monotonic() - self._began
      left = elapsed / (update - self._start) * (self._total - update)
      minutes, seconds = divmod(math.ceil(left), 60)
      print(
        f"{self._name} {update}/{self._total}  {text}"
        f"  left {minutes}:{seconds:02d}",
        flush=True,
      )


class Nowhere:
  """In the processes that write nothing: a Writer and a Progress."""

  def write(self, update: int, split: str, values: Mapping[str, float]):
    """Does nothing, as the other methods."""

  def flush(self):
    pass

  def show(self, update: int, values: Mapping[str, float]):
    pass
