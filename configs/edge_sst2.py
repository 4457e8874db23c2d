"""A pretrained encoder on SST-2, trained to remove half of its units.

python -m experiments.bench.edge --config=configs/edge_sst2.py \
  --workdir=runs/edge_sst2

configs/pretrained.py says where weights and data come from. The training is
that of configs/frontier_texts.py:sst2.
"""

import ml_collections

from configs import edge, pretrained


def get_config() -> ml_collections.ConfigDict:
  config = pretrained.fine_tuning("sst2", 32, small=True)
  edge.add_structure(config)
  config.structure.groups = ("mlp", "heads")
  config.eval_every = config.total_updates
  config.checkpoint_every = config.total_updates
  config.evaluate.steps = tuple(2.0 ** (-k / 2) for k in range(6, 12))
  config.evaluate.sensitivity_batches = 24
  config.evaluate.pruning_rates = ()
  config.arms = ml_collections.ConfigDict()
  config.arms.normal = ml_collections.ConfigDict()
  config.arms.structured = ml_collections.ConfigDict(
    {
      "rate": {"shape": 1.0, "balance": 0.1},
      "structure": {
        "pruned": {"mlp": 0.67, "heads": 0.5},
        "end_update": 400,
      },
    }
  )
  return config
