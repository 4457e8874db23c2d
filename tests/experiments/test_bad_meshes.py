"""Meshes, lengths and kernels that a model cannot have: one line for each."""

import dataclasses

import pytest

from experiments import settings, sharding
from experiments.bench import aot
from experiments.models import sizes
from tests import tiny

# Architecture -> the data of its task.
MODELS = {
  "encoder": "python_stdlib/modules",
  "bert": "python_stdlib/modules",
  "decoder": "python_stdlib/bytes",
  "gpt2": "python_stdlib/bytes",
  "llama": "python_stdlib/bytes",
  "gemma2": "python_stdlib/bytes",
}
SIZES = {
  "model__width": 64,
  "model__heads": 4,
  "model__mlp": 64,
}


def _compile(config, length):
  settings.check(config)
  mesh = sharding.make_mesh(config)
  aot.compile_update(config, mesh, rate=False, length=length)


def _said(name, length=None, **fields):
  """What is said of a config, in one line."""
  data = {"data__name": MODELS[name], "model__name": name}
  config = tiny.config(**SIZES | data | fields)
  with pytest.raises(settings.UserError) as caught:
    _compile(config, length)
  said = str(caught.value)
  assert "\n" not in said
  return said


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
  ("fields", "reason"),
  [
    (
      {"mesh__fsdp": 8, "model__width": 52, "model__heads": 2},
      "config.mesh.fsdp is 8, wanted a divisor of the width of",
    ),
    (
      {"mesh__tensor": 8, "model__mlp": 60},
      "config.mesh.tensor is 8, wanted a divisor of the mlp of",
    ),
    (
      {"mesh__tensor": 8},
      "config.mesh.tensor is 8, which does not divide the heads, 4",
    ),
  ],
)
def test_a_mesh_that_does_not_divide_a_model(name, fields, reason):
  mesh = {"mesh__data": -1, "mesh__fsdp": 1, "mesh__tensor": 1}
  assert reason in _said(name, **mesh | fields)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_tensor_axis_beyond_the_heads_of_keys_and_values(name, monkeypatch):
  size = next(iter(sizes.SIZES[name].values()))
  few = dataclasses.replace(size, heads=8, kv_heads=4, width=64, depth=2)
  monkeypatch.setitem(sizes.SIZES[name], "few", few)
  said = _said(name, model__size="few", mesh__data=1, mesh__tensor=8)
  assert said == (
    "config.mesh.tensor is 8, which does not divide the heads of keys and"
    " values, 4: choose a divisor"
  )


@pytest.mark.parametrize(
  ("name", "size", "positions"),
  [
    ("bert", "base", 512),
    ("gpt2", "small", 1024),
    ("llama", "deepseek-7b", 4096),
    ("gemma2", "2b", 8192),
  ],
)
def test_a_length_beyond_the_positions(name, size, positions):
  said = _said(name, positions + 1, model__size=size)
  wanted = f"{positions + 1} tokens is longer than the model's {positions}"
  assert wanted in said


@pytest.mark.parametrize("name", MODELS)
def test_a_kernel_of_another_platform(name):
  said = _said(name, model__attention="splash")
  if name in ("encoder", "decoder"):
    assert "it is for the published architectures" in said
  else:
    assert "'splash', which needs a TPU, but this runs on CPU" in said
