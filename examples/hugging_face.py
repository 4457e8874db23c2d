"""A Hugging Face directory: loaded, fine-tuned, shipped as a coded file.

    pip install -e '.[experiments]'
    python examples/hugging_face.py [DIRECTORY or hub id]

The model is one of `experiments.models`: BERT, GPT-2, Llama or Gemma 2. Without
an argument, a small GPT-2 with random weights stands for a published one. The
last lines write a directory that transformers loads.
"""

import argparse
import os
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import backslash_jax as bs
from experiments import models
from experiments.huggingface import weights
from experiments.models import gpt2

BITS = 3.0  # Of the coded matrices, per parameter.
UPDATES = 120
BEGIN = 80
LENGTH = 64


def make_directory(path):
  """A small GPT-2 over bytes with random weights, in the hub's layout."""
  config = gpt2.ModelConfig(
    vocab_size=256, width=64, depth=2, heads=4, mlp=256, max_positions=LENGTH
  )
  weights.save(models.from_config(config), path)


def make_tokens(vocab_size):
  """Sequences of a file of Python's library, int32 [N, LENGTH].

  The tokens are bytes. With a published model, take those of its tokenizer:
  `experiments.data.tokenizer.load(directory)`.
  """
  assert vocab_size >= 256
  text = pathlib.Path(argparse.__file__).read_bytes()
  count = len(text) // LENGTH
  data = np.frombuffer(text[: count * LENGTH], np.uint8)
  return data.reshape(count, LENGTH).astype(np.int32)


def main(folder=".", source=None):
  folder = pathlib.Path(folder)
  if source is None:
    source = folder / "published"
    make_directory(source)
  model = weights.load(source)
  tokens = make_tokens(model.config.vocab_size)
  train, test = tokens[:-64], tokens[-64:]
  graphdef, params, rest = nnx.split(model, nnx.Param, ...)
  tx = optax.chain(
    bs.recommended(BITS, begin=BEGIN, limit=0), optax.adamw(3e-3)
  )

  def loss_fn(params, tokens):
    logits = nnx.merge(graphdef, params, rest)(
      tokens, jnp.ones_like(tokens, bool)
    )
    losses = optax.softmax_cross_entropy_with_integer_labels
    return losses(logits[:, :-1], tokens[:, 1:]).mean()

  @jax.jit
  def train_step(params, opt_state, tokens):
    steps = bs.steps(opt_state)

    def rounded_loss(params):
      return loss_fn(bs.round_through(params, steps), tokens)

    grads = jax.grad(rounded_loss)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  opt_state = tx.init(params)
  random = np.random.default_rng(0)
  for _ in range(UPDATES):
    batch = train[random.integers(len(train), size=16)]
    params, opt_state = train_step(params, opt_state, batch)

  # To ship: the coded file beside the configuration. Its name is not that of
  # plain weights, so that no loader takes it for them.
  shipped = folder / "shipped"
  shipped.mkdir(exist_ok=True)
  path = shipped / "model.backslash.safetensors"
  report = bs.save(path, params, step=bs.steps(opt_state))
  if os.path.isdir(source):
    for name in ("config.json", "tokenizer.json"):
      if os.path.exists(file := pathlib.Path(source, name)):
        shutil.copy(file, shipped)

  # To use: the decoded parameters, here or in a directory for transformers.
  nnx.update(model, bs.load(path))
  weights.save(model, folder / "decoded")

  test_loss = jax.jit(loss_fn)
  exact = float(test_loss(params, test))
  coded = float(test_loss(nnx.state(model, nnx.Param), test))
  print(f"test loss {exact:.3f} nats in float32, {coded:.3f} from the file")
  print(
    f"{os.path.getsize(path):,} bytes, {report.bits_per_parameter:.2f} bits per"
    f" parameter; float16 takes {2 * report.parameters:,} bytes"
  )
  return exact, coded, report


if __name__ == "__main__":
  main(source=sys.argv[1] if sys.argv[1:] else None)
