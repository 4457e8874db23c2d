"""Gradient accumulation: optax.MultiSteps around the chain.

    python examples/gradient_accumulation.py

The rate is then added once per update and not once per microbatch, and `begin`
counts updates. `bs.steps` reads the state of optax.MultiSteps as it is.
"""

import os
import pathlib

import jax
import jax.numpy as jnp
import optax

import backslash_jax as bs

BITS = 1.0  # Of the coded matrices, per parameter.
MICROBATCHES = 4  # Of one update.
UPDATES = 300
BEGIN = 200  # In updates; 800 microbatches.


def make_batch(key, size):
  """Noisy copies of ten images, float32 [size, 64], and their labels."""
  label_key, noise_key = jax.random.split(key)
  images = jax.random.rademacher(jax.random.key(0), (10, 64), jnp.float32)
  labels = jax.random.randint(label_key, [size], 0, 10)
  noise = jax.random.normal(noise_key, [size, 64])
  return images[labels] + 2.5 * noise, labels


def make_params(key):
  keys = jax.random.split(key)
  return {
    "hidden": {"kernel": jax.random.normal(keys[0], (64, 1024)) / 8},
    "out": {"kernel": jax.random.normal(keys[1], (1024, 10)) / 32},
  }


def forward(params, images):
  return (
    jax.nn.relu(images @ params["hidden"]["kernel"]) @ params["out"]["kernel"]
  )


@jax.jit
def accuracy(params):
  images, labels = make_batch(jax.random.key(2), 4096)
  return jnp.mean(forward(params, images).argmax(axis=-1) == labels)


def main(folder="."):
  params = jax.jit(make_params)(jax.random.key(0))
  tx = optax.MultiSteps(
    optax.chain(bs.recommended(BITS, begin=BEGIN), optax.adamw(3e-3)),
    every_k_schedule=MICROBATCHES,
  )

  @jax.jit
  def train_step(params, opt_state, key):
    (images, labels), steps = make_batch(key, 32), bs.steps(opt_state)

    def loss_fn(params):
      rounded = bs.round_through(params, steps)
      losses = optax.softmax_cross_entropy_with_integer_labels
      return losses(forward(rounded, images), labels).mean()

    updates, opt_state = tx.update(jax.grad(loss_fn)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  opt_state = tx.init(params)
  for key in jax.random.split(jax.random.key(1), MICROBATCHES * UPDATES):
    params, opt_state = train_step(params, opt_state, key)
  exact = float(accuracy(params))

  path = pathlib.Path(folder, "accumulated.safetensors")
  report = bs.save(path, params, step=bs.steps(opt_state))
  coded = float(accuracy(bs.load(path)))
  print(f"accuracy {exact:.1%} in float32, {coded:.1%} from the file")
  print(
    f"{os.path.getsize(path):,} bytes, {report.bits_per_parameter:.2f} bits per"
    f" parameter; float16 takes {2 * report.parameters:,} bytes"
  )
  return exact, coded, report


if __name__ == "__main__":
  main()
