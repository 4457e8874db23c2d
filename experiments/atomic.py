"""Files that are either complete or absent."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Callable

from experiments import settings


def write(path: pathlib.Path, function: Callable[[pathlib.Path], object]):
  """Calls function with a new file beside path, and renames that to path.

  Several processes may write the same path: each has a file of its own until
  the rename.

  Args:
    path: of the file; missing directories are made.
    function: writes the content to the path that it gets.

  Raises:
    UserError: the file cannot be written.
  """
  fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh.touch(exist_ok=False)
    function(fresh)
    os.replace(fresh, path)
  except OSError as error:
    raise settings.UserError(
      f"cannot write {path}: {error.strerror or error}"
    ) from error
  finally:
    with contextlib.suppress(OSError):
      fresh.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes text in UTF-8, unless the file holds exactly that already.

  Raises:
    UserError: the file cannot be written.
  """
  data = text.encode()
  with contextlib.suppress(OSError):
    if path.read_bytes() == data:
      return
  write(path, lambda file: file.write_bytes(data))
