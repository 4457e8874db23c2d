"""The check of a configuration, its arms, and errors of the user."""

import copy
import re
from typing import Any

import ml_collections

from experiments import fields, rules


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


def check(config: ml_collections.ConfigDict) -> None:
  """Raises UserError naming every field whose value is not usable."""
  wanted = dict(fields.FIELDS)
  if "structure" in config:
    wanted |= fields.STRUCTURE
  found = []
  for field, kind in wanted.items():
    value = rules.get(config, field)
    try:
      good = kind.is_good(value)
    except (TypeError, ValueError, OverflowError):
      good = False
    if not good:
      found.append(rules.problem(field, value, kind.wanted))
  # The rules compute with these values.
  found = found or rules.problems(config)
  if found:
    raise UserError("\n".join(found))


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
    _check_used([config])
    return {"run": config}
  if config.baseline not in config.arms:
    raise UserError(
      f"config.baseline is {config.baseline!r}, wanted one of config.arms:"
      f" {', '.join(config.arms)}"
    )
  names = sorted(config.arms, key=lambda name: (name != config.baseline, name))
  base = copy.deepcopy(config).unlock()
  base.arms = ml_collections.ConfigDict()
  result = {
    name: changed(base, f"arms.{name}", name, config.arms[name])
    for name in names
  }
  _check_used(list(result.values()))
  return result


def _check_used(trainings: list[ml_collections.ConfigDict]) -> None:
  """Raises UserError for fields that are set and used in none of trainings."""
  first, *others = map(rules.unused, trainings)
  found = [first[f] for f in first if all(f in other for other in others)]
  if found:
    raise UserError("\n".join(found))


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
    for change in changes:
      result.update(change)
    check(result)
  except (KeyError, TypeError, ValueError, UserError) as error:
    text = error.args[0] if error.args else error
    raise UserError(f"in config.{where}: {text}") from error
  return result
