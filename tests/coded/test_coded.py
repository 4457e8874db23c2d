"""Weights that stay coded or packed: bit-equal to `bs.load` once decoded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import backslash_jax as bs
from backslash_jax.coded import pallas_tpu, xla

KINDS = [True, "packed"]


def assert_same(found, wanted):
  """Bit for bit, the sign of zeros and the dtype included."""
  found, wanted = np.asarray(found), np.asarray(wanted)
  assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
  octets = (
    np.ascontiguousarray(x).reshape(-1).view("u1") for x in (found, wanted)
  )
  np.testing.assert_array_equal(*octets)


def saved(path, params, step, **options):
  bs.save(path, params, step=step, mask=None, **options)
  return bs.load(path)


@st.composite
def tensors(draw):
  """A tensor and a step: of any rate, with scales by row and column."""
  shape = draw(st.sampled_from([(7,), (1, 1), (33, 20), (6, 5, 4), (2, 0)]))
  rng = np.random.default_rng(draw(st.integers(0, 99)))
  x = rng.laplace(size=shape)
  if draw(st.booleans()) and x.size:
    x *= np.exp(rng.normal(size=(shape[0],) + (1,) * (x.ndim - 1)))
    x *= np.exp(rng.normal(size=shape[-1]))
  if draw(st.booleans()) and x.size:
    x.flat[0] = 900
  dtype = draw(st.sampled_from(["float32", "bfloat16", "float16"]))
  step = draw(st.sampled_from([20.0, 2.0, 0.7, 0.25, 0.03, 0.0021]))
  return np.asarray(jnp.asarray(x, dtype)), step


@pytest.mark.filterwarnings("ignore:.*all values became zero")
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(tensors())
def test_decoded_is_what_load_gives(tmp_path_factory, kind, tensor):
  path = tmp_path_factory.mktemp("coded") / "x"
  params = saved(path, {"x": tensor[0]}, tensor[1])
  found = jax.jit(bs.decode)(bs.load(path, coded=kind))
  assert_same(found["x"], params["x"])


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
  """A file with a stack of layers, and its tree."""
  path = tmp_path_factory.mktemp("coded") / "x"
  rng = np.random.default_rng(0)
  layers = rng.laplace(size=[3, 96, 64]).astype(np.float32)
  layers *= np.array([0.5, 1, 2], np.float32)[:, None, None]
  params = {
    "layers": {"kernel": layers},
    "head": [rng.normal(size=[128, 64]).astype(np.float32)],
    "classes": np.exp(rng.normal(scale=2, size=[32, 1])).astype(np.float32)
    * rng.laplace(size=[32, 192]).astype(np.float32),
    "zero": np.zeros([64, 64], np.float32),
    "steps": np.arange(3, dtype=np.int32),
  }
  return path, saved(path, params, 0.8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_of_mixed_leaves(stack, kind):
  path, params = stack
  coded = bs.load(path, coded=kind, stacked="layers/*")
  cls = bs.Coded if kind is True else bs.Packed
  leaf = coded["layers"]["kernel"]
  assert isinstance(leaf, cls)
  assert isinstance(coded["head"][0], cls)
  assert (leaf.shape, leaf.dtype) == ((3, 96, 64), np.float32)
  assert leaf.nbytes < params["layers"]["kernel"].nbytes / 4
  assert isinstance(coded["steps"], np.ndarray)
  found = jax.jit(bs.decode)(coded)
  jax.tree.map(assert_same, found, params)


@pytest.mark.parametrize("kind", KINDS)
def test_scan_and_vmap_decode_layer_by_layer(stack, kind):
  path, params = stack
  leaf = bs.load(path, coded=kind, stacked="layers/*")["layers"]["kernel"]
  x = params["layers"]["kernel"]

  def body(carry, layer):
    assert layer.shape == x.shape[1:]
    return carry, bs.decode(layer)

  _, found = jax.lax.scan(body, 0, leaf)
  assert_same(found, x)
  assert_same(jax.vmap(bs.decode)(leaf), x)


@pytest.mark.parametrize("kind", KINDS)
def test_a_leaf_is_not_an_array(stack, kind):
  leaf = bs.load(stack[0], coded=kind)["head"][0]
  for use in (
    jnp.asarray,
    np.asarray,
    lambda x: x + 1,
    lambda x: jnp.ones([2, 128]) @ x,
    lambda x: x[0],
    jax.jit(lambda x: jnp.sum(x)),
  ):
    with pytest.raises(TypeError, match=r"bs\.decode"):
      use(leaf)


def test_an_axis_that_is_not_divided_is_not_sliced(stack):
  leaf = bs.load(stack[0], coded=True)["layers"]["kernel"]
  sliced = jax.tree.map(lambda x: x[None], leaf)
  with pytest.raises(ValueError, match="stacked"):
    bs.decode(sliced)


def test_an_unknown_implementation_is_refused(stack):
  leaf = bs.load(stack[0], coded=True)["head"][0]
  with pytest.raises(NotImplementedError, match="there are xla"):
    bs.decode(leaf, implementation="pallas")
  with pytest.raises(NotImplementedError, match="it runs on tpu"):
    bs.decode(leaf, implementation="pallas_tpu")


def test_the_kernel_for_tpu_gives_the_same_tuples(stack):
  coded = bs.load(stack[0], coded=True, stacked="layers/*")
  leaves = [jax.tree.map(lambda x: x[2], coded["layers"]["kernel"])]
  leaves.append(coded["classes"])
  assert [x.frequency.shape[0] > 1 for x in leaves] == [False, True]
  for leaf in leaves:
    assert pallas_tpu.limitation(leaf) is None
    assert_same(pallas_tpu.tuples(leaf, interpret=True), xla.tuples(leaf))


def test_an_unknown_kind_is_refused(stack):
  with pytest.raises(ValueError, match="'packed'"):
    bs.load(stack[0], coded="tight")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_shards_are_decoded_where_they_are(stack, kind, axis_type):
  path, params = stack
  types = (getattr(jax.sharding.AxisType, axis_type),) * 2
  mesh = jax.make_mesh((4, 2), ("data", "model"), types)
  placed = jax.NamedSharding(mesh, jax.P("data", "model"))
  coded = bs.load(path, names="head*", coded=kind, sharding=placed)
  decode = jax.jit(bs.decode, out_shardings=placed)
  program = decode.lower(coded).compile().as_text()
  for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
    assert name not in program
  assert_same(decode(coded)["head/0"], params["head"][0])


def test_a_leaf_that_is_split_otherwise_is_refused(stack):
  mesh = jax.make_mesh((2,), ("data",))
  leaf = bs.load(stack[0], coded="packed")["head"][0]
  leaf = jax.device_put(leaf, jax.NamedSharding(mesh, jax.P()))
  assert_same(jax.jit(bs.decode)(leaf), bs.decode(leaf))
  octets = jax.device_put(leaf.octets, jax.NamedSharding(mesh, jax.P("data")))
  with pytest.raises(ValueError, match="sharding"):
    jax.jit(bs.decode)(dataclasses.replace(leaf, octets=octets))


def test_a_damaged_file_is_refused(stack, tmp_path):
  data = bytearray(stack[0].read_bytes())
  data[300] ^= 1
  (tmp_path / "x").write_bytes(data)
  with pytest.raises(bs.ArchiveError):
    bs.load(tmp_path / "x", coded=True)
