"""Equinox: a module is a pytree, so it trains like any other parameters.

    pip install equinox
    python examples/equinox_classifier.py

A file holds dicts, lists and tuples of arrays, so the arrays of the module are
saved by name.
"""

import os
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import backslash_jax as bs

BITS = 1.0  # Of the coded matrices, per parameter.
UPDATES = 500


def make_batch(key, size):
  """Noisy copies of ten images, float32 [size, 64], and their labels."""
  label_key, noise_key = jax.random.split(key)
  images = jax.random.rademacher(jax.random.key(0), (10, 64), jnp.float32)
  labels = jax.random.randint(label_key, [size], 0, 10)
  noise = jax.random.normal(noise_key, [size, 64])
  return images[labels] + 2.5 * noise, labels


@eqx.filter_jit
def accuracy(model):
  images, labels = make_batch(jax.random.key(2), 4096)
  return jnp.mean(jax.vmap(model)(images).argmax(axis=-1) == labels)


def by_name(params):
  """The arrays of a pytree by name, such as "layers/0/weight"."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): x
    for path, x in jax.tree.leaves_with_path(params)
  }


def save(path, model, steps):
  return bs.save(path, by_name(eqx.filter(model, eqx.is_array)), step=steps)


def load(path, model):
  """The model with the arrays of a file."""
  params, static = eqx.partition(model, eqx.is_array)
  arrays = bs.load(path)
  leaves = [jnp.asarray(arrays[name]) for name in by_name(params)]
  return eqx.combine(
    jax.tree.unflatten(jax.tree.structure(params), leaves), static
  )


def main(folder="."):
  model = eqx.nn.MLP(64, 10, width_size=1024, depth=1, key=jax.random.key(1))
  tx = optax.chain(bs.recommended(BITS), optax.adamw(1e-2))
  opt_state = tx.init(eqx.filter(model, eqx.is_array))

  @eqx.filter_jit
  def train_step(model, opt_state, key):
    images, labels = make_batch(key, 128)

    def loss_fn(model):
      losses = optax.softmax_cross_entropy_with_integer_labels
      return losses(jax.vmap(model)(images), labels).mean()

    grads = eqx.filter_grad(loss_fn)(model)
    params = eqx.filter(model, eqx.is_array)
    updates, opt_state = tx.update(grads, opt_state, params)
    return eqx.apply_updates(model, updates), opt_state

  for key in jax.random.split(jax.random.key(1), UPDATES):
    model, opt_state = train_step(model, opt_state, key)
  exact = float(accuracy(model))

  path = pathlib.Path(folder, "equinox.safetensors")
  report = save(path, model, bs.steps(opt_state))
  coded = float(accuracy(load(path, model)))
  print(f"accuracy {exact:.1%} in float32, {coded:.1%} from the file")
  print(
    f"{os.path.getsize(path):,} bytes, {report.bits_per_parameter:.2f} bits per"
    f" parameter; float16 takes {2 * report.parameters:,} bytes"
  )
  return exact, coded, report


if __name__ == "__main__":
  main()
