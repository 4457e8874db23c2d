"""The quickstart's classifier, trained to remove neurons, heads and features.

python -m experiments.bench.edge --config=configs/edge.py --workdir=runs/edge

trains every arm with three seeds; docs/edge.md has the results. One seed alone:

python -m experiments.main --config=configs/edge.py --workdir=runs/edge/seed0

Hardware: two CPU cores. 600 updates, in place of the quickstart's 1000, make
three seeds of five arms affordable.
"""

import ml_collections
from ml_collections import config_dict

from configs import quickstart


def add_structure(config: ml_collections.ConfigDict) -> None:
  """Adds the fields of the rate and the pruning of whole units."""
  config.structure = structure = ml_collections.ConfigDict()
  # Units that the rate prices, see experiments/models/units.py.
  structure.groups = ("mlp", "heads", "features")
  structure.lmbda = 0.0  # Weight of the rate; see group_rate.group_rate.
  structure.warmup_updates = 0  # lmbda rises linearly from 0 over these.
  structure.shape = config_dict.placeholder(float)  # None estimates nu.
  # Fraction of each layer's units that is removed gradually.
  structure.pruned = ml_collections.ConfigDict(
    {"mlp": 0.0, "heads": 0.0, "rows": 0.0, "features": 0.0}
  )
  structure.begin_update = 0
  structure.end_update = 700


def get_config() -> ml_collections.ConfigDict:
  config = quickstart.get_config()
  add_structure(config)
  config.total_updates = 600
  config.optimizer.warmup_updates = 50
  config.eval_every = 600
  config.checkpoint_every = 600
  config.evaluate.steps = tuple(2.0 ** (-k / 2) for k in range(9, 14))
  config.evaluate.pruning_rates = ()
  bits = {"rate": "bits", "scope": "tensor", "target": 0.8}
  config.arms = ml_collections.ConfigDict()
  config.arms.normal = ml_collections.ConfigDict()
  config.arms.l1 = ml_collections.ConfigDict(
    {"rate": {"shape": 1.0, "balance": 0.1}}
  )
  config.arms.backslash = ml_collections.ConfigDict({"rate": bits})
  # The rate decides how many units stay.
  config.arms.group = ml_collections.ConfigDict(
    {
      "rate": bits,
      "structure": {"lmbda": 3e4, "shape": 1.0, "warmup_updates": 200},
    }
  )
  config.arms.structured = ml_collections.ConfigDict(
    {
      "rate": bits,
      "structure": {
        "pruned": {"mlp": 0.9, "heads": 0.75, "features": 0.25},
        "begin_update": 50,
        "end_update": 400,
      },
    }
  )
  return config
