"""The choice of the regularizer, BERT on IMDB: Table 6 of the paper.

| term | final nu | accuracy % | EG | HM |
|---|---|---|---|---|
| DGGR | 0.13 | 91.18 | 1.37 | 1.32 |
| L0.5 | 0.22 | 91.88 | 2.90 | 2.01 |
| L1 | 0.15 | 90.65 | 1.52 | 1.46 |
| L2 | 0.10 | 88.29 | 1.16 | 1.14 |

The paper does not state lambda. With the released epsilon of 1 the gradient of
every term is nearly its nu times the sign, so at one lambda the gradient of L2
is twice that of L1, and that of L0.5 half. `l0p5_equal` and `l2_equal`
compensate for that.

python -m experiments.main --config=configs/paper/table6.py:full --workdir=DIR
Hardware: one accelerator of 16 GB; the time was not measured. ":small" is two
blocks of BERT from scratch, for two CPU cores; see docs/reproduction.md for its
time and its command.
"""

import ml_collections

from configs.paper import common

LMBDA = 300.0
ARMS = {
  "normal": {},
  "dggr": common.recipe("released", LMBDA),
  "l0p5": common.recipe("released", LMBDA, shape=0.5),
  "l1": common.recipe("released", LMBDA, shape=1.0),
  "l2": common.recipe("released", LMBDA, shape=2.0),
  "l0p5_equal": common.recipe("released", 2 * LMBDA, shape=0.5),
  "l2_equal": common.recipe("released", LMBDA / 2, shape=2.0),
}


def get_config(argument: str = "small") -> ml_collections.ConfigDict:
  return common.build(
    argument, model="bert", task="imdb", arms=ARMS, pretrained=False
  )
