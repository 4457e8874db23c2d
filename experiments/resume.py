"""The config of a run: kept in its directory, compared when it is resumed."""

import json
import pathlib
import tempfile
from typing import Any

import ml_collections
from flax import traverse_util

from configs import default
from experiments import atomic, digest, settings

# Fields that may change when a run is resumed: they do not affect the trained
# parameters.
_FREE = (
  "log_every",
  "eval_every",
  "checkpoint_every",
  "keep_checkpoints",
  "data.dir",
  "data.eval_batch_size",
  "evaluate",
  "arms",
  "baseline",
  "mesh",
  "distributed",
)


def prepare_directory(directory: pathlib.Path) -> None:
  """Creates directory; raises UserError unless files can be written in it."""
  try:
    directory.mkdir(parents=True, exist_ok=True)
    # A temporary name: several processes may check at the same time.
    with tempfile.TemporaryFile(dir=directory) as probe:
      probe.write(b"x")
  except OSError as error:
    raise settings.UserError(
      f"cannot write in the workdir {directory}: {error.strerror or error}"
    ) from error


def save_config(
  config: ml_collections.ConfigDict, directory: pathlib.Path
) -> None:
  """Writes config to directory/config.json."""
  text = json.dumps(config.to_dict(), indent=2, sort_keys=True)
  atomic.write_text(directory / "config.json", text + "\n")


def read_config(directory: pathlib.Path) -> ml_collections.ConfigDict:
  """The config of a run; what did not exist then has its default.

  Raises:
    UserError: there is none that can be read.
  """
  path = directory / "config.json"
  try:
    values = json.loads(path.read_text())
    if not isinstance(values, dict):
      raise ValueError(f"it holds {type(values).__name__}, not an object")
    return ml_collections.ConfigDict(
      _merged(default.get_config().to_dict(), values)
    )
  except (ValueError, AttributeError, TypeError, OSError) as error:
    raise settings.UserError(f"cannot read {path}: {error}") from error


def _merged(defaults, values):
  """Nested values, and of `defaults` what they lack."""
  return defaults | {
    name: _merged(defaults[name], value)
    if isinstance(defaults.get(name), dict) and isinstance(value, dict)
    else value
    for name, value in values.items()
  }


def decisive(config: ml_collections.ConfigDict) -> dict[str, object]:
  """The fields, as "a.b", that affect the trained parameters."""
  return _decisive(json.loads(json.dumps(config.to_dict())))


def with_new_fields(before: dict[str, Any]) -> dict[str, Any]:
  """Decisive fields of an earlier run, with those that did not exist then.

  A new field has a default that changes nothing, so a run of before the field
  has that value.
  """
  return decisive(default.get_config()) | before


def check_same(
  config: ml_collections.ConfigDict, directory: pathlib.Path
) -> None:
  """Raises UserError if the run in directory has another configuration."""
  path = directory / "config.json"
  try:
    before = with_new_fields(_decisive(json.loads(path.read_text())))
  except FileNotFoundError:
    raise settings.UserError(
      f"{path} is missing, so the checkpoints beside it cannot be trusted to"
      f" belong to this configuration. Use another --workdir or delete"
      f" {directory} to start over"
    ) from None
  except (ValueError, AttributeError, OSError) as error:
    raise settings.UserError(f"cannot read {path}: {error}") from error
  now = decisive(config)
  different = [
    f"  config.{field} was {before.get(field)!r}, is {now.get(field)!r}"
    for field in sorted(before.keys() | now.keys())
    if before.get(field) != now.get(field)
  ]
  if different:
    raise settings.UserError(
      f"{directory} holds a run of another configuration:\n"
      + "\n".join(different)
      + "\nSet these fields back to resume it, name another --workdir, or"
      f" delete {directory} to start over"
    )


def save_base(base: Any, directory: pathlib.Path) -> None:
  """Writes the digests of a base, if there is one, to directory/base.json."""
  if base:
    text = json.dumps(digest.of(base), indent=2)
    atomic.write_text(directory / "base.json", text + "\n")


def check_base(
  config: ml_collections.ConfigDict, base: Any, directory: pathlib.Path
) -> None:
  """Raises UserError if the run in directory was trained on another base."""
  if not base:
    return
  path = directory / "base.json"
  try:
    before = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise settings.UserError(f"cannot read {path}: {error}") from error
  now = digest.of(base)
  if different := [name for name in now if now[name] != before.get(name)]:
    raise settings.UserError(
      f"{directory} holds a fine-tune of other weights than those in"
      f" config.model.weights, {config.model.weights}: {different[0]} differs,"
      f" one of {len(different)}. Put its own back, or delete {directory} to"
      " start over"
    )


def _decisive(fields):
  flat = traverse_util.flatten_dict(fields, sep=".")
  return {
    name: value
    for name, value in flat.items()
    if not any(name == f or name.startswith(f + ".") for f in _FREE)
  }
