"""The frontier of the embedded next-byte task, from scratch.

python -m experiments.frontier --config=configs/frontier_bytes.py:small \
  --workdir=runs/frontier_bytes
":full" has every method and point, with three seeds.

Hardware: two CPU cores with a process on each, see docs/frontier.md. A training
of 400 updates took 2 minutes on a core, and 3 with its 9 files, so the 50
trainings of the small grid take about an hour. The full grid, with 1000
updates, is for an accelerator. --config.grid.tune=True tunes the learning rates
on the validation split.
"""

import ml_collections

from configs import default, frontier

# By method, from tuning.json; the others have 3e-3.
LEARNING_RATES = dict.fromkeys(
  (
    "sensitive",
    "l1_target",
    "l1_target_sensitive",
    "round_l1_target",
    "dggr_target",
    "bits_target",
  ),
  1e-2,
)


def get_config(profile: str = "small") -> ml_collections.ConfigDict:
  config = default.get_config()
  config.data.name = "python_stdlib/bytes"
  config.data.batch_size = 32
  config.data.eval_batch_size = 64
  config.data.max_eval = 512  # 65,536 bytes.
  config.model.name = "decoder"
  config.optimizer.learning_rate = 3e-3
  config.optimizer.warmup_updates = 50
  config.optimizer.weight_decay = 1.0  # Better than 0.1 for every method.
  is_small = profile == "small"
  if is_small:
    config.total_updates = 400
    config.evaluate.steps = tuple(2.0 ** (-k / 2) for k in range(6, 15))
  else:
    config.evaluate.steps = tuple(2.0 ** (-k / 2) for k in range(4, 16))
  frontier.add(
    config,
    profile,
    steps=(2.0**-5,) if is_small else (2.0**-5, 2.0**-4),
    lambdas=(40.0,) if is_small else (5.0, 15.0, 50.0, 150.0),
    learning_rates=LEARNING_RATES,
    candidates=(1e-3, 3e-3, 1e-2, 3e-2),
    # For this task a small model needs every weight.
    balances=(0.01,) if is_small else (0.01, 0.03, 0.1, 0.3),
    decays=(3.0,) if is_small else (0.1, 0.3, 3.0),
    bits=(1.0, 1.4, 1.8, 2.6) if is_small else (0.7, 1.0, 1.4, 1.8, 2.6, 3.5),
    best="fitted",
    targets=(2.0, 3.0) if is_small else (1.0, 2.0, 3.0, 4.0),
    small=(
      "normal",
      "rdo",
      "sensitive",
      "feedback",
      "fitted_feedback",
      "decay",
      "qat",
      "qat_late",
      "l1_fitted",
      "fitted",
      "l1_target",
      "l1_target_sensitive",
      "round_l1_target",
      "dggr_target",
      "bits_target",
    ),
  )
  return config
