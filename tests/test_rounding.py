import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backslash_jax as bs

PARAMS = {
  "kernel": jax.random.normal(jax.random.key(0), (64, 32)),
  "half": jax.random.normal(jax.random.key(1), (8, 8)).astype(jnp.bfloat16),
  "bias": jnp.linspace(-1.0, 1.0, 7),
  "table": jnp.arange(6).reshape(2, 3),
}


def test_round_through_gives_the_levels_exactly_and_a_gradient_of_one():
  step = 2**-5
  rounded = bs.round_through(PARAMS, step)
  expected = step * np.round(np.asarray(PARAMS["kernel"]) / step)
  np.testing.assert_array_equal(rounded["kernel"], expected)
  assert rounded["half"].dtype == jnp.bfloat16
  for name in ("bias", "table"):
    np.testing.assert_array_equal(rounded[name], PARAMS[name])

  def loss(x):
    return jnp.sum(jnp.square(bs.round_through({"x": x}, step)["x"]))

  kernel = PARAMS["kernel"]
  np.testing.assert_array_equal(jax.grad(loss)(kernel), 2 * expected)


def test_rounded_parameters_are_those_of_the_file(tmp_path):
  rounded = bs.round_through(PARAMS, 2**-4)
  bs.save(tmp_path / "m.safetensors", PARAMS, step=2**-4, coder="exp_golomb")
  loaded = bs.load(tmp_path / "m.safetensors")
  jax.tree.map(np.testing.assert_array_equal, rounded, loaded)


def test_a_mask_selects_by_tree_or_by_callable():
  only_bias = {"kernel": False, "half": False, "bias": True, "table": False}
  for mask in (only_bias, lambda params: only_bias):
    rounded = bs.round_through(PARAMS, 1.0, mask=mask)
    np.testing.assert_array_equal(rounded["kernel"], PARAMS["kernel"])
    np.testing.assert_array_equal(rounded["bias"], np.round(PARAMS["bias"]))


@pytest.mark.parametrize("step", [0.0, -1.0, float("inf"), float("nan")])
def test_a_step_that_is_no_step_is_refused(step):
  with pytest.raises(ValueError, match="must be positive and finite"):
    bs.round_through(PARAMS, step)
  with pytest.raises(ValueError, match="must be positive and finite"):
    bs.round_through(PARAMS, np.float32(step))
