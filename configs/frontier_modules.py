"""The frontier of the embedded classification task, from scratch.

python -m experiments.frontier --config=configs/frontier_modules.py:small \
  --workdir=runs/frontier_modules
":full" has every method and point, with three seeds.

Hardware: two CPU cores. The small grid has 80 trainings of 600 updates. A
training took 50 seconds on a core, and each of its files, usually 11, took 8
seconds, so two processes need about 75 minutes. The full grid, with 1000
updates, is for many cores. --config.grid.tune=True tunes the learning rates on
the validation split.
"""

import ml_collections

from configs import default, frontier

# By method, from tuning.json; the others have 1e-2.
LEARNING_RATES = dict.fromkeys(("l1_target_sensitive", "qat"), 3e-3)


def get_config(profile: str = "small") -> ml_collections.ConfigDict:
  config = default.get_config()
  config.optimizer.learning_rate = 1e-2
  config.optimizer.warmup_updates = 50
  config.optimizer.weight_decay = 0.1
  is_small = profile == "small"
  if is_small:
    config.total_updates = 600
    config.evaluate.steps = tuple(2.0 ** (-k / 2) for k in range(4, 15))
  else:
    config.evaluate.steps = tuple(2.0 ** (-k / 2) for k in range(4, 16))
  frontier.add(
    config,
    profile,
    steps=(2.0**-5,) if is_small else (2.0**-5, 2.0**-4),
    lambdas=(40.0,) if is_small else (5.0, 15.0, 50.0, 150.0),
    learning_rates=LEARNING_RATES,
    candidates=(3e-3, 1e-2),
  )
  # With a balance of 0.3, L1 loses too much accuracy at any learning rate.
  config.grid.methods.l1.tuned_at = "0p1"
  config.grid.methods.round_l1.tuned_at = "0p1_0p03125"
  return config
