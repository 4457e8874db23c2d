"""BERT on 20 Newsgroups: Table 5 of the paper.

| paper | FL | EG | HM | accuracy % |
|---|---|---|---|---|
| normal | 10 | 7.31 | 5.47 | 70.78 |
| BackSlash | 10 | 3.61 | 3.18 | 69.36 |

python -m experiments.main --config=configs/paper/table5_newsgroups.py:full \\
  --workdir=DIR
Hardware: one accelerator of 16 GB; the time was not measured.
":small" is the pretrained MiniLM encoder (22.7M parameters),
for two CPU cores; see docs/reproduction.md for its time and its command.
"""

import ml_collections

from configs.paper import common


def get_config(argument: str = "small") -> ml_collections.ConfigDict:
  return common.build(argument, model="bert", task="newsgroups20")
