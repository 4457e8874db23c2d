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

--config=configs/distill.py:reviews trains SmolLM2 on reviews of films, with the
loss of the rounded weights from the second update on: until then the exact
model's predictions, as targets alone, teach nothing. DATA of docs/data.md is
its source.

Hardware: with stories260K, of 0.3M parameters, 1 minute of a CPU core. 100
updates of SmolLM2 took 18 minutes of one that other programs used too, and up
to 10.5 GB of memory.
"""

import ml_collections

from configs import reviews

PROFILES = ("texts", "reviews")


def get_config(profile: str = "texts") -> ml_collections.ConfigDict:
  if profile not in PROFILES:
    raise ValueError(
      f"the profile, after the colon of --config, is {profile!r}, wanted one of"
      f" {', '.join(PROFILES)}"
    )
  config = reviews.get_config()
  config.eval_every = config.total_updates
  config.round_bits = 3.0
  config.evaluate.steps = ()
  config.evaluate.scales = (1.0,)
  config.evaluate.pruning_rates = ()
  config.optimizer.warmup_updates = 10
  distilled = {"model": {"distill": 1.0}}
  feedback = {"evaluate": {"feedback_batches": 24, "mu": 0.1}}
  if profile == "reviews":
    # Half of the memory of float32, and of the time on CPUs with AMX.
    config.model.dtype = "bfloat16"
    config.checkpoint_every = 20
    config.keep_checkpoints = 1
    config.optimizer.learning_rate = 2e-4
    config.round_begin_update = 1
  else:
    config.data.name = "texts"
    config.data.seq_len = 256
    config.data.max_eval = 128
    config.optimizer.learning_rate = 1e-3
    config.round_begin_update = 100
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
