"""Matrix products on CPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.models import layers, products

# The names, and the shapes of two factors.
_SHAPES = (
  ("product", (5, 8), (8, 3)),
  ("product", (1, 8), (8, 1)),
  ("product", (2, 3, 5, 8), (2, 3, 8, 16)),
  ("by_transposed", (5, 8), (3, 8)),
  ("by_transposed", (2, 3, 5, 8), (2, 3, 16, 8)),
  ("of_transposed", (5, 8), (5, 3)),
  ("of_transposed", (2, 3, 5, 4), (2, 3, 5, 16)),
)


def _random(shape, dtype, seed):
  return jax.random.normal(jax.random.key(seed), shape, dtype)


def _assert_same(found, wanted, rtol):
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    assert a.dtype == b.dtype
    a, b = (np.asarray(v, np.float32) for v in (a, b))
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


def _reference(name, a, b):
  a, b = (x.astype(jnp.float32) for x in (a, b))
  a = a.mT if name == "of_transposed" else a
  return jnp.matmul(a, b.mT if name == "by_transposed" else b)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("name", "left", "right"), _SHAPES)
def test_products_and_their_gradients_are_those_of_jax(
  name, left, right, dtype
):
  a, b = _random(left, dtype, 0), _random(right, dtype, 1)

  def loss(function, a, b):
    y = function(a, b)
    assert y.dtype == jnp.float32
    return jnp.sum(jnp.sin(y))

  found, wanted = (
    jax.jit(jax.value_and_grad(loss, argnums=(1, 2)), static_argnums=0)(
      function, a, b
    )
    for function in (
      getattr(products, name),
      lambda a, b: _reference(name, a, b),
    )
  )
  _assert_same(found, wanted, 2**-7 if dtype == "bfloat16" else 1e-5)


# What XLA compiles to a kernel, and what not, depends on the sizes.
@pytest.mark.parametrize("outputs", [1, 40, 512])
@pytest.mark.parametrize("inputs", [1, 24, 384])
@pytest.mark.parametrize("rows", [1, 7, 512])
def test_every_size_of_a_bfloat16_layer_runs(rows, inputs, outputs):
  x = _random((rows, inputs), jnp.bfloat16, 0)
  kernel = _random((inputs, outputs), jnp.float32, 1)

  def loss(x, kernel):
    y = products.product(x, kernel.astype(jnp.bfloat16))
    return jnp.sum(y * y) / y.size

  for gradient in jax.jit(jax.grad(loss, argnums=(0, 1)))(x, kernel):
    assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_a_linear_layer_is_rounded_once():
  layer = layers.Linear(8, 4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  layer.bias[...] = _random((4,), jnp.float32, 1)
  x = _random((2, 3, 8), jnp.bfloat16, 0)
  kernel, bias = (
    p[...].astype(jnp.bfloat16).astype(jnp.float32)
    for p in (layer.kernel, layer.bias)
  )
  wanted = (x.astype(jnp.float32) @ kernel + bias[None, None]).astype(
    jnp.bfloat16
  )
  _assert_same(layer(x), wanted, 0.0)


def test_a_linear_layer_and_its_gradients_are_those_of_flax():
  ours, theirs = (
    kind(8, 4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    for kind in (layers.Linear, nnx.Linear)
  )
  x = _random((2, 3, 8), jnp.bfloat16, 0)

  def loss(layer, x):
    y = layer(x)
    assert y.dtype == x.dtype
    return jnp.sum(jnp.sin(y.astype(jnp.float32)))

  found, wanted = (
    nnx.value_and_grad(loss, argnums=(0, 1))(layer, x)
    for layer in (ours, theirs)
  )
  _assert_same(found, wanted, 2**-7)


def test_every_product_of_a_bfloat16_layer_sums_to_float32():
  layer = layers.Linear(8, 4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  graphdef, params = nnx.split(layer)

  def loss(params, x):
    return jnp.sum(nnx.merge(graphdef, params)(x).astype(jnp.float32))

  x = jnp.ones([2, 8], jnp.bfloat16)
  program = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(params, x))
  assert program.count("dot_general[") == 3
  assert program.count("preferred_element_type=float32") == 3
