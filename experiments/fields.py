"""What each field of a config may be: a table of kinds of values."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from backslash_jax.coding import coders
from experiments import data, models
from experiments.models import attention, units

_LARGEST = 2**31 - 1  # Updates and sizes are int32 on the devices.

_SMALLEST = float(np.finfo(np.float32).tiny)
_GREATEST = float(np.finfo(np.float32).max)


class Kind(NamedTuple):
  """A kind of values.

  Attributes:
    wanted: in words, for an error.
    is_good: whether a value, of any type, is one.
  """

  wanted: str
  is_good: Callable[[Any], bool]


def _integer(low, high=_LARGEST):
  text = f"an integer >= {low}"
  if high < _LARGEST:
    text = f"an integer in [{low}, {high}]"

  def is_good(value):
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return is_int and low <= value <= high

  return Kind(f"{text} of 32 bits" if high == _LARGEST else text, is_good)


def _number(wanted, is_good):
  """A number that float32 does not turn into 0 or infinity."""

  def is_number(value):
    if isinstance(value, bool) or not isinstance(value, int | float):
      return False
    in_range = _SMALLEST <= abs(value) <= _GREATEST
    return (value == 0 or in_range) and is_good(value)

  return Kind(wanted, is_number)


def _one_of(*names):
  wanted = f"one of {', '.join(map(repr, names))}"
  return Kind(wanted, lambda v: isinstance(v, str) and v in names)


def _optional(kind):
  return Kind(f"None or {kind.wanted}", lambda v: v is None or kind.is_good(v))


def _list_of(kind, items):
  def is_good(value):
    is_list = isinstance(value, list | tuple) and all(map(kind.is_good, value))
    return is_list and len(set(value)) == len(value)

  return Kind(f"a list of different {items}", is_good)


_COUNT = _integer(1)
_NATURAL = _integer(0)
_WIDTH = _integer(1, 2**17)
_POSITIVE = _number("positive and finite in float32", lambda v: v > 0)
_NOT_NEGATIVE = _number(">= 0 and finite in float32", lambda v: v >= 0)
# Finer than the rounding of float32: the integers would leave 32 bits.
_STEP = _number(">= 2^-26 and finite in float32", lambda v: v >= 2**-26)
_FRACTION = _number("in [0, 1)", lambda v: 0 <= v < 1)
_UNIT = _number("in [0, 1]", lambda v: 0 <= v <= 1)
_BITS = _number("bits in (0, 32)", lambda v: 0 < v < 32)
_BOOL = Kind("True or False", lambda v: isinstance(v, bool))
_AXIS = Kind(f"-1 or {_COUNT.wanted}", lambda v: v == -1 or _COUNT.is_good(v))
# A path or an id of the hub: whether it exists is seen where it is read.
_TEXT = Kind(
  "a text that is not empty",
  lambda v: isinstance(v, str) and v.strip() != "" and "\0" not in v,
)

FIELDS = {
  "seed": _NATURAL,
  "total_updates": _COUNT,
  "log_every": _COUNT,
  "eval_every": _COUNT,
  "checkpoint_every": _COUNT,
  "keep_checkpoints": _COUNT,
  "data.name": _one_of(*data.NAMES),
  "data.dir": _optional(_TEXT),
  "data.batch_size": _COUNT,
  "data.eval_batch_size": _COUNT,
  "data.seq_len": _WIDTH,
  "data.source": _optional(_TEXT),
  "data.tokenizer": _TEXT,
  "data.strip": _BOOL,
  "data.pack": _BOOL,
  "data.language": _BOOL,
  "data.max_train": _optional(_COUNT),
  "data.max_eval": _optional(_COUNT),
  "model.name": _one_of(*models.KINDS),
  "model.size": _optional(_TEXT),
  "model.weights": _optional(_TEXT),
  "model.delta": _BOOL,
  "model.lora": _integer(0, 2**17),
  "model.distill": _UNIT,
  "model.depth": _integer(1, 1024),
  "model.width": _WIDTH,
  "model.heads": _WIDTH,
  "model.mlp": _WIDTH,
  "model.dtype": _one_of("float32", "bfloat16"),
  "model.attention": _optional(_one_of(*attention.IMPLEMENTATIONS)),
  "model.dropout": _number("0: the models have none", lambda v: v == 0),
  "model.remat": _BOOL,
  "model.scan": _BOOL,
  "optimizer.name": _one_of("adamw", "sgd"),
  "optimizer.learning_rate": _POSITIVE,
  "optimizer.warmup_updates": _optional(_NATURAL),
  "optimizer.end_learning_rate": _UNIT,
  "optimizer.weight_decay": _NOT_NEGATIVE,
  "optimizer.clip_norm": _POSITIVE,
  "optimizer.b1": _FRACTION,
  "optimizer.b2": _FRACTION,
  "rate.lmbda": _NOT_NEGATIVE,
  "rate.balance": _optional(_POSITIVE),
  "rate.target": _optional(_BITS),
  "rate.limit": _optional(_POSITIVE),
  "rate.rate": _one_of("dggr", "bits"),
  "rate.shape": _optional(_number("in [0.1, 8]", lambda v: 0.1 <= v <= 8)),
  "rate.scope": _one_of("model", "tensor"),
  "rate.epsilon": _optional(_NOT_NEGATIVE),
  "rate.step": _STEP,
  "rate.mask": _one_of("matrices", "all"),
  "rate.update_every": _COUNT,
  "rate.placement": _one_of("coupled", "decoupled", "unscaled"),
  "rate.stop_update": _optional(_COUNT),
  "rate.keep_zeros": _BOOL,
  "round_step": _optional(_STEP),
  "quantize_bits": _optional(_integer(2, 16)),
  "round_bits": _optional(_number("bits in (0, 16]", lambda v: 0 < v <= 16)),
  "round_begin_update": _NATURAL,
  "prune.sparsity": _FRACTION,
  "prune.begin_update": _NATURAL,
  "prune.end_update": _COUNT,
  "prune.every": _COUNT,
  "evaluate.steps": _list_of(_STEP, "numbers >= 2^-26"),
  "evaluate.levels": _list_of(_integer(1, 2**23), "integers in [1, 2^23]"),
  "evaluate.scales": _list_of(_POSITIVE, "positive numbers"),
  "evaluate.pruning_rates": _list_of(_FRACTION, "numbers in [0, 1)"),
  "evaluate.sensitivity_batches": _NATURAL,
  "evaluate.feedback_batches": _NATURAL,
  "evaluate.vectors": _optional(_POSITIVE),
  "evaluate.mu": _NOT_NEGATIVE,
  "evaluate.tolerance": _NOT_NEGATIVE,
  "evaluate.coder": _one_of(*coders.NAMES),
  "mesh.data": _AXIS,
  "mesh.fsdp": _AXIS,
  "mesh.tensor": _AXIS,
  "distributed.enable": _BOOL,
  "distributed.coordinator": _optional(_TEXT),
  "distributed.processes": _optional(_COUNT),
  "distributed.process": _optional(_NATURAL),
  "distributed.timeout": _COUNT,
  "baseline": _TEXT,
}

# The same for configs that have a `structure`; see configs/edge.py.
STRUCTURE = {
  "structure.groups": Kind(
    f"a list of some of {', '.join(units.NAMES)}",
    lambda v: isinstance(v, list | tuple) and set(v) <= set(units.NAMES),
  ),
  "structure.lmbda": _NOT_NEGATIVE,
  "structure.warmup_updates": _NATURAL,
  "structure.shape": _optional(_number("in (0, 1]", lambda v: 0 < v <= 1)),
  "structure.begin_update": _NATURAL,
  "structure.end_update": _COUNT,
  **{f"structure.pruned.{name}": _FRACTION for name in units.NAMES},
}
