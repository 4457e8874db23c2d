"""LoRA: only low-rank adapters are trained, and only they are in the file.

    python examples/lora_adapters.py

The base model is frozen and is not in the optimizer. Several such files share
one base, so the size of the adapters is what each task costs.
"""

import os
import pathlib

import jax
import jax.numpy as jnp
import optax

import backslash_jax as bs

BITS = 3.0  # Of the adapters in the file, per parameter.
RANK = 8
UPDATES = 450
BEGIN = 300


def forward(weights, x):
  return jnp.tanh(x @ weights["up"]) @ weights["down"]


def adapted(base, adapters):
  """The weights of the base plus the product of each pair of adapters."""
  return {
    name: weight + adapters[name]["a"] @ adapters[name]["b"]
    for name, weight in base.items()
  }


def make_base(key):
  keys = jax.random.split(key)
  return {
    "up": jax.random.normal(keys[0], (128, 512)) / 11,
    "down": jax.random.normal(keys[1], (512, 64)) / 23,
  }


def make_adapters(key, base):
  """The usual start: a is random and b is 0, so the product is 0."""
  keys = jax.random.split(key, len(base))
  return {
    name: {
      "a": jax.random.normal(key, (weight.shape[0], RANK)) / 11,
      "b": jnp.zeros((RANK, weight.shape[1])),
    }
    for (name, weight), key in zip(base.items(), keys, strict=True)
  }


def main(folder="."):
  base = make_base(jax.random.key(0))
  # The new task: the base with other, nearby weights.
  other = make_adapters(jax.random.key(1), base)
  noise = jax.random.normal(jax.random.key(2), (RANK, 512))
  task = adapted(base, {**other, "up": {"a": other["up"]["a"], "b": noise / 4}})

  def loss_fn(adapters, x):
    change = forward(adapted(base, adapters), x) - forward(task, x)
    return jnp.mean(change**2)

  tx = optax.chain(bs.recommended(BITS, begin=BEGIN, limit=0), optax.adam(1e-2))

  @jax.jit
  def train_step(adapters, opt_state, key):
    x, steps = jax.random.normal(key, (128, 128)), bs.steps(opt_state)

    def rounded_loss(adapters):
      return loss_fn(bs.round_through(adapters, steps), x)

    grads = jax.grad(rounded_loss)(adapters)
    updates, opt_state = tx.update(grads, opt_state, adapters)
    return optax.apply_updates(adapters, updates), opt_state

  adapters = make_adapters(jax.random.key(3), base)
  opt_state = tx.init(adapters)
  for key in jax.random.split(jax.random.key(4), UPDATES):
    adapters, opt_state = train_step(adapters, opt_state, key)

  path = pathlib.Path(folder, "adapters.safetensors")
  report = bs.save(path, adapters, step=bs.steps(opt_state))
  x = jax.random.normal(jax.random.key(5), (4096, 128))
  exact = float(loss_fn(adapters, x))
  coded = float(loss_fn(bs.load(path), x))
  before = float(loss_fn(make_adapters(jax.random.key(3), base), x))
  print(
    f"squared error {before:.4f} without adapters, {exact:.4f} with them in"
    f" float32, {coded:.4f} from the file"
  )
  print(
    f"{os.path.getsize(path):,} bytes, {report.bits_per_parameter:.2f} bits per"
    f" parameter; float16 takes {2 * report.parameters:,} bytes"
  )
  return exact, coded, report


if __name__ == "__main__":
  main()
