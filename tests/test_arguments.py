"""Every argument that is a number is checked, by type and range."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import backslash_jax as bs
from backslash_jax import structure, tree

_ROWS = structure.Group("rows", (structure.Slice("w$", axis=-2),))
_NAN = float("nan")
_PARAMS = {"w": np.linspace(-1, 1, 32, dtype=np.float32).reshape(4, 8)}


def _group_rate(**own):
  fields = {"lmbda": 1.0, "groups": [_ROWS], "learning_rate": 0.1}
  return structure.group_rate(**(fields | own))


# Factory, what it needs, and for each argument a value it must take.
_FACTORIES = {
  "backslash": (
    bs.backslash,
    {},
    {
      "lmbda": 1.0,
      "shape": 0.7,
      "epsilon": 0.01,
      "step": 0.1,
      "update_every": 2,
      "measure_every": 2,
    },
  ),
  "target_rate": (
    bs.target_rate,
    {"bits": 2.0},
    {"bits": 2.0, "initial": 0.1, "limit": 3.0},
  ),
  "gradient_balance": (bs.gradient_balance, {}, {"fraction": 0.1}),
  "fit_steps": (
    bs.fit_steps,
    {"bits": 2.0, "begin": 2},
    {"bits": 2.0, "begin": 2, "step": 0.1},
  ),
  "recommended": (
    bs.recommended,
    {"bits": 2.0},
    {"bits": 2.0, "limit": 3.0, "step": 0.1},
  ),
  "gradual_pruning": (
    structure.gradual_pruning,
    {"sparsity": 0.5, "end": 5},
    {"sparsity": 0.5, "end": 5, "begin": 1, "every": 2},
  ),
  "keep_zeros": (
    structure.keep_zeros,
    {"step": 0.1, "begin": 1},
    {"step": 0.1, "begin": 1},
  ),
  "group_rate": (
    _group_rate,
    {},
    {"lmbda": 1.0, "learning_rate": 0.1, "shape": 0.7, "epsilon": 0.01},
  ),
}
_ARGUMENTS = [
  (name, argument)
  for name, (_, _, good) in _FACTORIES.items()
  for argument in good
]


@pytest.mark.parametrize(("name", "argument"), _ARGUMENTS)
def test_what_is_no_number_in_range_is_refused_by_name(name, argument):
  factory, needed, _ = _FACTORIES[name]
  for bad in (
    *(_NAN, float("inf"), -1, np.float32(_NAN), np.int64(-1)),
    *("0.5", True, [0.5], 1j, np.array([0.5, 0.5])),
  ):
    with pytest.raises(ValueError, match=argument):
      factory(**(needed | {argument: bad}))


@pytest.mark.parametrize(("name", "argument"), _ARGUMENTS)
def test_numbers_of_numpy_and_jax_are_taken(name, argument):
  factory, needed, good = _FACTORIES[name]
  value = good[argument]
  scalar = np.int64 if isinstance(value, int) else np.float32
  for own in (scalar(value), np.asarray(value), jnp.asarray(value)):
    factory(**(needed | {argument: own}))


@pytest.mark.parametrize(
  ("factory", "fields"),
  [
    (structure.gradual_pruning, {"sparsity": 0.5, "end": 5, "begin": 1}),
    (structure.keep_zeros, {"step": 0.1, "begin": 1}),
    (bs.backslash, {"lmbda": 1.0, "shape": 0.7, "step": 0.1}),
  ],
)
def test_hyperparameters_can_be_injected(factory, fields):
  tx = optax.inject_hyperparams(factory)(**fields)
  updates, state = jax.jit(tx.update)(_PARAMS, tx.init(_PARAMS), _PARAMS)
  for x in jax.tree.leaves((updates, state)):
    assert np.isfinite(x).all()


def test_a_mask_is_evaluated_once_in_an_update():
  calls = []

  def mask(params):
    calls.append(1)
    return tree.matrices(params)

  tx = bs.backslash(1.0, mask=mask)
  state = tx.init(_PARAMS)
  calls.clear()
  tx.update(_PARAMS, state, _PARAMS)
  assert calls == [1]


def test_a_module_may_hold_what_is_no_array():
  """Equinox modules have functions, names and dtypes as leaves."""
  model = _PARAMS | {"activation": jnp.tanh, "dtype": jnp.float32, "n": 2.0}
  wanted = {"w": True, "activation": False, "dtype": False, "n": False}
  assert bs.matrices(model) == wanted
  assert tree.select(model, None) == wanted
  seen = bs.round_through(model, 0.5)
  assert seen["activation"] is jnp.tanh
  np.testing.assert_array_equal(seen["w"], np.round(_PARAMS["w"] / 0.5) * 0.5)
