"""What `compress` must not damage: quantized checkpoints, adapters."""

import json

import ml_dtypes
import numpy as np
import pytest

from backslash_jax import archive
from backslash_jax.archive import plain
from backslash_jax.cli import main

_RNG = np.random.default_rng(0)


def _normal(*shape, scale):
  return (scale * _RNG.normal(size=shape)).astype(np.float32)


def _write(path, tensors):
  shapes = {name: (x.dtype.name, x.shape) for name, x in tensors.items()}
  plain.write(path, shapes, tensors.items())


def _back(tmp_path, tensors, *options):
  """The tensors after compress and decompress, and compress's report."""
  paths = [tmp_path / name for name in ("plain", "coded", "again")]
  _write(paths[0], tensors)
  arguments = [*map(str, paths[:2]), "--step=2^-8", *options]
  assert main.main(["compress", *arguments]) == 0
  assert main.main(["decompress", *map(str, paths[1:])]) == 0
  return plain.read(paths[2]), archive.inspect(paths[1])


def _blocks():
  """FP8 in the layout of DeepSeek-V3: a scale per block."""
  w = _normal(4, 128, 2, 128, scale=0.05)
  scale = np.abs(w).max((1, 3)) / 448
  coded = (w / scale[:, None, :, None]).astype(ml_dtypes.float8_e4m3fn)
  return {"w": coded.reshape(512, 256), "w_scale_inv": scale}


def _channels():
  """int8 with a scale per row, in bfloat16."""
  w = _normal(256, 64, scale=0.05)
  scale = (np.abs(w).max(1, keepdims=True) / 127).astype(ml_dtypes.bfloat16)
  return {"w": np.rint(w / scale.astype("f4")).astype("i1"), "s": scale}


def _adapter():
  """The factors of LoRA, one of them small."""
  small, large = _normal(300, 8, scale=3e-4), _normal(8, 300, scale=2e-4)
  return {"lora_A.weight": small, "lora_B.weight": large}


def _packed(scale="q.qscales"):
  """Four bits in int32, with what GPTQ, AWQ, HQQ or AQLM have beside them."""
  packed = _RNG.integers(-(2**31), 2**31, (16, 64), np.int32)
  return {
    "l.q.weight_packed": packed,
    f"l.{scale}": np.abs(_normal(4, 64, scale=0.02)),
    "l.q.zero": _normal(4, 64, scale=8.0),
    "l.q.codebooks": _normal(1, 16, 1, 8, scale=0.02),
  }


def _nested():
  """NF4, its fields below the name of the packed tensor."""
  packed = _RNG.integers(0, 256, (128, 64), np.uint8)
  return {
    "l/q/weight": packed,
    "l/q/weight/absmax": np.abs(_normal(16, 16, scale=0.1)),
    "l/q/weight/quant_map": np.linspace(-1, 1, 16, dtype="f4")[None],
  }


@pytest.mark.parametrize("make", [_packed, _nested])
def test_what_belongs_to_packed_weights_is_exact(tmp_path, capsys, make):
  tensors = make()
  other = {"l.up.weight": _normal(64, 64, scale=0.05)}
  found, report = _back(tmp_path, tensors | other)
  for name, x in tensors.items():
    assert found[name].tobytes() == x.tobytes(), name
  assert [t.name for t in report.tensors if t.step] == ["l.up.weight"]
  shown = capsys.readouterr().out
  assert "stored exactly, of tensors that are quantized already: 'l" in shown


def test_integers_beside_a_matrix_do_not_make_it_exact(tmp_path):
  tensors = {
    "e.position_ids": np.arange(64)[None],
    "e.word.weight": _normal(64, 64, scale=0.05),
    "a.table": _normal(64, 64, scale=0.05),
    "a.index": np.arange(64).reshape(8, 8),
    "masks": np.ones((80, 80), np.uint8),
    "head": _normal(64, 64, scale=0.05),
  }
  _, report = _back(tmp_path, tensors)
  steps = {t.name for t in report.tensors if t.step}
  assert steps == {"e.word.weight", "a.table", "head"}


@pytest.mark.parametrize("make", [_blocks, _channels, _adapter])
@pytest.mark.parametrize("mask", [[], ["--mask=*"]])
def test_what_the_step_is_not_for_is_exact(tmp_path, capsys, make, mask):
  tensors = make()
  found, _ = _back(tmp_path, tensors, *mask)
  for name, x in tensors.items():
    assert found[name].dtype == x.dtype
    assert found[name].tobytes() == x.tobytes(), name
  sizes = [(tmp_path / name).stat().st_size for name in ("plain", "coded")]
  assert sizes[1] < sizes[0]
  shown = capsys.readouterr().out
  assert (make is _channels and not mask) or "stored exactly, " in shown


def test_the_report_says_what_happened(tmp_path, capsys):
  tensors = _blocks() | {"f": _normal(100, 50, scale=0.05)} | _adapter()
  _back(tmp_path, tensors)
  shown = capsys.readouterr().out
  assert "('f')" in shown
  assert "error would be above 0.5: 'lora_A.weight', 'lora_B.weight'" in shown
  assert "stored exactly, 8 bits or fewer already: 'w'" in shown
  out = str(tmp_path / "out")
  arguments = ["compress", str(tmp_path / "plain"), out, "--step=2^-8"]
  assert main.main([*arguments, "--json"]) == 0
  result = json.loads(capsys.readouterr().out)
  assert result["exact"]["dtype"] == ["w"]
  assert 0.01 < result["relative_error"]["largest"] < 0.03


def test_the_bound_can_be_lifted(tmp_path, capsys):
  _, report = _back(tmp_path, _adapter(), "--max-error=inf")
  assert {t.step for t in report.tensors} == {2**-8}
  shown = capsys.readouterr().out
  assert "warning: " in shown
  assert "became zero" in shown


def test_a_pattern_may_match_in_one_shard_only(tmp_path):
  source, out = tmp_path / "in", tmp_path / "out"
  source.mkdir()
  for name in ("a", "b"):
    _write(
      source / f"{name}.safetensors", {f"{name}.w": _normal(9, 9, scale=1)}
    )
  arguments = ["compress", str(source), str(out), "--step=2^-8"]
  assert main.main([*arguments, "--mask=a.*"]) == 0
  steps = [archive.inspect(f).tensors[0].step for f in sorted(out.iterdir())]
  assert steps == [2**-8, None]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_wide_float_is_quantized(tmp_path, dtype):
  """float64 was taken for one of the narrow types, whose names begin alike."""
  x = np.random.default_rng(0).normal(size=(40, 30)).astype(dtype)
  path, coded = tmp_path / "model", tmp_path / "coded"
  plain.write(path, {"w": (dtype, x.shape)}, [("w", x)])
  assert main.main(["compress", str(path), str(coded), "--step=2^-6"]) == 0
  assert archive.inspect(coded).tensors[0].step == 2**-6
