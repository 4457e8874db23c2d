"""Weights that stay coded in memory: each layer is decoded where it is used.

    python examples/coded_in_memory.py

The file is loaded without decoding it. A scan over the layers decodes one layer
at a time, so the program holds the code of all layers and the array of one. The
outputs are those of the dense weights, bit for bit.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import backslash_jax as bs

DEPTH, WIDTH = 12, 256
STEP = 0.02  # About 2 bits per parameter here.


def make_weights():
  """Stands for trained weights: many small ones, a few large ones."""
  random = np.random.default_rng(0)
  shape = (DEPTH, WIDTH, WIDTH)
  return {"layers": random.laplace(scale=0.015, size=shape).astype(np.float32)}


@jax.jit
def apply(weights, x):
  """A residual network, whatever its weights are in memory."""

  def layer(x, i):
    weight = bs.decode(weights["layers"], at=i)
    return x + jnp.tanh(x @ weight), None

  return jax.lax.scan(layer, x, jnp.arange(DEPTH))[0]


def main(folder="."):
  path = pathlib.Path(folder, "network.safetensors")
  report = bs.save(path, make_weights(), step=STEP)
  dense = jax.tree.map(jnp.asarray, bs.load(path))
  coded = bs.load(path, coded=True, stacked=["layers"])
  packed = bs.load(path, coded="packed", stacked=["layers"])
  x = jax.random.normal(jax.random.key(0), (8, WIDTH))
  for name, weights in {
    "dense": dense,
    "packed": packed,
    "coded": coded,
  }.items():
    compiled = apply.lower(weights, x).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    print(
      f"{name:6}: {held:9,} bytes of weights, {temporary:9,} of temporaries"
    )
    assert (compiled(weights, x) == apply(dense, x)).all()
  print(f"{path.stat().st_size:,} bytes in {path}")
  return report


if __name__ == "__main__":
  main()
