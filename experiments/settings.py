"""The configuration: its checks and its arms."""

import copy
import difflib
import math
import pathlib
import re
import runpy

import jax
import ml_collections
from flax import traverse_util

from backslash_jax.coding import coders
from experiments.models import units


class UserError(Exception):
  """What the person at the terminal can mend; shown without a traceback."""

  exit_code = 1


def _one_of(*names):
  return f"one of {', '.join(map(repr, names))}", lambda v: v in names


_COUNT = ("an integer >= 1", lambda v: isinstance(v, int) and v >= 1)
_NATURAL = ("an integer >= 0", lambda v: isinstance(v, int) and v >= 0)
_POSITIVE = ("positive and finite", lambda v: 0 < v < math.inf)
_NOT_NEGATIVE = (">= 0 and finite", lambda v: 0 <= v < math.inf)
_FRACTION = ("in [0, 1)", lambda v: 0 <= v < 1)
_OPTIONAL_COUNT = (
  "None or an integer >= 1",
  lambda v: v is None or (isinstance(v, int) and v >= 1),
)
_OPTIONAL_POSITIVE = (
  "None or positive and finite",
  lambda v: v is None or 0 < v < math.inf,
)

# field -> (what is wanted, whether a value is that).
_WANTED = {
  "seed": _NATURAL,
  "total_steps": _COUNT,
  "log_every": _COUNT,
  "eval_every": _COUNT,
  "checkpoint_every": _COUNT,
  "keep_checkpoints": _COUNT,
  "data.batch_size": _COUNT,
  "data.eval_batch_size": _COUNT,
  "data.seq_len": _COUNT,
  "data.max_train": _OPTIONAL_COUNT,
  "data.max_eval": _OPTIONAL_COUNT,
  "model.depth": _COUNT,
  "model.width": _COUNT,
  "model.heads": _COUNT,
  "model.mlp": _COUNT,
  "optimizer.name": _one_of("adamw", "sgd"),
  "optimizer.learning_rate": _POSITIVE,
  "optimizer.warmup_steps": _NATURAL,
  "optimizer.end_learning_rate": ("in [0, 1]", lambda v: 0 <= v <= 1),
  "optimizer.weight_decay": _NOT_NEGATIVE,
  "optimizer.clip_norm": _POSITIVE,
  "optimizer.b1": _FRACTION,
  "optimizer.b2": _FRACTION,
  "rate.lmbda": _NOT_NEGATIVE,
  "rate.balance": _OPTIONAL_POSITIVE,
  "rate.target": (
    "None or bits in (0, 32)",
    lambda v: v is None or 0 < v < 32,
  ),
  "rate.rate": _one_of("dggr", "bits", "code_length"),
  "rate.shape": ("None or in [0.1, 8]", lambda v: v is None or 0.1 <= v <= 8),
  "rate.scope": _one_of("model", "tensor"),
  "rate.epsilon": (
    "None or >= 0 and finite",
    lambda v: v is None or 0 <= v < math.inf,
  ),
  "rate.step": _POSITIVE,
  "rate.mask": _one_of("matrices", "all"),
  "rate.update_every": _COUNT,
  "rate.placement": _one_of("coupled", "decoupled", "proximal", "unscaled"),
  "rate.warmup_steps": _NATURAL,
  "rate.stop_step": _OPTIONAL_COUNT,
  "round_step": _OPTIONAL_POSITIVE,
  "noise_step": _OPTIONAL_POSITIVE,
  "quantize_bits": (
    "None or an integer in [2, 16]",
    lambda v: v is None or (isinstance(v, int) and 2 <= v <= 16),
  ),
  "round_bits": (
    "None or bits in (0, 32)",
    lambda v: v is None or 0 < v < 32,
  ),
  "round_start": _NATURAL,
  "prune.sparsity": _FRACTION,
  "prune.begin_step": _NATURAL,
  "prune.end_step": _COUNT,
  "prune.every": _COUNT,
  "evaluate.steps": (
    "a non-empty list of positive numbers",
    lambda v: len(v) > 0 and all(0 < s < math.inf for s in v),
  ),
  "evaluate.pruning_rates": (
    "a list of numbers in [0, 1)",
    lambda v: all(0 <= r < 1 for r in v),
  ),
  "evaluate.step": _OPTIONAL_POSITIVE,
  "evaluate.sensitivity_batches": _NATURAL,
  "evaluate.mu": _NOT_NEGATIVE,
  "evaluate.tolerance": _NOT_NEGATIVE,
  "evaluate.coder": _one_of(*coders.NAMES),
}

# The same, of configs that have a `structure`; see configs/edge.py.
_STRUCTURE = {
  "structure.groups": (
    f"a list of some of {', '.join(units.NAMES)}",
    lambda v: set(v) <= set(units.NAMES),
  ),
  "structure.lmbda": _NOT_NEGATIVE,
  "structure.warmup_steps": _NATURAL,
  "structure.shape": ("None or in (0, 1]", lambda v: v is None or 0 < v <= 1),
  "structure.begin_step": _NATURAL,
  "structure.end_step": _COUNT,
  **{f"structure.pruned.{name}": _FRACTION for name in units.NAMES},
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
  # A batch is split over the data and fsdp axes of the mesh.
  tensor = config.mesh.tensor
  devices = jax.device_count() // (tensor if tensor > 0 else 1)
  for field in ("data.batch_size", "data.eval_batch_size"):
    size = _get(config, field)
    if isinstance(size, int) and size % devices:
      problems.append(
        f"config.{field} is {size}, wanted a multiple of {devices}, the"
        " devices that a batch is split over"
      )
  if config.model.width % config.model.heads:
    problems.append(
      f"config.model.width is {config.model.width}, wanted a multiple of"
      f" config.model.heads, {config.model.heads}"
    )
  problems += _conflicts(config)
  if problems:
    raise UserError("\n".join(problems))


def _conflicts(config):
  """Fields that are usable, but not together."""
  problems = []
  exclusive = (
    ("rate.lmbda", "rate.balance"),
    ("rate.lmbda", "rate.target"),
    ("round_step", "noise_step", "quantize_bits", "round_bits"),
    ("evaluate.absmax", "evaluate.sensitivity_batches", "round_bits"),
  )
  for fields in exclusive:
    given = [f for f in fields if _get(config, f)]
    if len(given) > 1:
      found = " and ".join(f"config.{f} is {_get(config, f)!r}" for f in given)
      problems.append(f"{found}, wanted one of them at most")
  if config.rate.keep_zeros and config.rate.stop_step is None:
    problems.append(
      "config.rate.keep_zeros is True, wanted config.rate.stop_step with it:"
      " the zeros of that step are kept"
    )
  if config.round_bits is not None and config.round_start >= config.total_steps:
    problems.append(
      f"config.round_start is {config.round_start!r}, wanted less than"
      f" config.total_steps, {config.total_steps!r}: the steps for"
      " config.round_bits are chosen then"
    )
  for name in ("prune", "structure"):
    part = config.get(name)
    if part and part.begin_step >= part.end_step:
      problems.append(
        f"config.{name}.begin_step is {part.begin_step!r}, wanted less than"
        f" config.{name}.end_step, {part.end_step!r}"
      )
  return problems


def arms(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> dict[str, tuple[ml_collections.ConfigDict, pathlib.Path]]:
  """Name -> checked config and directory of every training, baseline first.

  Args:
    config: as configs/default.py describes it.
    workdir: directory of the experiment; each arm gets its own inside. A
      config without arms is one training, in workdir itself.

  Raises:
    UserError: a field is unknown or its value is unusable.
  """
  check(config)
  if not config.arms:
    return {"run": (config, workdir)}
  if config.baseline not in config.arms:
    raise UserError(
      f"config.baseline is {config.baseline!r}, wanted one of config.arms:"
      f" {', '.join(config.arms)}"
    )
  result = {}
  names = sorted(config.arms, key=lambda name: (name != config.baseline, name))
  for name in names:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
      raise UserError(
        f"config.arms: {name!r} names a directory; use letters, digits, _, -"
      )
    arm = copy.deepcopy(config).lock()
    try:
      arm.update(config.arms[name])
      check(arm)
    except (KeyError, TypeError, ValueError, UserError) as error:
      text = error.args[0] if error.args else error
      raise UserError(f"in config.arms.{name}: {text}") from error
    arm.unlock()
    arm.arms = ml_collections.ConfigDict()
    result[name] = arm.lock(), workdir / name
  return result


def explain_flags(argv: list[str], error: Exception) -> str:
  """What is wrong with the command line: unknown fields, with near matches."""
  paths = [a.removeprefix("--config=") for a in argv if "--config=" in a]
  # What follows a colon is the argument of get_config.
  path = paths[-1].partition(":")[0] if paths else None
  try:
    config = runpy.run_path(str(path))["get_config"]()
  except OSError as load_error:
    return f"--config={path}: {load_error.strerror}"
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
