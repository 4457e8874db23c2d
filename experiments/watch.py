"""Ends a process that waits for the others in vain, and says for which.

Every process publishes what it does in the key-value store of JAX's
coordination service, in a thread of its own. A process that waits reads what
the others published. So it can tell a process that is at work, which may take
its time, from one that is gone, stopped, or itself waits for something else.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

_KEY = "backslash_jax/watch/"
# A process that is at work may keep the others waiting so many times as long.
_PATIENCE = 10
ADVICE = (
  "The same command, run on all processes, resumes from the last checkpoint"
)


class Watch:
  """Publishes what this process does, and ends it if it waits in vain.

  Args:
    client: of JAX's coordination service.
    process: number of this process.
    processes: how many there are.
    timeout: seconds after which a wait ends, if another process has been silent
      or all others have been waiting for as long. While one is at work the wait
      ends after 10 times as long.
    end: called with the message; None: `leave`.
  """

  def __init__(
    self,
    client: Any,
    process: int,
    processes: int,
    timeout: float,
    end: Callable[[str], None] | None = None,
  ):
    self._client, self._process, self._processes = client, process, processes
    self._timeout, self._end = timeout, end or self.leave
    # Seconds between two beats; all processes ask one of them.
    self._interval = min(1 + processes / 64, timeout / 20)
    self._wait: tuple[str, float, str] | None = None
    self._error: str | None = None
    self._count = 0
    # What each process published last, when that was seen to change, and when
    # its wait was.
    self._seen: dict[int, tuple[dict[str, Any], float, float]] = {}
    self._lock = threading.Lock()

  def start(self) -> None:
    """Begins to beat, in a thread."""

    def run():
      while True:
        self.beat()
        time.sleep(self._interval)

    threading.Thread(target=run, daemon=True, name="watch").start()

  def beat(self) -> None:
    """Publishes, and ends this process if it waits in vain."""
    with _without_service():
      self._publish()
    wait = self._wait
    if wait is None or self._error is not None:
      return
    purpose, began, since = wait
    waited = time.monotonic() - began
    if waited < 3 * self._interval:
      return
    with _without_service():
      self._look()
    reason = self._reason(waited)
    if reason and self._wait is wait:
      self._end(
        f"process {self._process} waits since {since}, for {waited:.0f} s, to"
        f" {purpose}: {reason}. {ADVICE}"
      )

  @contextlib.contextmanager
  def waiting(self, purpose: str) -> Iterator[None]:
    """Inside, this process counts as waiting for the others."""
    before = self._wait
    self._wait = purpose, time.monotonic(), now()
    try:
      yield
    finally:
      self._wait = before

  def leave(self, message: str, code: int = 1) -> None:
    """Ends the process with an error, and tells the others."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    self._error = message
    tell = threading.Thread(target=self.beat, daemon=True)
    tell.start()
    tell.join(3 * self._interval)
    if self._process == 0:  # The service goes with it: the others hear first.
      time.sleep(3 * self._interval)
    leave(code)

  def _publish(self):
    with self._lock:
      self._count += 1
      wait = self._wait
      state = {
        "count": self._count,
        "wait": wait and wait[0],
        "since": wait and wait[2],
        "error": self._error,
      }
      self._client.key_value_set(
        f"{_KEY}{self._process}", json.dumps(state), allow_overwrite=True
      )

  def _look(self):
    """Reads what the others published."""
    for key, text in self._client.key_value_dir_get(_KEY):
      number, state = int(key.rsplit("/", 1)[-1]), json.loads(text)
      if number == self._process:
        continue
      before, heard, waits = self._seen.get(number, (None, 0.0, 0.0))
      time_now = time.monotonic()
      if before is None or before["count"] != state["count"]:
        heard = time_now
      if before is None or _wait_of(before) != _wait_of(state):
        waits = time_now
      self._seen[number] = state, heard, waits

  def _reason(self, waited):
    """Why there is nothing to wait for any longer; None if there is."""
    failed = [p for p, (state, *_) in self._seen.items() if state["error"]]
    if failed:
      return self._describe(min(failed))
    if waited < self._timeout:
      return None
    numbers = [p for p in range(self._processes) if p != self._process]
    silent = [p for p in numbers if not self._is_alive(p)]
    at_work = [p for p in numbers if p in self._seen and not self._waits(p)]
    if at_work and not silent and waited < _PATIENCE * self._timeout:
      return None
    return "; ".join(map(self._describe, (silent or at_work or numbers)[:4]))

  def _is_alive(self, process):
    if process not in self._seen:
      return False
    silence = time.monotonic() - self._seen[process][1]
    return silence < self._timeout

  def _waits(self, process):
    """Whether a process has been in one wait for too long itself."""
    state, _, since = self._seen[process]
    waited = time.monotonic() - since
    return state["wait"] is not None and waited >= self._timeout

  def _describe(self, process):
    if process not in self._seen:
      return f"process {process} does not answer"
    state, when, _ = self._seen[process]
    if state["error"]:
      return f"process {process} has ended with an error: {state['error']}"
    doing = "is at work"
    if state["wait"]:
      doing = f"waits since {state['since']} to {state['wait']}"
    if not self._is_alive(process):
      silence = time.monotonic() - when
      return f"process {process} is silent for {silence:.0f} s; it {doing}"
    return f"process {process} {doing}"


def leave(code: int) -> None:
  """Ends the process at once: other threads may be blocked for ever."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _wait_of(state):
  return state["wait"], state["since"]


def _without_service():
  """The service may be gone: then the others are silent."""
  return contextlib.suppress(jax.errors.JaxRuntimeError)


def now() -> str:
  """The time of day in messages."""
  return time.strftime("%Y-%m-%d %H:%M:%S")
