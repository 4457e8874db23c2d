"""The command line codes any safetensors model, and says what went wrong."""

import contextlib
import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from backslash_jax import archive, quantize
from backslash_jax.archive import plain
from backslash_jax.cli import main


def _model():
  rng = np.random.default_rng(0)
  return {
    "embed.weight": rng.laplace(scale=0.05, size=(60, 32)).astype("f4"),
    "layer.0.weight": rng.laplace(scale=0.1, size=(32, 32)).astype("f2"),
    "layer.0.bias": rng.normal(size=32).astype("f4"),
    "ids": np.arange(10),
  }


@pytest.fixture
def model(tmp_path):
  path = tmp_path / "model.safetensors"
  save_file(_model(), path)
  return path


def _run(*arguments):
  return main.main([str(a) for a in arguments])


def test_there_and_back(model, tmp_path, capsys):
  coded, again = tmp_path / "coded", tmp_path / "again.safetensors"
  assert _run("compress", model, coded, "--step", "2^-6") == 0
  assert "bits per parameter" in capsys.readouterr().out
  assert _run("decompress", coded, again) == 0
  found, wanted = load_file(again), quantize.apply(_model(), 2**-6)
  assert sorted(found) == sorted(wanted)
  for name in wanted:
    assert found[name].dtype == wanted[name].dtype
    np.testing.assert_array_equal(found[name], wanted[name])
  assert coded.stat().st_size < model.stat().st_size / 3


def test_bfloat16_and_odd_shapes_come_back(tmp_path):
  values = {
    "w": np.arange(12, dtype=ml_dtypes.bfloat16).reshape(3, 4),
    "scalar": np.float64(3.5).reshape(()),
    "empty": np.zeros((0, 4), np.float32),
    "flags": np.array([True, False]),
  }
  shapes = {name: (x.dtype.name, x.shape) for name, x in values.items()}
  paths = [tmp_path / name for name in ("a", "b", "c")]
  plain.write(paths[0], shapes, values.items())
  assert _run("compress", paths[0], paths[1], "--step", "1") == 0
  assert _run("decompress", paths[1], paths[2]) == 0
  assert paths[2].read_bytes() == paths[0].read_bytes()


def test_a_sharded_directory_in_and_out(tmp_path):
  source, coded, again = (tmp_path / name for name in ("in", "coded", "out"))
  source.mkdir()
  parts = [dict(list(_model().items())[:2]), dict(list(_model().items())[2:])]
  names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
  for name, part in zip(names, parts, strict=True):
    save_file(part, source / name)
  weight_map = {k: n for n, p in zip(names, parts, strict=True) for k in p}
  listing = {"metadata": {}, "weight_map": weight_map}
  (source / "model.safetensors.index.json").write_text(json.dumps(listing))
  (source / "config.json").write_text("{}")
  assert _run("compress", source, coded, "--step=2^-8") == 0
  hidden = [name.replace(".safe", ".backslash.safe") for name in names]
  assert sorted(p.name for p in coded.iterdir()) == sorted(
    [*hidden, "config.json", "model.backslash.safetensors.index.json"]
  )
  index = json.loads(
    (coded / "model.backslash.safetensors.index.json").read_text()
  )
  assert set(index["weight_map"].values()) == set(hidden)
  assert _run("decompress", coded, again) == 0
  assert sorted(p.name for p in again.iterdir()) == sorted(
    [*names, "config.json", "model.safetensors.index.json"]
  )
  file = "model.safetensors.index.json"
  assert json.loads((again / file).read_text()) == listing
  wanted = quantize.apply(_model(), 2**-8)
  for name, part in zip(names, parts, strict=True):
    for key, found in load_file(again / name).items():
      assert key in part
      np.testing.assert_array_equal(found, wanted[key])
  assert _run("inspect", coded) == 0
  assert _run("compress", source, source, "--step=2^-8") == 1


def test_json_is_for_machines(model, tmp_path, capsys):
  coded = tmp_path / "coded"
  assert (
    _run("compress", model, coded, "--step=2^-8", "--json", "--report") == 0
  )
  result = json.loads(capsys.readouterr().out)
  assert result["output_bytes"] == coded.stat().st_size
  sizes = result["coder_bytes"]
  assert sizes["rans"] == coded.stat().st_size
  assert min(sizes, key=sizes.get) == "rans"
  assert _run("inspect", coded, "--json") == 0
  found = json.loads(capsys.readouterr().out)
  parameters = sum(x.size for x in _model().values())
  size = coded.stat().st_size
  assert found["summary"]["parameters"] == parameters
  assert found["summary"]["bytes"] == size
  for name, width in (("float32", 4), ("float16", 2), ("bfloat16", 2)):
    ratio = found["summary"][f"times_smaller_than_{name}"]
    assert ratio == width * parameters / size
  assert found["units"].keys() >= found["summary"].keys() - {"parameters"}
  report = found["files"][0]
  assert report["bytes"] == coded.stat().st_size
  assert sorted(t["name"] for t in report["tensors"]) == sorted(_model())


def test_inspect_shows_tensors_and_plots(model, tmp_path, capsys, monkeypatch):
  monkeypatch.setenv("COLUMNS", "160")
  coded = tmp_path / "coded"
  _run("compress", model, coded, "--step=2^-8")
  capsys.readouterr()
  assert _run("inspect", coded, "--plot") == 0
  shown = capsys.readouterr().out
  for name in _model():
    assert name in shown
  assert "60x32" in shown
  assert "█" in shown


def test_what_is_quantized(model, tmp_path, capsys):
  cases = [
    ([], {"embed.weight", "layer.0.weight"}),
    (["--mask", "layer.*.weight"], {"layer.0.weight"}),
    (["--mask", "*"], {"embed.weight", "layer.0.weight", "layer.0.bias"}),
    (["--exclude", "embed.*"], {"layer.0.weight"}),
  ]
  for options, wanted in cases:
    options = ("--step=2^-8", "--force", *options)
    assert _run("compress", model, tmp_path / "coded", *options) == 0
    report = archive.inspect(tmp_path / "coded")
    assert {t.name for t in report.tensors if t.step} == wanted
  for option in ("--mask", "--exclude"):
    options = ("--step=2^-8", "--force", option, "nothing.*")
    assert _run("compress", model, tmp_path / "coded", *options) == 1
    assert "matches 'nothing.*'" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("step", "wanted"),
  [
    ("2^-4", 0.0625),
    ("0.01", 0.01),
    ("1e-3", 0.001),
    ("1/256", 2**-8),
    ("2**-8", 2**-8),
    (".5^+3", 0.125),
  ],
)
def test_steps_are_read(model, tmp_path, step, wanted):
  assert _run("compress", model, tmp_path / "coded", "--step", step) == 0
  report = archive.inspect(tmp_path / "coded")
  assert {t.step for t in report.tensors} == {wanted, None}


def test_a_step_per_tensor_and_a_price(model, tmp_path):
  options = ("--step", "absmax/15", "--mu", "0.1", "--coder", "huffman")
  assert _run("compress", model, tmp_path / "coded", *options) == 0
  steps = {t.name: t.step for t in archive.inspect(tmp_path / "coded").tensors}
  assert steps["embed.weight"] == np.abs(_model()["embed.weight"]).max() / 15


def test_a_trellis(model, tmp_path, capsys):
  coded = tmp_path / "coded"
  options = ("--step=2^-5", "--quantizer=trellis", "--mu=0.05")
  assert _run("compress", model, coded, *options, "--report") == 0
  assert "huffman" in capsys.readouterr().out
  assert _run("inspect", coded) == 0
  assert capsys.readouterr().out.count("rans, trellis") == 2
  assert _run("decompress", coded, tmp_path / "plain.safetensors") == 0
  found = load_file(tmp_path / "plain.safetensors")["embed.weight"]
  assert not (found % 2**-6).any()
  assert np.abs(found - _model()["embed.weight"]).max() <= 2**-5
  options = (*options, "--coder=huffman", "--force")
  assert _run("compress", model, coded, *options) == 1
  assert "needs the coder 'rans'" in capsys.readouterr().err


@pytest.mark.parametrize(
  "step",
  [
    *("0", "-1", "coarse", "2^x", "absmax/x", "2^99999", "-2^2", "2^-8^2"),
    *("absmax/1.41", "absmax/0", "absmax/-3", "absmax/1_0", "1/0", "inf"),
    *("nan", "", "1/-2", "(2)", "\u0663"),
  ],
)
def test_bad_steps_are_errors(model, tmp_path, capsys, step):
  assert _run("compress", model, tmp_path / "coded", f"--step={step}") == 1
  assert f"--step {step}" in capsys.readouterr().err
  assert not (tmp_path / "coded").exists()


def test_errors_name_the_file(model, tmp_path, capsys):
  foreign, coding = tmp_path / "foreign", (tmp_path / "x", "--step=1")
  foreign.write_bytes(b"not a model" * 100)
  cases = [
    (("inspect", foreign), "foreign: not a coded model file"),
    (("inspect", model), "model.safetensors: not a coded model file"),
    (("decompress", foreign, tmp_path / "x"), "foreign: not a coded"),
    (("compress", foreign, *coding), "foreign: not a safetensors"),
    (("inspect", tmp_path / "nothing"), "nothing: No such file"),
    (("compress", tmp_path / "nothing", *coding), "nothing: No such"),
  ]
  for arguments, message in cases:
    assert _run(*arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
  values = _model()
  values["layer.0.weight"][3, 3] = np.nan
  save_file(values, model)
  assert _run("compress", model, tmp_path / "x", "--step=1") == 1
  assert "'layer.0.weight': 1 of 1024 values are NaN" in capsys.readouterr().err


def test_usage_errors_and_help(capsys):
  for arguments, code in (([], 2), (["compress"], 2), (["--help"], 0)):
    with pytest.raises(SystemExit) as stop:
      _run(*arguments)
    assert stop.value.code == code
  with pytest.raises(SystemExit):
    _run("compress", "--help")
  shown = capsys.readouterr().out
  for word in ("--step", "--mu", "absmax/127", "exit codes"):
    assert word in shown


def test_damaged_safetensors_are_read_or_refused(model, tmp_path):
  data = bytearray(model.read_bytes())
  rng = np.random.default_rng(0)
  path = tmp_path / "damaged"
  for _ in range(300):
    copy = bytearray(data)
    copy[int(rng.integers(min(len(copy), 500)))] = int(rng.integers(256))
    path.write_bytes(copy[: int(rng.integers(len(copy) // 2, len(copy)))])
    # A ValueError is how it refuses; anything else fails the test.
    with contextlib.suppress(ValueError):
      plain.read(path)


def test_it_runs_as_a_program(model, tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "backslash_jax",
      "compress",
      "--step=2^-8",
      model,
      tmp_path / "x",
    ],
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
