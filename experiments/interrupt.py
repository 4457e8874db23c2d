"""SIGTERM and SIGINT: training writes a checkpoint before it ends."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax

from experiments import settings


class StoppedError(settings.UserError):
  """A signal came, and a checkpoint was written."""

  def __init__(self, message: str, number: int):
    super().__init__(message)
    self.exit_code = 128 + number


@contextlib.contextmanager
def received() -> Iterator[list[int]]:
  """A list that the signal's number is put in; a second one ends at once.

  Only the main thread of a single process is served. Where there are several
  processes, the checkpoint manager makes them agree on a step to stop at.
  """
  numbers: list[int] = []
  before = {}

  def receive(number, frame):
    del frame
    numbers.append(number)
    signal.signal(number, before[number])

  main = threading.current_thread() is threading.main_thread()
  if main and jax.process_count() == 1:
    for number in (signal.SIGTERM, signal.SIGINT):
      before[number] = signal.signal(number, receive)
  try:
    yield numbers
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
