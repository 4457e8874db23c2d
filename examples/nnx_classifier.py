"""Flax NNX: a classifier trained for a file of one bit per parameter.

    python examples/nnx_classifier.py

Three lines differ from ordinary training: the transformation in the chain, the
save and the load. The rate moves the weights that the task does not need to
zero, so this recipe suits models with weights to spare.
"""

import os
import pathlib

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import backslash_jax as bs

BITS = 1.0  # Of the coded matrices, per parameter.
UPDATES = 500


class Classifier(nnx.Module):
  def __init__(self, rngs):
    self.hidden = nnx.Linear(64, 1024, rngs=rngs)
    self.out = nnx.Linear(1024, 10, rngs=rngs)

  def __call__(self, images):
    return self.out(nnx.relu(self.hidden(images)))


def make_batch(key, size):
  """Noisy copies of ten images, float32 [size, 64], and their labels."""
  label_key, noise_key = jax.random.split(key)
  images = jax.random.rademacher(jax.random.key(0), (10, 64), jnp.float32)
  labels = jax.random.randint(label_key, [size], 0, 10)
  noise = jax.random.normal(noise_key, [size, 64])
  return images[labels] + 2.5 * noise, labels


@nnx.jit
def train_step(model, optimizer, key):
  images, labels = make_batch(key, 128)

  def loss_fn(model):
    losses = optax.softmax_cross_entropy_with_integer_labels
    return losses(model(images), labels).mean()

  optimizer.update(model, nnx.grad(loss_fn)(model))


@nnx.jit
def accuracy(model):
  images, labels = make_batch(jax.random.key(2), 4096)
  return jnp.mean(model(images).argmax(axis=-1) == labels)


def main(folder="."):
  model = Classifier(nnx.Rngs(0))
  tx = optax.chain(bs.recommended(BITS), optax.adamw(1e-2))
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  for key in jax.random.split(jax.random.key(1), UPDATES):
    train_step(model, optimizer, key)
  exact = float(accuracy(model))

  path = pathlib.Path(folder, "classifier.safetensors")
  params = nnx.state(model, nnx.Param)
  report = bs.save(path, params, step=bs.steps(optimizer))

  model = Classifier(nnx.Rngs(0))  # As in another program.
  nnx.update(model, bs.load(path))
  coded = float(accuracy(model))
  print(f"accuracy {exact:.1%} in float32, {coded:.1%} from the file")
  print(
    f"{os.path.getsize(path):,} bytes, {report.bits_per_parameter:.2f} bits per"
    f" parameter; float16 takes {2 * report.parameters:,} bytes"
  )
  return exact, coded, report


if __name__ == "__main__":
  main()
