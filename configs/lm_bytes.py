"""Normal training, then BackSlash, on next-byte prediction.

A small decoder language model over the bytes of Python's standard library, with
the paper's rate (BackSlash, arXiv 2504.16968) and a loss that sees the rounded
weights. Lambda is not given but found: what is asked for is a file of two bits
per parameter.

python -m experiments.main --config=configs/lm_bytes.py --workdir=runs/lm_bytes
Hardware: two CPU cores. Time: 13 minutes, computed from 0.31 s for a step.
Result of one seed: 65.9% of the next bytes normally, in float32; 63.6% from
BackSlash's file of 2.04 bits per parameter, for which the normal model takes
3.34 bits: 39% smaller.
"""

import ml_collections

from configs import quickstart


def get_config() -> ml_collections.ConfigDict:
  config = quickstart.get_config()
  config.data.name = "python_stdlib/bytes"
  config.data.batch_size = 32
  config.data.eval_batch_size = 64
  config.data.max_eval = 512
  config.model.name = "decoder"
  config.rate.step = 2.0**-4
  config.arms.backslash = ml_collections.ConfigDict(
    {"rate": {"target": 2.0}, "round_step": 2.0**-4}
  )
  return config
