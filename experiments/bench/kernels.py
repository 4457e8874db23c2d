"""Every implementation of the moments on this device, against float64.

python -m experiments.bench.kernels

The tests run the kernels of accelerators in an interpreter; this runs them as
they are compiled. It fails if a sum is wrong by more than 1e-5 of it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from backslash_jax.moments import dispatch
from experiments import program, settings
from experiments.bench import shapes, timing

_TOLERANCE = 1e-5


def errors() -> dict[str, Any]:
  """Implementation -> the largest relative error of a sum, or what it raised.

  Over the shapes of the tests and one of the benchmarks, and every dtype that
  the implementation takes.
  """
  platform, found = jax.default_backend(), {}
  for name in dispatch.IMPLEMENTATIONS:
    module = dispatch.module(name)
    if platform in module.PLATFORMS:
      try:
        found[name] = max(_errors(module))
      except Exception as error:  # The others are still measured.
        found[name] = f"{type(error).__name__}: {error}"[:1000]
  return found


def _errors(module):
  random = np.random.default_rng(0)
  for shape in (*shapes.MOMENTS, shapes.LARGE[0]):
    for dtype in ("float32", "bfloat16", "float16"):
      x = jnp.asarray(0.01 * random.standard_normal(shape), dtype)
      if module.limitation(x) is None:
        exact = np.asarray(x).astype(np.float64)
        wanted = np.abs(exact).sum(), np.square(exact).sum()
        for a, b in zip(jax.jit(module.sums)(x), wanted, strict=True):
          yield abs(float(a) / b - 1)


def _main(argv):
  del argv
  found = errors()
  timing.write("kernels", "python -m experiments.bench.kernels", found)
  wrong = {
    name: error
    for name, error in found.items()
    if isinstance(error, str) or not error < _TOLERANCE
  }
  if wrong:
    raise settings.UserError(f"wrong or not working here: {wrong}")


if __name__ == "__main__":
  program.run(_main)
