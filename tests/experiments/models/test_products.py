"""The products of linear layers on CPUs."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.models import products


def _loss(dot_general, x, kernel):
  numbers = ((x.ndim - 1,), (0,)), ((), ())
  y = dot_general(x, kernel, numbers)
  assert y.dtype == x.dtype
  return jnp.sum(jnp.sin(y.astype(jnp.float32)))


def test_products_and_their_gradients_are_those_of_jax():
  x = jax.random.normal(jax.random.key(0), (2, 3, 8), jnp.bfloat16)
  kernel = jax.random.normal(jax.random.key(1), (8, 4), jnp.bfloat16)
  found, wanted = (
    jax.value_and_grad(_loss, argnums=(1, 2))(function, x, kernel)
    for function in (products.dot_general, jax.lax.dot_general)
  )
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    assert a.dtype == b.dtype
    a, b = (np.asarray(v, np.float32) for v in (a, b))
    np.testing.assert_allclose(a, b, rtol=2**-7, atol=2**-7)


def test_every_product_of_a_bfloat16_layer_sums_to_float32():
  x, kernel = jnp.ones([2, 8], jnp.bfloat16), jnp.ones([8, 4], jnp.bfloat16)
  gradient = jax.grad(_loss, argnums=(1, 2))
  program = str(jax.make_jaxpr(gradient, 0)(products.dot_general, x, kernel))
  assert program.count("dot_general[") == 3
  assert program.count("preferred_element_type=float32") == 3
