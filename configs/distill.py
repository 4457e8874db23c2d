"""A language model trained on for a file of three bits per parameter.

python -m experiments.main --config=configs/distill.py --workdir=runs/distill \
  --config.model.weights=DIR --config.data.tokenizer=DIR \
  --config.data.source=TEXTS

DIR is a directory with a Llama and its tokenizer as of Hugging Face, TEXTS a
file with a text in every line, see docs/data.md. After half of the updates each
matrix has a step, and the loss sees it rounded. The arms differ in the loss,
and in what codes the result: rounding or error feedback (docs/feedback.md). The
arms "distilled" have the predictions of the exact model as targets, not the
texts.

Hardware: with stories260K, of 0.3M parameters, 1 minute of a CPU core.
"""

import ml_collections

from configs import default, frontier_reviews


def get_config() -> ml_collections.ConfigDict:
  config = default.get_config()
  config.data.name = "texts"
  config.data.language = True
  config.data.seq_len = 256
  config.data.batch_size = 8
  config.data.eval_batch_size = 8
  config.data.max_eval = 128
  config.model.name = "llama"
  config.model.weights = frontier_reviews.SMOLLM2
  config.data.tokenizer = frontier_reviews.SMOLLM2
  config.total_updates = 200
  config.eval_every = 200
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_updates = 10
  config.round_bits = 3.0
  config.round_begin_update = 100
  config.evaluate.steps = ()
  config.evaluate.scales = (1.0,)
  config.evaluate.pruning_rates = ()
  distilled = {"model": {"distill": 1.0}}
  feedback = {"evaluate": {"feedback_batches": 24, "mu": 0.1}}
  config.baseline = "fitted"
  config.arms = ml_collections.ConfigDict(
    {
      "fitted": {},
      "fitted_feedback": feedback,
      "distilled": distilled,
      "distilled_feedback": distilled | feedback,
    }
  )
  return config
