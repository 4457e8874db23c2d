"""The meter against the empirical entropy of the integers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from backslash_jax import meter

KEY = jax.random.key(0)
ENTROPY = jax.jit(meter.entropy)


def _empirical(x, step):
  _, counts = np.unique(np.rint(np.asarray(x) / step), return_counts=True)
  p = counts / counts.sum()
  return -np.sum(p * np.log2(p))


def _heavy(rng, nu=0.4, alpha=0.05):
  """Samples of a generalized Gaussian."""
  size = alpha * rng.gamma(1 / nu, size=(1000, 10, 12)) ** (1 / nu)
  return size * rng.choice([-1, 1], size.shape)


def _sparse_rows(rng):
  """A few strong rows among zeros: what no generalized Gaussian fits."""
  x = rng.normal(size=(400, 300))
  return np.where(rng.random((400, 1)) < 0.1, x, 1e-3 * x)


_MAKE = {
  "laplace": lambda rng: rng.laplace(size=(300, 400)),
  "uniform": lambda rng: rng.uniform(-1, 1, 120_000),
  "heavy": _heavy,
  "sparse_rows": _sparse_rows,
  "scales": lambda rng: rng.normal(size=(400, 300)) * np.arange(1, 301) / 300,
}
TENSORS = {
  name: make(np.random.default_rng(0)).astype(np.float32)
  for name, make in _MAKE.items()
}


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("step", [1.0, 0.1, 0.01])
def test_entropy_is_within_two_percent_of_the_integers_own(name, step):
  x = TENSORS[name]
  wanted = _empirical(x, step)
  np.testing.assert_allclose(ENTROPY(x, step), wanted, rtol=0.02, atol=0.02)


def test_a_large_tensor_is_sampled():
  x = jax.random.laplace(KEY, (1000, 3, 700))
  wanted = _empirical(x, 0.1)
  np.testing.assert_allclose(ENTROPY(x, 0.1), wanted, rtol=0.01)


def test_bfloat16_ties_are_rounded_as_the_file_rounds_them():
  x = TENSORS["laplace"].astype(jnp.bfloat16)
  wanted = _empirical(x.astype(jnp.float32), 2**-3)
  np.testing.assert_allclose(ENTROPY(x, 2**-3), wanted, rtol=0.01)


def test_tensors_of_one_symbol_weigh_nothing_and_nan_is_not_hidden():
  assert float(ENTROPY(jnp.zeros((5, 5)), 0.1)) == 0.0
  assert float(ENTROPY(jnp.ones([]), 1.0)) == 1.0  # It does not see the sign.
  assert float(meter.entropy(jnp.zeros((0, 3)), 0.1)) == 0.0
  assert float(ENTROPY(jnp.full(7, 1e-30), 0.1)) == 0.0
  assert np.isnan(ENTROPY(jnp.array([1.0, jnp.nan]), 0.1))


def test_bits_per_parameter_weighs_the_tensors_by_their_sizes():
  params = {
    "a": TENSORS["laplace"],
    "b": jnp.zeros(120_000),
    "n": jnp.arange(9),
  }
  got = jax.jit(meter.bits_per_parameter)(params, 0.1)
  wanted = _empirical(params["a"], 0.1) / 2
  np.testing.assert_allclose(got, wanted, rtol=0.02)
  assert float(meter.bits_per_parameter({}, 0.1)) == 0.0


@pytest.mark.parametrize("period", [2, 4, 64])
@pytest.mark.parametrize("axis", [0, 1])
def test_no_period_misleads_the_sample(period, axis):
  shape = (2048, 1024)
  place = jnp.arange(shape[axis])
  scale = jnp.where(place % period == 0, 0.2, 0.005)
  x = jax.random.normal(KEY, shape) * jnp.expand_dims(scale, 1 - axis)
  wanted = _empirical(x, 2**-8)
  np.testing.assert_allclose(ENTROPY(x, 2**-8), wanted, rtol=0.02)


@pytest.mark.parametrize("spec", [("d", None), (None, "d")])
def test_what_is_sampled_leaves_no_device(spec):
  mesh = jax.make_mesh((8,), ("d",), (AxisType.Auto,))
  sharding = NamedSharding(mesh, PartitionSpec(*spec))
  x = jax.ShapeDtypeStruct((2048, 2048), jnp.float32, sharding=sharding)
  program = ENTROPY.lower(x, 0.1).compile().as_text()
  found = re.findall(r"= (\S+) (?:all-|collective|reduce-scatter)", program)
  sizes = [re.findall(r"\[([\d,]*)\]", shape)[0] for shape in found]
  assert all(size == "" or int(size) <= 128 for size in sizes), found
