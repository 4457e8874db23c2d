"""Files that are either complete or absent."""

import contextlib
import pathlib
from collections.abc import Callable

from backslash_jax.archive import atomic
from experiments import settings


def write(path: pathlib.Path, function: Callable[[pathlib.Path], object]):
  """Replaces a file by what function writes to the temporary path it gets.

  Args:
    path: of the file; missing directories are made.
    function: writes the content.

  Raises:
    UserError: the file cannot be written.
  """
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as file:
      function(pathlib.Path(file.name))
  except OSError as error:
    raise settings.UserError(
      f"cannot write {path}: {error.strerror or error}"
    ) from error


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
