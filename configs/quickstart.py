"""Normal training, then BackSlash: which module is this snippet from?

BackSlash (Wu, Wen & Han, ICML 2025, arXiv 2504.16968) at laptop size: a byte
level Transformer encoder tells 20 modules of Python's standard library apart
by 128 bytes of their source. Trains both, codes both, prints the comparison.

python -m experiments.main --config=configs/quickstart.py \
  --workdir=runs/quickstart
Hardware: two CPU cores.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  config = default.get_config()
  config.total_steps = 1000
  config.evaluate.steps = tuple(2.0 ** (-k / 2) for k in range(4, 19))
  config.arms.normal = ml_collections.ConfigDict({"rate": {"lmbda": 0.0}})
  config.arms.backslash = ml_collections.ConfigDict({"rate": {"lmbda": 10.0}})
  return config
