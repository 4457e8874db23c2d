"""Normal training, then BackSlash, on next-byte prediction.

The comparison of the quickstart (BackSlash, arXiv 2504.16968) with a small
decoder language model over the bytes of Python's standard library.

python -m experiments.main --config=configs/lm_bytes.py --workdir=runs/lm_bytes
Hardware: two CPU cores.
"""

import ml_collections

from configs import quickstart


def get_config() -> ml_collections.ConfigDict:
  config = quickstart.get_config()
  config.data.name = "python_stdlib/bytes"
  config.data.eval_batch_size = 64
  config.model.name = "decoder"
  return config
