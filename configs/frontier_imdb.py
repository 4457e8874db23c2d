"""The frontier of fine-tuning a real pretrained encoder on IMDB.

python -m experiments.frontier --config=configs/frontier_imdb.py:small \
  --workdir=runs/frontier_imdb

":full" is every method and point, with three seeds; configs/pretrained.py says
where weights and data come from.
"""

import ml_collections

from configs import pretrained


def get_config(profile: str = "small") -> ml_collections.ConfigDict:
  seq_len = 64 if profile == "small" else 256
  return pretrained.grid(profile, "imdb", seq_len)
