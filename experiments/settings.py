"""The checks of a configuration, and its arms."""

import copy
import difflib
import math
import pathlib
import re
import runpy
from typing import Any

import jax
import ml_collections
from flax import traverse_util

from backslash_jax.coding import coders
from experiments.models import attention, units


class UserError(Exception):
  """An error that the user can fix; shown as a message, without traceback.

  Attributes:
    details: of the libraries that failed, shown with --verbose.
    exit_code: of the program.
  """

  exit_code = 1

  def __init__(self, message: str, details: str = ""):
    super().__init__(message)
    self.details = details


def _is_int(value):
  return isinstance(value, int) and not isinstance(value, bool)


def _one_of(*names):
  return f"one of {', '.join(map(repr, names))}", lambda v: v in names


def _optional(kind):
  wanted, is_good = kind
  return f"None or {wanted}", lambda v: v is None or is_good(v)


def _list_of(kind, items):
  return f"a list of {items}", lambda v: all(map(kind[1], v))


_COUNT = ("an integer >= 1", lambda v: _is_int(v) and v >= 1)
_NATURAL = ("an integer >= 0", lambda v: _is_int(v) and v >= 0)
_POSITIVE = ("positive and finite", lambda v: 0 < v < math.inf)
_NOT_NEGATIVE = (">= 0 and finite", lambda v: 0 <= v < math.inf)
_FRACTION = ("in [0, 1)", lambda v: 0 <= v < 1)
_UNIT = ("in [0, 1]", lambda v: 0 <= v <= 1)
_BITS = ("bits in (0, 32)", lambda v: 0 < v < 32)
_BOOL = ("True or False", lambda v: isinstance(v, bool))
_AXIS = ("an integer >= 1, or -1", lambda v: _is_int(v) and (v >= 1 or v == -1))

# Field -> (what is wanted, whether a value is that). The other fields are
# names and paths, which are checked where they are used.
_WANTED = {
  "seed": _NATURAL,
  "total_updates": _COUNT,
  "log_every": _COUNT,
  "eval_every": _COUNT,
  "checkpoint_every": _COUNT,
  "keep_checkpoints": _COUNT,
  "data.batch_size": _COUNT,
  "data.eval_batch_size": _COUNT,
  "data.seq_len": _COUNT,
  "data.strip": _BOOL,
  "data.pack": _BOOL,
  "data.language": _BOOL,
  "data.max_train": _optional(_COUNT),
  "data.max_eval": _optional(_COUNT),
  "model.delta": _BOOL,
  "model.lora": _NATURAL,
  "model.depth": _COUNT,
  "model.width": _COUNT,
  "model.heads": _COUNT,
  "model.mlp": _COUNT,
  "model.dtype": _one_of("float32", "bfloat16"),
  "model.attention": _optional(_one_of(*attention.IMPLEMENTATIONS)),
  "model.dropout": ("0: the models have none", lambda v: v == 0),
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
  "rate.shape": _optional(("in [0.1, 8]", lambda v: 0.1 <= v <= 8)),
  "rate.scope": _one_of("model", "tensor"),
  "rate.epsilon": _optional(_NOT_NEGATIVE),
  "rate.step": _POSITIVE,
  "rate.mask": _one_of("matrices", "all"),
  "rate.update_every": _COUNT,
  "rate.placement": _one_of("coupled", "decoupled", "unscaled"),
  "rate.stop_update": _optional(_COUNT),
  "rate.keep_zeros": _BOOL,
  "round_step": _optional(_POSITIVE),
  "quantize_bits": _optional(
    ("an integer in [2, 16]", lambda v: _is_int(v) and 2 <= v <= 16)
  ),
  "round_bits": _optional(_BITS),
  "round_begin_update": _NATURAL,
  "prune.sparsity": _FRACTION,
  "prune.begin_update": _NATURAL,
  "prune.end_update": _COUNT,
  "prune.every": _COUNT,
  "evaluate.steps": _list_of(_POSITIVE, "positive numbers"),
  "evaluate.levels": _list_of(_COUNT, "integers >= 1"),
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
  "distributed.processes": _optional(_COUNT),
  "distributed.process": _optional(_NATURAL),
  "distributed.timeout": _COUNT,
}

# The same for configs that have a `structure`; see configs/edge.py.
_STRUCTURE = {
  "structure.groups": (
    f"a list of some of {', '.join(units.NAMES)}",
    lambda v: set(v) <= set(units.NAMES),
  ),
  "structure.lmbda": _NOT_NEGATIVE,
  "structure.warmup_updates": _NATURAL,
  "structure.shape": _optional(("in (0, 1]", lambda v: 0 < v <= 1)),
  "structure.begin_update": _NATURAL,
  "structure.end_update": _COUNT,
  **{f"structure.pruned.{name}": _FRACTION for name in units.NAMES},
}

# Of each group at most one field is set, to anything but 0, None and ().
_EXCLUSIVE = (
  ("rate.lmbda", "rate.balance", "rate.target"),
  ("round_step", "quantize_bits", "round_bits"),
  ("evaluate.levels", "evaluate.sensitivity_batches", "round_bits"),
  ("evaluate.levels", "evaluate.vectors", "round_bits"),
  ("evaluate.feedback_batches", "evaluate.vectors"),
  ("evaluate.feedback_batches", "model.delta", "model.lora"),
  ("evaluate.feedback_batches", "model.scan"),
  ("model.delta", "model.lora"),
)
# A field that is set does nothing unless one of these is set too.
_NEEDS = {
  "model.delta": ("model.weights",),
  "model.lora": ("model.weights",),
  "rate.limit": ("rate.target",),
  "rate.stop_update": ("rate.lmbda", "rate.balance", "rate.target"),
  "rate.keep_zeros": ("rate.stop_update",),
  "round_begin_update": ("round_step", "quantize_bits", "round_bits"),
  "prune.begin_update": ("prune.sparsity",),
  "distributed.coordinator": ("distributed.enable",),
  "distributed.processes": ("distributed.enable",),
  "distributed.process": ("distributed.enable",),
}


def check(config: ml_collections.ConfigDict) -> None:
  """Raises UserError naming every field whose value is not usable."""
  problems = []
  fields = _WANTED | (_STRUCTURE if "structure" in config else {})
  for field, (wanted, is_good) in fields.items():
    value = _get(config, field)
    try:
      good = is_good(value)
    except TypeError:
      good = False
    if not good:
      problems.append(f"config.{field} is {value!r}, wanted {wanted}")
  # The other checks compute with these values.
  if not problems:
    problems = [
      *_size_problems(config),
      *_schedule_problems(config),
      *_conflicts(config),
    ]
  if problems:
    raise UserError("\n".join(problems))


def _size_problems(config):
  """Sizes that do not fit each other, or the devices."""
  problems = []
  # A batch is split over the data and fsdp axes of the mesh.
  tensor = config.mesh.tensor
  devices = jax.device_count() // (tensor if tensor > 0 else 1)
  for field in ("data.batch_size", "data.eval_batch_size"):
    size = _get(config, field)
    if size % max(devices, 1):
      problems.append(
        f"config.{field} is {size}, wanted a multiple of {devices}: a batch is"
        " split over that many devices"
      )
  if (config.data.max_train or math.inf) < config.data.batch_size:
    problems.append(
      f"config.data.max_train is {config.data.max_train}, wanted at least"
      f" config.data.batch_size, {config.data.batch_size}"
    )
  if config.model.width % config.model.heads:
    problems.append(
      f"config.model.width is {config.model.width}, wanted a multiple of"
      f" config.model.heads, {config.model.heads}"
    )
  return problems


def _schedule_problems(config):
  """Numbers of updates that do not fit in config.total_updates."""
  total, warmup = config.total_updates, config.optimizer.warmup_updates or 0
  problems = []
  if warmup >= total:
    problems.append(
      f"config.optimizer.warmup_updates is {warmup}, wanted less than"
      f" config.total_updates, {total}; None is a twentieth of that"
    )
  for field in ("round_begin_update", "rate.stop_update"):
    if (_get(config, field) or 0) >= total:
      problems.append(
        f"config.{field} is {_get(config, field)}, wanted less than"
        f" config.total_updates, {total}"
      )
  for name in ("prune", "structure"):
    part = config.get(name)
    if not part:
      continue
    pruned = [part.sparsity] if name == "prune" else [*part.pruned.values()]
    if part.begin_update >= part.end_update:
      problems.append(
        f"config.{name}.begin_update is {part.begin_update}, wanted less than"
        f" config.{name}.end_update, {part.end_update}"
      )
    elif any(pruned) and part.end_update > total:
      problems.append(
        f"config.{name}.end_update is {part.end_update}, wanted at most"
        f" config.total_updates, {total}"
      )
  return problems


def _conflicts(config):
  """Fields that are usable, but not together."""
  problems = []
  for fields in _EXCLUSIVE:
    given = [f for f in fields if _get(config, f)]
    if len(given) > 1:
      found = " and ".join(f"config.{f} is {_get(config, f)!r}" for f in given)
      problems.append(f"{found}, wanted one of them at most")
  for field, needed in _NEEDS.items():
    if _get(config, field) and not any(_get(config, f) for f in needed):
      problems.append(
        f"config.{field} is {_get(config, field)!r}, wanted"
        f" {' or '.join(f'config.{f}' for f in needed)} with it"
      )
  names = [f"evaluate.{f}" for f in ("steps", "levels", "scales")]
  given = [f for f in names if _get(config, f)]
  wanted = names[:2] if config.round_bits is None else names[2:]
  if len(given) != 1 or given[0] not in wanted:
    found = ", ".join(f"config.{f} is {_get(config, f)!r}" for f in names)
    problems.append(
      f"{found}; wanted config.{' or '.join(wanted)} alone, where"
      f" config.round_bits is {config.round_bits!r}, and () for the others"
    )
  model = config.model
  if model.name in ("encoder", "decoder"):
    problems += [
      f"config.model.{f} is {model[f]!r}, but config.model.name is"
      f" {model.name!r}; it is for the published architectures"
      for f in ("size", "weights", "attention", "remat", "scan")
      if model[f]
    ]
  elif model.size is not None and model.weights is not None:
    problems.append(
      f"config.model.size is {model.size!r} and config.model.weights is"
      f" {model.weights!r}, wanted one of them at most: the weights have a size"
    )
  if config.round_bits is not None and config.rate.placement != "coupled":
    problems.append(
      f"config.rate.placement is {config.rate.placement!r}, wanted 'coupled'"
      " with config.round_bits"
    )
  return problems


def arms(
  config: ml_collections.ConfigDict,
) -> dict[str, ml_collections.ConfigDict]:
  """The checked config of every arm by its name, the baseline first.

  A config without arms is one training, "run".

  Raises:
    UserError: a field is unknown or its value is not usable.
  """
  check(config)
  if not config.arms:
    if config.baseline != "normal":
      raise UserError(
        f"config.baseline is {config.baseline!r}, wanted 'normal', the default,"
        " without config.arms"
      )
    return {"run": config}
  if config.baseline not in config.arms:
    raise UserError(
      f"config.baseline is {config.baseline!r}, wanted one of config.arms:"
      f" {', '.join(config.arms)}"
    )
  names = sorted(config.arms, key=lambda name: (name != config.baseline, name))
  base = copy.deepcopy(config).unlock()
  base.arms = ml_collections.ConfigDict()
  return {
    name: changed(base, f"arms.{name}", name, config.arms[name])
    for name in names
  }


def changed(
  config: ml_collections.ConfigDict, where: str, name: str, *changes: Any
) -> ml_collections.ConfigDict:
  """A copy of config with the fields of each of `changes`, checked and locked.

  Args:
    config: is not changed.
    where: the field that holds the changes, for error messages.
    name: of a directory for the copy.
    *changes: trees of fields; later ones replace earlier ones.

  Raises:
    UserError: a field is unknown, its value is not usable, or `name` cannot
      name a directory.
  """
  if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
    raise UserError(
      f"in config.{where}: {name!r} names a directory; use letters, digits,"
      " _ and -"
    )
  result = copy.deepcopy(config).lock()
  try:
    for fields in changes:
      result.update(fields)
    check(result)
  except (KeyError, TypeError, ValueError, UserError) as error:
    text = error.args[0] if error.args else error
    raise UserError(f"in config.{where}: {text}") from error
  return result


def explain_flags(argv: list[str], error: Exception) -> str:
  """A line about a wrong command line, with near matches of unknown fields."""
  paths = [a.removeprefix("--config=") for a in argv if "--config=" in a]
  # The text after a colon is the argument of get_config.
  path, *arguments = paths[-1].split(":", 1) if paths else ["None"]
  if not pathlib.Path(path).is_file():
    return f"--config={path}: there is no such file"
  try:
    config = runpy.run_path(path)["get_config"](*arguments)
  except ValueError as load_error:
    return f"--config={paths[-1]}: {load_error}"
  except Exception as load_error:
    return f"--config={path} does not load: {load_error!r}"
  known = traverse_util.flatten_dict(config.to_dict(), sep=".")
  for argument in argv:
    field = argument.split("=")[0].removeprefix("--config.")
    if argument.startswith("--config.") and field not in known:
      near = difflib.get_close_matches(field, known, n=1)
      hint = f"; did you mean {near[0]}?" if near else ""
      return f"config.{field}: {path} has no such field{hint}"
  return f"in the flags: {error}"


def _get(config, field):
  for name in field.split("."):
    config = config[name]
  return config
