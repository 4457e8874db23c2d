"""The products of linear layers, for XLA on CPUs.

XLA has fast bfloat16 kernels for CPUs, which use the processor's matrix units,
but only for products whose result is float32. So a bfloat16 product is
computed to float32, and then rounded: forward, and for the gradient of the
input. The gradient of the kernel, which sums over the examples, has no such
kernel. experiments.bench.encoder measures all of them.
"""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.models import partition


@jax.custom_vjp
def product(x: jax.Array, kernel_KxN: jax.Array) -> jax.Array:
  """x [..., K] times a kernel: [..., N] in the dtype of x, sums in float32."""
  y = jnp.matmul(x, kernel_KxN, preferred_element_type=jnp.float32)
  return y.astype(x.dtype)


def _forward(x, kernel_KxN):
  return product(x, kernel_KxN), (x, kernel_KxN)


def _backward(kept, gradient):
  x, kernel_KxN = kept
  rows, columns = kernel_KxN.shape
  gradient_x = product(gradient, kernel_KxN.T)
  flat_RxK, flat_RxN = x.reshape(-1, rows), gradient.reshape(-1, columns)
  return gradient_x, product(flat_RxK.T, flat_RxN)


product.defvjp(_forward, _backward)


def dot_general(
  x: jax.Array, kernel_KxN: jax.Array, dimension_numbers: Any, **options: Any
) -> jax.Array:
  """`jax.lax.dot_general` of a linear layer, through `product` on CPUs."""
  if x.dtype == jnp.bfloat16 and partition.platform() == "cpu":
    return product(x, kernel_KxN)
  return jax.lax.dot_general(x, kernel_KxN, dimension_numbers, **options)
