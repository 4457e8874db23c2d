"""Frozen parts, with optax.multi_transform: the rest is trained and quantized.

    python examples/frozen_parts.py

The rate stands in the transformation of the trained part, so it sees only that
part. `bs.steps` finds it there, and its names are those of the whole tree.
"""

import math
import os
import pathlib

import jax
import jax.numpy as jnp
import optax

import backslash_jax as bs

BITS = 1.0  # Of the trained matrices in the file, per parameter.
UPDATES = 500


def make_batch(key, size):
  """Noisy copies of ten images, float32 [size, 64], and their labels."""
  label_key, noise_key = jax.random.split(key)
  images = jax.random.rademacher(jax.random.key(0), (10, 64), jnp.float32)
  labels = jax.random.randint(label_key, [size], 0, 10)
  noise = jax.random.normal(noise_key, [size, 64])
  return images[labels] + 2.5 * noise, labels


def make_params(key):
  keys = jax.random.split(key, 3)
  return {
    "features": {"kernel": jax.random.normal(keys[0], (64, 256)) / 8},
    "head": {
      "hidden": {"kernel": jax.random.normal(keys[1], (256, 256)) / 16},
      "out": {"kernel": jax.random.normal(keys[2], (256, 10)) / 16},
    },
  }


def forward(params, images):
  x = jax.nn.relu(images @ params["features"]["kernel"])
  x = jax.nn.relu(x @ params["head"]["hidden"]["kernel"])
  return x @ params["head"]["out"]["kernel"]


@jax.jit
def accuracy(params):
  images, labels = make_batch(jax.random.key(2), 4096)
  return jnp.mean(forward(params, images).argmax(axis=-1) == labels)


def main(folder="."):
  params = jax.jit(make_params)(jax.random.key(0))
  tx = optax.multi_transform(
    {
      "trained": optax.chain(bs.recommended(BITS), optax.adamw(1e-2)),
      "frozen": optax.set_to_zero(),
    },
    {"features": "frozen", "head": "trained"},
  )

  @jax.jit
  def train_step(params, opt_state, key):
    images, labels = make_batch(key, 128)

    def loss_fn(params):
      losses = optax.softmax_cross_entropy_with_integer_labels
      return losses(forward(params, images), labels).mean()

    updates, opt_state = tx.update(jax.grad(loss_fn)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  opt_state = tx.init(params)
  for key in jax.random.split(jax.random.key(1), UPDATES):
    params, opt_state = train_step(params, opt_state, key)
  exact = float(accuracy(params))

  # What has no step is stored exactly. Here the frozen part gets 255 levels.
  steps = bs.steps(opt_state) | bs.quantize.absmax_steps(
    params, mask="features/*"
  )
  path = pathlib.Path(folder, "frozen.safetensors")
  report = bs.save(path, params, step=steps)
  coded = float(accuracy(bs.load(path)))
  print(f"accuracy {exact:.1%} in float32, {coded:.1%} from the file")
  for tensor in report.tensors:
    bits = tensor.bits / math.prod(tensor.shape)
    print(f"  {tensor.name}: {bits:.2f} bits per parameter")
  print(
    f"{os.path.getsize(path):,} bytes, {report.bits_per_parameter:.2f} bits per"
    f" parameter; float16 takes {2 * report.parameters:,} bytes"
  )
  return exact, coded, report


if __name__ == "__main__":
  main()
