"""A fine-tune as the difference from its base."""

import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import backslash_jax as bs

KEY = jax.random.key(0)
BASE = {
  "kernel": jax.random.normal(KEY, (16, 8)),
  "half": jax.random.normal(KEY, (8, 8)).astype(jnp.bfloat16),
  "bias": jnp.linspace(-1.0, 1.0, 8),
}
DTYPES = (
  np.float32,
  np.float16,
  ml_dtypes.bfloat16,
  np.float64,
  ml_dtypes.float8_e4m3fn,
)


def _loss(params):
  hidden = jnp.tanh(params["kernel"] @ params["half"].astype(jnp.float32))
  return jnp.mean(jnp.square(hidden - params["bias"][None]))


def test_training_starts_at_the_base_in_float32():
  delta = bs.delta(BASE)
  assert {x.dtype for x in delta.values()} == {jnp.dtype(jnp.float32)}
  assert not any(np.any(x) for x in delta.values())
  found = bs.apply_delta(BASE, delta)
  jax.tree.map(np.testing.assert_array_equal, found, BASE)
  assert found["half"].dtype == jnp.bfloat16


def test_training_the_difference_is_training_the_weights():
  tx = optax.adam(1e-2)
  base = {"kernel": BASE["kernel"], "half": BASE["kernel"][:8], **BASE}
  base["half"] = base["half"].astype(jnp.float32)

  @jax.jit
  def of_delta(delta, state, base):
    grads = jax.grad(lambda d: _loss(bs.apply_delta(base, d)))(delta)
    updates, state = tx.update(grads, state, delta)
    return optax.apply_updates(delta, updates), state

  @jax.jit
  def of_weights(params, state):
    updates, state = tx.update(jax.grad(_loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  delta, params = bs.delta(base), base
  states = [tx.init(delta), tx.init(params)]
  for _ in range(5):
    delta, states[0] = of_delta(delta, states[0], base)
    params, states[1] = of_weights(params, states[1])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    bs.apply_delta(base, delta),
    params,
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    bs.delta(params, base),
    delta,
  )


def test_an_unchanged_weight_costs_nothing_and_the_base_is_not_priced():
  delta = bs.delta(BASE)
  tx = bs.backslash(1.0, shape=1.0, mask=None)
  zeros = jax.tree.map(jnp.zeros_like, delta)
  pulls, state = tx.update(zeros, tx.init(delta), delta)
  assert not any(np.any(x) for x in pulls.values())
  assert optax.tree.get(state, "bits") == 0


def test_the_base_is_an_argument_of_the_program():
  def step(delta, base):
    return jax.grad(lambda d: _loss(bs.apply_delta(base, d)))(delta)

  assert not jax.make_jaxpr(step)(bs.delta(BASE), BASE).consts


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_the_difference_is_sharded_like_the_base(kind):
  mesh = jax.make_mesh((8,), ("x",), (kind,))
  split = NamedSharding(mesh, PartitionSpec("x"))
  base = jax.device_put(BASE, split)
  delta = bs.delta(base)
  for found in (delta, bs.apply_delta(base, delta), bs.delta(base, base)):
    for x in found.values():
      assert x.sharding.is_equivalent_to(split, x.ndim)


def test_the_state_of_a_module():
  model = nnx.Linear(4, 3, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  graphdef, params = nnx.split(model)
  # Plain arrays: `params` shares its variables with the model.
  base = nnx.to_pure_dict(params)
  nnx.update(model, bs.delta(params))
  optimizer = nnx.Optimizer(
    model, optax.chain(bs.backslash(0.01), optax.adam(0.1)), wrt=nnx.Param
  )

  @nnx.jit
  def train_step(model, optimizer, base):
    def loss(model):
      whole = nnx.merge(graphdef, bs.apply_delta(base, nnx.state(model)))
      return jnp.mean(jnp.square(whole(jnp.ones([2, 4])) - 3.0))

    value, grads = nnx.value_and_grad(loss)(model)
    optimizer.update(model, grads)
    return value

  losses = [train_step(model, optimizer, base) for _ in range(20)]
  assert losses[-1] < 0.5 * losses[0]
  assert base["kernel"].dtype == jnp.bfloat16
  tuned = bs.apply_delta(base, nnx.state(model))
  assert tuned["kernel"][...].dtype == jnp.bfloat16
  assert nnx.state(model)["kernel"][...].dtype == jnp.float32


def test_what_the_base_lacks_is_itself():
  head = {"head": jnp.ones([8, 2], jnp.bfloat16)}
  delta = bs.delta(BASE | head, BASE)
  assert delta["head"] is head["head"]
  found = bs.apply_delta(BASE, delta)
  jax.tree.map(np.testing.assert_array_equal, found, BASE | head)


def test_another_base_is_refused_by_name():
  other = BASE | {"bias": jnp.zeros(9)}
  for call in (bs.delta, lambda x, base: bs.apply_delta(base, x)):
    with pytest.raises(ValueError, match=r"'bias' has the shape \(8,\), in"):
      call(BASE, other)
    with pytest.raises(ValueError, match="the base has no tensor 'bias', nor"):
      call(BASE, {"b/kernel": BASE["kernel"]})


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
  base=st.sampled_from([d for d in DTYPES if d is not np.float64]),
  scale=st.sampled_from([1e-4, 1e-2, 1.0, 300.0]),
  seed=st.integers(0, 2**16),
)
def test_xla_adds_the_same_bits_as_numpy(base, scale, seed):
  rng = np.random.default_rng(seed)
  base = {"x": rng.normal(size=64).astype(base)}
  delta = {"x": (scale * rng.normal(size=64)).astype(np.float32)}
  with np.errstate(over="ignore"):
    here = bs.apply_delta(base, delta)["x"]
  there = jax.jit(bs.apply_delta)(base, delta)["x"]
  assert here.dtype == there.dtype == base["x"].dtype
  np.testing.assert_array_equal(
    here.astype(np.float32), np.asarray(there).astype(np.float32)
  )
