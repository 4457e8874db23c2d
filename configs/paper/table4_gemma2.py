"""Gemma-2 (2B) on IMDB: Table 4 of the paper.

| paper | FL | EG | HM | accuracy % |
|---|---|---|---|---|
| normal | 11 | 4.45 | 3.95 | 86.95 |
| BackSlash | 11 | 1.16 | 1.15 | 85.86 |

python -m experiments.main --config=configs/paper/table4_gemma2.py:full \\
  --workdir=DIR
Hardware: one accelerator of 80 GB, or 8 of 16; the time was not measured.
":small" is two blocks of the architecture, from scratch,
for two CPU cores; see docs/reproduction.md for its time and its command.
"""

import ml_collections

from configs.paper import common


def get_config(argument: str = "small") -> ml_collections.ConfigDict:
  return common.build(argument, model="gemma2", task="imdb")
