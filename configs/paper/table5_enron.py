"""BERT on Enron-Spam: Table 5 of the paper.

| paper | FL | EG | HM | accuracy % |
|---|---|---|---|---|
| normal | 10 | 7.31 | 5.47 | 99.65 |
| BackSlash | 10 | 2.42 | 2.19 | 98.96 |

python -m experiments.main --config=configs/paper/table5_enron.py:full \\
  --workdir=DIR
Hardware: one accelerator of 16 GB; the time was not measured.
":small" is two blocks of the architecture, from scratch,
for two CPU cores; see docs/reproduction.md for its time and its command.
"""

import ml_collections

from configs.paper import common


def get_config(argument: str = "small") -> ml_collections.ConfigDict:
  return common.build(
    argument, model="bert", task="enron_spam", pretrained=False
  )
