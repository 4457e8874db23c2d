"""An output directory is written whole or not at all."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from backslash_jax.archive import naming
from backslash_jax.cli import files, main, staging

CODED = "a.backslash.safetensors"


def _run(*arguments):
  return main.main([str(a) for a in arguments])


def _contents(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob("*")
    if not path.is_dir()
  }


@pytest.fixture
def folder(tmp_path):
  """A model of two files, of which the second cannot be coded at all."""
  path = tmp_path / "in"
  (path / "sub").mkdir(parents=True)
  good = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)
  save_file({"w": good}, path / "a.safetensors")
  save_file({"w": good * np.nan}, path / "sub" / "b.safetensors")
  (path / "config.json").write_text("{}")
  return path


@pytest.fixture(params=["new", "nested", "empty", "full"])
def output(request, tmp_path):
  out = tmp_path / "there" / "out"
  if request.param == "nested":
    return out
  out.parent.mkdir()
  if request.param == "new":
    return out
  out.mkdir()
  if request.param == "full":
    (out / "sub").mkdir()
    (out / CODED).write_text("old")
    (out / "sub" / "mine").write_text("mine")
    (out / "config.json").write_text("old")
    (out / "config.json").chmod(0o444)
  return out


def _all(root):
  return {
    str(p): None if p.is_dir() else p.read_bytes() for p in root.rglob("*")
  }


def test_a_failure_leaves_everything_as_it_was(folder, output, capsys):
  before = _all(folder.parent)
  assert _run("compress", folder, output, "--step=2^-8", "--force") == 1
  assert "'w': 600 of 600 values are NaN" in capsys.readouterr().err
  assert _all(folder.parent) == before


def test_success_adds_and_replaces(folder, output):
  save_file({"w": np.eye(8)}, folder / "sub" / "b.safetensors")
  before = _contents(output) if output.exists() else {}
  assert _run("compress", folder, output, "--step=2^-8", "--force") == 0
  after = _contents(output)
  wanted = {CODED, "sub/b.backslash.safetensors", "config.json"}
  assert after.keys() == before.keys() | wanted
  assert after["config.json"] == b"{}"
  assert after[CODED] != b"old"
  assert after.get("sub/mine", b"mine") == b"mine"
  assert not list(output.parent.glob("*.tmp"))
  assert _run("decompress", output, output.parent / "again") == 0


def test_a_failure_while_moving_is_undone(folder, output, monkeypatch, capsys):
  save_file({"w": np.eye(8)}, folder / "sub" / "b.safetensors")
  before = _all(folder.parent)
  rename, count = staging.Path.rename, []

  def fail(path, target):
    count.append(path)
    if len(count) == (1 if not output.exists() else 4):
      raise OSError(28, "No space left on device", str(path))
    return rename(path, target)

  monkeypatch.setattr(staging.Path, "rename", fail)
  code = _run("compress", folder, output, "--step=2^-8", "--force")
  if code == 0:  # An empty directory needs fewer renames.
    assert len(count) < 4
    return
  assert f"{output}: No space" in capsys.readouterr().err.replace(
    f"/{CODED}", ""
  ).replace("/config.json", "").replace("/sub/b.backslash.safetensors", "")
  assert _all(folder.parent) == before


def test_a_directory_in_the_way_is_refused(folder, tmp_path, capsys):
  (tmp_path / "out" / "config.json" / "x").mkdir(parents=True)
  assert _run("compress", folder, tmp_path / "out", "--step=1", "--force") == 1
  assert "config.json: a directory is in the way" in capsys.readouterr().err


def test_errors_and_warnings_have_the_final_name(folder, tmp_path, capsys):
  out = tmp_path / "out"
  plan = files.plan(folder, out, naming.coded, force=False)
  with (
    pytest.raises(OSError, match="full") as found,
    files.writing(plan) as own,
  ):
    raise OSError(28, "full", str(own.models[0][1]))
  assert found.value.filename == str(out / CODED)
  save_file({"w": np.full((9, 9), 1e-3)}, folder / "sub" / "b.safetensors")
  options = ("--step=1", "--max-error=inf")
  assert _run("compress", folder, out, *options) == 0
  shown = capsys.readouterr().out
  assert (
    f"warning: {out / 'sub' / 'b.backslash.safetensors'}: all values" in shown
  )


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_leaves_nothing_behind(folder, tmp_path, name):
  number = getattr(signal, name)
  before = _all(tmp_path)
  code = """
import os, signal, sys
from backslash_jax.cli import files, main
files.copy = lambda *a: os.kill(os.getpid(), int(sys.argv[1]))
sys.exit(main.main(["compress", *sys.argv[2:], "--step=2^-8"]))
"""
  save_file({"w": np.eye(8)}, folder / "sub" / "b.safetensors")
  before = _all(tmp_path)
  done = subprocess.run(
    [sys.executable, "-c", code, str(int(number)), folder, tmp_path / "out"],
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    check=False,
  )
  assert done.returncode == 128 + number, done.stderr
  assert b"Traceback" not in done.stderr
  assert _all(tmp_path) == before
