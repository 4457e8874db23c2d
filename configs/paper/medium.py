"""The profile "medium": real pretrained models, for days of a few CPU cores.

BERT is all-MiniLM-L6-v2 on 128 tokens, with all training examples, and 5,000
test examples. Llama-3 is SmolLM2-135M. GPT-2 and Gemma-2 are four blocks from
scratch that predict the tokens of IMDB's reviews; DeepSeek is two blocks that
predict the bytes of an answer, as in the profile "small", for longer.

docs/scaling.md has the measurements behind the choices for the CPU.
"""

import ml_collections

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"

# Updates with a batch size of 32: one epoch of IMDB (22,500 reviews) and of
# Enron-Spam (24,700 messages), five of 20 Newsgroups (10,183).
ENCODER_UPDATES = {"imdb": 700, "enron_spam": 770, "newsgroups20": 1600}

# Parameters, about, by the model of the paper's row.
SIZES = {
  "bert": 22.7e6,
  "gpt2": 1.3e6,
  "llama3": 134.5e6,
  "gemma2": 1.6e6,
  "deepseek": 0.1e6,
}
# How far the released recipe moves a weight in all of its updates together, at
# the paper's lambda of 1000, divided by nu. Of pretrained models that of the
# full profile: 1000 / 110e6 in each of 0.6 * 3500 updates. Models from scratch
# have larger weights; theirs is that of the profile "small".
TRAVEL = {
  "bert": 0.0191,
  "gpt2": 0.1,
  "llama3": 0.0191,
  "gemma2": 0.1,
  "deepseek": 0.1,
}


def set_up(config: ml_collections.ConfigDict, model: str, task: str) -> None:
  """Sets the model, the data and the optimizer.

  Args:
    config: of configs/default.py, with the architecture and the task.
    model: of the paper's row, as in SIZES.
    task: as `data.name`.
  """
  if model == "bert":
    _encoder(config, task)
  elif model == "llama3":
    _smollm2(config)
  elif model == "deepseek":
    _bytes(config)
  else:
    _language(config)
  config.optimizer.warmup_updates = config.total_updates // 10


def _encoder(config, task):
  config.data.tokenizer = config.model.weights = MINILM
  config.data.seq_len = 128
  config.data.batch_size = 32
  config.data.eval_batch_size = 64
  config.data.max_eval = 5000
  config.model.dtype = "bfloat16"
  config.total_updates = ENCODER_UPDATES[task]
  config.log_every = 10
  config.optimizer.learning_rate = 1e-4
  config.evaluate.steps = tuple(2.0**-k for k in (3.5, 4, 4.5, 5, 8))
  config.evaluate.pruning_rates = (0.5, 0.6, 0.8, 0.9)


def _smollm2(config):
  config.data.tokenizer = config.model.weights = SMOLLM2
  config.data.seq_len = 128
  config.data.batch_size = 8
  config.data.eval_batch_size = 8
  config.data.max_eval = 500
  config.model.dtype = "bfloat16"
  config.total_updates = 400
  config.log_every = 10
  config.optimizer.learning_rate = 5e-5
  config.evaluate.steps = tuple(2.0**-k for k in (4, 5, 6, 8))
  config.evaluate.pruning_rates = (0.5, 0.8)


def _language(config):
  """Four blocks of an architecture, with a vocabulary of their own."""
  config.data.language = True
  config.data.seq_len = 64
  config.data.batch_size = 32
  config.model.depth, config.model.heads = 4, 4
  config.model.width, config.model.mlp = 128, 512
  config.total_updates = 4000
  config.optimizer.learning_rate = 1e-3
  _from_scratch(config)


def _bytes(config):
  config.data.seq_len = 192
  config.data.batch_size = 8
  config.model.depth, config.model.heads = 2, 4
  config.model.width, config.model.mlp = 64, 128
  config.total_updates = 2400
  config.optimizer.learning_rate = 2e-3
  _from_scratch(config)


def _from_scratch(config):
  config.data.eval_batch_size = 64
  config.data.max_eval = 1000
  config.log_every = 50
  config.optimizer.weight_decay = 0.01
  config.evaluate.steps = tuple(2.0**-k for k in (2, 3, 3.5, 4, 5, 6, 8))
  config.evaluate.pruning_rates = (0.5, 0.6, 0.8, 0.9)
