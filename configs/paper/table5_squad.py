"""DeepSeek LLM 7B on SQuAD: Table 5 of the paper.

| paper | FL | EG | HM | accuracy % |
|---|---|---|---|---|
| normal | 11 | 5.95 | 4.70 | 99.97 |
| BackSlash | 11 | 2.90 | 2.81 | 99.97 |

"Accuracy" is of the next token of the reference.
python -m experiments.main --config=configs/paper/table5_squad.py:full \\
  --workdir=DIR
Hardware: 8 accelerators of 80 GB; the time was not measured.
":small" is two blocks of the architecture, from scratch,
for two CPU cores; see docs/reproduction.md for its time and its command.
"""

import ml_collections

from configs.paper import common


def get_config(argument: str = "small") -> ml_collections.ConfigDict:
  return common.build(argument, model="deepseek", task="squad")
