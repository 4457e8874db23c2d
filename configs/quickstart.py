"""Normal training, then BackSlash: which module is this snippet from?

BackSlash (Wu, Wen & Han, ICML 2025, arXiv 2504.16968) at laptop size: a byte
level Transformer encoder classifies 128 bytes of source code by which of 20
modules of Python's standard library they come from. The first training is
normal. The second uses the recommended recipe, `bs.recommended`, with a target
of one bit per parameter. Both are coded, and the report compares them.

python -m experiments.main --config=configs/quickstart.py \
  --workdir=runs/quickstart
Hardware: two CPU cores.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  config = default.get_config()
  config.total_updates = 1000
  config.eval_every = 500
  config.checkpoint_every = 500
  config.optimizer.learning_rate = 3e-3
  config.optimizer.weight_decay = 0.1
  # From 2^-1.5 to 2^-7, by factors of sqrt(2).
  config.evaluate.steps = tuple(2.0 ** (-k / 2) for k in range(3, 15))
  config.evaluate.pruning_rates = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
  config.arms.normal = ml_collections.ConfigDict()
  config.arms.backslash = ml_collections.ConfigDict(
    {"rate": {"shape": 1.0, "target": 1.0}}
  )
  return config
