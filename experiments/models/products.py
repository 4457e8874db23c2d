"""Matrix products for XLA on CPUs.

XLA has fast bfloat16 kernels for CPUs, which use the processor's matrix units,
but only for products whose result is float32. So a bfloat16 product is
computed to float32, and so are the two of its gradient, from a gradient that is
rounded to bfloat16. These multiply by transposed matrices, and XLA makes the
transposition part of the product, which is then slow in most programs. A
further axis of size one keeps them apart. experiments.bench.encoder measures
all of them.
"""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.models import partition


def product(a_xTxK: jax.Array, b_xKxN: jax.Array) -> jax.Array:
  """Of two matrices of one dtype, or stacks of them: float32 [..., T, N]."""
  function = _product if _is_for_cpu(a_xTxK) else _matmul
  return function(a_xTxK, b_xKxN)


def by_transposed(a_xTxK: jax.Array, b_xNxK: jax.Array) -> jax.Array:
  """`product` of a and the transposed b, float32 [..., T, N]."""
  return product(_apart(a_xTxK), _apart(b_xNxK).mT)[..., 0, :, :]


def of_transposed(a_xTxK: jax.Array, b_xTxN: jax.Array) -> jax.Array:
  """`product` of the transposed a and b, float32 [..., K, N]."""
  a, b = _apart(a_xTxK), _apart(b_xTxN)
  # To transpose the smaller of the two costs less.
  if a.shape[-1] <= b.shape[-1]:
    return product(a.mT, b)[..., 0, :, :]
  return product(b.mT, a).mT[..., 0, :, :]


def dot_general(
  x: jax.Array, kernel_KxN: jax.Array, dimension_numbers: Any, **options: Any
) -> jax.Array:
  """`jax.lax.dot_general` of a linear layer; on CPUs bfloat16 gives float32."""
  if _is_for_cpu(x):
    y_RxN = _product(x.reshape(-1, x.shape[-1]), kernel_KxN)
    return y_RxN.reshape(*x.shape[:-1], -1)
  return jax.lax.dot_general(x, kernel_KxN, dimension_numbers, **options)


def _is_for_cpu(a):
  return a.dtype == jnp.bfloat16 and partition.platform() == "cpu"


def _apart(a):
  return a[..., None, :, :]


def _matmul(a, b):
  return jnp.matmul(a, b, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _product(a, b):
  return _matmul(a, b)


def _forward(a, b):
  return _matmul(a, b), (a, b)


def _backward(kept, gradient):
  a, b = kept
  gradient = gradient.astype(a.dtype)
  gradient_a = by_transposed(gradient, b).astype(a.dtype)
  return gradient_a, of_transposed(a, gradient).astype(b.dtype)


_product.defvjp(_forward, _backward)
