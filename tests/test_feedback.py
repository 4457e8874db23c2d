"""Error feedback, against the form in which GPTQ is published."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backslash_jax import feedback
from backslash_jax import quantize as quantizers
from backslash_jax.coding import fit

STEP = 0.05


def published(weights, moments, step, damping=feedback.DAMPING):
  """GPTQ with the inverse's Cholesky factor, in float64, input by input."""
  order = np.argsort(-np.diag(moments), kind="stable")
  left = weights[order].astype(np.float64)
  moments = moments[order][:, order].astype(np.float64)
  moments += damping * np.mean(np.diag(moments)) * np.eye(len(moments))
  upper = np.linalg.cholesky(np.linalg.inv(moments)).T
  levels = np.zeros_like(left)
  for i in range(len(left)):
    levels[i] = np.rint(left[i] / step)
    error = (left[i] - step * levels[i]) / upper[i, i]
    left[i + 1 :] -= np.outer(upper[i, i + 1 :], error)
  return levels[np.argsort(order)].astype(np.int32)


@pytest.fixture(scope="module")
def layer():
  """Weights [200, 24], and the second moments of correlated inputs."""
  rng = np.random.default_rng(0)
  mixing = rng.normal(size=(200, 200)) / 200**0.5
  inputs = rng.normal(size=(800, 200)) @ (mixing * np.exp(rng.normal(size=200)))
  moments = np.asarray(feedback.second_moments(jnp.asarray(inputs)))
  weights = 0.05 * rng.standard_t(4, size=(200, 24))
  return weights.astype(np.float32), moments


def test_the_levels_are_those_of_the_published_form(layer):
  weights, moments = layer
  found = feedback.quantize(weights, moments, STEP)
  assert found.dtype == np.int32
  assert found.shape == weights.shape
  # A target halfway between two levels may fall on either side.
  assert np.mean(found != published(weights, moments, STEP)) < 1e-3


def test_without_correlation_it_is_rounding(layer):
  weights, moments = layer
  found = feedback.quantize(weights, np.diag(np.diag(moments)), STEP)
  np.testing.assert_array_equal(found, quantizers.quantize(weights, STEP))


def test_the_factor_of_the_moments_does_not_matter(layer):
  weights, moments = layer
  for mu in (0.0, 0.1):
    found = [
      feedback.quantize(weights, moments * c, STEP, mu=mu) for c in (1, 64)
    ]
    np.testing.assert_array_equal(*found)


def test_the_error_is_that_of_the_outputs(layer):
  weights, _ = layer
  inputs = np.random.default_rng(1).normal(size=(50, 200)).astype(np.float32)
  quantized = STEP * feedback.quantize(weights, inputs.T @ inputs, STEP)
  moments = feedback.second_moments(jnp.asarray(inputs))
  wanted = np.sum(np.square(inputs @ (weights - quantized)))
  found = feedback.error(weights, quantized, moments)
  np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_feedback_and_its_price_save_error_at_equal_bits(layer):
  weights, moments = layer

  def measured(levels, step=STEP):
    bits = fit.quantized_ggd(levels)[1] / levels.size
    error = float(feedback.error(weights, levels * step, moments))
    # At equal bits: a step is half as large with one bit more.
    return error * 4.0**bits

  rounded = measured(quantizers.quantize(weights, STEP))
  fed_back = measured(feedback.quantize(weights, moments, STEP))
  priced = measured(feedback.quantize(weights, moments, STEP, mu=0.1))
  assert fed_back < 0.5 * rounded
  assert priced < 0.95 * fed_back


def test_a_higher_price_takes_fewer_bits(layer):
  weights, moments = layer
  found = [
    fit.quantized_ggd(feedback.quantize(weights, moments, STEP, mu=mu))[1]
    for mu in (0.0, 0.1, 0.3, 1.0)
  ]
  assert found == sorted(found, reverse=True)
  assert found[-1] < 0.8 * found[0]


@pytest.mark.slow
def test_a_block_is_not_seen_in_the_result(layer, monkeypatch):
  weights, moments = layer
  wanted = feedback.quantize(weights, moments, STEP, mu=0.1)
  monkeypatch.setattr(feedback, "_BLOCK", 37)
  jax.clear_caches()
  found = feedback.quantize(weights, moments, STEP, mu=0.1)
  assert np.mean(found != wanted) < 1e-3


def test_inputs_that_are_always_zero_are_no_trouble(layer):
  weights, moments = layer
  moments = moments.copy()
  moments[:50] = moments[:, :50] = 0
  found = feedback.quantize(weights, moments, STEP)
  rounded = quantizers.quantize(weights, STEP)
  np.testing.assert_array_equal(found[:50], rounded[:50])
  assert np.any(found[50:] != rounded[50:])


def test_fewer_examples_than_inputs_give_finite_levels(layer):
  weights, _ = layer
  x = jnp.asarray(np.random.default_rng(2).normal(size=(20, 200)))
  levels = feedback.quantize(weights, feedback.second_moments(x), STEP)
  assert np.abs(levels * STEP - weights).max() < 1.0


def test_masked_positions_do_not_count():
  x = jnp.arange(12.0).reshape(2, 3, 2)
  mask = jnp.asarray([[True, False, True], [False, False, False]])
  kept = np.array([[0, 1], [4, 5]])
  np.testing.assert_array_equal(feedback.second_moments(x, mask), kept.T @ kept)
  bad = x.at[1].set(jnp.nan)
  np.testing.assert_array_equal(
    feedback.second_moments(bad, mask), kept.T @ kept
  )


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (129, 2)])
def test_small_and_empty_layers(shape):
  weights = np.full(shape, 0.3, np.float32)
  moments = np.eye(shape[0], dtype=np.float32)
  found = feedback.quantize(weights, moments, 0.25)
  np.testing.assert_array_equal(found, np.ones(shape, np.int32))


@pytest.mark.parametrize("size", [64, 48])
def test_outputs_split_over_devices_give_the_same_levels(layer, size):
  weights, moments = layer
  weights = np.tile(weights, (1, 2))[:, :size]
  wanted = feedback.quantize(weights, moments, STEP, mu=0.1)
  mesh = jax.make_mesh((8,), ("x",))
  spec = jax.sharding.PartitionSpec(None, "x")
  split = jax.device_put(weights, jax.sharding.NamedSharding(mesh, spec))
  found = feedback.quantize(split, moments, STEP, mu=0.1)
  assert np.mean(found != wanted) < 1e-3


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"moments": np.eye(2)}, "need second moments of shape"),
    ({"moments": np.full((3, 3), np.nan)}, "moments are not finite"),
    ({"moments": np.triu(np.ones((3, 3)))}, "moments are not symmetric"),
    ({"moments": -np.eye(3)}, "not positive on the diagonal"),
    ({"moments": np.zeros((3, 3))}, "no input was ever seen"),
    ({"moments": np.eye(3) - 1.0}, "not positive on the diagonal|damping"),
    ({"weights": np.full((3, 2), np.nan)}, "NaN or infinite"),
    ({"weights": np.full((3, 2), 1e9)}, "take a coarser step"),
    ({"step": 0.0}, "step"),
    ({"mu": -1.0}, "mu must be .*found -1.0"),
    ({"mu": np.nan}, "mu must be .*found nan"),
    ({"damping": -1.0}, "damping must be .*found -1.0"),
  ],
)
def test_what_cannot_be_quantized_is_refused(change, message):
  given = {
    "weights": np.ones((3, 2)),
    "moments": np.eye(3),
    "step": 0.5,
  } | change
  with pytest.raises(ValueError, match=message):
    feedback.quantize(**given)


@pytest.mark.parametrize("kind", list(jax.sharding.AxisType)[:2])
def test_moments_of_split_batches_are_summed_over_devices(kind):
  x = np.random.default_rng(3).normal(size=(16, 5, 24)).astype(np.float32)
  mask = np.arange(5) < np.arange(16)[:, None] % 6
  wanted = feedback.second_moments(jnp.asarray(x), jnp.asarray(mask))
  mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
  spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  split = jax.device_put((x, mask), spec)
  compiled = jax.jit(feedback.second_moments).lower(*split).compile()
  np.testing.assert_allclose(compiled(*split), wanted, rtol=1e-5, atol=1e-5)
  text = compiled.as_text()
  # The sum alone is communicated, and no input.
  assert "all-reduce" in text
  assert "all-gather" not in text
