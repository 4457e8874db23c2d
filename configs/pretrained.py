"""Fine-tuning a real pretrained encoder, all-MiniLM-L6-v2 (22.7M parameters).

The configs frontier_texts and edge_sst2 share it. In the flags below, MINILM is
a directory with its weights and tokenizer; without them they come from the hub.
DATA is a directory with the data set, see docs/data.md; without it the data set
is downloaded:

--config.model.weights=MINILM --config.data.tokenizer=MINILM
--config.data.source=DATA

Adam bounds an update by the learning rate, however large the gradient of the
rate is. So the sum of all learning rates limits how many weights can reach
zero. It must be as large as a weight, some hundredths. Hence the batches are
small, and the learning rate is near the largest at which training is stable.
"""

import ml_collections

from configs import default, frontier

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
# By method of the small grid, tuned on SST-2; the others have that of
# `fine_tuning`, since a rate has to move the weights further.
LEARNING_RATES = dict.fromkeys(
  (
    "normal",
    "sensitive",
    "feedback",
    "fitted",
    "fitted_feedback",
    "qat_late",
  ),
  1e-4,
)


def fine_tuning(
  task: str, seq_len: int, *, small: bool
) -> ml_collections.ConfigDict:
  """Normal training on a task.

  Args:
    task: as `data.name`.
    seq_len: tokens per example; what is longer is cut.
    small: for two CPU cores, or for an accelerator.
  """
  config = default.get_config()
  config.data.name = task
  config.data.tokenizer = MINILM
  config.data.batch_size = 8 if small else 32
  config.data.eval_batch_size = 32
  config.data.seq_len = seq_len
  config.data.max_eval = 872  # The size of SST-2's validation split.
  config.model.name = "bert"
  config.model.weights = MINILM
  config.optimizer.learning_rate = 2e-4 if small else 1e-4
  config.optimizer.warmup_updates = 50
  config.rate.step = 2.0**-7
  if small:
    config.total_updates = 648
    config.evaluate.steps = tuple(2.0 ** (-k / 2) for k in range(8, 15))
  else:
    config.total_updates = 864
    config.evaluate.steps = tuple(2.0 ** (-k / 2) for k in range(6, 17))
  return config


def differences(task: str, seq_len: int) -> ml_collections.ConfigDict:
  """The frontier of fine-tunes as differences from the pretrained weights.

  Args:
    task: as `data.name`.
    seq_len: tokens per example.
  """
  config = fine_tuning(task, seq_len, small=True)
  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_updates = 200
  frontier.add(
    config,
    "delta",
    steps=(),
    lambdas=(),
    learning_rates={"lora": 1e-3, "lora_dggr": 1e-3},
    candidates=(5e-4, 1e-3, 2e-3),
    best="delta_l1_fitted",
    small=(
      "delta",
      "lora",
      "lora_dggr",
      "delta_fitted",
      "delta_l1_fitted",
      "delta_dggr",
    ),
    differences={
      "steps": tuple(2.0 ** (-k / 2) for k in range(11, 19)),
      "balances": (0.1, 0.3),
      "bits": (0.03, 0.06, 0.1),
      "ranks": (4, 8, 16),
      "rank_steps": tuple(2.0**-k for k in (0, 1, 2, 3, 4, 6)),
    },
  )
  config.grid.baseline = "delta"
  config.grid.bits = (0.03, 0.06, 0.12, 0.25)
  return config


def grid(profile: str, task: str, seq_len: int) -> ml_collections.ConfigDict:
  """The frontier of a task.

  Args:
    profile: "small" or "full".
    task: as `data.name`.
    seq_len: tokens per example.
  """
  is_small = profile == "small"
  config = fine_tuning(task, seq_len, small=is_small)
  # With 50 updates, and 2e-4, one of two seeds stays at chance.
  config.optimizer.warmup_updates = 200
  frontier.add(
    config,
    profile,
    steps=(2.0**-5, 2.0**-4),
    lambdas=(300.0, 1000.0, 3000.0),
    learning_rates=LEARNING_RATES if is_small else {},
    candidates=(5e-5, 1e-4, 2e-4),
    limit=0.3,
    best="l1_fitted",
    small=(
      "normal",
      "sensitive",
      "feedback",
      "fitted_feedback",
      "l1_feedback",
      "l1",
      "l1_sensitive",
      "dggr",
      "fitted",
      "l1_fitted",
      "qat_late",
    ),
    widths=(6, 5) if is_small else (6, 5, 4, 3, 2),
    balances=(0.3,) if is_small else (0.3, 1.0, 3.0, 10.0),
    bits=(0.5, 0.8, 1.2) if is_small else (0.5, 0.8, 1.2, 1.8),
    targets=(0.5, 1.0, 2.0, 3.0),
  )
  return config
