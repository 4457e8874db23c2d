"""Normal training, then BackSlash: which module is this snippet from?

BackSlash (Wu, Wen & Han, ICML 2025, arXiv 2504.16968) at laptop size: a byte
level Transformer encoder classifies 128 bytes of source code by which of 20
modules of Python's standard library they come from. The first training is
normal. The second uses the recommended recipe, `bs.recommended`, with a target
of two bits per parameter. Both are coded, and the report compares them.

python -m experiments.main --config=configs/quickstart.py \
  --workdir=runs/quickstart
Hardware: two CPU cores. On one it takes five minutes of processor time.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  config = default.get_config()
  config.total_updates = 800
  config.eval_every = 400
  # On a CPU, larger batches leave the cache: 256 take 1.5 times as long.
  config.data.eval_batch_size = 64
  config.checkpoint_every = 400
  config.optimizer.learning_rate = 3e-3
  config.optimizer.weight_decay = 0.1
  # From 2^-2.5 to 2^-6.5, by factors of sqrt(2).
  config.evaluate.steps = tuple(2.0 ** (-k / 2) for k in range(5, 14))
  config.evaluate.pruning_rates = (0.0, 0.4, 0.6, 0.8, 0.9)
  config.arms.normal = ml_collections.ConfigDict()
  config.arms.backslash = ml_collections.ConfigDict(
    {"rate": {"shape": 1.0, "target": 2.0}}
  )
  return config
