"""Where the numbers of a training go: JSON lines, TensorBoard, terminal.

metrics.jsonl holds what training determines and no wall-clock time: a run
that was killed and resumed ends with the same file as an unbroken one.
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

from experiments import settings


class Writer:
  """Appends records to metrics.jsonl and to TensorBoard event files."""

  def __init__(self, directory: pathlib.Path, step: int):
    """Goes on after `step`: later records are of a run that was cut off."""
    self.path = directory / "metrics.jsonl"
    kept = [r for r in read(self.path) if r["step"] <= step]
    fresh = self.path.with_suffix(".tmp")
    try:
      fresh.write_text("".join(json.dumps(r) + "\n" for r in kept))
      os.replace(fresh, self.path)
      self._file = self.path.open("a")
      self._events = tensorboardX.SummaryWriter(
        str(directory / "tensorboard"), purge_step=step + 1
      )
    except OSError as error:
      raise self._unwritable(error) from error

  def __enter__(self):
    return self

  def __exit__(self, kind, error, traceback):
    # After a failed write, closing fails again; the first says why.
    with contextlib.suppress(*([] if error is None else [OSError])):
      self._events.close()
      self._file.close()

  def write(self, step: int, split: str, values: Mapping[str, float]):
    """Writes one record: step, split and the values."""
    try:
      self._file.write(
        json.dumps({"step": step, "split": split, **values}) + "\n"
      )
      self._file.flush()
    except OSError as error:
      raise self._unwritable(error) from error
    for name, value in values.items():
      self._events.add_scalar(f"{split}/{name}", value, step)

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
  """The records of a metrics.jsonl, oldest first; [] where there is none.

  A last line that was cut off in the middle is left out.

  Raises:
    UserError: another line is not a record.
  """
  lines = path.read_text().splitlines() if path.exists() else []
  records = []
  for number, line in enumerate(lines, 1):
    try:
      record = json.loads(line)
      record["step"], record["split"]
    except (ValueError, KeyError, TypeError):
      if number < len(lines):
        raise settings.UserError(
          f"{path}, line {number}, is not a record of metrics: {line[:60]!r}"
        ) from None
    else:
      records.append(record)
  return records


class Progress:
  """A bar where there is a terminal, else a line at every log interval."""

  def __init__(self, name: str, start: int, total: int, log_every: int):
    self._name, self._start, self._total = name, start, total
    self._log_every = log_every
    self._is_unmet = False
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
    if self._bar:
      self._bar.stop()

  def update(self, step: int, values: Mapping[str, float]):
    """Shows where training stands after `step`."""
    if not self._is_unmet and 10 * abs(values.get("unmet", 0)) > self._total:
      self._is_unmet = True
      way = "above" if values["unmet"] > 0 else "below"
      self._console.print(
        f"{self._name} {step}/{self._total}  the target is out of reach:"
        f" {values['bits']:.2f} bits per parameter are {way}"
        " config.rate.target, however lambda is chosen",
        soft_wrap=True,
      )
    # What was last known: a normal training measures it now and then.
    known = {k: values[k] for k in self._rate if math.isfinite(values[k])}
    self._rate |= known
    text = (
      f"loss {values['loss']:.3f}  accuracy {values['accuracy']:.1%}"
      f"  nu {self._rate['nu']:.2f}  bits {self._rate['bits']:.2f}"
    )
    if self._bar:
      self._bar.update(self._task, completed=step, values=text)
    elif step % self._log_every == 0 or step == self._total:
      elapsed = time.monotonic() - self._began
      left = elapsed / (step - self._start) * (self._total - step)
      minutes, seconds = divmod(math.ceil(left), 60)
      print(
        f"{self._name} {step}/{self._total}  {text}"
        f"  left {minutes}:{seconds:02d}",
        flush=True,
      )


class Nowhere:
  """Takes the records of the processes that do not write any."""

  def write(self, step: int, split: str, values: Mapping[str, float]):
    """As of Writer."""

  def flush(self):
    """As of Writer."""

  def update(self, step: int, values: Mapping[str, float]):
    """As of Progress."""
