"""The time of a batch with dense, packed and coded weights, in one process.

python -m experiments.bench.batches --model=CODED --name=minilm

CODED is a directory that `experiments.serve` takes. Its model computes in
float32 on batches of random tokens. The dense weights are float32 and, rounded
once more, bfloat16; the results of packed and coded weights must be those of
the float32 ones. Writes results/batches_NAME_cpu.json and the table of
docs/memory.md.
"""

import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import program
from experiments.bench import memory, timing
from experiments.serve import model

_MODEL = flags.DEFINE_string("model", None, "The directory.", required=True)
_NAME = flags.DEFINE_string("name", None, "Of the results.", required=True)
_ROWS = flags.DEFINE_list("rows", ["1", "32"], "Of a batch.")
_LENGTH = flags.DEFINE_integer("length", 128, "Tokens of a row.")

KINDS = (*memory.DENSE, *memory.SMALL)


def main(argv):
  del argv
  served = model.read(pathlib.Path(_MODEL.value))
  weights = {
    kind: model.read(pathlib.Path(_MODEL.value), kind).tensors
    for kind in memory.SMALL
  }
  for kind in memory.DENSE:
    weights[kind] = jax.tree.map(lambda x, k=kind: _cast(x, k), served.tensors)
  results: dict[str, Any] = {
    "parameters": sum(x.size for x in jax.tree.leaves(served.tensors)),
    "bytes": {
      kind: sum(x.nbytes for x in jax.tree.leaves(weights[kind]))
      for kind in KINDS
    },
    "batches": {
      rows: _times(served, weights, int(rows)) for rows in _ROWS.value
    },
  }
  command = " ".join(["python -m experiments.bench.batches", *sys.argv[1:]])
  timing.write(f"batches_{_NAME.value}", command, results)
  memory.update()


def _cast(x: jax.Array, dtype: str) -> jax.Array:
  return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _times(served: model.Served, weights: Any, rows: int) -> dict[str, Any]:
  """The seconds of a batch, see `timing.compare`."""
  rng = np.random.default_rng(0)
  size = served.config.vocab_size
  tokens = rng.integers(size, size=[rows, _LENGTH.value], dtype=np.int32)
  mask = np.ones(tokens.shape, bool)

  @jax.jit
  def apply(tensors):
    return served.forward(served.params(tensors), tokens, mask)

  wanted = apply(weights["float32"])
  for kind in memory.SMALL:
    np.testing.assert_array_equal(apply(weights[kind]), wanted)
  candidates = {k: lambda k=k: apply(weights[k]) for k in KINDS}
  times = timing.measure(candidates, timing.REPEATS.value)
  return timing.compare(times, KINDS[0])


if __name__ == "__main__":
  program.run(main)
