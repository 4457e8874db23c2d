"""Removal of weights while training runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from backslash_jax import structure

KEY = jax.random.key(0)
PARAMS = {
  "kernel": jax.random.normal(KEY, (40, 30)) * 0.1,
  "bias": jnp.zeros(30),
}
TARGET = jax.tree.map(lambda x: x + 0.05, PARAMS)


def _run(tx, updates, params=PARAMS):
  """Parameters after each of so many steps towards TARGET."""

  @jax.jit
  def step(params, state):
    grads = jax.tree.map(lambda x, t: x - t, params, TARGET)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state, history = tx.init(params), [params]
  for _ in range(updates):
    params, state = step(params, state)
    history.append(params)
  return history


def _sparsity(params):
  return float(jnp.mean(params["kernel"] == 0))


def test_sparsity_follows_the_cubic_schedule():
  tx = optax.chain(
    optax.adam(1e-2),
    structure.gradual_pruning(0.8, 20, begin=4, every=4),
  )
  history = _run(tx, 26)
  assert _sparsity(history[4]) == 0  # The update of count 4 is the fifth.
  for count in (8, 12, 16, 20):
    wanted = 0.8 * (1 - (1 - (count - 4) / 16) ** 3)
    assert _sparsity(history[count + 1]) == pytest.approx(wanted, abs=1e-3)
  assert _sparsity(history[26]) == pytest.approx(0.8, abs=1e-3)
  np.testing.assert_array_less(0, history[26]["bias"])


def test_the_end_is_reached_whatever_the_interval():
  tx = optax.chain(optax.sgd(0.1), structure.gradual_pruning(0.5, 10, every=7))
  assert _sparsity(_run(tx, 11)[-1]) == pytest.approx(0.5, abs=1e-3)


def test_the_smallest_go_and_do_not_come_back():
  tx = optax.chain(optax.sgd(0.1), structure.gradual_pruning(0.5, 2, every=1))
  history = _run(tx, 12)
  gone = history[3]["kernel"] == 0
  size = jnp.abs(history[2]["kernel"])
  assert float(jnp.max(jnp.where(gone, size, 0))) <= float(
    jnp.min(jnp.where(gone, jnp.inf, size))
  )
  np.testing.assert_array_equal(gone, history[12]["kernel"] == 0)


def test_zeros_of_the_rate_phase_are_kept_and_no_more_made():
  step = 0.1
  tx = optax.chain(optax.sgd(0.2), structure.keep_zeros(step, 3))
  history = _run(tx, 10)
  zero = jnp.abs(history[3]["kernel"]) <= step / 2
  assert 0 < jnp.sum(zero) < zero.size
  assert _sparsity(history[3]) == 0
  for later in history[4:]:
    np.testing.assert_array_equal(zero, later["kernel"] == 0)
  plain = _run(optax.sgd(0.2), 10)[-1]
  for x, y in (
    (history[-1]["bias"], plain["bias"]),
    (history[-1]["kernel"], jnp.where(zero, 0, plain["kernel"])),
  ):
    np.testing.assert_allclose(x, y, rtol=1e-6)


@pytest.mark.parametrize(
  "tx",
  [
    structure.gradual_pruning(0.5, 4, every=2),
    structure.keep_zeros(0.1, 2),
  ],
)
def test_updates_and_state_keep_their_types(tx):
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
  state = tx.init(params)
  updates, new = jax.jit(tx.update)(params, state, params, loss=1.0)
  kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
  assert kinds(updates) == kinds(params)
  assert kinds(new) == kinds(state)
  with pytest.raises(ValueError, match="needs params"):
    tx.update(params, state)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((1.0, 10), "sparsity"),
    ((0.5, 0), "end"),
    ((0.5, 10, 10), "begin"),
    ((0.5, 10, 0, 0), "every"),
  ],
)
def test_pruning_arguments_out_of_range_are_refused(arguments, message):
  names = ("sparsity", "end", "begin", "every")
  with pytest.raises(ValueError, match=message):
    structure.gradual_pruning(**dict(zip(names, arguments, strict=False)))


def test_keep_zeros_needs_a_step():
  with pytest.raises(ValueError, match="positive"):
    structure.keep_zeros(0.0, 1)


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_of_equal_weights_no_more_go_than_the_fraction(scope):
  params = {
    "signs": jnp.array([[1.0, -1.0] * 5] * 4),
    "levels": jnp.ones((4, 5)),
  }
  pruned = structure.prune(params, 0.1, scope=scope)
  zeros = sum(int(jnp.sum(x == 0)) for x in jax.tree.leaves(pruned))
  assert zeros == 6
  empty = {"w": jnp.ones((2, 2)), "e": jnp.zeros((0, 4))}
  assert int(jnp.sum(structure.prune(empty, 0.5, scope=scope)["w"] == 0)) == 2


def test_states_can_be_read_beside_adam():
  tx = optax.chain(
    optax.adam(0.1),
    structure.gradual_pruning(0.5, 4),
    structure.keep_zeros(0.1, 2),
  )
  state = tx.init({"kept": jnp.ones((2, 2))} | PARAMS)
  for name in ("pruning_count", "keep_zeros_count"):
    assert optax.tree.get(state, name) == 0
