"""A whole training update, without the rate term or rounding and with them.

python -m experiments.bench.update --config=configs/quickstart.py

On one batch of the config's own data, on all devices of this process. With
--vocabulary=N the model knows so many tokens, whatever the tokenizer.
"""

import dataclasses
import itertools
import sys
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

from experiments import data, learner, optimizer, program, sharding
from experiments.bench import timing

CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/quickstart.py", "The experiment, a file of configs/."
)
VOCABULARY = flags.DEFINE_integer(
  "vocabulary", None, "Tokens that the model knows; the tokenizer's if not set."
)
_CANDIDATES = flags.DEFINE_list(
  "candidates",
  None,
  "Which of them, the first as the baseline; by default all.",
)

# Candidate -> (fields, whether the metrics of the rate are computed).
CANDIDATES: dict[str, tuple[dict[str, Any], bool]] = {
  "plain": ({}, False),
  "rate measured": ({}, True),
  "rate paid": ({"rate.lmbda": 10.0}, True),
  "rounded": ({"round_bits": 2.0}, False),
}


def make_update(
  config: ml_collections.ConfigDict,
  fields: dict[str, Any],
  measure_rate: bool,
  vocabulary: int | None = None,
) -> Callable[[], Any]:
  """A call of which does one update in place, on the same batch."""
  update, (state, batch, _) = jitted(config, fields, measure_rate, vocabulary)
  held, number = [state], itertools.count(1)
  del state

  def run():
    held[0], values, flags = update(held[0], batch, next(number))
    return values, flags

  return run


def jitted(
  config: ml_collections.ConfigDict,
  fields: dict[str, Any],
  measure_rate: bool,
  vocabulary: int | None = None,
) -> tuple[Any, tuple]:
  """The jitted update, and its first arguments: state, batch and number."""
  config = ml_collections.ConfigDict(config.to_dict())
  config.update_from_flattened_dict(fields)
  task = data.load_task(config.data)
  if vocabulary is not None:
    task = dataclasses.replace(task, vocab_size=vocabulary)
  forward, params = learner.build(config, task)
  mesh = sharding.make_mesh(config)
  placed = sharding.parameters(params, mesh)
  tx = optimizer.create(config, placed)
  shapes = jax.eval_shape(tx.init, params)
  shardings = {
    "params": placed,
    "opt_state": sharding.like(shapes, params, placed, mesh),
  }
  state = {"params": params, "opt_state": tx.init(params)}
  state = jax.device_put(state, shardings)
  batch = next(
    iter(
      data.train_dataset(
        config.data, seed=config.seed, batch_size=config.data.batch_size
      )
    )
  )
  batch = jax.device_put(batch, jax.NamedSharding(mesh, sharding.BATCH))
  update = jax.jit(
    learner.make_update(
      config, forward, tx, mesh=mesh, measure_rate=measure_rate
    ),
    donate_argnums=0,
    out_shardings=(shardings, None, None),
  )
  return update, (state, batch, 1)


def _main(argv):
  del argv
  config = CONFIG.value
  names = _CANDIDATES.value or list(CANDIDATES)
  updates = {
    name: make_update(config, *CANDIDATES[name], VOCABULARY.value)
    for name in names
  }
  times = timing.measure(updates, timing.REPEATS.value)
  timing.write(
    f"update_{config.model.name}",
    " ".join(["python -m experiments.bench.update", *sys.argv[1:]]),
    timing.compare(times, names[0]),
  )


if __name__ == "__main__":
  program.run(_main)
