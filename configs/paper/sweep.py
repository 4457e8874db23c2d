"""The weight of the rate, BERT on IMDB: Figures 2 to 6 of the paper.

| lambda | EG | HM | test % | train % |
|---|---|---|---|---|
| 0 | 7.31 | 5.47 | 93.63 | 99.54 |
| 1 | 6.66 | 5.25 | 93.85 | 99.69 |
| 10 | 5.78 | 4.81 | 93.93 | 99.56 |
| 100 | 4.03 | 3.59 | 93.68 | 99.47 |
| 1000 | 2.64 | 2.42 | 92.59 | 99.52 |

At 2000 the paper loses 2.52 points and keeps 13% of the size. `lambda10` is the
released recipe with a lambda of 10, `coupled10` is Algorithm 1.

python -m experiments.main --config=configs/paper/sweep.py:full --workdir=DIR
Hardware: one accelerator of 16 GB; the time was not measured. ":small" is two
blocks of BERT from scratch, for two CPU cores; see docs/reproduction.md for its
time and its command.
"""

from typing import Any

import ml_collections

from configs.paper import common

# The recipe of an arm and its lambdas, by the arm's name.
LAMBDAS: dict[str, tuple[str, tuple[int, ...]]] = {
  "lambda": ("released", (1, 10, 100, 1000, 2000)),
  "coupled": ("algorithm1", (1, 10, 100, 1000, 2000)),
}
ARMS: dict[str, dict[str, Any]] = {"normal": {}} | {
  f"{name}{lmbda}": common.recipe(recipe, float(lmbda))
  for name, (recipe, lambdas) in LAMBDAS.items()
  for lmbda in lambdas
}


def get_config(argument: str = "small") -> ml_collections.ConfigDict:
  return common.build(
    argument, model="bert", task="imdb", arms=ARMS, pretrained=False
  )
