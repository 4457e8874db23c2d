"""The moments op in bytes per second, against a copy of the same tensor.

python -m experiments.bench.moments
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from backslash_jax.moments import dispatch
from experiments import program
from experiments.bench import shapes, timing

_CALLS = flags.DEFINE_integer("calls", 4, "Operations in a timed call.")


def candidates(x: jax.Array, calls: int) -> dict[str, Callable[[], Any]]:
  """A copy of x, and its moments by every implementation that takes it here."""
  platform = jax.default_backend()

  def copy(x, scale):
    return x * scale

  operations = {
    "copy": functools.partial(jax.jit(copy), x, jnp.ones([], x.dtype))
  }
  for name in dispatch.IMPLEMENTATIONS:
    module = dispatch.module(name)
    if platform in module.PLATFORMS and module.limitation(x) is None:
      operations[name] = functools.partial(jax.jit(module.sums), x)

  def repeated(run):
    # Some in a row, so that an accelerator never waits for the host.
    return [run() for _ in range(calls)]

  return {k: functools.partial(repeated, run) for k, run in operations.items()}


def _main(argv):
  del argv
  results: dict[str, Any] = {}
  for shape in shapes.LARGE:
    for dtype in ("float32", "bfloat16"):
      x = jax.random.normal(jax.random.key(0), shape, dtype)
      calls = _CALLS.value
      times = timing.measure(candidates(x, calls), timing.REPEATS.value)
      entry: dict[str, Any] = {"MiB": x.nbytes / 2**20}
      results[f"{dtype}{list(shape)}"] = entry
      for name, clocks in times.items():
        # A copy reads and writes.
        moved = x.nbytes * calls * (2 if name == "copy" else 1)
        entry[name] = {
          clock: {"GB/s": timing.summary([moved / s / 1e9 for s in samples])}
          for clock, samples in clocks.items()
        }
  timing.write(
    "moments",
    " ".join(["python -m experiments.bench.moments", *sys.argv[1:]]),
    results,
  )


if __name__ == "__main__":
  program.run(_main)
