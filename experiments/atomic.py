"""Files that are whole or not there."""

import os
import pathlib
from collections.abc import Callable

from experiments import settings


def write(path: pathlib.Path, function: Callable[[pathlib.Path], object]):
  """Calls function with a file beside path, and renames that to path.

  Raises:
    UserError: the file cannot be written.
  """
  # Of each process its own: several may write the report of one grid.
  fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    function(fresh)
    os.replace(fresh, path)
  except OSError as error:
    raise settings.UserError(
      f"cannot write {path}: {error.strerror or error}"
    ) from error
  finally:
    fresh.unlink(missing_ok=True)
