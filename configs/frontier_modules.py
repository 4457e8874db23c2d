"""The frontier of the embedded classification task, from scratch.

python -m experiments.frontier --config=configs/frontier_modules.py:small \
  --workdir=runs/frontier_modules
":full" in the place of ":small" is every method and point, with three seeds.

Hardware: two CPU cores. Time: small, 78 trainings of 600 steps. Those coded
with 9 steps took 2 minutes on one of the cores, those with the steps of their
training 50 seconds, so that two processes need about 70 minutes. full, three
seeds of every method and point and 1000 steps, is for many cores. Learning
rates are tuned on the validation split by --config.grid.tune=True.
"""

import ml_collections

from configs import default, frontier

# By method, from tuning.json; the others have 3e-3.
LEARNING_RATES = dict.fromkeys(
  (
    "sensitive",
    "decay",
    "prune",
    "qat",
    "qat_late",
    "dggr",
    "round_l1",
    "round_dggr",
    "round_bits",
    "dggr_target",
    "bits_target",
    "fitted",
  ),
  1e-2,
) | dict.fromkeys(("normal", "rdo", "bits", "round", "l1_target_fitted"), 3e-2)


def get_config(profile: str = "small") -> ml_collections.ConfigDict:
  config = default.get_config()
  config.optimizer.learning_rate = 3e-3
  config.optimizer.weight_decay = 0.1
  config.rate.step = 2.0**-6
  is_small = profile == "small"
  if is_small:
    config.total_steps = 600
    config.evaluate.steps = tuple(2.0 ** (-k / 2) for k in range(6, 15))
  else:
    config.evaluate.steps = tuple(2.0 ** (-k / 2) for k in range(4, 16))
  frontier.add(
    config,
    profile,
    steps=(2.0**-5,) if is_small else (2.0**-5, 2.0**-4),
    lambdas=(40.0,) if is_small else (5.0, 15.0, 50.0, 150.0),
    learning_rates=LEARNING_RATES,
    candidates=(3e-3, 1e-2, 3e-2),
  )
  return config
