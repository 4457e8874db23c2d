"""The optimizer step alone: adamw against chain(backslash, adamw).

python -m experiments.bench.optimizer

On the 109 million float32 parameters of BERT-base, or with --model=minilm on 23
million. Parameters and state are given away to each step, as in training. Each
candidate has its own parameters and state; --only names some of them, for
little memory.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import flags

import backslash_jax as bs
from experiments import program
from experiments.bench import shapes, timing

_SHAPES = {"bert": shapes.bert(), "minilm": shapes.bert(384, 6)}
_MODEL = flags.DEFINE_enum("model", "bert", list(_SHAPES), "Shapes.")
_ONLY = flags.DEFINE_list("only", None, "Candidates beside adamw; default all.")


_RATE = 1e-5


def candidates() -> dict[str, optax.GradientTransformation]:
  """The optimizers to compare, the baseline first."""
  decoupled = optax.scale_by_adam(), optax.add_decayed_weights(1e-4)
  learning_rate = optax.scale_by_learning_rate(_RATE)
  return {
    "adamw": optax.adamw(_RATE),
    "coupled": optax.chain(bs.backslash(1.0), optax.adamw(_RATE)),
    "every update": optax.chain(
      bs.backslash(1.0, update_every=1), optax.adamw(_RATE)
    ),
    "decoupled": optax.chain(*decoupled, bs.backslash(1.0), learning_rate),
    "L1": optax.chain(bs.backslash(1.0, shape=1.0), optax.adamw(_RATE)),
  }


def tensors(
  names: dict[str, tuple[int, ...]], seed: int
) -> dict[str, jax.Array]:
  """Heavy-tailed float32 tensors of these shapes."""
  keys = iter(jax.random.split(jax.random.key(seed), len(names)))
  return {
    name: 0.02 * jax.random.laplace(next(keys), shape)
    for name, shape in names.items()
  }


def make_step(
  tx: optax.GradientTransformation, params: Any, grads: Any
) -> Callable[[], Any]:
  """A call of which does one update in place, from its own copy of params."""

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, opt_state, grads):
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  state: list[Any] = [jax.tree.map(jnp.copy, params), tx.init(params)]

  def run():
    state[:] = step(*state, grads)
    return state

  return run


def _main(argv):
  del argv
  names = _SHAPES[_MODEL.value]
  params, grads = tensors(names, 0), tensors(names, 1)
  steps = {
    name: make_step(tx, params, grads)
    for name, tx in candidates().items()
    if _ONLY.value is None or name in ("adamw", *_ONLY.value)
  }
  times = timing.measure(steps, timing.REPEATS.value)
  timing.write(
    "optimizer" if _MODEL.value == "bert" else f"optimizer_{_MODEL.value}",
    " ".join(["python -m experiments.bench.optimizer", *sys.argv[1:]]),
    {
      "parameters": sum(x.size for x in params.values()),
      **timing.compare(times, "adamw"),
    },
  )


if __name__ == "__main__":
  program.run(_main)
