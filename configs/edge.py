"""The quickstart's classifier, trained to lose whole neurons, heads and rows.

python -m experiments.bench.edge train --workdir=runs/edge

trains every arm with three seeds; docs/edge.md has what is left of them. One
seed alone:

python -m experiments.main --config=configs/edge.py --workdir=runs/edge/seed0

Hardware: two CPU cores. 400 steps, fewer than the quickstart's 1000, so that
three seeds of four arms are affordable: 40 seconds each, and compilation.
"""

import ml_collections
from ml_collections import config_dict

from configs import quickstart


def add_structure(config: ml_collections.ConfigDict) -> None:
  """Adds the fields of the rate and the pruning of whole units."""
  config.structure = structure = ml_collections.ConfigDict()
  # Units that the rate prices, see experiments/groups.py.
  structure.groups = ("mlp", "heads", "features")
  structure.lmbda = 0.0  # Weight of the rate; see group_rate.group_rate.
  structure.warmup_steps = 0  # lmbda rises linearly from 0 over these.
  structure.shape = config_dict.placeholder(float)  # None estimates nu.
  structure.pruned = ("mlp", "heads", "features")  # Units that are removed,
  structure.sparsity = 0.0  # so much of their parameters, gradually.
  structure.scope = "tensor"  # Of each layer's units; "model": of all units.
  structure.begin_step = 0
  structure.end_step = 700


def get_config() -> ml_collections.ConfigDict:
  config = quickstart.get_config()
  add_structure(config)
  config.total_steps = 400
  config.eval_every = 400
  config.checkpoint_every = 400
  config.evaluate.steps = (2.0**-4, 2.0**-5, 2.0**-5.5)
  config.evaluate.pruning_rates = ()
  config.arms = ml_collections.ConfigDict()
  config.arms.normal = ml_collections.ConfigDict()
  config.arms.l1 = ml_collections.ConfigDict(
    {"rate": {"lmbda": 4.0, "shape": 1.0}, "round_step": 2.0**-4}
  )
  config.arms.backslash = ml_collections.ConfigDict(
    {"rate": {"lmbda": 4.0}, "round_step": 2.0**-4}
  )
  config.arms.structured = ml_collections.ConfigDict(
    {
      "rate": {"lmbda": 4.0},
      "round_step": 2.0**-4,
      "structure": {"lmbda": 2.5e4, "warmup_steps": 100},
    }
  )
  return config
