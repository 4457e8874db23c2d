"""Without branches and loops a function computes the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import straight


def _function(x, updates, tree):
  @jax.checkpoint
  def layer(x, weight):
    branch = jax.lax.cond(jnp.sum(x) > 0, jnp.sin, lambda x: -x, x @ weight)
    return jax.nn.relu(branch), jnp.sum(branch)

  def loss(weights):
    y, sums = jax.lax.scan(layer, x, weights)
    _, back = jax.lax.scan(layer, x, weights, reverse=True)
    return jnp.sum(y**2), sums + back

  (value, sums), grads = jax.value_and_grad(loss, has_aux=True)(tree["weights"])
  chosen = jax.lax.switch(
    updates % 3, [lambda: 0.0, lambda: value, lambda: 2 * value]
  )
  count = jax.lax.fori_loop(0, 5, lambda i, n: n + i, updates)
  return {"grads": grads, "rest": (sums, chosen, count, tree["bias"])}


def _names(jaxpr):
  for equation in jaxpr.eqns:
    yield equation.primitive.name
    for inner in jax.tree.leaves(
      list(equation.params.values()),
      is_leaf=lambda x: isinstance(x, jax.extend.core.ClosedJaxpr),
    ):
      if isinstance(inner, jax.extend.core.ClosedJaxpr):
        yield from _names(inner.jaxpr)


@pytest.mark.parametrize("updates", [0, 1, 5])
def test_the_results_are_the_same(updates):
  keys = jax.random.split(jax.random.key(0), 2)
  x = jax.random.normal(keys[0], (4, 8))
  tree = {"weights": jax.random.normal(keys[1], (3, 8, 8)), "bias": jnp.ones(2)}
  wanted = jax.jit(_function)(x, updates, tree)
  run = straight.straight(_function)
  found = jax.jit(run)(x, updates, tree)
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert a.dtype == b.dtype
  before, after = (
    set(_names(jax.make_jaxpr(f)(x, updates, tree).jaxpr))
    for f in (_function, run)
  )
  assert before >= {"cond", "scan"}
  assert "cond" not in after
  # Only the loop over a number is left.
  assert "while" in after or "scan" in after


def test_a_choice_by_platform_stays_one():
  def function(x):
    return jax.lax.platform_dependent(x, cpu=jnp.sin, default=lambda x: 1 / x)

  run = jax.jit(straight.straight(function))
  assert "divide" not in run.lower(2.0).as_text()
  assert run(2.0) == pytest.approx(np.sin(2.0), rel=1e-6)
