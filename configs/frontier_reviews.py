"""The frontier of a language model, SmolLM2, trained on for reviews of films.

python -m experiments.frontier --config=configs/frontier_reviews.py \
  --workdir=runs/frontier_reviews --config.model.weights=SMOLLM2 \
  --config.data.tokenizer=SMOLLM2 --config.data.source=DATA

SmolLM2-135M-Instruct predicts the first 128 tokens of IMDB's reviews. Every
file is the difference from the pretrained weights, or LoRA's adapters. SMOLLM2
is a directory with its weights and tokenizer, DATA one as in docs/data.md.

Hardware: an update of 1,024 tokens takes 8 seconds on two CPU cores.
"""

import ml_collections

from configs import frontier, reviews


def get_config() -> ml_collections.ConfigDict:
  config = reviews.get_config()
  frontier.add(
    config,
    "delta",
    steps=(),
    lambdas=(),
    learning_rates={"lora": 5e-4},
    candidates=(2e-4, 5e-4, 1e-3),
    best="delta_l1_fitted",
    small=("delta", "lora", "delta_l1_fitted"),
    differences={
      # The difference is zero at the first: the loss of the base.
      "steps": (1.0, *(2.0 ** (-k / 2) for k in (16, 18, 20, 22))),
      "balances": (0.3,),
      "bits": (0.03, 0.1),
      "ranks": (8,),
      "rank_steps": tuple(2.0**-k for k in (5, 7, 9)),
    },
  )
  config.grid.baseline = "delta"
  config.grid.seeds = (0,)
  config.grid.bits = (0.03, 0.1, 0.3, 1.0)
  return config
