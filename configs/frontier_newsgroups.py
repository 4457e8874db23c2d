"""The frontier of fine-tuning a real pretrained encoder on 20 Newsgroups.

python -m experiments.frontier --config=configs/frontier_newsgroups.py:small \
  --workdir=runs/frontier_newsgroups

":full" is every method and point, with three seeds; configs/pretrained.py says
where weights and data come from.

Hardware: two CPU cores with a process on each, see docs/frontier.md. A training
and its one file took 7 minutes on a core, one and its seven files 12, and seven
files of a model that is there 5; so the 22 trainings of the small grid are
about 100 minutes.
"""

import ml_collections

from configs import pretrained


def get_config(profile: str = "small") -> ml_collections.ConfigDict:
  seq_len = 64 if profile == "small" else 256
  return pretrained.grid(profile, "newsgroups20", seq_len)
