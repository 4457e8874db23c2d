"""The rate term on a mesh: what is communicated, and that nothing changes."""

import contextlib
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import backslash_jax as bs
from backslash_jax.moments import tree_moments
from experiments.bench import hlo

P = PartitionSpec
SPECS = {
  "embedding": P("tensor", "fsdp"),
  "head": P("fsdp", "tensor"),
  "stacked_layers": P(None, "fsdp", "tensor"),
  "fsdp_only": P("fsdp"),
  "both_axes_on_one": P(("fsdp", "tensor"), None),
  "norm": P(),
}
SHAPES = {
  "embedding": (64, 32),
  "head": (32, 64),
  "stacked_layers": (3, 16, 24),
  "fsdp_only": (8, 5),
  "both_axes_on_one": (16, 3),
  "norm": (7,),
}
AXIS_TYPES = pytest.mark.parametrize("axis_type", ["auto", "explicit"])


def _mesh(axis_type="auto"):
  types = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
  axes = ("data", "fsdp", "tensor")
  return jax.make_mesh((2, 2, 2), axes, axis_types=(types[axis_type],) * 3)


def _params(dtype=jnp.float32):
  rng = np.random.default_rng(0)
  return {
    name: jnp.asarray(0.05 * rng.laplace(size=shape), dtype)
    for name, shape in SHAPES.items()
  }


def _grads(params):
  return jax.tree.map(lambda x: jnp.sin(100 * x), params)


def _shardings(mesh):
  return {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}


def _chain(**kwargs):
  return optax.chain(bs.backslash(10.0, **kwargs), optax.adamw(1e-3))


@functools.cache
def _plain_update():
  tx, params = _chain(), _params()
  return jax.jit(tx.update)(_grads(params), tx.init(params), params)


@functools.cache
def _sharded_update(axis_type, told):
  """The collectives of a compiled update on a mesh, and its result."""
  mesh = _mesh(axis_type)
  shardings = _shardings(mesh)
  tx = _chain(sharding=shardings if told else None)
  # Explicit axes have to be entered, automatic ones need not be.
  explicit = axis_type == "explicit"
  with jax.set_mesh(mesh) if explicit else contextlib.nullcontext():
    params = jax.device_put(_params(), shardings)
    grads = jax.device_put(_grads(_params()), shardings)
    opt_state = jax.jit(tx.init)(params)
    update = jax.jit(tx.update).lower(grads, opt_state, params).compile()
    result = update(grads, opt_state, params)
  return hlo.collectives(update.as_text()), result


def _assert_close(found, wanted):
  """Equal to rounding, but for the bits, which are sampled shard by shard."""
  if optax.tree.get(wanted, "bits") is not None:
    bits = [float(optax.tree.get(t, "bits")) for t in (found, wanted)]
    np.testing.assert_allclose(*bits, rtol=0.02)
    found, wanted = (optax.tree.set(t, bits=0.0) for t in (found, wanted))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-9),
    jax.device_get(found),
    jax.device_get(wanted),
  )


@AXIS_TYPES
def test_an_update_all_reduces_two_floats_per_tensor(axis_type):
  found, result = _sharded_update(axis_type, told=axis_type == "auto")
  assert {c.kind for c in found} == {"all-reduce"}
  assert sum(c.bytes for c in found) <= 8 * len(SHAPES)
  # Over ("fsdp", "tensor") and over "fsdp", in updates that estimate the shape;
  # the norm needs none. In every 16th update the meter adds one float for each
  # of the two.
  assert sorted(c.bytes for c in found) == [4, 4, 8, 32]
  assert all("/cond/" in c.name for c in found)
  _assert_close(result, _plain_update())


def test_without_being_told_the_compiler_gathers_nothing_either():
  found, result = _sharded_update("auto", told=False)
  assert {c.kind for c in found} == {"all-reduce"}
  _assert_close(result, _plain_update())


@AXIS_TYPES
def test_updates_and_optimizer_state_keep_their_shards(axis_type):
  _, (updates, opt_state) = _sharded_update(axis_type, axis_type == "auto")
  shardings = _shardings(_mesh(axis_type))
  for tree in (updates, *(optax.tree.get(opt_state, n) for n in ("mu", "nu"))):
    for name, x in tree.items():
      assert x.sharding.is_equivalent_to(shardings[name], x.ndim), name
  assert optax.tree.get(opt_state, "rate_shape").sharding.is_fully_replicated


@AXIS_TYPES
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_moments_do_not_depend_on_the_sharding(axis_type, dtype):
  params = _params(dtype)
  shardings = _shardings(_mesh(axis_type))
  sharded = jax.device_put(params, shardings)
  told = shardings if axis_type == "auto" else None
  _assert_close(
    jax.jit(functools.partial(tree_moments, sharding=told))(sharded),
    tree_moments(params),
  )


def test_every_axis_is_reduced_and_a_replica_counts_once():
  ones = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
  shardings = _shardings(_mesh())
  moments = tree_moments(jax.device_put(ones, shardings), shardings)
  counts = [math.prod(SHAPES[name]) for name in sorted(SHAPES)]
  np.testing.assert_array_equal(moments.abs_sum, counts)
  np.testing.assert_array_equal(moments.square_sum, counts)


def test_sharding_may_be_a_callable_and_go_with_a_mask():
  shardings = _shardings(_mesh())
  tx = bs.backslash(
    10.0,
    shape=1.0,
    mask=bs.matrices,
    update_every=2,
    sharding=lambda params: shardings,
  )
  params = jax.device_put(_params(), shardings)
  update = jax.jit(tx.update).lower(params, tx.init(params), params).compile()
  found = hlo.collectives(update.as_text())
  assert {c.kind for c in found} == {"all-reduce"}
  matrices = sum(len(s) >= 2 for s in SHAPES.values())
  # Two floats each, and the meter's one float for each of two groups.
  assert sum(c.bytes for c in found) == 8 * matrices + 2 * 4


def test_a_mesh_that_does_not_divide_a_tensor_is_named():
  shardings = _shardings(_mesh()) | {"norm": NamedSharding(_mesh(), P("fsdp"))}
  with pytest.raises(ValueError, match=r"dimension 0 of norm into 2.*\(7,\)"):
    tree_moments(_params(), shardings)


def test_a_leaf_without_sharding_is_named():
  shardings = _shardings(_mesh())
  del shardings["head"]
  with pytest.raises(ValueError, match="None for head, wanted a NamedSharding"):
    tree_moments(_params(), shardings)
