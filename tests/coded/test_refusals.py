"""What coded and packed weights are not, and options that do not fit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backslash_jax as bs
from backslash_jax import coded
from tests.coded_leaves import KINDS, assert_same


def test_tensors_of_different_kinds_make_no_stack(stack):
  sources = [(stack[0], name) for name in ("head/0", "classes")]
  with pytest.raises(ValueError, match=r"'head/0' float32\[128, 64\]"):
    coded.stack(sources, True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_leaf_is_not_an_array(stack, kind):
  leaf = bs.load(stack[0], coded=kind)["head"][0]
  for use in (
    jnp.asarray,
    np.asarray,
    lambda x: x + 1,
    lambda x: jnp.ones([2, 128]) @ x,
    lambda x: jnp.ones([128, 64]) + x,
    lambda x: np.ones([128, 64]) - x,
    lambda x: x[0],
    list,
    bool,
    float,
    lambda x: x == 0,
    lambda x: x < 1,
    lambda x: x // 2,
    jnp.sum,
    np.sum,
    jax.nn.relu,
    jax.jit(lambda x: jnp.sum(x)),
  ):
    with pytest.raises(TypeError, match=r"bs\.decode"):
      use(leaf)
  with pytest.raises(AttributeError, match=r"no 'astype'.*bs\.decode"):
    leaf.astype(jnp.float32)
  assert leaf in {leaf}


def test_an_axis_that_is_not_divided_is_not_sliced(stack):
  leaf = bs.load(stack[0], coded=True)["layers"]["kernel"]
  sliced = jax.tree.map(lambda x: x[None], leaf)
  with pytest.raises(ValueError, match="at=layer"):
    bs.decode(sliced)
  with pytest.raises(ValueError, match="stacked="):
    bs.decode(leaf, at=0)


def test_an_unknown_implementation_is_refused(stack):
  leaf = bs.load(stack[0], coded=True)["head"][0]
  with pytest.raises(NotImplementedError, match="there are xla"):
    bs.decode(leaf, implementation="pallas")
  with pytest.raises(NotImplementedError, match="it runs on tpu"):
    bs.decode(leaf, implementation="pallas_tpu")


@pytest.mark.parametrize("kind", ["tight", 1, np.True_, None])
def test_an_unknown_kind_is_refused(stack, kind):
  with pytest.raises(ValueError, match="'packed'"):
    bs.load(stack[0], coded=kind)


@pytest.mark.parametrize(
  ("options", "error", "message"),
  [
    ({"stacked": "layers/*"}, ValueError, "are for coded=True"),
    ({"blocks": {"head/0": 4}}, ValueError, "are for coded=True"),
    ({"coded": True, "stacked": "nope"}, ValueError, "stacked.*'nope'"),
    ({"coded": True, "blocks": {"nope": 2}}, ValueError, "no tensor 'nope'"),
    ({"coded": True, "blocks": {"head/0": 3}}, ValueError, "'head/0' of shape"),
    ({"coded": True, "blocks": {"head/0": 2.0}}, TypeError, "'head/0' has 2.0"),
    ({"coded": True, "blocks": {"head/0": True}}, TypeError, "'head/0' has T"),
    ({"coded": True, "blocks": ["head/0"]}, TypeError, "blocks is"),
    ({"coded": True, "sharding": jax.P("x")}, TypeError, "jax.sharding.Shar"),
    ({"sharding": "x"}, TypeError, "jax.sharding.Sharding"),
  ],
)
def test_options_of_no_use_are_refused_by_name(stack, options, error, message):
  with pytest.raises(error, match=message):
    bs.load(stack[0], **options)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_layer_is_refused(stack, kind):
  path, params = stack
  leaf = bs.load(path, coded=kind, stacked="layers/*")["layers"]["kernel"]
  for x in (leaf, params["layers"]["kernel"]):
    for at in (3, -4, np.int32(3)):
      with pytest.raises(IndexError, match="there are 3 layers"):
        bs.decode(x, at=at)
    for at in (1.5, "a", True, jnp.arange(2), slice(2)):
      with pytest.raises(TypeError, match="must be an integer"):
        bs.decode(x, at=at)
  assert_same(bs.decode(leaf, at=-1), params["layers"]["kernel"][2])
  with pytest.raises(ValueError, match="of no dimensions"):
    bs.decode(3, at=0)


@pytest.mark.parametrize("kind", KINDS)
def test_leaves_whose_arrays_were_changed_are_refused(stack, kind):
  loaded = bs.load(stack[0], coded=kind, stacked="layers/*")

  def cast(x):
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(jnp.bfloat16) if is_float else x

  for name, leaf in (("head", loaded["head"][0]), *loaded["layers"].items()):
    with pytest.raises(ValueError, match="were cast: decode it first"):
      bs.decode(jax.tree.map(cast, leaf))
    if name != "head":
      for change in (lambda x: x[:2], lambda x: x[None]):
        with pytest.raises(ValueError, match="sliced or got an axis"):
          bs.decode(jax.tree.map(change, leaf))


def test_a_leaf_that_is_split_otherwise_is_refused(stack):
  mesh = jax.make_mesh((2,), ("data",))
  leaf = bs.load(stack[0], coded="packed")["head"][0]
  leaf = jax.device_put(leaf, jax.NamedSharding(mesh, jax.P()))
  assert_same(jax.jit(bs.decode)(leaf), bs.decode(leaf))
  octets = jax.device_put(leaf.octets, jax.NamedSharding(mesh, jax.P("data")))
  with pytest.raises(ValueError, match="sharding"):
    jax.jit(bs.decode)(dataclasses.replace(leaf, octets=octets))


def test_a_leaf_that_no_mesh_axis_divides_is_named(stack):
  mesh = jax.make_mesh((8,), ("data",))
  placed = jax.NamedSharding(mesh, jax.P("data"))
  for kind in (False, *KINDS):
    with pytest.raises(ValueError, match=r"'layers/kernel' of shape \(3, 96"):
      bs.load(stack[0], names="layers/*", coded=kind, sharding=placed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_refused(stack, tmp_path, kind):
  data = stack[0].read_bytes()
  path = tmp_path / "x"
  for at in (9, len(data) // 3, len(data) // 2, len(data) - 1):
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(bs.ArchiveError):
      bs.load(path, coded=kind)
    with pytest.raises(bs.ArchiveError):
      coded.stack([(path, "head/0"), (path, "classes")], kind)


def test_levels_beyond_int8_are_refused(tmp_path):
  x = np.full([64, 64], 0.4, np.float32)
  x[0, 0] = 150
  bs.save(tmp_path / "x", {"x": x}, step=0.5)
  with pytest.raises(ValueError, match="a level of 300, beyond int8"):
    coded.levels(bs.load(tmp_path / "x", coded="packed")["x"])
