"""Quantizers: nearest levels, levels worth their bits, and how coarse."""

import math
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from backslash_jax import archive, meter, quantize
from backslash_jax.coding import fit, rans


def _weights(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.laplace(scale=0.05, size=shape).astype(np.float32)


@pytest.mark.parametrize("step", [2**-8, 0.003, 1e-5, 7.0])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_nearest_level_is_taken(step, dtype):
  x = _weights(100, 30).astype(dtype)
  symbols = quantize.quantize(x, step)
  assert symbols.dtype == np.int32
  error = np.abs(symbols * np.float64(step) - x.astype(np.float64))
  assert error.max() <= step / 2 * (1 + 1e-6)


def test_ties_go_to_even():
  x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)
  assert quantize.quantize(x, 1.0).tolist() == [-2, -2, 0, 0, 2, 2]


def test_a_number_is_quantized_as_an_array_of_it():
  found = quantize.quantize(np.float32(3.3), 0.7)
  assert (found.shape, found.dtype, found) == ((), np.int32, 5)


def test_dequantized_values_quantize_to_themselves():
  for step in (2**-8, 0.0123):
    symbols = quantize.quantize(_weights(200, 50), step)
    values = quantize.dequantize(symbols, step, np.float32)
    np.testing.assert_array_equal(quantize.quantize(values, step), symbols)


def test_int32_is_the_limit():
  near = np.array([2.0**31 - 128, 128 - 2.0**31], np.float32)
  assert quantize.quantize(near, 1.0).tolist() == near.tolist()
  wide = np.array([2.0**31 - 1], np.float64)
  assert quantize.quantize(wide, 1.0).tolist() == [2**31 - 1]
  for x in (
    np.float32([2.0**31]),
    np.float64([-(2.0**31)]),
    np.float32([3e38]),
  ):
    with pytest.raises(ValueError, match="more than 2\\*\\*31 - 1 steps of 1"):
      quantize.quantize(x, 1.0)


@pytest.mark.parametrize(
  "dtype", ["float16", "bfloat16", "float8_e4m3fn", "float32", "float64"]
)
@pytest.mark.parametrize("share", [0.7, 1 / 93, 0.015, 2**-20])
def test_no_level_is_beyond_the_dtype(dtype, share):
  dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
  largest = float(ml_dtypes.finfo(dtype).max)
  x = np.array([largest, -largest, 0, largest / 2], dtype)
  step = largest * share
  symbols = quantize.quantize(x, step)
  found = quantize.dequantize(symbols, step, dtype).astype(np.float64)
  assert np.isfinite(found).all()
  limit = (0.5 + 0.5 * (abs(symbols[0]) < 1 / share)) * step
  ulp = largest * float(ml_dtypes.finfo(dtype).eps)
  assert np.abs(found - x.astype(np.float64)).max() <= limit + ulp


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("step", [2**-8, 0.004, 0.0371])
def test_the_largest_error_is_half_a_step_and_the_rounding(dtype, step):
  dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
  x = (40 * _weights(300, 100)).astype(dtype)
  found = quantize.dequantize(quantize.quantize(x, step), step, dtype)
  x, found = x.astype(np.float64), found.astype(np.float64)
  rounding = float(ml_dtypes.finfo(dtype).eps) / 2 * np.abs(found)
  rounding += 2**-50 * np.abs(x)  # Of the quotient, and of this sum.
  assert (np.abs(found - x) <= step / 2 + rounding).all()


@pytest.mark.parametrize("step", [0.0, -1.0, np.nan, np.inf])
def test_steps_are_positive(step):
  with pytest.raises(ValueError, match="positive and finite"):
    quantize.quantize(_weights(3), step)


def _operational(weights, step, mu, tmp_path):
  """Bits per parameter of the file and mean squared error, at mu."""
  report = archive.save(tmp_path / "file", weights, step=step, mu=mu)
  found = archive.load(tmp_path / "file")
  error = np.concatenate([(found[k] - w).ravel() for k, w in weights.items()])
  return report.bits_per_parameter, float(np.square(error, dtype="f8").mean())


@pytest.mark.parametrize("step", [2**-5, 2**-4, 2**-3])
def test_rate_distortion_beats_rounding_at_equal_bits(step, tmp_path):
  weights = {"w": _weights(500, 400)}
  bits, error = _operational(weights, step, 0.1, tmp_path)
  # Rounding with the step that takes just as many bits.
  low, high = step, 4 * step
  for _ in range(12):
    middle = (low * high) ** 0.5
    more = _operational(weights, middle, 0.0, tmp_path)[0] > bits
    low, high = (middle, high) if more else (low, middle)
  rounded_bits, rounded_error = _operational(weights, high, 0.0, tmp_path)
  assert rounded_bits == pytest.approx(bits, rel=2e-3)
  assert error < 0.99 * rounded_error


def test_mu_zero_is_rounding_and_more_mu_is_fewer_bits():
  x = _weights(200, 200)
  levels = [quantize.rate_distortion(x, 0.05, mu) for mu in (0, 0.05, 0.2, 0.5)]
  np.testing.assert_array_equal(levels[0], quantize.quantize(x, 0.05))
  bits = [rans.code_length(q, fit.fit(q)) for q in levels]
  assert bits == sorted(bits, reverse=True)
  for q in levels:
    assert np.abs(q * 0.05 - x).max() <= 0.05
    assert (np.abs(q) <= np.abs(levels[0])).all()


@pytest.mark.parametrize("step", [0.05, 0.1, 0.2])
def test_each_level_is_the_best_by_the_bits_of_the_final_model(step):
  rng, mu = np.random.default_rng(0), 0.1
  scales = 0.1 * np.exp(rng.normal(size=(400, 1)))
  x = (scales * rng.laplace(size=(400, 500))).astype(np.float32)
  found = quantize.rate_distortion(x, step, mu)
  model, _ = fit.quantized_ggd(found)
  rows, columns, table = fit.costs(found, model)
  classes = rows[:, None] + columns

  def cost(levels):
    bits = table[classes, fit.table_keys(levels, model.shift)]
    return np.square(x / step - levels) + mu * bits

  nearest = quantize.quantize(x, step)
  toward_zero = np.trunc(x / step).astype(np.int32)
  best = np.minimum(cost(nearest), cost(toward_zero)).sum()
  assert cost(found).sum() <= (1 + 4e-4) * best


def test_memory_is_that_of_a_few_copies_of_the_levels():
  x = _weights(1000, 2000)
  quantize.rate_distortion(x[:100], 0.05, 0.1)  # Imports and compiles.
  tracemalloc.start()
  quantize.rate_distortion(x, 0.05, 0.1)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  # Nearest levels, chosen ones, a copy; and blocks and a sample.
  assert peak <= 12.5 * x.size + 4e6


def test_sensitive_weights_are_spared():
  x = _weights(200, 200)
  sensitivity = np.ones_like(x)
  sensitivity[:100] = 1.9
  sensitivity[100:] = 0.1
  q = quantize.rate_distortion(x, 0.05, 0.2, sensitivity=sensitivity)
  moved = q != quantize.quantize(x, 0.05)
  assert moved[:100].mean() < 0.5 * moved[100:].mean()
  with pytest.raises(
    ValueError, match=r"shape \(3,\), the tensor \(200, 200\)"
  ):
    quantize.rate_distortion(x, 0.05, 0.2, sensitivity=np.ones(3))


def test_sensitivities_are_relative_to_their_mean():
  params = {"a": _weights(40, 40), "b": _weights(40, 40, seed=1)}
  squares = {k: np.square(_weights(40, 40, seed=3)) for k in params}
  scaled = {k: 1e6 * v for k, v in squares.items()}
  one, two = (
    quantize.apply(params, 2**-4, mu=0.1, sensitivity=s)
    for s in (squares, scaled)
  )
  for name in params:
    np.testing.assert_array_equal(one[name], two[name])
  with pytest.raises(ValueError, match="no tensor 'b'"):
    quantize.apply(params, 2**-4, mu=0.1, sensitivity={"a": squares["a"]})


def test_steps_per_tensor():
  params = {
    "a": _weights(9, 9),
    "z": np.zeros((2, 2), np.float32),
    "b": _weights(9),
  }
  steps = quantize.absmax_steps(params)
  assert steps["a"] == np.abs(params["a"]).max() / 127
  assert steps["z"] > 0
  assert "b" not in steps


def test_steps_are_finer_where_the_loss_is_sensitive():
  params = {"a": _weights(9, 9), "b": _weights(9), "z": _weights(3, 3)}
  squares = {"a": np.full((9, 9), 4.0), "z": np.float32(1.0)}
  steps = quantize.sensitive_steps(params, 2**-9, squares)
  assert steps.keys() == {"a", "z"}
  assert steps["z"] == pytest.approx(2 * steps["a"])
  # Every parameter counts once.
  mean = (81 * math.log2(steps["a"]) + 9 * math.log2(steps["z"])) / 90
  assert mean == pytest.approx(-9)


def test_no_tensor_is_quantized_to_nothing():
  params = {"a": _weights(9, 9), "small": 1e-3 * _weights(9, 9)}
  params["zero"] = np.zeros((4, 4), np.float32)
  squares = dict.fromkeys(params, np.float32(1.0))
  steps = quantize.sensitive_steps(params, 0.25, squares, limit=1.5)
  rms = np.sqrt(np.mean(np.square(params["small"])))
  assert steps["small"] == pytest.approx(1.5 * rms)
  assert steps["zero"] == pytest.approx(0.25)
  quantized = quantize.apply(params, steps)
  assert np.any(quantized["small"])
  # A tensor that no gradient reaches gets the coarsest step, not an infinite.
  steps = quantize.sensitive_steps(params, 2**-9, squares | {"a": np.zeros(1)})
  assert steps["a"] == pytest.approx(16 * 2**-9)


def test_steps_of_equal_slope_cost_the_least_loss_for_their_rate():
  """On a quadratic loss, against one step for all at the same entropy."""
  rng = np.random.default_rng(0)
  params = {n: rng.normal(size=(300, 300)).astype(np.float32) for n in "ab"}
  curvature = {"a": np.float32(1.0), "b": np.float32(64.0)}

  def cost(step):
    coded = quantize.apply(params, step)
    loss = sum(
      curvature[n] * np.sum(np.square(coded[n] - x)) for n, x in params.items()
    )
    bits = [meter.bits_per_parameter(x, step[n]) for n, x in params.items()]
    return loss, float(sum(bits))

  uniform, rate = cost(dict.fromkeys(params, 0.1))
  loss, other = cost(quantize.sensitive_steps(params, 0.1, curvature))
  assert other == pytest.approx(rate, rel=0.005)
  assert loss < 0.3 * uniform  # 1 / cosh(log 8), exactly.


@pytest.mark.parametrize(
  ("squares", "message"),
  [
    ({"a": 1.0}, "has no tensor 'b'"),
    ({"a": 1.0, "b": float("nan")}, "sensitivity of 'b' is nan"),
    ({"a": -1.0, "b": 1.0}, "sensitivity of 'a' is -1"),
    ({"a": 0.0, "b": 0.0}, "zero everywhere"),
  ],
)
def test_impossible_sensitivities_are_named(squares, message):
  params = {"a": _weights(3, 3), "b": _weights(3, 3)}
  with pytest.raises(ValueError, match=message):
    quantize.sensitive_steps(
      params, 0.1, {n: np.float32(x) for n, x in squares.items()}
    )


def test_a_limit_that_is_not_positive_is_refused():
  params = {"a": _weights(3, 3)}
  with pytest.raises(ValueError, match="limit is 0"):
    quantize.sensitive_steps(params, 0.1, params, limit=0)


def test_choose_step_finds_the_coarsest_within_tolerance():
  params = {"w": _weights(50, 50)}

  def evaluate(tree):
    return -float(np.abs(tree["w"] - params["w"]).max())

  # The largest error of rounding is half the step.
  step = quantize.choose_step(params, evaluate, 0.02, resolution=0.01)
  assert 0.98 * 0.04 < step <= 0.04 * 1.01
  assert evaluate(quantize.apply(params, step)) >= -0.02


def test_choose_step_takes_the_coarsest_of_all_if_it_may():
  params = {"w": _weights(5, 5)}
  assert quantize.choose_step(params, lambda p: 1.0, 0.0, coarsest=0.5) == 0.5


def test_choose_step_says_when_no_step_is_fine_enough():
  params = {"w": _weights(50, 50)}
  seen = []

  def evaluate(tree):
    seen.append(0)
    return -len(seen)

  with pytest.raises(ValueError, match=r"already costs more than 0\.5"):
    quantize.choose_step(params, evaluate, 0.5)


@pytest.mark.parametrize(
  "step", [0.1, 0.7 / 4, 2.0**-6, float(np.float32(0.1))]
)
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float64])
def test_dequantized_values_are_rounded_from_float64(step, dtype):
  symbols = np.arange(-3000, 3000).astype(dtype)
  wanted = (symbols.astype(np.float64) * step).astype(np.float32)
  found = quantize.dequantize(symbols, step, np.float32)
  np.testing.assert_array_equal(found, wanted)
