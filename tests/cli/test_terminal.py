"""What a terminal, a pipe and a full disk make of the output."""

import errno
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from rich import cells

from backslash_jax import archive
from backslash_jax.archive import plain
from backslash_jax.cli import main

_NAMES = (
  "layer[/b].w",
  "blocks[attn].w",
  "a\x1b[31mred\x1b[2J",
  "line\nbreak",
  "\u202eabc",
  "ünï/重み",
  "x" * 2000,
)


def _tensors(names):
  rng = np.random.default_rng(0)
  return {name: rng.normal(size=(8, 8)).astype(np.float32) for name in names}


@pytest.fixture
def coded(tmp_path):
  path = tmp_path / "d[" / "x]"  # As a tag of rich's markup.
  path.parent.mkdir()
  archive.save(path, _tensors(_NAMES), step=2**-4)
  return path


def _run(*arguments):
  return main.main([str(a) for a in arguments])


def _program(*arguments, **keywords):
  return subprocess.run(
    [sys.executable, "-m", "backslash_jax", *map(str, arguments)],
    stderr=subprocess.PIPE,
    check=False,
    **keywords,
  )


@pytest.mark.parametrize("options", [[], ["--plot"]])
def test_names_are_shown_whole_and_harmless(coded, capsys, options):
  assert _run("inspect", coded, *options) == 0
  shown = capsys.readouterr().out
  assert shown.count("\n") > len(_NAMES)
  assert all(c == "\n" or c.isprintable() for c in shown)
  for name in ("layer[/b].w", "blocks[attn].w", "重み", "x" * 2000):
    assert name in shown
  assert "a\\x1b[31mred\\x1b[2J" in shown
  assert str(coded) in shown


def test_a_narrow_terminal_shortens_names_in_the_middle(tmp_path, monkeypatch):
  """Rich takes FORCE_COLOR for a terminal; its width is COLUMNS."""
  names = [
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.0.mlp.\u91cd\u307f.down_proj.weight",
  ]
  archive.save(tmp_path / "x", _tensors(names), step=2**-4)
  shown = {}
  for width in (90, 200):
    environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(width)}
    environment |= {"PYTHONIOENCODING": "utf-8"}
    done = _program(
      "inspect", tmp_path / "x", env=environment, stdout=subprocess.PIPE
    )
    shown[width] = done.stdout.decode()
  assert all(name in shown[200] for name in names)
  rows = [row for row in shown[90].splitlines() if "8x8" in row]
  assert len(rows) == 3
  assert all("\u2026" in row and ".weight" in row for row in rows)
  assert all(cells.cell_len(row) <= 90 for row in rows)
  assert rows[0].startswith("\u2502 model.")


def test_a_summary_comes_first(coded, capsys):
  assert _run("inspect", coded) == 0
  first = capsys.readouterr().out.splitlines()[0]
  size, parameters = coded.stat().st_size, 64 * len(_NAMES)
  assert first == (
    f"{coded}: {parameters} parameters, {size:,} bytes,"
    f" {8 * size / parameters:.3f} bits per parameter;"
    f" {4 * parameters / size:.2f} times smaller than float32,"
    f" {2 * parameters / size:.2f} than float16 or bfloat16"
  )


def test_errors_cannot_control_a_terminal(tmp_path, capsys):
  values = _tensors(["w\x1b[2J"])
  values["w\x1b[2J"][0, 0] = np.nan
  path = tmp_path / "\x1b[2J"
  shapes = {name: (x.dtype.name, x.shape) for name, x in values.items()}
  plain.write(path, shapes, values.items())
  assert _run("compress", path, tmp_path / "x", "--step=1") == 1
  assert _run("inspect", path) == 1
  assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--plot"], ["--json"]])
def test_a_terminal_without_unicode(coded, options):
  environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
  done = _program(
    "inspect", coded, *options, env=environment, stdout=subprocess.PIPE
  )
  assert (done.returncode, done.stderr) == (0, b"")
  assert b"\\u91cd" in done.stdout


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_closed_pipe_ends_it_quietly(coded, options):
  reading, writing = os.pipe()
  os.close(reading)
  done = _program("inspect", coded, *options, stdout=writing)
  os.close(writing)
  assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_named(coded):
  with open("/dev/full", "wb") as full:
    done = _program("inspect", coded, stdout=full)
  assert done.returncode == 1
  assert done.stderr == (
    b"backslash-jax: standard output: No space left on device\n"
  )


def test_output_that_is_closed_from_the_start_is_no_error(coded):
  words = [sys.executable, "-m", "backslash_jax", "inspect", str(coded)]
  done = subprocess.run(
    ["sh", "-c", 'exec "$@" >&-', "sh", *words],
    stderr=subprocess.PIPE,
    check=False,
  )
  assert (done.returncode, done.stderr) == (0, b"")


def test_a_copy_to_a_full_disk_is_named(tmp_path, capsys, monkeypatch):
  def full(source, target):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  source, out = tmp_path / "in", tmp_path / "out"
  source.mkdir()
  x = np.ones((3, 3), np.float32)
  plain.write(source / "a.safetensors", {"x": ("float32", (3, 3))}, [("x", x)])
  (source / "config.json").write_text("{}")
  monkeypatch.setattr(shutil, "copy2", full)
  assert _run("compress", source, out, "--step=1") == 1
  assert "config.json: No space left" in capsys.readouterr().err


def test_an_interrupt_is_one_line(coded, capsys, monkeypatch):
  def interrupt(path):
    raise KeyboardInterrupt

  monkeypatch.setattr(archive, "inspect", interrupt)
  assert _run("inspect", coded) == 130
  assert capsys.readouterr().err == "backslash-jax: interrupted\n"


def test_values_of_any_size_are_plotted(tmp_path, capsys):
  x = np.random.default_rng(0).laplace(size=(30, 30))
  x[0, 0] = 1e5
  params = {"small": x * 1e-300, "large": x * 1e300, "zero": 0 * x}
  steps = {"small": 1e-302, "large": 1e298, "zero": 1.0}
  archive.save(tmp_path / "x", params, step=steps)
  assert _run("inspect", tmp_path / "x", "--plot") == 0
  assert "small  nu" in capsys.readouterr().out
