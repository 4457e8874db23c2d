"""Maps a function over tasks with a few threads."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator

from backslash_jax.coding import loops


def in_order(function: Callable, tasks: Iterable) -> Iterator:
  """Yields function(task) for each task in order, computed a few ahead."""
  count = workers()
  if count == 1:
    yield from map(function, tasks)
    return
  with concurrent.futures.ThreadPoolExecutor(count) as pool:
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
      for task in tasks:
        pending.append(pool.submit(function, task))
        if len(pending) > count:
          yield pending.popleft().result()
      while pending:
        yield pending.popleft().result()
    finally:
      for future in pending:
        future.cancel()


def workers() -> int:
  """Number of threads; NumPy alone holds the interpreter's lock too often."""
  return min(os.cpu_count() or 1, 8) if loops.compiled() else 1
