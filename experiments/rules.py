"""What the fields of a config, each good by itself, must be to each other."""

import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import ml_collections

from configs import default

Config = ml_collections.ConfigDict


class Rule(NamedTuple):
  """What a field must be beside the others.

  Attributes:
    field: its name.
    is_good: whether a config keeps the rule.
    wanted: in words, with fields as {c.total_updates}.
  """

  field: str
  is_good: Callable[[Config], bool]
  wanted: str


def get(config: Any, field: str) -> Any:
  """The value of a field such as "rate.lmbda"; None if there is none."""
  for name in field.split("."):
    config = config.get(name) if config is not None else None
  return config


def problem(field: str, value: Any, wanted: str) -> str:
  """The line about a field whose value is not usable."""
  found = " ".join(repr(value).split())  # That of a ConfigDict has several.
  return f"config.{field} is {found}, wanted {wanted}"


def problems(config: Config) -> list[str]:
  """The rules that a config breaks, one for a field at most."""
  return [*_broken(config, (*_RULES, *_together(config)), {}).values()]


def unused(config: Config) -> dict[str, str]:
  """The fields of a training that were set and do nothing, and why."""
  usual = default.get_config()
  changed = [
    rule for rule in _USED if get(config, rule.field) != get(usual, rule.field)
  ]
  return _broken(config, changed, {})


def _broken(config, rules, found):
  for field, is_good, wanted in rules:
    if field not in found and not is_good(config):
      value = get(config, field)
      found[field] = problem(field, value, wanted.format(c=config))
  return found


def _devices(config):
  """How many devices a batch is split over."""
  return max(jax.device_count() // max(config.mesh.tensor, 1), 1)


def _fits(config):
  """Whether a machine can hold the matrices of a model that is made here."""
  model = config.model
  if model.size is not None or model.weights is not None:
    return True
  layer = 4 * model.width**2 + 2 * model.width * model.mlp
  return 4 * model.depth * layer <= _memory()


def _memory():
  """Bytes of this machine."""
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _batch(field):
  return Rule(
    field,
    lambda c: get(c, field) % _devices(c) == 0,
    "a multiple of the number of devices that a batch is split over",
  )


def _before_end(field):
  return Rule(
    field,
    lambda c: (get(c, field) or 0) < c.total_updates,
    "less than config.total_updates, {c.total_updates}",
  )


def _needs(field, *others):
  """A field that does nothing unless one of the others is set too."""
  return Rule(
    field,
    lambda c: not get(c, field) or any(get(c, other) for other in others),
    f"{' or '.join(f'config.{other}' for other in others)} with it",
  )


def _pruned(config, part):
  """Whether `part` of a config, prune or structure, removes anything."""
  own = config.get(part)
  if own is None:
    return False
  return any(own.pruned.values()) if part == "structure" else own.sparsity > 0


def _pruning(part):
  """The updates between which `part` removes weights."""
  return (
    Rule(
      f"{part}.begin_update",
      lambda c: part not in c or c[part].begin_update < c[part].end_update,
      f"less than config.{part}.end_update, {{c.{part}.end_update}}",
    ),
    Rule(
      f"{part}.end_update",
      lambda c: not _pruned(c, part) or c[part].end_update <= c.total_updates,
      "at most config.total_updates, {c.total_updates}",
    ),
  )


_RATE = ("rate.lmbda", "rate.balance", "rate.target")
_ROUNDING = ("round_step", "quantize_bits", "round_bits")

_RULES = (
  _batch("data.batch_size"),
  _batch("data.eval_batch_size"),
  Rule(
    "data.max_train",
    lambda c: (c.data.max_train or math.inf) >= c.data.batch_size,
    "at least config.data.batch_size, {c.data.batch_size}",
  ),
  Rule(
    "model.width",
    lambda c: c.model.width % c.model.heads == 0,
    "a multiple of config.model.heads, {c.model.heads}",
  ),
  Rule(
    "model.depth",
    _fits,
    "layers of config.model.width, {c.model.width}, and config.model.mlp,"
    " {c.model.mlp}, that fit into the memory of this machine",
  ),
  Rule(
    "optimizer.warmup_updates",
    lambda c: (c.optimizer.warmup_updates or 0) < c.total_updates,
    "less than config.total_updates, {c.total_updates}; None is a twentieth of"
    " that",
  ),
  # First what is not used at all.
  _needs("model.delta", "model.weights"),
  _needs("model.lora", "model.weights"),
  _needs("model.distill", "model.weights"),
  _needs("rate.limit", "rate.target"),
  _needs("rate.stop_update", *_RATE),
  _needs("rate.keep_zeros", "rate.stop_update"),
  _needs("round_begin_update", *_ROUNDING),
  _needs("prune.begin_update", "prune.sparsity"),
  _needs("distributed.coordinator", "distributed.enable"),
  _needs("distributed.processes", "distributed.enable"),
  _needs("distributed.process", "distributed.enable"),
  _before_end("round_begin_update"),
  _before_end("rate.stop_update"),
  *_pruning("prune"),
  *_pruning("structure"),
  *(
    Rule(
      f"model.{field}",
      lambda c, field=field: (
        c.model.name not in ("encoder", "decoder") or not c.model[field]
      ),
      "it unset, because config.model.name is {c.model.name!r}: it is for the"
      " published architectures",
    )
    for field in ("size", "weights", "attention", "remat", "scan")
  ),
  Rule(
    "model.size",
    lambda c: c.model.size is None or c.model.weights is None,
    "None, because config.model.weights is {c.model.weights!r}: the weights"
    " have a size",
  ),
  Rule(
    "rate.placement",
    lambda c: c.round_bits is None or c.rate.placement == "coupled",
    "'coupled' with config.round_bits",
  ),
)

# Of each group at most one field is set, to anything but 0, None and ().
_EXCLUSIVE = (
  _RATE,
  _ROUNDING,
  ("evaluate.levels", "evaluate.sensitivity_batches", "round_bits"),
  ("evaluate.levels", "evaluate.vectors", "round_bits"),
  ("evaluate.feedback_batches", "evaluate.vectors"),
  ("evaluate.feedback_batches", "model.delta", "model.lora"),
  ("evaluate.feedback_batches", "model.scan"),
  ("model.delta", "model.lora", "model.distill"),
)


def _together(config) -> Iterator[Rule]:
  """Rules about several fields that are set; the first has the message."""
  for fields in _EXCLUSIVE:
    given = [field for field in fields if get(config, field)]
    if len(given) > 1:
      others = " and ".join(
        f"config.{field} is {get(config, field)!r}" for field in given[1:]
      )
      yield _broken_rule(given[0], f"it unset, because {others}")
  units = [f"evaluate.{field}" for field in ("steps", "levels", "scales")]
  wanted = units[:2] if config.round_bits is None else units[2:]
  given = [field for field in units if get(config, field)]
  if len(given) != 1 or given[0] not in wanted:
    found = ", ".join(
      f"config.{field} is {get(config, field)!r}" for field in units[1:]
    )
    yield _broken_rule(
      units[0],
      f"config.{' or config.'.join(wanted)} alone, where config.round_bits is"
      f" {config.round_bits!r}, and () for the others; {found}",
    )


def _broken_rule(field, wanted):
  wanted = wanted.replace("{", "{{").replace("}", "}}")
  return Rule(field, lambda c: False, wanted)


def _used(field, is_used, wanted):
  """A field that must have its default unless it is used."""
  return Rule(field, is_used, f"the default, {wanted}")


def _has_rate(config):
  return any(get(config, field) for field in _RATE)


_USED = (
  *(
    _used(
      f"rate.{field}",
      _has_rate,
      "because none of config.rate.lmbda, .balance and .target is set",
    )
    for field in ("rate", "shape", "update_every", "placement")
  ),
  _used(
    "optimizer.b2",
    lambda c: c.optimizer.name == "adamw",
    "because config.optimizer.name is {c.optimizer.name!r}",
  ),
  _used(
    "prune.end_update",
    lambda c: _pruned(c, "prune"),
    "because config.prune.sparsity is 0",
  ),
  _used(
    "prune.every",
    lambda c: _pruned(c, "prune") or _pruned(c, "structure"),
    "because nothing is pruned",
  ),
  *(
    _used(
      f"model.{field}",
      lambda c: c.model.size is None and c.model.weights is None,
      "because config.model.size or config.model.weights says it",
    )
    for field in ("depth", "width", "heads", "mlp")
  ),
)
