"""Flax Linen: a language model, trained through the rounding of its weights.

    python examples/linen_language_model.py

A language model needs all of its weights, so the rate is off (limit=0). In
update BEGIN every matrix gets the quantization step that fits its sensitivity.
From then on the loss sees the rounded weights, as the file will have them.
"""

import argparse
import os
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import backslash_jax as bs

BITS = 3.0  # Of the coded matrices, per parameter.
UPDATES = 450
BEGIN = 300  # Two thirds of the updates.
CONTEXT = 16  # Bytes that the model sees.


class Model(nn.Module):
  @nn.compact
  def __call__(self, bytes_BxT):
    x = nn.Embed(256, 16)(bytes_BxT)
    x = nn.relu(nn.Dense(256)(x.reshape(len(x), -1)))
    return nn.Dense(256)(x)


def make_data():
  """Contexts and next bytes of a file of Python's library, in two splits."""
  text = pathlib.Path(argparse.__file__).read_bytes()
  data = np.frombuffer(text, np.uint8)
  rows = np.lib.stride_tricks.sliding_window_view(data, CONTEXT + 1)
  cut = 9 * len(rows) // 10
  return rows[:cut].astype(np.int32), rows[cut:].astype(np.int32)


def main(folder="."):
  train, test = make_data()
  model = Model()
  params = model.init(jax.random.key(0), train[:1, :-1])["params"]
  tx = optax.chain(
    bs.recommended(BITS, begin=BEGIN, limit=0), optax.adamw(3e-3)
  )

  def loss_fn(params, rows):
    logits = model.apply({"params": params}, rows[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels
    return losses(logits, rows[:, -1]).mean()

  @jax.jit
  def train_step(params, opt_state, rows):
    steps = bs.steps(opt_state)  # 0 before BEGIN: nothing is rounded.

    def rounded_loss(params):
      return loss_fn(bs.round_through(params, steps), rows)

    grads = jax.grad(rounded_loss)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  opt_state = tx.init(params)
  random = np.random.default_rng(0)
  for _ in range(UPDATES):
    rows = train[random.integers(len(train), size=256)]
    params, opt_state = train_step(params, opt_state, rows)

  path = pathlib.Path(folder, "language_model.safetensors")
  report = bs.save(path, params, step=bs.steps(opt_state))
  test_loss = jax.jit(loss_fn)
  exact = float(test_loss(params, test))
  coded = float(test_loss(jax.tree.map(jnp.asarray, bs.load(path)), test))
  print(f"test loss {exact:.3f} nats in float32, {coded:.3f} from the file")
  print(
    f"{os.path.getsize(path):,} bytes, {report.bits_per_parameter:.2f} bits per"
    f" parameter; float16 takes {2 * report.parameters:,} bytes"
  )
  return exact, coded, report


if __name__ == "__main__":
  main()
