"""Files that appear whole or not at all."""

import contextlib
import errno
import io
import os
import secrets
import stat
from collections.abc import Generator
from typing import IO

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_FLAGS |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_FLAGS |= getattr(os, "O_BINARY", 0)
_ATTEMPTS = 100


@contextlib.contextmanager
def replacing(
  path: str | os.PathLike, *, encoding: str | None = None
) -> Generator[IO]:
  """Opens a temporary file that replaces `path` when the block ends.

  The temporary is in the same directory, under a random name, and is created
  exclusively: threads and processes that write to one path do not disturb each
  other, and the last one to finish wins. If the block raises anything, the
  temporary is removed and `path` stays as it was. Otherwise the file and its
  directory are flushed to the disk.

  A symbolic link is followed: the file that it points to is replaced. The
  permissions are those of the existing file, or else those that `open` gives to
  a new one.

  Args:
    path: the file to write.
    encoding: None for a binary file; otherwise that of a text file.

  Yields:
    The temporary, open for writing and seeking; its `name` is its path.

  Raises:
    OSError: if the file cannot be written; `filename` is `path`, never the
      temporary. IsADirectoryError for a directory, and OSError for what is not
      a regular file, such as a device, before the block begins.
  """
  path = os.fsdecode(path)
  with _naming(path):
    target, mode = _resolve(path)
    raw = _create(path, target, 0o666 if mode is None else mode)
  temporary = raw.name
  try:
    if mode is not None and hasattr(os, "fchmod"):
      with contextlib.suppress(OSError):
        os.fchmod(raw.fileno(), mode)  # The umask does not apply to it.
    file: IO = io.BufferedWriter(raw)
    if encoding is not None:
      file = io.TextIOWrapper(file, encoding)
    yield file
    with _naming(path):
      file.flush()
      os.fsync(raw.fileno())
      file.close()
      os.replace(temporary, target)
  except BaseException:
    with contextlib.suppress(OSError):
      raw.close()  # First, so that closing the file writes nothing more.
    with contextlib.suppress(OSError):
      os.unlink(temporary)
    raise
  _sync_directory(target)


class _Temporary(io.FileIO):
  """A file whose errors name the path that it is going to replace."""

  path = ""

  def write(self, data) -> int:
    with _naming(self.path):
      return super().write(data)

  def truncate(self, size: int | None = None) -> int:
    with _naming(self.path):
      return super().truncate(size)


@contextlib.contextmanager
def _naming(path: str) -> Generator[None]:
  """Makes any OSError name `path`."""
  try:
    yield
  except OSError as error:
    if error.errno is None or error.filename == path:
      raise
    raise OSError(error.errno, os.strerror(error.errno), path) from error


def _resolve(path: str) -> tuple[str, int | None]:
  """The file to replace, and its mode if it exists."""
  target = os.path.realpath(path)
  try:
    mode = os.stat(path).st_mode
  except FileNotFoundError:
    if not path:
      raise
    mode = None
  if mode is None and os.path.basename(path):
    return target, None
  if mode is None or stat.S_ISDIR(mode):
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
  if not stat.S_ISREG(mode):
    raise OSError(errno.EINVAL, "not a regular file", path)
  return target, stat.S_IMODE(mode) & 0o777


def _create(path: str, target: str, mode: int) -> _Temporary:
  """Creates a file beside `target`; the umask applies to its mode."""
  folder, base = os.path.split(target)
  for _ in range(_ATTEMPTS):
    # A short name, since the name of `target` may be as long as names can be.
    name = f"{base[:32]}.{secrets.token_hex(8)}.tmp"
    try:
      raw = _Temporary(
        os.path.join(folder, name),
        "wb",
        opener=lambda name, _: os.open(name, _FLAGS, mode),
      )
    except FileExistsError:
      continue
    raw.path = path
    return raw
  raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)


def _sync_directory(target: str) -> None:
  """Makes the renaming durable, on platforms that can."""
  with contextlib.suppress(OSError):
    descriptor = os.open(os.path.dirname(target), os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)
