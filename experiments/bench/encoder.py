"""What an example costs in the training of the pretrained encoder, on a CPU.

python -m experiments.bench.encoder --encoder=DIR --source=DATA

First the three matrix products of a linear layer, then whole updates on IMDB in
several ways, in processor seconds per example; the ways take turns. The flags
of XLA are those of the process: XLA_FLAGS. With --noupdates only the products.
"""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from absl import flags

from configs.paper import rows
from experiments import program
from experiments.bench import timing, update
from experiments.models import products

_ENCODER = flags.DEFINE_string("encoder", None, "Directory of MiniLM.")
_SOURCE = flags.DEFINE_string("source", None, "Directory with the data sets.")
_WAYS = flags.DEFINE_list("ways", [], "Only these ways; all of them if empty.")
_UPDATES = flags.DEFINE_bool("updates", True, "Measure whole updates too.")

_FAST = {"model.dtype": "bfloat16"}
# Way -> the fields in which it differs from float32 and a batch of 16 with 128
# tokens. The last three say what the optimizer and the length cost.
WAYS: dict[str, dict[str, Any]] = {
  "float32": {},
  "float32 remat": {"model.remat": True},
  "float32 batch 32": {"data.batch_size": 32},
  "bfloat16": _FAST,
  "bfloat16 batch 32": _FAST | {"data.batch_size": 32},
  "bfloat16 batch 32 sgd": _FAST
  | {"data.batch_size": 32, "optimizer.name": "sgd", "optimizer.b1": 0.0},
  "bfloat16 batch 32 rate": _FAST | {"data.batch_size": 32, "rate.lmbda": 1.0},
  "bfloat16 batch 32 64 tokens": _FAST
  | {"data.batch_size": 32, "data.seq_len": 64},
}

# Rows, inputs and outputs of a linear layer: those of the encoder's MLP.
_ROWS, _INPUTS, _OUTPUTS = 2048, 384, 1536
_PRODUCTS: dict[str, Any] = {
  # Name -> the shapes, the contracted dimensions, and what the models use.
  "forward": (
    ((_ROWS, _INPUTS), (_INPUTS, _OUTPUTS), (1, 0)),
    products.product,
  ),
  "gradient of the input": (
    ((_ROWS, _OUTPUTS), (_INPUTS, _OUTPUTS), (1, 1)),
    products.by_transposed,
  ),
  "gradient of the kernel": (
    ((_ROWS, _INPUTS), (_ROWS, _OUTPUTS), (0, 0)),
    products.of_transposed,
  ),
}


def linear_products() -> dict[str, Callable[[], Any]]:
  """The products of a linear layer: XLA's, and those of the models here."""

  @functools.partial(jax.jit, static_argnums=(2, 3))
  def product(a, b, over, result):
    numbers = ((over[0],), (over[1],)), ((), ())
    return jax.lax.dot_general(a, b, numbers, preferred_element_type=result)

  found: dict[str, Callable[[], Any]] = {}
  for name, ((left, right, over), ours) in _PRODUCTS.items():
    for dtype, result in (
      ("float32", "float32"),
      ("bfloat16", "bfloat16"),
      ("bfloat16", "float32"),
    ):
      arrays = jnp.ones(left, dtype), jnp.ones(right, dtype)
      run = functools.partial(product, *arrays, over, result)
      found[f"{name}, {dtype} to {result}"] = run
    arrays = jnp.ones(left, "bfloat16"), jnp.ones(right, "bfloat16")
    found[f"{name}, experiments.models.products"] = functools.partial(
      jax.jit(ours), *arrays
    )
  return found


def base(encoder: str | None, source: str | None) -> ml_collections.ConfigDict:
  """The encoder's normal training on IMDB that WAYS start from."""
  config = rows.get_config("table4_bert/small/normal")
  config.unlock()
  config.arms = ml_collections.ConfigDict()
  config.data.source = source
  config.data.seq_len = 128
  config.data.batch_size = 16
  config.model.dtype = "float32"
  if encoder:
    config.model.weights = config.data.tokenizer = encoder
  return config


def _seconds_per_example():
  """A summary for each way that the flags ask for."""
  config = base(_ENCODER.value, _SOURCE.value)
  ways = {name: WAYS[name] for name in _WAYS.value or WAYS}
  updates = {
    name: update.make_update(config, fields, True)
    for name, fields in ways.items()
  }
  times = timing.measure(updates, timing.REPEATS.value)
  return {
    name: timing.summary(
      [s / ways[name].get("data.batch_size", 16) for s in clocks["processor"]]
    )
    for name, clocks in times.items()
  }


def _main(argv):
  del argv
  flops = 2 * _ROWS * _INPUTS * _OUTPUTS
  times = timing.measure(linear_products(), timing.REPEATS.value)
  results: dict[str, Any] = {
    "flags": os.environ.get("XLA_FLAGS", ""),
    "products, GFLOP/s": {
      name: timing.summary([flops / s / 1e9 for s in clocks["processor"]])
      for name, clocks in times.items()
    },
  }
  if _UPDATES.value:
    results["seconds per example"] = _seconds_per_example()
  timing.write(
    "encoder" if _UPDATES.value else "products",
    " ".join(["python -m experiments.bench.encoder", *sys.argv[1:]]),
    results,
  )


if __name__ == "__main__":
  program.run(_main)
