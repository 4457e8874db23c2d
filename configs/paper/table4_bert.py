"""BERT on IMDB: Tables 4 and 5 of the paper.

| paper | FL | EG | HM | accuracy % |
|---|---|---|---|---|
| normal | 10 | 7.31 | 5.47 | 93.63 |
| BackSlash | 10 | 2.64 | 2.42 | 92.59 |

python -m experiments.main --config=configs/paper/table4_bert.py:full \\
  --workdir=DIR
Hardware: one accelerator of 16 GB; the time was not measured.
":small" is the pretrained MiniLM encoder (22.7M parameters),
for two CPU cores; see docs/reproduction.md for its time and its command.
"""

import ml_collections

from configs.paper import common


def get_config(argument: str = "small") -> ml_collections.ConfigDict:
  return common.build(argument, model="bert", task="imdb")
