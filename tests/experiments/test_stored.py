"""Parameters on their way to a file and back pass a host one at a time."""

import gc

import jax
import numpy as np
import pytest

import backslash_jax as bs
from backslash_jax.archive import host
from experiments import distributed, evaluate, sharding, stored
from tests import alive as counting
from tests import tiny
from tests.experiments import test_evaluate


@pytest.fixture(scope="module")
def params():
  rng = np.random.default_rng(0)
  return {
    "kernel": np.float32(rng.laplace(0.0, 0.2, (256, 20))),
    "bias": np.float32(rng.normal(0.0, 0.3, 20)),
  }


def _config(**fields):
  return tiny.config(
    evaluate__steps=(2.0**-4,), evaluate__pruning_rates=(0.5,), **fields
  )


def test_a_split_model_is_evaluated_as_a_whole_one(
  params, tmp_path, monkeypatch
):
  alive = counting.Alive(host.copied)
  found = []
  for name, fields in (("whole", {}), ("split", {"mesh__fsdp": 8})):
    config = _config(mesh__data=-1 if name == "whole" else 1, **fields)
    mesh = sharding.make_mesh(config)
    given = params
    if name == "split":
      given = jax.device_put(params, sharding.parameters(params, mesh))
      assert not given["kernel"].is_fully_replicated
      monkeypatch.setattr(host, "copied", alive)
    (tmp_path / name).mkdir()
    score = test_evaluate._score(config)
    found.append(
      evaluate.evaluate(config, tmp_path / name, "run", given, score)
    )
  gc.collect()
  assert 0 < alive.most <= 4
  assert alive.now == 0
  whole, split = found
  for key in ("bytes", "bits"):
    assert split["quantized"][0][key] == whole["quantized"][0][key]
  for a, b in zip(split["pruned"], whole["pruned"], strict=True):
    assert a["test"]["loss"] == pytest.approx(b["test"]["loss"], rel=1e-5)


def test_several_processes_keep_large_tensors_in_files_until_they_are_coded(
  params, tmp_path, monkeypatch
):
  gathered = []

  def gather(x, name):
    assert not any(isinstance(y, np.memmap) for y in jax.tree.leaves(x))
    gathered.append(name)
    return np.array(x)

  monkeypatch.setattr(stored.jax, "process_count", lambda: 2)
  monkeypatch.setattr(distributed, "gather", gather)
  monkeypatch.setattr(stored, "_SMALL", 1000)
  seen = []
  save = bs.save

  def note(path, found, **options):
    seen.append({k: type(x) for k, x in found["params"].items()})
    return save(path, found, **options)

  monkeypatch.setattr(stored.bs, "save", note)
  path = tmp_path / "trained.safetensors"
  stored.save(path, params, {"kernel": np.float32(0.5)})
  assert gathered == ["bias", "kernel"]
  assert seen == [{"bias": np.ndarray, "kernel": np.memmap}]
  assert [p.name for p in tmp_path.iterdir()] == [path.name]
  found = stored.like(params, stored.tensors(path, "params/"))
  for name, x in params.items():
    assert found[name].shape == x.shape
    np.testing.assert_array_equal(np.asarray(found[name]), x)


def test_a_file_is_loaded_onto_the_mesh(params, tmp_path):
  mesh = sharding.make_mesh(_config(mesh__data=2, mesh__fsdp=4))
  bs.save(tmp_path / "file", {"params": params}, step=None, mask=())
  found = stored.load(tmp_path / "file", mesh)["params"]
  placed = sharding.parameters(params, mesh)
  for name, x in params.items():
    np.testing.assert_array_equal(found[name], x)
    assert found[name].sharding == placed[name]
