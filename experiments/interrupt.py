"""SIGTERM, SIGINT, SIGHUP: training writes a checkpoint before it stops."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax

from experiments import settings


class StoppedError(settings.UserError):
  """Training stopped on a signal, after it wrote a checkpoint."""

  def __init__(self, message: str, number: int):
    super().__init__(message)
    self.exit_code = 128 + number


@contextlib.contextmanager
def received() -> Iterator[list[int]]:
  """Yields a list that gets a signal's number; a second signal ends at once.

  It handles signals in the main thread of a single process. With several
  processes, the checkpoint manager makes them agree on an update to stop at.
  What is ignored, as SIGHUP is under nohup, stays ignored. After a SIGHUP,
  output to the terminal goes nowhere: it is gone, and writing to it fails.
  """
  numbers: list[int] = []
  before = {}
  terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

  def receive(number, frame):
    del frame
    numbers.append(number)
    if number == signal.SIGHUP:
      _silence(terminals)
    signal.signal(number, before[number])

  main = threading.current_thread() is threading.main_thread()
  if main and jax.process_count() == 1:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
      if signal.getsignal(number) is not signal.SIG_IGN:
        before[number] = signal.signal(number, receive)
  try:
    yield numbers
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _silence(descriptors: list[int]) -> None:
  """Lets descriptors write to nowhere."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  for descriptor in descriptors:
    os.dup2(nowhere, descriptor)
  os.close(nowhere)
