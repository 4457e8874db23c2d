"""This library's own recipes on the paper's task, BERT on IMDB.

`recommendedB` is `bs.recommended` with a target of B bits per parameter and a
limit of 0.3, for fine-tuning. `delta` trains and codes the difference from the
pretrained weights. The loss sees the rounded weights in the last third of the
updates, and the file has the steps that were fitted: none of these is coded at
the paper's 2^-8.

python -m experiments.main --config=configs/paper/ours.py:medium --workdir=DIR
Hardware: as configs/paper/sweep.py.
"""

from typing import Any

import ml_collections

from configs.paper import common

TARGETS = {"recommended0p5": 0.5, "recommended1": 1.0}
ARMS = ("normal", *TARGETS, "delta")


def get_config(argument: str = "small") -> ml_collections.ConfigDict:
  config = common.build(
    argument, model="bert", task="imdb", arms={name: {} for name in ARMS}
  )
  for name in config.arms:
    if name != "normal":
      fields = _fields(name, config.total_updates)
      config.arms[name] = ml_collections.ConfigDict(fields)
  return config


def _fields(name: str, updates: int) -> dict[str, Any]:
  fields: dict[str, Any] = {
    "round_begin_update": 2 * updates // 3,
    "evaluate": {"steps": (), "scales": (1.0,), "pruning_rates": ()},
  }
  if name == "delta":
    fields["model"] = {"delta": True}
    fields["round_bits"] = 0.06
    rate = {"balance": 0.3, "mask": "all", "step": 2.0**-8}
  else:
    fields["round_bits"] = TARGETS[name]
    rate = {"target": TARGETS[name], "limit": 0.3, "step": 2.0**-4}
  fields["rate"] = rate | {"shape": 1.0}
  return fields
