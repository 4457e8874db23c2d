"""The frontier of fine-tuning a real pretrained encoder on SST-2.

python -m experiments.frontier --config=configs/frontier_sst2.py:small \
  --workdir=runs/frontier_sst2 --config.model.weights=MINILM \
  --config.data.tokenizer=MINILM --config.data.source=DATA
MINILM is a directory with all-MiniLM-L6-v2 (22.7M parameters), by default the
hub's id, which downloads; DATA has sst2/, see docs/data.md, or is left out to
download. ":full" is every method and point, with three seeds and four epochs.

Hardware: two CPU cores. Time, computed from 0.8 s for a training step, 20 s for
coding and evaluating a coded step (872 examples of each split) and 30 s to
compile: small, 20 trainings of one epoch (216 steps), each coded with 7 steps,
(173 + 140 + 30) s each, 115 minutes. The full grid, four epochs, is for an
accelerator. Learning rates are tuned on the validation split by
--config.grid.tune=True, with another --workdir.
"""

import ml_collections

from configs import default, frontier

# By method, from tuning.json; the others have the default's, 1e-4.
LEARNING_RATES: dict[str, float] = {}
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def get_config(profile: str = "small") -> ml_collections.ConfigDict:
  config = default.get_config()
  config.data.name = "sst2"
  config.data.tokenizer = MINILM
  config.data.batch_size = 32
  config.data.eval_batch_size = 32
  config.data.seq_len = 48
  config.data.max_eval = 872
  config.model.name = "bert"
  config.model.weights = MINILM
  config.optimizer.learning_rate = 1e-4
  config.rate.step = 2.0**-7
  is_small = profile == "small"
  if is_small:
    config.total_steps = 216
    config.evaluate.steps = tuple(2.0 ** (-k / 2) for k in range(8, 15))
  else:
    config.total_steps = 864
    config.evaluate.steps = tuple(2.0 ** (-k / 2) for k in range(6, 17))
  frontier.add(
    config,
    profile,
    steps=(2.0**-4,) if is_small else (2.0**-5, 2.0**-4),
    lambdas=(300.0, 1000.0, 3000.0),
    learning_rates=LEARNING_RATES,
    candidates=(5e-5, 1e-4, 2e-4),
    small=("normal", "rdo", "qat", "l1_target", "dggr_target", "bits_target"),
    balances=(0.3, 1.0, 3.0, 10.0),
    targets=(1.0, 2.0) if is_small else (0.5, 1.0, 2.0, 3.0),
  )
  return config
