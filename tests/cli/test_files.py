"""What the command line reads, writes, copies and refuses to touch."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from backslash_jax.cli import main


def _run(*arguments):
  return main.main([str(a) for a in arguments])


def _compress(source, target, *options):
  return _run("compress", source, target, "--step=2^-8", *options)


def _tensors(seed=0):
  x = np.random.default_rng(seed).normal(size=(20, 30)).astype(np.float32)
  return {"w": x}


@pytest.fixture
def model(tmp_path):
  path = tmp_path / "model.safetensors"
  save_file(_tensors(), path)
  return path


@pytest.fixture
def folder(tmp_path):
  """A directory as of sentence-transformers, with weights at two levels."""
  path = tmp_path / "in"
  (path / "1_Pooling").mkdir(parents=True)
  (path / "2_Dense").mkdir()
  save_file(_tensors(1), path / "model.safetensors")
  save_file(_tensors(2), path / "2_Dense" / "model.safetensors")
  (path / "1_Pooling" / "config.json").write_text("{}")
  (path / "2_Dense" / "pytorch_model.bin").write_text("old")
  (path / "modules.json").write_text("[]")
  return path


@pytest.mark.parametrize("link", ["same", "symlink", "hard link"])
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_the_input_is_never_overwritten(model, tmp_path, capsys, link, force):
  output = model if link == "same" else tmp_path / "link"
  if link == "symlink":
    output.symlink_to(model)
  elif link == "hard link":
    os.link(model, output)
  before = model.read_bytes()
  assert _compress(model, output, *force) == 1
  error = capsys.readouterr().err
  assert str(output) in error
  assert not force or "the output is the input" in error
  assert model.read_bytes() == before


def test_an_output_directory_with_links_is_refused(folder, tmp_path):
  out = tmp_path / "out"
  out.mkdir()
  os.link(folder / "modules.json", out / "modules.json")
  assert _compress(folder, out, "--force") == 1
  assert (folder / "modules.json").read_text() == "[]"


def test_existing_output_needs_force(model, folder, tmp_path, capsys):
  out, again = tmp_path / "out", tmp_path / "again"
  for command, source, target in (
    (_compress, model, out),
    (lambda *a: _run("decompress", *a), out, again),
    (_compress, folder, tmp_path / "dir"),
    (lambda *a: _run("decompress", *a), tmp_path / "dir", tmp_path / "plain"),
  ):
    assert command(source, target) == 0
    assert command(source, target) == 1
    assert f"{target}: the " in capsys.readouterr().err
    assert command(source, target, "--force") == 0
  (tmp_path / "empty").mkdir()
  assert _compress(folder, tmp_path / "empty") == 0


def test_outputs_of_the_wrong_kind_are_refused(model, folder, tmp_path, capsys):
  (tmp_path / "file").write_text("")
  cases = [
    (model, tmp_path, "a directory, and the input is a file"),
    (model, "/dev/null", "not a regular file"),
    (model, tmp_path / "no" / "x", "no: No such file"),
    (folder, tmp_path / "file", "not a directory"),
    (folder, folder / "out", "in the input directory"),
  ]
  for source, target, message in cases:
    assert _compress(source, target, "--force") == 1
    assert message in capsys.readouterr().err
  assert not (folder / "out").exists()


def test_the_whole_directory_comes_along(folder, tmp_path, capsys):
  (folder / "1_Pooling" / "config.json").chmod(0o444)
  coded, again = tmp_path / "coded", tmp_path / "again"
  assert _compress(folder, coded) == 0
  shown = capsys.readouterr().out
  assert f"{folder / '2_Dense' / 'pytorch_model.bin'}" in shown
  assert _run("inspect", coded) == 0
  for _ in range(2):  # Over read-only files of an earlier run, too.
    assert _run("decompress", coded, again, "--force") == 0
  found = {
    str(p.relative_to(again)) for p in again.rglob("*") if not p.is_dir()
  }
  assert found == {
    "model.safetensors",
    "modules.json",
    "1_Pooling/config.json",
    "2_Dense/model.safetensors",
  }
  for name, seed in (("model", 1), ("2_Dense/model", 2)):
    error = load_file(again / f"{name}.safetensors")["w"] - _tensors(seed)["w"]
    assert np.abs(error).max() <= 2**-9


def test_a_loop_of_links_ends(folder, tmp_path):
  (folder / "1_Pooling" / "up").symlink_to(folder)
  assert _compress(folder, tmp_path / "coded") == 0


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_not_a_regular_file_is_refused(folder, tmp_path, capsys, kind):
  """A pipe would be waited for, and one with a writer read to its end."""
  special = folder / "special"
  if kind == "pipe":
    os.mkfifo(special)
  else:
    special.symlink_to("/dev/null")
  assert _compress(folder, tmp_path / "out") == 1
  assert _compress(special, tmp_path / "coded") == 1
  assert _run("inspect", special) == 1
  errors = capsys.readouterr().err.splitlines()
  assert errors == [f"backslash-jax: {special}: not a regular file"] * 3
  assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_missing_shards_are_errors(tmp_path, capsys):
  source, out = tmp_path / "in", tmp_path / "out"
  source.mkdir()
  name = "model-00001-of-00002.safetensors"
  save_file(_tensors(), source / name)
  assert _compress(source, out) == 1
  assert "1 of 2 shards are there" in capsys.readouterr().err
  (source / name).rename(source / "one.safetensors")
  listing = {"weight_map": {"w": "one.safetensors", "v": "two.safetensors"}}
  index = source / "model.safetensors.index.json"
  index.write_text(json.dumps(listing))
  assert _compress(source, out) == 1
  assert "two.safetensors: this shard of" in capsys.readouterr().err
  index.write_text("[]")
  assert _compress(source, out) == 1
  assert "not a shard index" in capsys.readouterr().err
  assert not out.exists()


def test_coded_files_are_not_coded_again(model, tmp_path, capsys):
  assert _compress(model, tmp_path / "coded") == 0
  assert _compress(tmp_path / "coded", tmp_path / "twice") == 1
  assert "coded: already a coded file" in capsys.readouterr().err


def test_a_coded_directory_is_not_coded_again(folder, tmp_path, capsys):
  coded, out = tmp_path / "coded", tmp_path / "out"
  assert _compress(folder, coded) == 0
  assert _compress(coded, out) == 1
  error = capsys.readouterr().err
  assert "model.backslash.safetensors: already a coded file" in error
  assert not out.exists()


def test_coded_and_plain_weights_do_not_mix(folder, tmp_path, capsys):
  """A loader would take the plain weights of another model."""
  coded, out = tmp_path / "coded", tmp_path / "out"
  assert _compress(folder, coded) == 0
  for source, name in (
    (folder, "model.safetensors"),
    (coded, "model.backslash.safetensors"),
  ):
    out.mkdir()
    (out / name).write_text("other")
    command = "compress" if source == folder else "decompress"
    step = ["--step=2^-8"] if source == folder else []
    assert _run(command, source, out, "--force", *step) == 1
    assert f"{out / name}: the output directory has other weights" in (
      capsys.readouterr().err
    )
    assert [p.name for p in out.iterdir()] == [name]
    (out / name).unlink()
    out.rmdir()


def test_a_directory_coded_under_plain_names_is_read(folder, tmp_path):
  """As version 1 named them."""
  coded, again = tmp_path / "coded", tmp_path / "again"
  assert _compress(folder, coded) == 0
  for path in list(coded.rglob("*.backslash.safetensors")):
    path.rename(path.with_name("model.safetensors"))
  assert _run("decompress", coded, again) == 0
  assert load_file(again / "model.safetensors").keys() == {"w"}
