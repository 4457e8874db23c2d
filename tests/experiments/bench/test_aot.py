"""Programs compiled for TPU slices that are not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import backslash_jax as bs
from backslash_jax.coded import pallas_tpu
from backslash_jax.moments import tree_moments
from experiments import settings, sharding
from experiments.bench import aot, hlo, usage
from tests import tiny

pytestmark = pytest.mark.optimized
TOPOLOGIES = pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])


def _devices(topology):
  pytest.importorskip("libtpu", reason="libtpu is not installed")
  return aot.topology_devices(topology)


def _compiled_moments(topology, shape, dtype):
  """The moments of one tensor on a 2x2 mesh."""
  mesh = jax.make_mesh(
    (2, 2), ("fsdp", "tensor"), (AxisType.Auto,) * 2, devices=_devices(topology)
  )
  placed = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
  x = jax.ShapeDtypeStruct(shape, dtype, sharding=placed)
  moments = jax.jit(lambda x: tree_moments(x, placed))
  return moments.lower(x).compile()


@TOPOLOGIES
def test_coded_weights_are_decoded_by_the_mosaic_kernel(topology, tmp_path):
  device = jax.sharding.SingleDeviceSharding(_devices(topology)[0])
  x = np.random.default_rng(0).laplace(size=[64, 96]).astype(np.float32)
  bs.save(tmp_path / "x", {"x": x}, step=1.0)
  leaf = bs.load(tmp_path / "x", coded=True)["x"]
  leaf = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), leaf
  )
  text = jax.jit(pallas_tpu.tuples).lower(leaf).compile().as_text()
  assert 'custom_call_target="tpu_custom_call"' in text
  assert "backslash_decode" in text


@TOPOLOGIES
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shards_go_through_the_mosaic_kernel(topology, dtype):
  compiled = _compiled_moments(topology, (2048, 3000), dtype)
  text = compiled.as_text()
  assert usage.moments_kernels(text) == 1
  assert 'custom_call_target="tpu_custom_call"' in text
  found = hlo.collectives(text)
  assert {c.kind for c in found} == {"all-reduce"}
  assert sum(c.bytes for c in found) == 8
  # One read of the shard, and no copy of it.
  shard = 1024 * 1500 * jnp.dtype(dtype).itemsize
  assert compiled.cost_analysis()["bytes accessed"] < 1.05 * shard


def test_small_shards_are_left_to_xla():
  text = _compiled_moments("v5e:2x2", (64, 256), "float32").as_text()
  assert usage.moments_kernels(text) == 0


@pytest.mark.slow
def test_an_update_compiles_with_and_without_the_rate():
  config = tiny.config(mesh__data=1, mesh__fsdp=2, mesh__tensor=2)
  mesh = sharding.make_mesh(config, _devices("v5e:2x2"))
  off, on = (aot.compile_update(config, mesh, rate=r) for r in (False, True))
  assert on.parameters == off.parameters
  # Nothing is gathered for the rate.
  gathers = [p.collectives.get("all-gather", (0, 0))[1] for p in (off, on)]
  assert gathers[1] <= gathers[0]
  text = usage.table("v5e:2x2", off, on)
  assert "| parameters, MiB |" in text


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 2])
def test_a_tpu_reduces_gradients_to_shards(tensor, monkeypatch):
  """And it runs the kernel of attention on long sequences."""
  config = tiny.config(
    mesh__data=1,
    mesh__fsdp=-1,
    mesh__tensor=tensor,
    model__name="llama",
    model__width=256,
    model__heads=4,
    model__mlp=512,
    model__depth=3,
    model__dtype="bfloat16",
    model__scan=True,
    model__remat=True,
    rate__lmbda=0.0,
  )
  texts = []
  read = hlo.Program
  monkeypatch.setattr(hlo, "Program", lambda t: texts.append(t) or read(t))
  mesh = sharding.make_mesh(config, _devices("v5e:2x4"))
  aot.compile_update(config, mesh, rate=False, vocabulary=1024, length=1152)
  (text,) = texts
  assert "%splash_mha_dkv" in text
  found = hlo.collectives(text)
  in_blocks = [c for c in found if c.times == 3]
  scattered = sum(c.bytes for c in in_blocks if c.kind == "reduce-scatter")
  block = 2 * (4 * 256 * 256 + 3 * 256 * 512) / tensor
  if tensor == 1:
    assert scattered == block
    # Gathered forward and backward, and reduced.
    assert sum(c.bytes for c in in_blocks) < 3.3 * block
  else:
    # Two sums of activations in each direction, and attention's again.
    sums = [c for c in in_blocks if c.kind == "all-reduce" and c.devices == 2]
    activations = 16 // 4 * 1152 * 256 * 2
    assert sum(c.bytes for c in sums) == 5 * activations


def test_a_batch_that_the_mesh_does_not_divide_is_explained():
  config = tiny.config(mesh__fsdp=8, mesh__data=1, data__batch_size=12)
  with pytest.raises(
    settings.UserError, match="batch_size is 12, wanted a multiple of 8"
  ):
    aot.compile_update(config, sharding.make_mesh(config), rate=False)


@pytest.mark.parametrize("name", ["v5e", "v9:2x2", "v5e:2", "4x4"])
def test_a_topology_that_is_none_is_explained(name):
  with pytest.raises(settings.UserError, match="such as v5e:4x4"):
    aot.topology_devices(name)


def test_a_topology_of_a_size_that_does_not_exist_is_explained():
  pytest.importorskip("libtpu", reason="libtpu is not installed")
  with pytest.raises(settings.UserError, match=r"'v5e:3x7'.*such as"):
    aot.topology_devices("v5e:3x7")


def test_a_mesh_is_made_of_what_is_left():
  mesh = sharding.make_mesh(tiny.config(mesh__fsdp=2, mesh__tensor=2))
  assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
  ("fields", "reason"),
  [
    ({"mesh__data": 3}, "there are 8 devices"),
    ({"mesh__fsdp": -1}, "one of them may be -1"),
    ({"mesh__tensor": 0}, "sizes are positive"),
  ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_explained(fields, reason):
  with pytest.raises(settings.UserError, match=reason):
    sharding.make_mesh(tiny.config(**fields))


def test_a_mesh_that_does_not_divide_the_model_is_explained():
  mesh = sharding.make_mesh(tiny.config(mesh__tensor=8))
  shape = jax.ShapeDtypeStruct((16, 12), jnp.float32)
  params = {"mlp": {name: {"kernel": shape} for name in ("gate", "up")}}
  with pytest.raises(settings.UserError) as caught:
    sharding.parameters(params, mesh)
  assert str(caught.value) == (
    "config.mesh.tensor is 8, wanted a divisor of the mlp of mlp/gate/kernel,"
    " 12 of (16, 12), and so for 1 more"
  )


def test_a_vocabulary_that_the_mesh_does_not_divide_stays_whole():
  mesh = sharding.make_mesh(tiny.config(mesh__fsdp=4, mesh__tensor=2))
  params = {"embed": {"embedding": jax.ShapeDtypeStruct((257, 16), "float32")}}
  placed = sharding.parameters(params, mesh)
  assert placed["embed"]["embedding"].spec == PartitionSpec(None, "fsdp")


def test_stacked_layers_are_split_within_a_layer():
  mesh = sharding.make_mesh(tiny.config(mesh__fsdp=4, mesh__tensor=2))
  shape = jax.ShapeDtypeStruct((3, 16, 32), jnp.float32)
  params = {"layers": {"mlp": {"up": {"kernel": shape}}}}
  (placed,) = jax.tree.leaves(sharding.parameters(params, mesh))
  assert placed.spec == PartitionSpec(None, "fsdp", "tensor")
