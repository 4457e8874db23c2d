"""Llama-3 (3.2, 1B) on IMDB: Table 4 of the paper.

| paper | FL | EG | HM | accuracy % |
|---|---|---|---|---|
| normal | 10 | 5.49 | 4.43 | 86.09 |
| BackSlash | 10 | 1.72 | 1.66 | 86.93 |

python -m experiments.main --config=configs/paper/table4_llama3.py:full \\
  --workdir=DIR
Hardware: one accelerator of 80 GB, or 8 of 16; the time was not measured.
":small" is two blocks of the architecture, from scratch,
for two CPU cores; see docs/reproduction.md for its time and its command.
"""

import ml_collections

from configs.paper import common


def get_config(argument: str = "small") -> ml_collections.ConfigDict:
  return common.build(argument, model="llama3", task="imdb")
