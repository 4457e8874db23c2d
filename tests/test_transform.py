"""backslash: its gradient, and the whole contract of an optax factory."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import backslash_jax as bs
from backslash_jax import control, fitting, rate

pytestmark = pytest.mark.filterwarnings(
  "ignore:backslash fits quantization steps"
)
KEY = jax.random.key(0)
PARAMS = {
  "dense": {
    "kernel": jax.random.normal(KEY, (40, 30)) * 0.05,
    "bias": jnp.zeros(30),
  },
  "out": (jax.random.laplace(KEY, (30, 10)) * 0.2, jnp.ones(10)),
}
VARIANTS = {
  "paper": {"mask": None},
  "fitted": {"step": bs.fit_steps(3.0, begin=2)},
  "tensor": {"scope": "tensor"},
  "bits": {"rate": "bits"},
  "bits_tensor": {"rate": "bits", "scope": "tensor"},
  "l0.5": {"shape": 0.5},
  "l1": {"shape": 1.0},
  "l2": {"shape": 2.0},
  "every3": {"update_every": 3, "measure_every": 1},
  "patterns": {"mask": "*"},
}
LAMBDAS = {
  "value": 1e-2,
  "schedule": optax.linear_schedule(0.0, 1e-2, 10),
  "balance": bs.gradient_balance(0.1),
  "target": bs.target_rate(3.0),
}
variants = pytest.mark.parametrize("name", VARIANTS)


def _zeros(params):
  return jax.tree.map(jnp.zeros_like, params)


def _random_like(params, scale=1e-3):
  return jax.tree.map(
    lambda x: scale * jax.random.normal(KEY, x.shape, x.dtype), params
  )


def _update(tx, params, updates=None):
  """One jitted update of zeros, or of `updates`, from the initial state."""
  updates = _zeros(params) if updates is None else updates
  return jax.jit(tx.update)(updates, tx.init(params), params)


def test_the_paper_s_formula():
  lmbda, eps = 7.0, bs.STEP / 2
  tx = bs.backslash(lmbda, mask=None)
  updates, state = _update(tx, PARAMS)
  x = np.concatenate([np.ravel(p) for p in jax.tree.leaves(PARAMS)])
  nu = float(optax.tree.get(state, "rate_shape"))
  ratio = np.mean(x**2) / np.mean(np.abs(x)) ** 2
  np.testing.assert_allclose(bs.ggd.moment_ratio(nu), ratio, rtol=1e-4)
  gradient = lmbda * nu / x.size * np.sign(x) * (np.abs(x) + eps) ** (nu - 1)
  got = np.concatenate([np.ravel(u) for u in jax.tree.leaves(updates)])
  np.testing.assert_allclose(got, gradient, rtol=2e-4)


@pytest.mark.parametrize(
  ("arguments", "period"),
  [
    ({"update_every": 3}, 3),
    ({"update_every": 2, "shape": 1.0}, 4),  # Nobody pays for the estimate.
    ({"update_every": 1, "shape": 1.0, "rate": "bits"}, 1),  # Alpha is paid.
    ({}, 4),
  ],
)
def test_nu_is_estimated_as_often_as_it_is_needed(arguments, period):
  tx = bs.backslash(1.0, measure_every=4, **arguments)
  x = PARAMS["out"][0]
  state, update, found = tx.init(x), jax.jit(tx.update), []
  for i in range(5):
    _, state = update(x, state, jnp.sign(x) * jnp.abs(x) ** (1 + i))
    found.append(float(optax.tree.get(state, "rate_shape")))
  changes = [0] + [i for i in range(1, 5) if found[i] != found[i - 1]]
  assert changes == list(range(0, 5, period))


@pytest.mark.parametrize("arguments", [{}, {"shape": 1.0}])
def test_an_update_in_place_copies_no_parameters(arguments):
  tx = optax.chain(bs.backslash(1.0, **arguments), optax.sgd(0.1))

  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  x = jax.ShapeDtypeStruct((4096, 8192), jnp.float32)
  step = jax.jit(step, donate_argnums=(0, 1))
  compiled = step.lower(x, jax.eval_shape(tx.init, x), x).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 4 * x.size


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_there_may_be_more_parameters_than_an_int32_counts(name):
  tree = {
    "a": jax.ShapeDtypeStruct((2**16, 2**16), jnp.bfloat16),
    "b": jax.ShapeDtypeStruct((2**16, 2**15), jnp.bfloat16),
  }
  tx = bs.backslash(bs.target_rate(2.0), **VARIANTS[name])
  state = jax.eval_shape(tx.init, tree)
  updates, _ = jax.eval_shape(tx.update, tree, state, tree)
  assert updates == tree


def test_a_mask_is_not_priced_and_does_not_count():
  tx = bs.backslash(1.0, shape=1.0)
  updates, _ = _update(tx, PARAMS)
  assert not np.any(updates["dense"]["bias"])
  n = PARAMS["dense"]["kernel"].size + PARAMS["out"][0].size
  np.testing.assert_allclose(np.abs(updates["dense"]["kernel"]), 1 / n)


@pytest.mark.parametrize("lmbda", LAMBDAS)
@variants
def test_state_keeps_its_shapes_dtypes_and_weak_types(name, lmbda):
  tx = bs.backslash(LAMBDAS[lmbda], **VARIANTS[name])
  state = tx.init(PARAMS)
  _, new = jax.eval_shape(tx.update, _random_like(PARAMS), state, PARAMS)

  def describe(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)

  assert describe(state) == describe(new)


@variants
def test_no_recompilation_and_extra_arguments_are_ignored(name):
  tx = bs.backslash(1e-2, **VARIANTS[name])
  grads = _random_like(PARAMS)

  @jax.jit
  def update(grads, state, params):
    return tx.update(grads, state, params, value=1.0, unheard_of=2)

  state = tx.init(PARAMS)
  for _ in range(3):
    updates, state = update(grads, state, PARAMS)
  assert update._cache_size() == 1
  assert int(optax.tree.get(state, "rate_count")) == 3
  chex.assert_trees_all_equal_shapes_and_dtypes(updates, PARAMS)
  assert 1 < float(optax.tree.get(state, "bits")) < 16


def test_updates_have_the_dtype_of_the_parameters():
  dtypes = [jnp.bfloat16, jnp.float16, jnp.float32]
  params = {d.__name__: PARAMS["out"][0].astype(d) for d in dtypes}
  tx = bs.backslash(1e-2, rate="bits", scope="tensor")
  updates, _ = _update(tx, params)
  chex.assert_trees_all_equal_dtypes(updates, params)


def _descend(tx, params, loss, steps):
  @jax.jit
  def run(params):
    def body(carry, _):
      params, state = carry
      updates, state = tx.update(jax.grad(loss)(params), state, params)
      return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(body, (params, tx.init(params)), length=steps)[0][0]

  return run(params)


def _parabola(x):
  return jnp.sum(jnp.square(x - jnp.array([1.0, -2.0])))


def _rosenbrock(x):
  return jnp.square(1 - x[0]) + 100 * jnp.square(x[1] - jnp.square(x[0]))


@pytest.mark.parametrize(
  ("loss", "optimum"), [(_parabola, [1.0, -2.0]), (_rosenbrock, [1.0, 1.0])]
)
def test_converges_inside_scan_without_a_price(loss, optimum):
  tx = optax.chain(bs.backslash(0.0, mask=None), optax.adam(0.05))
  got = _descend(tx, jnp.array([0.3, 0.4]), loss, 3000)
  np.testing.assert_allclose(got, optimum, atol=2e-2)


def test_converges_to_the_shrunk_optimum_with_a_price():
  # d/dx: 2 (x - c) + lmbda / 2 sign(x) = 0 for L1 over two parameters.
  tx = optax.chain(bs.backslash(0.8, shape=1, mask=None), optax.sgd(0.1))
  got = _descend(tx, jnp.array([0.3, 0.4]), _parabola, 300)
  np.testing.assert_allclose(got, [1 - 0.2, -2 + 0.2], atol=1e-4)


def test_works_under_inject_hyperparams():
  tx = optax.inject_hyperparams(bs.backslash)(lmbda=lambda count: 2.0 * count)
  state = tx.init(PARAMS)
  for _ in range(3):
    _, state = jax.jit(tx.update)(_zeros(PARAMS), state, PARAMS)
  assert float(optax.tree.get(state.inner_state, "lmbda")) == 4.0


def test_multi_steps_gives_a_zero_update_in_mid_cycle():
  tx = optax.chain(bs.backslash(1e-2), optax.sgd(1.0))
  multi = optax.MultiSteps(tx, 2).gradient_transformation()
  state = multi.init(PARAMS)
  first, state = jax.jit(multi.update)(_zeros(PARAMS), state, PARAMS)
  second, state = jax.jit(multi.update)(_zeros(PARAMS), state, PARAMS)
  assert not any(np.any(u) for u in jax.tree.leaves(first))
  assert any(np.any(u) for u in jax.tree.leaves(second))


def test_old_and_new_state_are_interchangeable_in_cond():
  tx = bs.backslash(bs.target_rate(3.0), scope="tensor", update_every=2)

  @jax.jit
  def update(state, keep):
    _, new = tx.update(_zeros(PARAMS), state, PARAMS)
    return jax.lax.cond(keep, lambda: state, lambda: new)

  update(tx.init(PARAMS), True)


@pytest.mark.parametrize("params", [{}, {"count": jnp.arange(3)}, ()])
def test_trees_without_a_priced_leaf(params):
  tx = bs.backslash(1.0, scope="tensor")
  updates, state = tx.update(params, tx.init(params), params)
  chex.assert_trees_all_equal(updates, params)
  assert int(state.rate_count) == 1


def test_masked_leaves_masked_nodes():
  tx = bs.backslash(1.0)
  inner = optax.masked(tx, {"dense": True, "out": False})
  updates, _ = _update(inner, PARAMS)
  assert np.any(updates["dense"]["kernel"])
  assert not np.any(updates["out"][0])


@pytest.mark.parametrize(
  "optimizer",
  [
    optax.adamw(1e-3),
    optax.sgd(1e-3),
    optax.lion(1e-4),
    optax.adafactor(1e-3),
    optax.contrib.muon(1e-3),
  ],
  ids=["adamw", "sgd", "lion", "adafactor", "muon"],
)
def test_in_front_of_the_usual_optimizers(optimizer):
  tx = optax.chain(bs.backslash(10.0), optimizer)
  updates, state = _update(tx, PARAMS, _random_like(PARAMS))
  chex.assert_tree_all_finite(optax.apply_updates(PARAMS, updates))
  assert float(optax.tree.get(state, "bits")) > 0


def test_inside_multi_transform_and_apply_if_finite():
  tx = optax.multi_transform(
    {"a": optax.chain(bs.backslash(1.0), optax.sgd(1.0)), "b": optax.sgd(1.0)},
    {"dense": "a", "out": "b"},
  )
  tx = optax.apply_if_finite(tx, 3)
  state = tx.init(PARAMS)
  updates, state = jax.jit(tx.update)(_zeros(PARAMS), state, PARAMS)
  assert np.any(updates["dense"]["kernel"])
  assert not np.any(updates["out"][0])
  nan = jax.tree.map(lambda x: x * jnp.nan, PARAMS)
  updates, state = jax.jit(tx.update)(nan, state, PARAMS)
  assert not any(np.any(u) for u in jax.tree.leaves(updates))


def test_under_nnx_optimizer():
  model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
  link = bs.backslash(1.0, shape=1)
  tx = optax.chain(link, optax.sgd(0.1))
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  before = np.asarray(model.kernel[...])
  grads = nnx.grad(lambda m: jnp.sum(0.0 * m(jnp.ones((2, 4)))))(model)
  optimizer.update(model, grads)
  after = np.asarray(model.kernel[...])
  assert np.all(np.abs(after) < np.abs(before))
  np.testing.assert_array_equal(model.bias[...], 0.0)


def test_nan_in_a_parameter_is_not_hidden():
  params = {"a": jnp.array([1.0, jnp.nan])}
  tx = bs.backslash(1.0, mask=None)
  _, state = _update(tx, params)
  assert np.isnan(state.bits)


def test_params_are_needed():
  tx = bs.backslash(1.0)
  with pytest.raises(ValueError, match="needs params"):
    tx.update(_zeros(PARAMS), tx.init(PARAMS))


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"lmbda": -1.0}, "lmbda must be a non-negative"),
    ({"lmbda": float("nan")}, "lmbda must be a non-negative"),
    ({"lmbda": "1e3"}, "lmbda must be a non-negative"),
    ({"rate": "l1"}, "rate must be one of dggr, bits"),
    ({"scope": "layer"}, "scope must be one of"),
    ({"shape": 0.0}, "shape must be None or in [0.1, 8.0]"),
    ({"step": 0.0}, "the step is 0.0: it must be positive"),
    ({"epsilon": -1e-3}, "epsilon must be None or non-negative"),
    ({"update_every": 0}, "update_every must be a positive integer"),
    ({"measure_every": 1.5}, "measure_every must be a positive integer"),
  ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    bs.backslash(**{"lmbda": 1.0, **arguments})


FIELDS = ("rate_count", "lmbda", "rate_shape", "rate_scale", "bits", "steps")


@pytest.mark.parametrize("step", [0.1, bs.fit_steps(2.0, begin=1)])
def test_every_field_is_read_beside_adam_and_parameters_of_any_name(step):
  """No field has the name of a field of optax, or of usual parameters."""
  kernel = PARAMS["dense"]["kernel"]
  params = {
    name: {"kernel": kernel, "scale": jnp.ones(3), "bias": jnp.ones(3)}
    for name in ("count", "shape", "scale", "step", "mu", "nu", "error")
  }
  link = bs.backslash(bs.target_rate(2.0), step=step)
  tx = optax.chain(optax.clip_by_global_norm(1.0), link, optax.adamw(1e-3))
  _, state = _update(tx, params)
  found = {name: optax.tree.get(state, name) for name in FIELDS}
  assert found["rate_count"] == 1
  assert found["steps"].keys() == {f"{name}/kernel" for name in params}
  for name in control.TargetState._fields:
    assert optax.tree.get(state, name) is not None
  if not isinstance(step, float):
    for name in fitting.FitState._fields:
      assert optax.tree.get(state, name) is not None


def test_two_transformations_are_told_apart():
  def tx(step):
    return optax.chain(bs.backslash(1.0, step=step), optax.adam(1e-3))

  multi = optax.multi_transform(
    {"x": tx(0.1), "y": tx(0.01)}, {"dense": "x", "out": "y"}
  )
  _, state = _update(multi, PARAMS)

  def bits(label):
    return optax.tree.get(
      state,
      "bits",
      filtering=lambda path, _: f"'{label}'" in jax.tree_util.keystr(path),
    )

  assert bits("y") > bits("x") + 1


def test_state_may_be_donated():
  for link in (
    bs.recommended(2.0),
    bs.recommended(2.0, begin=1),
    bs.backslash(bs.gradient_balance(0.1)),
  ):
    tx = optax.chain(link, optax.adam(1e-3))
    state = tx.init(PARAMS)
    update = jax.jit(tx.update, donate_argnums=1)
    for _ in range(2):
      _, state = update(_zeros(PARAMS), state, PARAMS)


@pytest.mark.parametrize("name", VARIANTS)
def test_it_runs_with_64_bits(name):
  with jax.enable_x64(True):
    for lmbda in LAMBDAS.values():
      tx = bs.backslash(lmbda, **VARIANTS[name])
      for dtype in (jnp.float32, jnp.float64):
        params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)  # noqa: B023
        state = tx.init(params)
        grads = _random_like(params)
        updates, new = jax.eval_shape(tx.update, grads, state, params)
        assert [u.dtype for u in jax.tree.leaves(updates)] == [dtype] * 4
        kinds = [x.dtype for x in jax.tree.leaves(state)]
        assert [x.dtype for x in jax.tree.leaves(new)] == kinds


def test_numbers_of_numpy_are_numbers():
  tx = bs.backslash(
    np.float32(1.0), shape=np.float64(1.0), step=np.float32(0.5)
  )
  assert bs.steps(tx.init(PARAMS))["dense/kernel"] == 0.5


def test_targets_may_differ_under_vmap():
  def bits_after(bits):
    tx = bs.recommended(bits)
    _, state = tx.update(_zeros(PARAMS), tx.init(PARAMS), PARAMS)
    return optax.tree.get(state, "log_error")

  found = jax.vmap(bits_after)(jnp.array([1.0, 2.0]))
  np.testing.assert_allclose(found[0] - found[1], np.log(2), rtol=1e-4)


def test_a_rate_may_be_an_object():
  ridge = rate.Rate(
    "ridge",
    value=lambda x, nu, alpha, epsilon, step: jnp.sum(x * x),
    gradient=lambda x, nu, alpha, epsilon: 2 * x,
    is_learned=False,
  )
  updates, _ = _update(bs.backslash(1.0, rate=ridge, shape=2.0), PARAMS)
  kernel = PARAMS["dense"]["kernel"]
  size = kernel.size + PARAMS["out"][0].size
  np.testing.assert_allclose(
    updates["dense"]["kernel"], 2 * kernel / size, rtol=1e-5
  )


def test_the_number_zero_changes_no_update_and_measures():
  tx = bs.backslash()
  updates, state = _update(tx, PARAMS, PARAMS)
  chex.assert_trees_all_equal(updates, PARAMS)
  assert optax.tree.get(state, "bits") > 1


@pytest.mark.parametrize("size", [1e-24, 1e15])
@pytest.mark.parametrize("name", ["tensor", "bits_tensor", "bits"])
def test_weights_of_any_size_get_finite_updates(name, size):
  params = jax.tree.map(lambda x: x * size, PARAMS)
  tx = bs.backslash(1e-2, **VARIANTS[name])
  updates, state = _update(tx, params)
  chex.assert_tree_all_finite((updates, state))


@pytest.mark.parametrize(
  "lmbda", [bs.gradient_balance(0.1), bs.target_rate(2.0)]
)
def test_a_controller_keeps_huge_weights_finite(lmbda):
  """The weight 0 of a gradient of infinity gave nan."""
  params = {"w": jnp.full((4, 4), 1e15, jnp.float32)}
  tx = bs.backslash(lmbda)
  updates, state = tx.update(params, tx.init(params), params)
  chex.assert_tree_all_finite((updates, state))


def test_a_step_far_below_the_weights_gives_finite_updates():
  tx = bs.backslash(1.0, rate="bits", scope="tensor", step=2**-16, mask=None)
  updates, state = _update(tx, {"w": jnp.ones((4, 4)), "b": jnp.zeros(4)})
  chex.assert_tree_all_finite((updates, state))
