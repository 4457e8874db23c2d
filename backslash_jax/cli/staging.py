"""Directories that are written whole or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Generator
from pathlib import Path

_ATTEMPTS = 100


@contextlib.contextmanager
def replacing(target: Path) -> Generator[Path]:
  """Gives a new directory, whose files are in `target` when the block ends.

  It is made beside `target`, under a random name, and renamed. If `target`
  exists, it is made inside, and its files then replace those of the same names.
  If the block or that raises anything, everything is as it was before.

  Raises:
    OSError: if a file cannot be written; `filename` is in `target`.
  """
  exists = target.is_dir()
  made: list[Path] = []
  staged = None
  try:
    for folder in reversed(target.parents):
      if not folder.is_dir():
        folder.mkdir()
        made.append(folder)
    staged = _new_folder(target if exists else target.parent, target.name)
    yield staged
    if exists:
      _move(staged, target)
      staged.rmdir()
    else:
      staged.rename(target)
  except BaseException as error:
    if staged is not None:
      shutil.rmtree(staged, ignore_errors=True)
    for folder in reversed(made):
      with contextlib.suppress(OSError):
        folder.rmdir()
    if isinstance(error, OSError) and staged is not None:
      name = renamed(str(error.filename or ""), staged, target)
      if name != error.filename and error.errno is not None:
        raise OSError(error.errno, error.strerror, name) from error
    raise


def renamed(text: str, staged: Path, target: Path) -> str:
  """A message with the name that a file is going to have."""
  return text.replace(str(staged), str(target))


def _new_folder(parent: Path, name: str) -> Path:
  for _ in range(_ATTEMPTS):
    folder = parent / f"{name[:32]}.{secrets.token_hex(8)}.tmp"
    with contextlib.suppress(FileExistsError):
      folder.mkdir()
      return folder
  raise FileExistsError(f"{parent}: no name is free")


def _move(source: Path, target: Path) -> None:
  """Moves all files of `source` to `target`; undone if that fails."""
  backup = _new_folder(target, "replaced")
  made: list[Path] = []
  moves: list[tuple[Path, Path, Path]] = []  # From, to, and what was there.
  try:
    for folder, folders, names in os.walk(source):
      here = target / Path(folder).relative_to(source)
      for name in folders:
        if not (here / name).is_dir():
          made.append(here / name)
          (here / name).mkdir()
      for name in names:
        moves.append(
          (Path(folder, name), here / name, backup / f"{len(moves)}")
        )
        if os.path.lexists(moves[-1][1]):
          moves[-1][1].rename(moves[-1][2])
        moves[-1][0].rename(moves[-1][1])
  except BaseException:
    for new, place, old in reversed(moves):
      if not os.path.lexists(new):
        place.unlink()
      if os.path.lexists(old):
        old.rename(place)
    for folder in reversed(made):
      with contextlib.suppress(OSError):
        folder.rmdir()
    raise
  finally:
    shutil.rmtree(backup, ignore_errors=True)
  for folder, _, _ in os.walk(source, topdown=False):
    if Path(folder) != source:
      os.rmdir(folder)
