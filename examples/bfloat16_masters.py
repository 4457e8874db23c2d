"""bfloat16 in the model and in the file, float32 masters in the optimizer.

    python examples/bfloat16_masters.py

The optimizer, the rate and the steps belong to the float32 masters, because an
update is often smaller than the spacing of bfloat16. The loss rounds the
masters to the steps, then casts. The file has the dtype of what is saved.
"""

import os
import pathlib

import jax
import jax.numpy as jnp
import optax

import backslash_jax as bs

BITS = 2.0  # Of the coded matrices, per parameter.
UPDATES = 300
BEGIN = 200


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


def half(params):
  return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)


def forward(params, images):
  x = images.astype(jnp.bfloat16) @ params["hidden"]["kernel"]
  logits = jax.nn.relu(x) @ params["out"]["kernel"]
  return logits.astype(jnp.float32)


@jax.jit
def accuracy(params):
  images, labels = make_batch(jax.random.key(2), 4096)
  return jnp.mean(forward(params, images).argmax(axis=-1) == labels)


def main(folder="."):
  masters = jax.jit(make_params)(jax.random.key(0))
  tx = optax.chain(bs.recommended(BITS, begin=BEGIN), optax.adamw(3e-3))

  @jax.jit
  def train_step(masters, opt_state, key):
    (images, labels), steps = make_batch(key, 128), bs.steps(opt_state)

    def loss_fn(masters):
      params = half(bs.round_through(masters, steps))
      losses = optax.softmax_cross_entropy_with_integer_labels
      return losses(forward(params, images), labels).mean()

    grads = jax.grad(loss_fn)(masters)  # float32, like the masters.
    updates, opt_state = tx.update(grads, opt_state, masters)
    return optax.apply_updates(masters, updates), opt_state

  opt_state = tx.init(masters)
  for key in jax.random.split(jax.random.key(1), UPDATES):
    masters, opt_state = train_step(masters, opt_state, key)
  steps = bs.steps(opt_state)
  exact = float(accuracy(half(bs.round_through(masters, steps))))

  path = pathlib.Path(folder, "bfloat16.safetensors")
  # From the rounded masters: a cast before the rounding could change levels.
  report = bs.save(path, half(bs.round_through(masters, steps)), step=steps)
  loaded = bs.load(path)
  coded = float(accuracy(loaded))
  dtypes = {str(x.dtype) for x in jax.tree.leaves(loaded)}
  print(f"accuracy {exact:.1%} in training, {coded:.1%} from the file")
  print(
    f"{os.path.getsize(path):,} bytes, {report.bits_per_parameter:.2f} bits per"
    f" parameter; the tensors of the file are {', '.join(dtypes)}"
  )
  return exact, coded, report


if __name__ == "__main__":
  main()
