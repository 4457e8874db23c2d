"""GPT-2 (774M) on IMDB: Table 4 of the paper.

| paper | FL | EG | HM | accuracy % |
|---|---|---|---|---|
| normal | 11 | 7.78 | 5.73 | 85.92 |
| BackSlash | 11 | 2.46 | 2.25 | 88.73 |

python -m experiments.main --config=configs/paper/table4_gpt2.py:full \\
  --workdir=DIR
Hardware: one accelerator of 80 GB, or 8 of 16; the time was not measured.
":small" is two blocks of the architecture, from scratch,
for two CPU cores; see docs/reproduction.md for its time and its command.
"""

import ml_collections

from configs.paper import common


def get_config(argument: str = "small") -> ml_collections.ConfigDict:
  return common.build(argument, model="gpt2", task="imdb")
