"""Fine-tuning a real pretrained encoder, all-MiniLM-L6-v2 (22.7M parameters).

What the configs of its frontiers and of its edge share. MINILM, below, is a
directory with its weights and tokenizer; without it they come from the hub.
DATA is a directory with the dataset, see docs/data.md; without it that is
downloaded:

--config.model.weights=MINILM --config.data.tokenizer=MINILM
--config.data.source=DATA

The rate takes a weight to zero in steps of the learning rate, however hard it
pulls. So what a training can save is bounded by the sum of all learning rates,
which must be that of a weight, some hundredths: hence small batches and a
learning rate at the upper end of what the model bears.
"""

from collections.abc import Mapping

import ml_collections

from configs import default, frontier

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


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
  config.data.max_eval = 872  # As many as SST-2 has to validate.
  config.model.name = "bert"
  config.model.weights = MINILM
  config.optimizer.learning_rate = 2e-4 if small else 1e-4
  config.rate.step = 2.0**-7
  if small:
    config.total_steps = 648
    config.evaluate.steps = tuple(2.0 ** (-k / 2) for k in range(8, 15))
  else:
    config.total_steps = 864
    config.evaluate.steps = tuple(2.0 ** (-k / 2) for k in range(6, 17))
  return config


def grid(
  profile: str,
  task: str,
  seq_len: int,
  learning_rates: Mapping[str, float],
) -> ml_collections.ConfigDict:
  """The frontier of a task.

  Args:
    profile: "small" or "full".
    task: as `data.name`.
    seq_len: tokens per example.
    learning_rates: by method, where it is not that of `fine_tuning`.
  """
  is_small = profile == "small"
  config = fine_tuning(task, seq_len, small=is_small)
  frontier.add(
    config,
    profile,
    steps=(2.0**-4,) if is_small else (2.0**-5, 2.0**-4),
    lambdas=(300.0, 1000.0, 3000.0),
    learning_rates=learning_rates,
    candidates=(5e-5, 1e-4, 2e-4),
    limit=0.3,
    best="l1_fitted",
    small=(
      "normal",
      "sensitive",
      "l1",
      "l1_sensitive",
      "fitted",
      "l1_fitted",
      "qat_late",
      "dggr_target",
      "bits_target",
    ),
    balances=(0.3,) if is_small else (0.3, 1.0, 3.0, 10.0),
    bits=(0.5, 0.8, 1.2) if is_small else (0.5, 0.8, 1.2, 1.8),
    targets=(1.0,) if is_small else (0.5, 1.0, 2.0, 3.0),
  )
  return config
