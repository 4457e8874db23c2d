"""Error feedback: processor time of its moments, and of a choice of levels.

python -m experiments.bench.feedback

The matrices are those of a block of SmolLM2-135M. The moments of I inputs from
T tokens take 2 T I^2 operations, the levels of O outputs about I^2 O products,
for each time that they are chosen; with a price of bits that is three times.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

from backslash_jax import feedback
from experiments import program
from experiments.bench import timing

SHAPES = ((576, 192), (576, 576), (576, 1536), (1536, 576))
_STEP, _MU = 0.04, 0.1
_TOKENS = flags.DEFINE_integer("tokens", 2048, "Of the moments.")


def candidates(
  inputs: int, outputs: int, tokens: int
) -> dict[str, Callable[[], Any]]:
  """The moments of some inputs, and the levels of a matrix with and without mu.

  The inputs are correlated, with variances that differ as those of a model do.
  """
  rng = np.random.default_rng(0)
  mixed = rng.normal(size=(inputs, inputs)) / inputs**0.5
  x = rng.normal(size=(tokens, inputs)) @ (
    mixed * np.exp(0.5 * rng.normal(size=inputs))
  )
  x = jax.numpy.asarray(x, jax.numpy.float32)
  weights = 0.04 * rng.standard_t(5, size=(inputs, outputs))
  weights = weights.astype(np.float32)
  measure = jax.jit(feedback.second_moments)
  moments = measure(x)
  choose = functools.partial(feedback.quantize, weights, moments, _STEP)
  return {
    "moments": functools.partial(measure, x),
    "levels": choose,
    "levels_with_price": functools.partial(choose, mu=_MU),
  }


def measure(
  shapes: tuple[tuple[int, int], ...], tokens: int, repeats: int
) -> dict[str, Any]:
  """Processor seconds by shape, and nanoseconds per product."""
  results: dict[str, Any] = {}
  for inputs, outputs in shapes:
    times = timing.measure(candidates(inputs, outputs, tokens), repeats)
    results[f"{inputs}x{outputs}"] = entry = {}
    for name, clocks in times.items():
      products = inputs**2 * (tokens if name == "moments" else outputs)
      seconds = timing.summary(clocks["processor"])
      entry[name] = {
        "seconds": seconds,
        "ns_per_product": 1e9 * seconds["median"] / products,
      }
  return results


def _main(argv):
  del argv
  timing.write(
    "feedback",
    " ".join(["python -m experiments.bench.feedback", *sys.argv[1:]]),
    measure(SHAPES, _TOKENS.value, timing.REPEATS.value),
  )


if __name__ == "__main__":
  program.run(_main)
