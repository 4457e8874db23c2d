"""A fine-tune that ships as the difference from its base.

    pip install -e '.[experiments]'
    python examples/fine_tune_difference.py [DIRECTORY]

The directory holds a causal model as of Hugging Face: Llama, GPT-2 or Gemma 2.
Without one, a small Llama with random weights stands for it. The parameters
that are trained, priced, rounded and stored are the difference from the model.
Whoever has the model needs the small file alone.
"""

import argparse
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import backslash_jax as bs
from experiments import models
from experiments.huggingface import weights
from experiments.models import functional, llama, rotary

BITS = 0.2  # Of the difference, per parameter.
LENGTH = 64
UPDATES = 90
BEGIN = 60


def make_model():
  return models.from_config(
    llama.ModelConfig(
      vocab_size=256,
      width=64,
      depth=2,
      heads=4,
      kv_heads=2,
      head_dim=16,
      mlp=128,
      max_positions=LENGTH,
      positions=rotary.Rotary(1e4),
      tied=True,
    )
  )


def make_tokens(source):
  """Sequences of a file of Python's library, int32 [N, LENGTH]."""
  text = pathlib.Path(argparse.__file__).read_text()
  ids = list(text.encode())
  file = pathlib.Path(source or ".", "tokenizer.json")
  if source is not None and file.exists():
    import tokenizers

    ids = tokenizers.Tokenizer.from_file(str(file)).encode(text).ids
  count = len(ids) // LENGTH
  return np.array(ids[: count * LENGTH], np.int32).reshape(count, LENGTH)


def main(folder=".", source=None, updates=UPDATES, begin=BEGIN):
  model = make_model() if source is None else weights.load(source)
  forward, base = functional.split(model)
  rows = make_tokens(source)
  train, test = rows[16:], rows[:16]

  def loss_fn(params, tokens):
    logits = forward(params, tokens, jnp.ones(tokens.shape, bool))[:, :-1]
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits, tokens[:, 1:]
    )
    return jnp.mean(losses)

  # mask=None: biases and scales change as little as the matrices.
  rate = bs.recommended(BITS, begin=begin, limit=0.3, mask=None)
  tx = optax.chain(rate, optax.adam(3e-4))

  @jax.jit
  def train_step(delta, opt_state, base, tokens):  # The base is an argument.
    steps = bs.steps(opt_state)

    def rounded_loss(delta):
      rounded = bs.round_through(delta, steps)
      return loss_fn(bs.apply_delta(base, rounded), tokens)

    grads = jax.grad(rounded_loss)(delta)
    updates, opt_state = tx.update(grads, opt_state, delta)
    return optax.apply_updates(delta, updates), opt_state

  delta = bs.delta(base)
  opt_state = tx.init(delta)
  order = np.random.default_rng(0)
  for _ in range(updates):
    tokens = train[order.integers(len(train), size=4)]
    delta, opt_state = train_step(delta, opt_state, base, tokens)

  path = pathlib.Path(folder, "delta.safetensors")
  tuned = bs.apply_delta(base, delta)
  report = bs.save(path, tuned, base=base, step=bs.steps(opt_state))
  loss = jax.jit(loss_fn)
  before, exact = float(loss(base, test)), float(loss(tuned, test))
  coded = float(loss(bs.load(path, base=base), test))
  print(
    f"loss {before:.3f} of the base, {exact:.3f} fine-tuned in float32,"
    f" {coded:.3f} from the file"
  )
  print(
    f"{report.bytes:,} bytes, {report.bits_per_parameter:.3f} bits per"
    f" parameter; float16 takes {2 * report.parameters:,} bytes"
  )
  return before, exact, coded, report


if __name__ == "__main__":
  main(source=sys.argv[1] if len(sys.argv) > 1 else None)
