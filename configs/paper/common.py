"""Models, tasks, recipes and profiles of the paper's experiments.

BackSlash, Wu, Wen & Han, ICML 2025, arXiv 2504.16968. The profile "full" is the
paper's model and the whole data set; "small" is for two CPU cores; "medium" is
between them, see medium.py. "small/l1" is the arm `l1` alone.

A cell of the paper is an arm of a config. There are two recipes for the rate:

released: the authors' released code. After every update of the optimizer, all
  parameters change by -lambda/N * nu * sign(x) * (|x| + 1)^(nu - 1), which the
  learning rate does not scale. The last 40% of the updates are without it.
algorithm1: Algorithm 1 as the paper states it. The same gradient, with a small
  epsilon, is added to that of the loss until the end of training. The paper's
  plain SGD is AdamW here, as in all other trainings.

The paper does not state the optimizer's learning rate, batch size, epochs and
epsilon. They are chosen here.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from configs import default
from configs.paper import medium

PROFILES = ("small", "medium", "full")
# A directory that experiments.data.bpe writes, from the texts of IMDB.
SMALL_WORDS = "runs/paper/words"

# The paper's models, and what they are fine-tuned from.
WEIGHTS = {
  "bert": "google-bert/bert-base-uncased",
  "gpt2": "openai-community/gpt2-large",
  "llama3": "meta-llama/Llama-3.2-1B",
  "gemma2": "google/gemma-2-2b",
  "deepseek": "deepseek-ai/deepseek-llm-7b-base",
}
ARCHITECTURES = {"llama3": "llama", "deepseek": "llama"}
# Updates of the full profile: five epochs of batches of 32.
UPDATES = {
  "imdb": 3500,
  "enron_spam": 3900,
  "newsgroups20": 1600,
  "squad": 13000,
  "wmt19": 50000,
}
PRUNED = (0.2, 0.4, 0.5, 0.6, 0.8, 0.9)
GENERATED = ("squad", "wmt19")

# By kind of small model: its parameters, about.
SIZES = {"minilm": 22.7e6, "scratch": 0.34e6, "bytes": 0.1e6}
# How far an update of the released recipe moves a weight at the paper's lambda
# of 1000, divided by nu and the learning rate; see docs/reproduction.md.
MOVED = {"minilm": 1.25, "scratch": 0.7, "bytes": 0.7}
PAPER_SIZE = 110e6  # Of BERT: Algorithm 1 keeps lambda / N.
RATE_UPDATES = 0.6  # Fraction of all updates, in the released recipe.


def recipe(name: str, lmbda: float, **fields: Any) -> dict[str, Any]:
  """The fields of a training with the rate term.

  Args:
    name: "released" or "algorithm1".
    lmbda: that of the paper; the small profile scales it to its model.
    **fields: further ones of `config.rate`.
  """
  return {"recipe": name, "lmbda": lmbda, "rate": fields}


# The arms of a row of Tables 4 and 5.
PAIR: dict[str, dict[str, Any]] = {
  "normal": {},
  "backslash": recipe("released", 1000.0),
  "algorithm1": recipe("algorithm1", 1000.0),
}


def build(
  argument: str,
  *,
  model: str,
  task: str,
  arms: Mapping[str, Mapping[str, Any]] = PAIR,
  pretrained: bool = True,
) -> ml_collections.ConfigDict:
  """The config of a row of a table, its cells as arms.

  Args:
    argument: "PROFILE" or "PROFILE/ARM".
    model: of WEIGHTS.
    task: as `data.name`.
    arms: {} or from `recipe`, by name; the first is the baseline.
    pretrained: whether the small profile fine-tunes MiniLM in place of BERT;
      otherwise it trains a small BERT from scratch.

  Raises:
    ValueError: an unknown profile or arm.
  """
  profile, _, only = argument.partition("/")
  if profile not in PROFILES or (only and only not in arms):
    raise ValueError(
      f"the argument is {argument!r}, wanted PROFILE or PROFILE/ARM, with a"
      f" profile of {', '.join(PROFILES)} and an arm of {', '.join(arms)}"
    )
  config = default.get_config()
  config.rate.step = 2.0**-8  # The paper's, of all of its tables.
  config.data.name = task
  config.model.name = ARCHITECTURES.get(model, model)
  if profile == "full":
    _full(config, model, task)
    kind = None
  elif profile == "medium":
    medium.set_up(config, model, task)
    kind = model
    if config.data.language:
      config.data.tokenizer = SMALL_WORDS
  elif config.model.name == "bert" and pretrained:
    kind = "minilm"
    _minilm(config)
  elif task in GENERATED:
    kind = "bytes"
    _bytes(config)
  else:
    kind = "scratch"
    _scratch(config)
  config.eval_every = config.total_updates
  config.checkpoint_every = min(500, config.total_updates)
  if profile == "medium":
    config.eval_every = config.total_updates // 2
    config.checkpoint_every = 50
  config.keep_checkpoints = 1
  if only:
    arms = {only: arms[only]}
  elif profile != "full":
    # To save time; the sweep has algorithm1, with every lambda.
    arms = {name: arm for name, arm in arms.items() if name != "algorithm1"}
  config.baseline = next(iter(arms))
  for name, arm in arms.items():
    fields = _rate(config, arm, kind) if arm else {}
    config.arms[name] = ml_collections.ConfigDict(fields)
  return config


def _rate(config, arm, kind):
  """The fields of an arm with the rate term.

  `kind` is of SIZES, of medium.SIZES, or None for the full profile.
  """
  updates = round(RATE_UPDATES * config.total_updates)
  lmbda = arm["lmbda"]
  sizes = SIZES | medium.SIZES
  if arm["recipe"] == "algorithm1":
    scale = sizes[kind] / PAPER_SIZE if kind else 1.0
    rate = {"lmbda": lmbda * scale}
  else:
    scale = 1.0
    if kind in medium.TRAVEL:
      scale = medium.TRAVEL[kind] / 1000 / updates * sizes[kind]
    elif kind:
      # Unscaled, the rate would outweigh the optimizer.
      scale = MOVED[kind] / 1000 * config.optimizer.learning_rate * sizes[kind]
    rate = {
      "lmbda": lmbda * scale,
      "placement": "unscaled",
      "epsilon": 1.0,
      "stop_update": updates,
    }
  return {"rate": rate | {"mask": "all"} | arm["rate"]}


def _full(config, model, task):
  """The paper's model and data, for accelerators."""
  config.data.tokenizer = config.model.weights = WEIGHTS[model]
  config.data.batch_size = 32
  config.data.seq_len = 512
  config.total_updates = UPDATES[task]
  config.optimizer.learning_rate = 2e-5
  config.optimizer.warmup_updates = config.total_updates // 10
  config.optimizer.weight_decay = 0.01
  config.evaluate.steps = tuple(2.0**-k for k in (3, 4, 5, 6, 7, 8, 10, 12))
  if model != "bert":
    config.model.dtype = "bfloat16"
    config.model.remat = True
    config.mesh.data, config.mesh.fsdp = 1, -1


def _minilm(config):
  """A pretrained encoder of 22.7M parameters, on the first 48 tokens."""
  config.data.tokenizer = config.model.weights = medium.MINILM
  config.data.seq_len = 48
  config.data.batch_size = 16
  config.data.eval_batch_size = 64
  config.data.max_eval = 256
  config.total_updates = 120
  config.log_every = 5
  config.optimizer.learning_rate = 2e-4
  config.optimizer.warmup_updates = 12
  config.evaluate.steps = tuple(2.0**-k for k in (3, 3.5, 4, 5, 8))
  config.evaluate.pruning_rates = PRUNED


def _scratch(config):
  """Two blocks from scratch, with a vocabulary of their own."""
  config.data.tokenizer = SMALL_WORDS
  config.data.seq_len = 64
  config.data.batch_size = 32
  config.data.eval_batch_size = 128
  config.data.max_eval = 1000
  config.total_updates = 240
  config.log_every = 10
  _two_blocks(config)
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_updates = 24
  config.optimizer.weight_decay = 0.01


def _bytes(config):
  """Two blocks from scratch, which predict the bytes of an answer."""
  config.data.seq_len = 192
  config.data.batch_size = 8
  config.data.eval_batch_size = 64
  config.data.max_eval = 200
  config.total_updates = 240
  config.log_every = 10
  _two_blocks(config)
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_updates = 24
  config.optimizer.weight_decay = 0.01


def _two_blocks(config):
  config.model.depth, config.model.heads = 2, 4
  config.model.width, config.model.mlp = 64, 128
  config.evaluate.steps = tuple(2.0**-k for k in (2, 3, 3.5, 4, 5, 6, 8))
  config.evaluate.pruning_rates = PRUNED
