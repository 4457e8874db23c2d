"""The command line codes a fine-tune as the difference from its base."""

import json

import ml_dtypes
import numpy as np
import pytest

from backslash_jax import archive
from backslash_jax.archive import plain
from backslash_jax.cli import main

STEP = 2.0**-8


def _write(path, tensors):
  shapes = {name: (x.dtype.name, x.shape) for name, x in tensors.items()}
  plain.write(path, shapes, tensors.items())


def _base():
  rng = np.random.default_rng(0)
  return {
    "embed.weight": rng.normal(size=(60, 32)).astype("f4"),
    "layer.weight": rng.normal(size=(32, 32)).astype(ml_dtypes.bfloat16),
    "layer.bias": rng.normal(size=32).astype("f4"),
    "ids": np.arange(10),
  }


def _tuned():
  rng = np.random.default_rng(1)
  tuned = {
    f"bert.{name}": (x + 0.01 * rng.normal(size=x.shape)).astype(x.dtype)
    for name, x in _base().items()
    if name != "ids"
  }
  tuned["bert.ids"] = _base()["ids"]
  tuned["classifier.weight"] = rng.normal(size=(2, 32)).astype("f4")
  return tuned


@pytest.fixture
def models(tmp_path):
  """The directories of a base and of its fine-tune, in two shards."""
  base, tuned = tmp_path / "base", tmp_path / "tuned"
  base.mkdir()
  _write(base / "model.safetensors", _base())
  (base / "config.json").write_text('{"architectures": ["BertModel"]}')
  (base / "vocab.txt").write_text("a\r\nb\n" * 100_000)
  (base / "README.md").write_text("the base")
  (tuned / "extra").mkdir(parents=True)
  items = list(_tuned().items())
  names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
  weight_map = {}
  for name, part in zip(names, (items[:2], items[2:]), strict=True):
    _write(tuned / name, dict(part))
    weight_map |= dict.fromkeys(dict(part), name)
  text = json.dumps({"weight_map": weight_map})
  (tuned / "model.safetensors.index.json").write_text(text)
  (tuned / "config.json").write_text('{"architectures": ["BertFor\u2713"]}')
  (tuned / "vocab.txt").write_bytes((base / "vocab.txt").read_bytes())
  (tuned / "extra" / "note.txt").write_text("note\r\n")
  (tuned / "pytorch_model.bin").write_bytes(b"\xff" * 10)
  return base, tuned


def _run(*arguments):
  return main.main([str(a) for a in arguments])


def _check_weights(found):
  tuned = _tuned()
  assert sorted(found) == sorted(tuned)
  for name, x in tuned.items():
    assert found[name].dtype == x.dtype
    error = np.abs(found[name].astype("f8") - x.astype("f8")).max()
    assert error <= (0 if name == "bert.ids" else STEP / 2 + 2**-7)


def test_a_directory_to_one_file_and_back(models, tmp_path, capsys):
  base, tuned = models
  file, again = tmp_path / "delta.safetensors", tmp_path / "again"
  step = f"--step={STEP}"
  assert _run("compress", tuned, file, "--base", base, step) == 0
  plain_size = tmp_path / "whole"
  assert _run("compress", tuned, plain_size, step) == 0
  assert file.stat().st_size < 6000
  capsys.readouterr()
  assert _run("inspect", file, "--plot") == 0
  shown = capsys.readouterr().out
  assert "the difference from base: 4 of 5 tensors" in shown
  assert _run("inspect", file, "--json") == 0
  (report,) = json.loads(capsys.readouterr().out)["files"]
  assert [len(t["base"] or "") for t in report["tensors"]] == [16] * 4 + [0]
  assert _run("decompress", file, again, "--base", base) == 0
  _check_weights(plain.read(again / "model.safetensors"))
  assert plain.metadata(again / "model.safetensors") == {"format": "pt"}
  for name in ("config.json", "vocab.txt", "extra/note.txt"):
    assert (again / name).read_bytes() == (tuned / name).read_bytes()
  assert sorted(p.name for p in again.iterdir()) == [
    "config.json",
    "extra",
    "model.safetensors",
    "vocab.txt",
  ]
  # The weights alone.
  one = tmp_path / "one.safetensors"
  assert _run("decompress", file, one, "--base", base) == 0
  assert one.read_bytes() == (again / "model.safetensors").read_bytes()


def test_a_directory_to_a_directory_and_back(models, tmp_path):
  base, tuned = models
  coded, again = tmp_path / "coded", tmp_path / "again"
  assert _run("compress", tuned, coded, "--base", base, "--step=2^-8") == 0
  assert (coded / "vocab.txt").exists()
  assert _run("decompress", coded, again, "--base", base) == 0
  found = {}
  for path in sorted(again.glob("*.safetensors")):
    found |= plain.read(path)
  _check_weights(found)


def test_a_file_and_a_coded_base(models, tmp_path):
  base, _ = models
  tuned, coded = tmp_path / "tuned.safetensors", tmp_path / "base.coded"
  _write(tuned, _tuned())
  assert _run("compress", base / "model.safetensors", coded, "--step=2^-9") == 0
  file, again = tmp_path / "delta", tmp_path / "again.safetensors"
  assert _run("compress", tuned, file, "--base", coded, f"--step={STEP}") == 0
  assert _run("decompress", file, again, "--base", coded) == 0
  _check_weights(plain.read(again))


def test_mask_and_exclude_choose_what_is_quantized(models, tmp_path):
  base, tuned = models
  for i, (option, names) in enumerate(
    [
      ("--mask=bert.embed.*", ["bert.embed.weight"]),
      (
        "--exclude=*.embed.*",
        ["bert.layer.weight", "bert.layer.bias", "classifier.weight"],
      ),
    ]
  ):
    file = tmp_path / f"{i}.safetensors"
    arguments = (tuned, file, "--base", base, "--step=2^-8", option)
    assert _run("compress", *arguments) == 0
    found = [t.name for t in archive.inspect(file).tensors if t.step]
    assert sorted(found) == sorted(names)


def _fails(capsys, *arguments):
  capsys.readouterr()
  assert _run(*arguments) == 1
  error = capsys.readouterr().err
  assert error.count("\n") == 1
  return error


def test_bad_input_is_one_line_and_nothing_is_written(models, tmp_path, capsys):
  base, tuned = models
  file, out = tmp_path / "delta.safetensors", tmp_path / "out"
  compress = ("compress", tuned, file, "--step=2^-8", "--base")
  assert "missing: No such file" in _fails(capsys, *compress, base / "missing")
  empty = tmp_path / "empty"
  empty.mkdir()
  assert "has no *.safetensors file" in _fails(capsys, *compress, empty)
  other = tmp_path / "other.safetensors"
  _write(other, {"x": np.ones(3, np.float32)})
  assert "no tensor of the names and shapes" in _fails(capsys, *compress, other)
  message = _fails(
    capsys, "compress", tuned, file, "--step=absmax/127", "--base", base
  )
  assert "with --base, give a number" in message
  inside = base / "delta.safetensors"
  message = _fails(
    capsys, "compress", tuned, inside, "--step=2^-8", "--base", base
  )
  assert "the output is in the base" in message
  (tuned / "binary.model").write_bytes(b"\xff")
  assert "binary.model: not text" in _fails(capsys, *compress, base)
  (tuned / "binary.model").write_text("x" * 2**18)
  assert "binary.model: too long" in _fails(capsys, *compress, base)
  (tuned / "binary.model").unlink()
  assert not file.exists()

  assert _run(*compress, base) == 0
  decompress = ("decompress", file, out)
  assert "a difference from another model" in _fails(capsys, *decompress)
  message = _fails(capsys, *decompress, "--base", tuned)
  assert "'bert.embed.weight' of " in message
  (base / "vocab.txt").write_text("changed")
  message = _fails(capsys, *decompress, "--base", base)
  assert "vocab.txt: not the file of the base" in message
  (base / "vocab.txt").unlink()
  assert "vocab.txt: missing" in _fails(capsys, *decompress, "--base", base)
  changed = _base() | {"layer.bias": np.zeros(32, "f4")}
  _write(base / "model.safetensors", changed)
  assert "another base: " in _fails(capsys, *decompress, "--base", base)
  assert not out.exists()


def test_forged_files_beside_the_model_stay_in_the_output(
  models, tmp_path, capsys
):
  base, _ = models
  for i, text in enumerate(
    ('{"../x": "y"}', '{"/tmp/x": "y"}', "[", '{"a": 1.5}', "[1]")
  ):
    file = tmp_path / f"forged{i}"
    archive.save(
      file,
      _tuned(),
      base=base,
      step=STEP,
      metadata={"backslash_jax.files": text},
    )
    error = _fails(capsys, "decompress", file, tmp_path / "out", "--base", base)
    assert "the files in its metadata are invalid" in error
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "x").exists()
