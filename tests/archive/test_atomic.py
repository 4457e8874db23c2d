"""A file is replaced whole, or stays as it was."""

import concurrent.futures
import errno
import io
import os
import secrets
import stat
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from backslash_jax import archive
from backslash_jax.archive import atomic, plain

_posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")


def _write(path, data=b"new"):
  with atomic.replacing(path) as file:
    file.write(data)


def _names(folder):
  return sorted(entry.name for entry in folder.iterdir())


def test_binary_and_text(tmp_path):
  path = tmp_path / "file"
  with atomic.replacing(path) as file:
    file.write(b"1234")
    file.seek(1)
    file.write(b"x")
    assert not path.exists()
    assert os.path.dirname(file.name) == str(tmp_path)
  assert path.read_bytes() == b"1x34"
  with atomic.replacing(str(path), encoding="utf-8") as file:
    file.write("nü")
  assert path.read_text("utf-8") == "nü"
  assert _names(tmp_path) == ["file"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("encoding", [None, "utf-8"])
def test_an_exception_leaves_the_old_file(tmp_path, kind, encoding):
  path = tmp_path / "file"
  path.write_bytes(b"old")
  with pytest.raises(kind, match="why"):  # noqa: PT012
    with atomic.replacing(path, encoding=encoding) as file:
      file.write("new" if encoding else b"new")
      raise kind("why")
  assert path.read_bytes() == b"old"
  assert _names(tmp_path) == ["file"]


def test_threads_do_not_disturb_each_other(tmp_path):
  path = tmp_path / "file"
  contents = [bytes([i]) * 100_000 for i in range(32)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda data: _write(path, data), contents))
  assert path.read_bytes() in contents
  assert _names(tmp_path) == ["file"]


@_posix
def test_a_planted_link_is_not_followed(tmp_path, monkeypatch):
  victim = tmp_path / "victim"
  victim.write_bytes(b"old")
  tokens = iter(["guessed", "free"])
  monkeypatch.setattr(secrets, "token_hex", lambda size: next(tokens))
  planted = tmp_path / "file.guessed.tmp"
  planted.symlink_to(victim)
  _write(tmp_path / "file")
  assert victim.read_bytes() == b"old"
  assert planted.is_symlink()
  assert not (tmp_path / "file").is_symlink()
  assert _names(tmp_path) == ["file", "file.guessed.tmp", "victim"]


@_posix
@pytest.mark.parametrize("existing", [True, False])
def test_a_link_at_the_path_is_written_through(tmp_path, existing):
  (tmp_path / "folder").mkdir()
  target, link = tmp_path / "folder" / "target", tmp_path / "link"
  if existing:
    target.write_bytes(b"old")
  link.symlink_to(target)
  _write(link)
  assert link.is_symlink()
  assert target.read_bytes() == b"new"
  assert _names(tmp_path / "folder") == ["target"]


@_posix
def test_a_loop_of_links_is_refused(tmp_path):
  link = tmp_path / "link"
  link.symlink_to(link)
  with pytest.raises(OSError, match="link") as caught:
    _write(link)
  assert caught.value.filename == str(link)


@_posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_usual_permissions(tmp_path, umask):
  before = os.umask(umask)
  try:
    _write(tmp_path / "file")
  finally:
    os.umask(before)
  mode = stat.S_IMODE((tmp_path / "file").stat().st_mode)
  assert mode == 0o666 & ~umask


@_posix
@pytest.mark.parametrize("mode", [0o600, 0o666, 0o751])
def test_a_replaced_file_keeps_its_permissions(tmp_path, mode):
  path = tmp_path / "file"
  path.write_bytes(b"old")
  path.chmod(mode)
  _write(path)
  assert path.read_bytes() == b"new"
  assert stat.S_IMODE(path.stat().st_mode) == mode


def _refused(path, kind, code):
  """Writing to `path` must fail before the block begins."""
  with pytest.raises(kind) as caught:
    with atomic.replacing(path):
      pytest.fail("the block began")
  assert caught.value.errno == code
  assert caught.value.filename == os.fspath(path)


def test_directories_are_refused(tmp_path):
  (tmp_path / "folder").mkdir()
  _refused(tmp_path / "folder", IsADirectoryError, errno.EISDIR)
  _refused(f"{tmp_path}/folder/", IsADirectoryError, errno.EISDIR)
  _refused(f"{tmp_path}/new/", IsADirectoryError, errno.EISDIR)
  assert _names(tmp_path) == ["folder"]


def test_missing_directories_and_names_are_refused(tmp_path):
  missing = tmp_path / "no" / "file"
  _refused(missing, FileNotFoundError, errno.ENOENT)
  _refused("", FileNotFoundError, errno.ENOENT)


@_posix
def test_devices_and_pipes_are_refused(tmp_path):
  _refused("/dev/null", OSError, errno.EINVAL)
  os.mkfifo(tmp_path / "pipe")
  _refused(tmp_path / "pipe", OSError, errno.EINVAL)
  (tmp_path / "link").symlink_to("/dev/null")
  _refused(tmp_path / "link", OSError, errno.EINVAL)


@_posix
def test_the_longest_name_can_be_written(tmp_path):
  path = tmp_path / ("ü" * 127)  # 254 bytes.
  _write(path)
  assert _names(tmp_path) == [path.name]


class _Full(io.FileIO):
  def write(self, data):
    raise OSError(errno.ENOSPC, "No space left on device")


class _FullTemporary(atomic._Temporary, _Full):
  """`super().write` of the tested class is that of `_Full`."""


def test_a_full_disk_names_the_output(tmp_path, monkeypatch):
  path = tmp_path / "file"
  path.write_bytes(b"old")
  monkeypatch.setattr(atomic, "_Temporary", _FullTemporary)
  for size in (10, 10**6):  # Fails when flushed, and when written.
    with pytest.raises(OSError, match="No space left") as caught:
      _write(path, bytes(size))
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
  assert path.read_bytes() == b"old"
  assert _names(tmp_path) == ["file"]


@_posix
def test_a_file_that_grows_too_large_names_the_output(tmp_path):
  """A real failure of the system's write: the limit of a file's size."""
  code = """
    import resource, signal, sys
    import numpy as np
    from backslash_jax import archive
    from backslash_jax.archive import plain
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    x = np.random.default_rng(0).normal(size=(100, 100))
    for write in (
      lambda path: archive.save(path, {"x": x}, step=2**-8),
      lambda path: plain.write(
        path, {"x": ("float64", x.shape)}, [("x", x)]
      ),
    ):
      try:
        write(sys.argv[1])
      except OSError as error:
        print(error.filename)
  """
  path = tmp_path / "file"
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(code), path],
    capture_output=True,
    text=True,
    check=True,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
  )
  assert done.stdout.split() == [str(path)] * 2
  assert _names(tmp_path) == []


def test_both_writers_are_atomic(tmp_path):
  x = np.ones((4, 4), np.float32)
  tensors = iter([("x", x)])
  for write in (
    lambda path: archive.save(path, {"x": x}, step=0.1),
    lambda path: plain.write(path, {"x": ("float32", (4, 4))}, tensors),
  ):
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
      write(tmp_path)
  assert list(tensors)  # Refused before any work.
  bad = {"a": x, "x": np.full((4, 4), np.nan, np.float32)}
  with pytest.raises(ValueError, match="NaN"):
    archive.save(tmp_path / "file", bad, step=0.1)
  shapes = {"x": ("float32", (4, 4))}
  for tensors, message in (
    ([], "'x' is missing"),
    ([("x", x), ("x", x)], "'x' is unknown or comes twice"),
    ([("y", x)], "'y' is unknown"),
    ([("x", x[:2])], "'x' is"),
    ([("x", x.astype(np.float64))], "'x' is"),
  ):
    with pytest.raises(ValueError, match=message):
      plain.write(tmp_path / "file", shapes, tensors)
  assert _names(tmp_path) == []
