"""The default experiment, shrunk until a test can afford it."""

import ml_collections

from configs import default

FIELDS = {
  "total_updates": 12,
  "log_every": 2,
  "eval_every": 6,
  "checkpoint_every": 4,
  "data.batch_size": 16,
  "data.eval_batch_size": 200,
  "data.max_eval": 200,
  "model.depth": 1,
  "model.width": 16,
  "model.heads": 2,
  "model.mlp": 16,
  "optimizer.warmup_updates": 2,
  "rate.lmbda": 1.0,
  "evaluate.steps": (2.0**-8, 2.0**-4),
  "evaluate.pruning_rates": (0.0, 0.8),
}


def config(**fields) -> ml_collections.ConfigDict:
  """The config; fields like `model__depth=2` change it further."""
  result = default.get_config()
  changes = {name.replace("__", "."): v for name, v in fields.items()}
  result.update_from_flattened_dict(FIELDS | changes)
  return result.lock()


def flags() -> list[str]:
  """The same as arguments of experiments.main."""
  return [f"--config.{name}={value!r}" for name, value in FIELDS.items()]
