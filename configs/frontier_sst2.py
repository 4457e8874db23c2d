"""The frontier of fine-tuning a real pretrained encoder on SST-2.

python -m experiments.frontier --config=configs/frontier_sst2.py:small \
  --workdir=runs/frontier_sst2

":full" is every method and point, with three seeds; configs/pretrained.py says
where weights and data come from.

Hardware: two CPU cores with a process on each, see docs/frontier.md. A training
and its one file took 6 minutes on a core, one and its seven files 9, and seven
files of a model that is there 3.5; so the 22 trainings of the small grid are
about 80 minutes.
"""

import ml_collections

from configs import pretrained


def get_config(profile: str = "small") -> ml_collections.ConfigDict:
  seq_len = 32 if profile == "small" else 64  # Of 25 tokens on average.
  return pretrained.grid(profile, "sst2", seq_len)
