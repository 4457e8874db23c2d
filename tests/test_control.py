"""Controllers of lambda, on a small classifier trained for real."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import backslash_jax as bs
from backslash_jax import control
from experiments.frontier import targets

STEP = targets.STEP


def _norm(tree):
  return float(optax.tree.norm(tree))


@pytest.mark.parametrize("rate", ["dggr", "bits"])
def test_balance_makes_the_rate_pull_that_fraction(rate):
  key = jax.random.key(0)
  params = {"a": jax.random.normal(key, (30, 20)), "b": jnp.ones((4, 5))}
  grads = jax.tree.map(lambda x: 0.3 * x + 1.0, params)
  tx = bs.backslash(bs.gradient_balance(0.25), rate=rate)
  updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
  added = jax.tree.map(jnp.subtract, updates, grads)
  np.testing.assert_allclose(_norm(added), 0.25 * _norm(grads), rtol=1e-3)


def test_balance_without_a_task_gradient_adds_nothing():
  params = {"a": jnp.ones((3, 3)), "zero": jnp.zeros((2, 2))}
  zeros = jax.tree.map(jnp.zeros_like, params)
  tx = bs.backslash(bs.gradient_balance(0.5))
  updates, state = jax.jit(tx.update)(zeros, tx.init(params), params)
  assert not np.any(optax.tree.get(state, "lmbda"))
  assert not any(np.any(u) for u in jax.tree.leaves(updates))


@pytest.mark.parametrize(
  ("width", "learning_rate", "updates", "target", "arguments"),
  [
    (128, 1e-2, 1200, 3.0, {}),
    pytest.param(
      2400, 1e-3, 800, 2.0, {"shape": 1.0}, marks=pytest.mark.slow
    ),
    pytest.param(
      240, 1e-3, 3000, 2.0, {"rate": "bits", "scope": "tensor"},
      marks=pytest.mark.slow,
    ),
    pytest.param(2400, 1e-2, 800, 1.5, {}, marks=pytest.mark.slow),
  ],
)  # fmt: skip
def test_the_file_has_the_bits_that_were_asked_for(
  width, learning_rate, updates, target, arguments
):
  params, seen = targets.train(
    bs.target_rate(target),
    width=width,
    learning_rate=learning_rate,
    updates=updates,
    **arguments,
  )
  last = seen["bits"][-updates // 5 :]
  np.testing.assert_allclose(last, target, rtol=0.03)
  assert seen["unmet"][-1] == 0
  # The coder may find structure that the entropy of a tensor does not see. Its
  # tables count in a small file.
  size = sum(x.size for x in params.values())
  assert targets.coded_bits(params) < 1.03 * target + 2000 / size
  exact = sum(_entropy(x) * x.size for x in params.values())
  exact /= size
  np.testing.assert_allclose(seen["bits"][-1], exact, rtol=0.03)
  np.testing.assert_allclose(exact, target, rtol=0.03)


def _entropy(x):
  _, counts = np.unique(np.rint(x / STEP), return_counts=True)
  return -np.sum(counts * np.log2(counts / x.size)) / x.size


def test_a_target_out_of_reach_says_so_and_on_which_side():
  _, seen = targets.train(
    bs.target_rate(0.01), width=24, learning_rate=1e-5, updates=300
  )
  assert 100 < seen["unmet"][-1] <= 300
  _, seen = targets.train(
    bs.target_rate(12.0), width=24, learning_rate=1e-3, updates=300
  )
  assert seen["unmet"][-1] < -100
  assert np.all(np.isfinite(seen["lmbda"]))


def test_a_target_out_of_reach_pulls_no_harder_than_its_limit():
  limit = 0.5
  params = {"w": jnp.linspace(-1.0, 1.0, 64).reshape(8, 8)}
  grads = {"w": jnp.cos(params["w"])}
  tx = bs.backslash(
    bs.target_rate(0.01, limit=limit), shape=1.0, step=STEP, mask=None
  )
  state = tx.init(params)
  update = jax.jit(tx.update)
  pulls = []
  for i in range(120):
    # The parameters have to move, or the pull does not grow.
    moved = {"w": params["w"] * (1.0 + 0.01 * i)}
    updates, state = update(grads, state, moved)
    pull = jnp.linalg.norm(updates["w"] - grads["w"])
    pulls.append(pull / jnp.linalg.norm(grads["w"]))
  np.testing.assert_allclose(pulls[-1], limit, rtol=1e-3)
  assert max(pulls) < 1.001 * limit
  assert optax.tree.get(state, "unmet") > 0


def test_while_the_parameters_do_not_move_the_pull_does_not_grow():
  """As in the warm-up of a learning rate, where the bits cannot respond."""
  params = {"w": jnp.linspace(-1.0, 1.0, 64).reshape(8, 8)}
  tx = bs.backslash(bs.target_rate(0.01), shape=1.0)
  state = tx.init(params)
  update = jax.jit(tx.update)
  for _ in range(200):
    _, state = update(params, state, params)
  np.testing.assert_allclose(
    jnp.exp(optax.tree.get(state, "log_fraction")), 0.1, rtol=1e-3
  )


@pytest.mark.parametrize("warmup", [0, 300])
def test_a_warm_up_costs_no_accuracy(warmup):
  """The model is a regression that 2 bits per parameter can solve."""
  keys = jax.random.split(jax.random.key(0), 4)
  x = jax.random.normal(keys[0], (256, 64))
  y = jnp.tanh(x @ jax.random.normal(keys[1], (64, 32)) / 8)
  params = {
    "a": 0.1 * jax.random.normal(keys[2], (64, 96)),
    "b": 0.1 * jax.random.normal(keys[3], (96, 32)),
  }

  def loss(params):
    return jnp.mean((jnp.tanh(x @ params["a"]) @ params["b"] - y) ** 2)

  length = 1500
  rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, warmup, length)
  tx = optax.chain(bs.recommended(2.0), optax.adam(rate))

  def step(carry, _):
    params, state = carry
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return (optax.apply_updates(params, updates), state), None

  (params, state), _ = jax.jit(
    lambda start: jax.lax.scan(step, start, length=length)
  )((params, tx.init(params)))
  np.testing.assert_allclose(optax.tree.get(state, "bits"), 2.0, rtol=0.03)
  assert loss(params) < 2e-2


def test_motion_is_the_norm_of_a_change_on_average():
  change = jax.random.normal(jax.random.key(0), (200, 8, 12))
  moved = jax.vmap(control.motion)(change)
  np.testing.assert_allclose(
    jnp.mean(moved[:, 0] ** 2), jnp.mean(moved[:, 1]), rtol=0.2
  )


@pytest.mark.parametrize("limit", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_limits_are_refused(limit):
  with pytest.raises(ValueError, match="limit must be above"):
    bs.target_rate(1.0, limit=limit)


@pytest.mark.parametrize("bits", [0.0, -1.0, 32.0, float("nan")])
def test_impossible_targets_are_refused(bits):
  with pytest.raises(ValueError, match="bits must be in"):
    bs.target_rate(bits)


@pytest.mark.parametrize("fraction", [-0.1, float("inf"), float("nan")])
def test_impossible_fractions_are_refused(fraction):
  with pytest.raises(ValueError, match="fraction must be non-negative"):
    bs.gradient_balance(fraction)


def test_the_recommended_recipe_is_a_target_for_the_l1_norm_of_the_matrices():
  key = jax.random.key(0)
  params = {"w": jax.random.normal(key, (30, 20)), "b": jnp.ones(20)}
  grads = jax.tree.map(lambda x: 0.3 * x + 1.0, params)
  wanted = bs.backslash(
    bs.target_rate(1.5), shape=1.0, step=STEP, mask=bs.matrices
  )
  found = bs.recommended(bits=1.5, step=STEP)
  states = [tx.init(params) for tx in (wanted, found)]
  for _ in range(2):
    one, states[0] = wanted.update(grads, states[0], params)
    other, states[1] = found.update(grads, states[1], params)
    jax.tree.map(np.testing.assert_array_equal, one, other)
  np.testing.assert_array_equal(other["b"], grads["b"])
  assert np.any(other["w"] != grads["w"])
  with pytest.raises(ValueError, match="bits must be in"):
    bs.recommended(bits=0.0)
  with pytest.raises(ValueError, match="limit=0 leaves out the rate"):
    bs.recommended(bits=1.0, limit=0)
  make = optax.inject_hyperparams(bs.recommended)
  with pytest.raises(ValueError, match="limit=0 leaves out the rate"):
    make(bits=1.0, limit=0.0).init(grads)


def test_the_table_of_targets_marks_what_was_out_of_reach(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(targets, "UPDATES", 60)
  monkeypatch.setattr(targets, "WIDTHS", (24,))
  monkeypatch.setattr(targets, "LEARNING_RATES", (1e-5,))
  monkeypatch.setattr(targets, "TARGETS", (1.0,))
  monkeypatch.setattr(targets, "INITIAL", (1.0, 30.0))
  path = tmp_path / "results.json"
  rows = targets.measure(path)
  assert len(rows) == len(targets.INITIAL)
  assert targets.measure(path) == rows
  (line,) = targets.table(rows).rows
  assert line[:2] == ["1,008", "1e-05"]
  assert all("*" in cell for cell in line[2:])
