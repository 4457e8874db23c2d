"""Steps that are chosen while training runs, and the loss that sees them."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import backslash_jax as bs
from backslash_jax import meter, rounding, structure, tree

PARAMS = {
  "a": {"kernel": 0.3 * jax.random.normal(jax.random.key(0), (64, 96))},
  "b": [0.02 * jax.random.laplace(jax.random.key(1), (32, 128))],
  "bias": jnp.ones(7),
  "count": jnp.arange(6).reshape(2, 3),
}
NAMES = ["a/kernel", "b/0"]
pytestmark = pytest.mark.filterwarnings(
  "ignore:backslash fits quantization steps"
)


def _fit(bits, *, begin, **options):
  return bs.backslash(step=bs.fit_steps(bits, begin=begin), **options)


def _gradients(a=1.0, b=1.0):
  """Of so large root mean squares."""
  found = jax.tree.map(
    lambda x: jax.random.normal(jax.random.key(2), x.shape), PARAMS
  )
  found["a"]["kernel"] *= a
  found["b"][0] *= b
  return found


def _run(tx, updates, gradients=None, params=PARAMS):
  """The state after so many updates."""
  state = tx.init(params)
  update = jax.jit(tx.update)
  for _ in range(updates):
    _, state = update(gradients or _gradients(), state, params)
  return state


def _steps(state):
  return {n: float(s) for n, s in optax.tree.get(state, "steps").items()}


@pytest.mark.parametrize("bits", [0.7, 2.0, 5.0])
def test_the_leaves_take_the_bits_that_are_asked_for(bits):
  steps = _steps(_run(_fit(bits, begin=1), 1))
  assert list(steps) == NAMES
  leaves = [PARAMS["a"]["kernel"], PARAMS["b"][0]]
  found = meter.bits_per_parameter(leaves, jnp.array(list(steps.values())))
  np.testing.assert_allclose(found, bits, rtol=1e-3)


def test_they_are_chosen_once_and_are_zero_before():
  tx = _fit(2.0, begin=3)
  assert set(_steps(_run(tx, 2)).values()) == {0.0}
  chosen = _run(tx, 3)
  other = jax.tree.map(lambda x: 2 * x, PARAMS)
  _, later = tx.update(_gradients(9.0), chosen, other)
  assert _steps(later) == _steps(chosen)
  assert min(_steps(chosen).values()) > 0


def test_a_matrix_of_larger_gradients_has_a_finer_step():
  steps = _steps(_run(_fit(4.0, begin=2), 2, _gradients(6.0, 2.0)))
  ratio = steps["b/0"] / steps["a/kernel"]
  weights = [PARAMS["a"]["kernel"] ** 2, PARAMS["b"][0] ** 2]
  expected = jnp.sqrt(
    jnp.average(_gradients(6.0)["a"]["kernel"] ** 2, weights=weights[0])
    / jnp.average(_gradients(1.0, 2.0)["b"][0] ** 2, weights=weights[1])
  )
  np.testing.assert_allclose(ratio, expected, rtol=1e-4)


def test_weights_near_zero_do_not_count():
  """Another row of zeros, of the largest gradients, changes no step."""
  steps = _steps(_run(_fit(2.0, begin=1), 1))
  kernel = PARAMS["a"]["kernel"]
  params = PARAMS | {"a": {"kernel": jnp.pad(kernel, ((0, 1), (0, 0)))}}
  gradients = _gradients()
  gradients["a"]["kernel"] = jnp.pad(
    gradients["a"]["kernel"], ((0, 1), (0, 0)), constant_values=100.0
  )
  padded = _steps(_run(_fit(2.0, begin=1), 1, gradients, params))
  assert padded == pytest.approx(steps, rel=0.03)


def test_a_leaf_of_zeros_has_a_step_that_others_could_have():
  params = {"zeros": jnp.zeros((8, 8)), "x": jnp.eye(8)}
  ones = jax.tree.map(jnp.ones_like, params)
  steps = _steps(_run(_fit(0.5, begin=1), 1, ones, params))
  assert 0 < steps["zeros"] < 100


def test_updates_pass_and_the_state_keeps_its_types():
  tx = optax.chain(_fit(2.0, begin=1), optax.scale(1.0))
  state = tx.init(PARAMS)
  updates, new = jax.jit(tx.update)(_gradients(), state, PARAMS)
  jax.tree.map(np.testing.assert_array_equal, updates, _gradients())
  assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
  assert jax.tree.map(lambda x: x.dtype, new) == jax.tree.map(
    lambda x: x.dtype, state
  )
  tx.init({})
  _fit(2.0, begin=1).update({}, tx.init({})[0], {})


def test_it_works_under_inject_hyperparams():
  make = optax.inject_hyperparams(bs.recommended, static_args=("mask", "limit"))
  injected = _steps(_run(make(2.0, begin=2, limit=0), 2))
  assert injected == pytest.approx(_steps(_run(_fit(2.0, begin=2), 2)))


def test_the_file_holds_what_the_loss_saw(tmp_path):
  steps = optax.tree.get(_run(_fit(2.0, begin=1), 1), "steps")
  seen = jax.jit(bs.round_through)(PARAMS, steps)
  bs.save(tmp_path / "m.safetensors", PARAMS, step=steps)
  loaded = bs.load(tmp_path / "m.safetensors")
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), seen, loaded
  )


def test_before_they_are_chosen_the_loss_sees_the_exact_model(tmp_path):
  steps = optax.tree.get(_run(_fit(2.0, begin=9), 1), "steps")
  seen = jax.jit(bs.round_through)(PARAMS, steps)
  jax.tree.map(np.testing.assert_array_equal, seen, PARAMS)
  gradient = jax.grad(
    lambda p: jnp.sum(bs.round_through(p, steps)["a"]["kernel"])
  )({"a": PARAMS["a"], "b": PARAMS["b"]})
  np.testing.assert_array_equal(gradient["a"]["kernel"], 1.0)
  with pytest.raises(ValueError, match=r"'a/kernel': the step is 0; have"):
    bs.save(tmp_path / "m.safetensors", PARAMS, step=steps)


def test_split_leaves_give_the_same_steps():
  mesh = jax.make_mesh((8,), ("fsdp",))
  spec = {
    "a": {"kernel": PartitionSpec("fsdp", None)},
    "b": [PartitionSpec(None, "fsdp")],
    "bias": PartitionSpec(),
    "count": PartitionSpec(),
  }
  sharding = jax.tree.map(
    lambda s: NamedSharding(mesh, s),
    spec,
    is_leaf=lambda s: isinstance(s, PartitionSpec),
  )
  params = jax.device_put(PARAMS, sharding)
  tx = _fit(3.0, begin=1, sharding=sharding)
  split = _steps(_run(tx, 1, _gradients(3.0), params))
  whole = _steps(_run(_fit(3.0, begin=1), 1, _gradients(3.0)))
  # A shard is coded for itself, so that its entropy is a little smaller.
  assert split == pytest.approx(whole, rel=0.05)


def test_it_works_with_nnx():
  model = nnx.Linear(16, 8, rngs=nnx.Rngs(0))
  tx = optax.chain(_fit(2.0, begin=1), optax.sgd(1e-3))
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  x = jax.random.normal(jax.random.key(3), (4, 16))

  def loss_fn(model):
    graphdef, params = nnx.split(model, nnx.Param)
    steps = optax.tree.get(optimizer.opt_state, "steps")
    seen = nnx.merge(graphdef, bs.round_through(params, steps))
    return jnp.sum(jnp.square(seen(x)))

  before = loss_fn(model)
  optimizer.update(model, nnx.grad(loss_fn)(model))
  assert loss_fn(model) < before


@pytest.mark.slow
def test_a_model_trained_for_its_steps_is_better_than_one_rounded_after():
  """Regression on correlated inputs, where errors can make up for others.

  A single problem can go either way: the mean over several is looked at.
  """
  rate = optax.cosine_decay_schedule(3e-2, 600)

  def trained(seed, begin):
    keys = jax.random.split(jax.random.key(seed), 3)
    mixing = jax.random.normal(keys[0], (32, 32))
    x = jax.random.normal(keys[1], (256, 32)) @ mixing / 6
    y = x @ jax.random.normal(keys[2], (32, 8))
    tx = optax.chain(_fit(2.0, begin=begin), optax.adam(rate))

    def loss_fn(params, steps):
      return jnp.mean(jnp.square(x @ bs.round_through(params, steps)["w"] - y))

    def step(carry, _):
      params, state = carry
      gradient = jax.grad(loss_fn)(params, optax.tree.get(state, "steps"))
      updates, state = tx.update(gradient, state, params)
      return (optax.apply_updates(params, updates), state), None

    params = {"w": jnp.zeros((32, 8))}
    start = params, tx.init(params)
    (params, state), _ = jax.lax.scan(step, start, length=600)
    return loss_fn(params, optax.tree.get(state, "steps"))

  def mean(begin):
    losses = jax.jit(jax.vmap(lambda seed: trained(seed, begin)))
    return jnp.mean(losses(jnp.arange(8)))

  assert mean(300) < 0.95 * mean(600)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"bits": 0.0}, r"bits must be in \(0, 16\], found 0.0"),
    ({"bits": float("nan")}, r"bits must be in \(0, 16\], found nan"),
    (
      {"begin": float("nan")},
      "begin must be an update, 1 or later",
    ),
    ({"begin": 0}, r"begin must be an update, 1 or later, found 0"),
  ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    bs.fit_steps(**({"bits": 2.0, "begin": 1} | arguments))


def test_params_are_needed():
  tx = _fit(2.0, begin=1, mask=None)
  with pytest.raises(ValueError, match="backslash needs params"):
    tx.update(PARAMS, tx.init(PARAMS))


def test_names_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="has a step for 'c', which is not in"):
    bs.round_through(PARAMS, {"c": 0.1})
  with pytest.raises(ValueError, match="tensor 'b/0' has no step"):
    bs.round_through(PARAMS, {"a/kernel": 0.1}, mask=["a/*", "b/0"])
  with pytest.raises(ValueError, match=r"of tensor 'a/kernel' is -0\.1"):
    bs.round_through(PARAMS, {"a/kernel": -0.1})


def test_a_fraction_of_the_updates_begins_at_the_next_whole_one():
  assert bs.fit_steps(2.0, begin=10 * 2 / 3).begin == 7


def test_a_gradient_that_is_not_finite_is_left_out():
  tx = _fit(2.0, begin=3)
  wanted = _steps(_run(tx, 3))
  state = tx.init(PARAMS)
  bad = jax.tree.map(lambda x: x * jnp.nan, _gradients())
  for gradients in (_gradients(), bad, _gradients()):
    _, state = tx.update(gradients, state, PARAMS)
  assert _steps(state) == pytest.approx(wanted, rel=1e-5)


def test_the_meter_counts_at_the_steps_that_were_fitted():
  tx = _fit(1.5, begin=2, measure_every=16)
  state = _run(tx, 1)
  before = meter.bits_per_parameter(tree.keep(PARAMS), bs.STEP)
  np.testing.assert_allclose(optax.tree.get(state, "bits"), before, rtol=1e-6)
  state = _run(tx, 2)
  np.testing.assert_allclose(optax.tree.get(state, "bits"), 1.5, rtol=1e-3)


def test_it_warns_where_no_loss_has_been_rounded(monkeypatch):
  monkeypatch.setattr(rounding, "_has_rounded", False)
  tx = _fit(2.0, begin=2)
  with pytest.warns(UserWarning, match="must see bs.round_through"):
    _run(tx, 1)
  jax.eval_shape(bs.round_through, PARAMS, bs.STEP)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    _run(tx, 1)


def test_it_does_not_warn_before_begin_where_nothing_is_traced(monkeypatch):
  monkeypatch.setattr(rounding, "_has_rounded", False)
  tx = _fit(2.0, begin=3)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    state = tx.init(PARAMS)
    for _ in range(2):
      _, state = tx.update(_gradients(), state, PARAMS)
  with pytest.warns(UserWarning, match="must see bs.round_through"):
    tx.update(_gradients(), state, PARAMS)


TX = {
  "alone": (lambda tx: tx, lambda state: state),
  "chain": (lambda tx: optax.chain(tx, optax.adam(0.1)), lambda state: state),
  "multi_transform": (
    lambda tx: optax.multi_transform(
      {"x": optax.chain(tx, optax.adam(0.1)), "y": optax.sgd(0.1)},
      {"a": "x", "b": "x", "bias": "y", "count": "y"},
    ),
    lambda state: state,
  ),
  "multi_steps": (
    lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
    lambda state: state,
  ),
  "apply_if_finite": (lambda tx: optax.apply_if_finite(tx, 3), lambda s: s),
  "dicts": (
    lambda tx: optax.chain(tx, optax.adam(0.1)),
    lambda state: jax.tree.map(np.asarray, _without_types(state)),
  ),
}


def _without_types(node):
  """A state as a checkpoint gives it back that is read without a target."""
  if hasattr(node, "_asdict"):
    return {k: _without_types(v) for k, v in node._asdict().items()}
  if isinstance(node, tuple):
    return [_without_types(child) for child in node]
  return node


@pytest.mark.parametrize("where", TX)
@pytest.mark.parametrize("recipe", ["step", "fitted"])
def test_steps_are_found_wherever_the_state_is(where, recipe, tmp_path):
  tx = _fit(2.0, begin=1) if recipe == "fitted" else bs.backslash(step=0.25)
  wanted = _steps(_run(tx, 1))
  wrap, read = TX[where]
  params = {k: v for k, v in PARAMS.items() if k != "count"}
  labels = where == "multi_transform"
  gradients = {k: _gradients()[k] for k in params}
  wrapped = wrap(tx)
  if labels:
    wrapped = optax.multi_transform(
      {"x": optax.chain(tx, optax.adam(0.1)), "y": optax.sgd(0.1)},
      {"a": "x", "b": "x", "bias": "y"},
    )
  state = read(_run(wrapped, 1, gradients, params))
  found = bs.steps(state)
  assert found == pytest.approx(wanted)
  bs.save(tmp_path / "m.safetensors", params, step=found)
  rounded = bs.round_through(params, found)
  loaded = bs.load(tmp_path / "m.safetensors")
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), rounded, loaded
  )


def test_steps_of_two_transformations_are_joined():
  def tx(step):
    return optax.chain(bs.backslash(step=step), optax.adam(0.1))

  multi = optax.multi_transform(
    {"x": tx(0.5), "y": tx(0.25), "z": optax.sgd(0.1)},
    {"a": "x", "b": "y", "bias": "z", "count": "z"},
  )
  state = multi.init(PARAMS)
  assert bs.steps(state) == {"a/kernel": 0.5, "b/0": 0.25}
  twice = optax.chain(tx(0.5), tx(0.25))
  with pytest.raises(ValueError, match="have a step for 'a/kernel'"):
    bs.steps(twice.init(PARAMS))
  with pytest.raises(ValueError, match=r"no bs\.backslash in this"):
    bs.steps(optax.adam(0.1).init(PARAMS))


def test_steps_that_have_not_begun_say_so():
  state = _run(optax.chain(_fit(2.0, begin=9), optax.adam(0.1)), 4)
  with pytest.raises(ValueError, match=r"in update 9, and .* has seen 4"):
    bs.steps(state)
  with jax.disable_jit():
    assert set(bs.steps(state).values()) == {0.0}


def test_steps_of_an_nnx_optimizer_and_of_its_checkpoint(tmp_path):
  model = nnx.Linear(16, 8, rngs=nnx.Rngs(0))
  tx = optax.chain(_fit(2.0, begin=1), optax.adam(1e-3))
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  optimizer.update(model, nnx.state(model, nnx.Param))
  steps = bs.steps(optimizer.opt_state)
  assert steps.keys() == {"kernel"}
  assert steps["kernel"] > 0
  state = nnx.to_pure_dict(nnx.state(optimizer))
  checkpointer = ocp.StandardCheckpointer()
  checkpointer.save(tmp_path / "c", state)
  checkpointer.wait_until_finished()
  assert bs.steps(checkpointer.restore(tmp_path / "c")) == steps
  assert bs.steps(optimizer) == steps
  checkpointer.save(tmp_path / "d", nnx.state(optimizer))
  checkpointer.wait_until_finished()
  assert bs.steps(checkpointer.restore(tmp_path / "d")) == steps
  checkpointer.close()


def test_state_can_be_mapped_over_its_parameters():
  tx = optax.chain(_fit(2.0, begin=1), optax.adam(0.1))
  state = _run(tx, 1)
  doubled = optax.tree.map_params(tx.init, lambda x: 2 * x, state)
  assert bs.steps(doubled) == bs.steps(state)
  np.testing.assert_allclose(
    doubled[1][0].mu["bias"], 2 * state[1][0].mu["bias"]
  )


def test_the_finest_steps_can_be_saved(tmp_path):
  steps = bs.steps(_run(_fit(16.0, begin=1), 1))
  report = bs.save(tmp_path / "m.safetensors", PARAMS, step=steps)
  assert report.bytes > 0


def test_fitted_steps_stand_beside_pruning_and_cleared_moments():
  params = {k: v for k, v in PARAMS.items() if k != "count"}
  gradients = {k: _gradients()[k] for k in params}
  chain = optax.chain(
    _fit(2.0, begin=1), optax.adam(0.1), structure.gradual_pruning(0.5, 2)
  )
  tx = structure.clear_moments(chain)
  state = _run(tx, 3, gradients, params)
  assert bs.steps(state) == bs.steps(_run(_fit(2.0, begin=1), 1))
