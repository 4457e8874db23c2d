"""A language model, SmolLM2, trained on for reviews of films.

python -m experiments.main --config=configs/reviews.py --workdir=runs/reviews \
  --config.model.weights=DIR --config.data.tokenizer=DIR \
  --config.data.source=DATA

SmolLM2-135M-Instruct predicts the first 128 tokens of IMDB's reviews. DIR is a
directory with its weights and tokenizer, DATA one as in docs/data.md. Other
configs start from this one.

Hardware: an update of 1,024 tokens takes 8 seconds on two CPU cores.
"""

import ml_collections

from configs import default

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


def get_config() -> ml_collections.ConfigDict:
  config = default.get_config()
  config.data.name = "imdb"
  config.data.language = True
  config.data.tokenizer = SMOLLM2
  config.data.seq_len = 128
  config.data.batch_size = 8
  config.data.eval_batch_size = 8
  config.data.max_eval = 48
  config.model.name = "llama"
  config.model.weights = SMOLLM2
  config.total_updates = 200
  config.optimizer.learning_rate = 5e-5
  config.optimizer.warmup_updates = 20
  return config
