"""Tensors that are split over devices pass through the host one at a time."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import backslash_jax as bs
from backslash_jax import tree
from backslash_jax.archive import file, host, index, parallel
from tests import alive as counting

SPECS = [(), ("x",), (None, "x"), ("x", "y"), (("x", "y"),), (None, "y")]


@pytest.fixture(scope="module")
def mesh():
  axes = (jax.sharding.AxisType.Auto,) * 2
  return jax.make_mesh((4, 2), ("x", "y"), axes)


@pytest.fixture(scope="module")
def params():
  rng = np.random.default_rng(0)
  return {
    f"layer_{i}": {"kernel": np.float32(rng.laplace(0, 0.1, (128, 64)))}
    for i in range(len(SPECS))
  }


@pytest.fixture(scope="module")
def shardings(params, mesh):
  return {
    f"{name}/kernel": NamedSharding(mesh, PartitionSpec(*spec))
    for name, spec in zip(params, SPECS, strict=True)
  }


@pytest.fixture(scope="module")
def split(params, shardings):
  return tree.map_named(
    lambda name, x: jax.device_put(x, shardings[name]), params
  )


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  """Every tensor has many chunks, as those of a large model have."""
  monkeypatch.setattr(index, "CHUNK", 1 << 11)


@pytest.mark.parametrize("step", [2.0**-6, None])
@pytest.mark.parametrize("workers", [1, 2])
def test_saving_holds_two_tensors_and_one_per_worker(
  params, split, tmp_path, monkeypatch, step, workers
):
  monkeypatch.setattr(parallel, "workers", lambda: workers)
  alive = counting.Alive(host.copied)
  monkeypatch.setattr(host, "copied", alive)
  mask = () if step is None else bs.matrices
  bs.save(tmp_path / "split", split, step=step, mask=mask)
  bs.save(tmp_path / "whole", params, step=step, mask=mask)
  gc.collect()
  # A single worker has no thread of its own.
  assert alive.most <= 2 + (workers if workers > 1 else 0)
  assert alive.now == 0
  data = [(tmp_path / name).read_bytes() for name in ("split", "whole")]
  assert data[0] == data[1]


def test_loading_onto_devices_holds_no_more_than_the_workers_need(
  params, shardings, tmp_path, monkeypatch
):
  monkeypatch.setattr(parallel, "workers", lambda: 1)
  alive = counting.Alive(file._placed)

  def placed(array, sharding):
    alive.count(array.base)
    # On a CPU the device may keep what it is given.
    return alive.function(array, sharding) + 0

  monkeypatch.setattr(file, "_placed", placed)
  bs.save(tmp_path / "file", params, step=2.0**-6)
  found = bs.load(tmp_path / "file", sharding=lambda name, _: shardings[name])
  gc.collect()
  assert alive.now == 0
  assert alive.most <= 2
  kernel = found["layer_3"]["kernel"]
  assert kernel.sharding == shardings["layer_3/kernel"]
  wanted = bs.round_through(params["layer_3"]["kernel"], 2.0**-6, mask=True)
  np.testing.assert_array_equal(kernel, wanted)


def test_steps_are_chosen_where_the_tensors_are(params, split):
  params, split = ({k: x[k] for k in list(x)[2:4]} for x in (params, split))
  assert bs.quantize.absmax_steps(split) == bs.quantize.absmax_steps(params)
  squares = {
    name: jnp.asarray(i + 1.0) for i, name in enumerate(tree.names(params))
  }
  squares = tree.map_named(lambda name, _: squares[name], params)
  here, there = (
    bs.quantize.sensitive_steps(x, 2.0**-4, squares) for x in (params, split)
  )
  assert here.keys() == there.keys()
  for name in here:
    assert there[name] == pytest.approx(here[name], rel=1e-5)


def test_an_array_of_several_processes_is_refused(split, monkeypatch):
  x = split["layer_1"]["kernel"]
  monkeypatch.setattr(type(x), "is_fully_addressable", False)
  with pytest.raises(ValueError, match=r"'w' is split .* several processes"):
    host.copied("w", x)
