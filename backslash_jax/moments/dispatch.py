"""Selects the implementation that reduces a tensor."""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp

from backslash_jax.moments import reference

# The module of each, which is imported on first use: Pallas takes longer than
# everything else in this package.
IMPLEMENTATIONS = {
  "xla": "reference",
  "xla_cpu": "xla_cpu",
  "pallas_tpu": "pallas_tpu",
  "pallas_gpu": "pallas_gpu",
}
# The implementations that `implementation=None` prefers to "xla".
_FASTEST = {"cpu": "xla_cpu", "tpu": "pallas_tpu"}
# Below this size, starting a kernel takes longer than reading the tensor, and
# XLA can fuse the reduction with other operations.
MIN_KERNEL_BYTES = 2**20


def sums(
  x: jax.Array, implementation: str | None, platform: str
) -> tuple[jax.Array, jax.Array]:
  """(sum |x|, sum x^2), float32 scalars, of a tensor that one device holds.

  Args:
    x: floating array.
    implementation: a key of IMPLEMENTATIONS or None.
    platform: platform of the device, "cpu", "gpu" or "tpu".

  Raises:
    NotImplementedError: if the named implementation does not exist, does not
      support this tensor or does not run on this platform.
  """
  if implementation is None:
    small = x.size * x.dtype.itemsize < MIN_KERNEL_BYTES
    if small or platform not in _FASTEST:
      return reference.sums(x)
    kernel = module(_FASTEST[platform])
    if kernel.limitation(x):
      return reference.sums(x)
    # The program may be compiled for another platform, such as the TPU's host.
    fastest = {platform: lambda x: _apply(x, kernel.sums)}
    return jax.lax.platform_dependent(x, **fastest, default=reference.sums)
  if implementation not in IMPLEMENTATIONS:
    raise NotImplementedError(
      f"moments has no implementation {implementation!r}; there are"
      f" {', '.join(IMPLEMENTATIONS)}"
    )
  kernel = module(implementation)
  limitation = kernel.limitation(x)
  if platform not in kernel.PLATFORMS:
    limitation = f"it runs on {kernel.PLATFORMS[0]}, found {platform}"
  if limitation:
    raise NotImplementedError(
      f"moments with implementation={implementation!r}: {limitation}; None and"
      " 'xla' support every floating tensor on every platform"
    )
  return _apply(x, kernel.sums)


def module(implementation: str) -> Any:
  """The module of a key of IMPLEMENTATIONS."""
  name = IMPLEMENTATIONS[implementation]
  return importlib.import_module(f"backslash_jax.moments.{name}")


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _apply(x, kernel):
  """kernel(x) with a derivative, which Pallas kernels do not have."""
  return kernel(x)


@_apply.defjvp
def _apply_jvp(kernel, primals, tangents):
  (x,), (t,) = primals, tangents
  x_, t = x.astype(jnp.float32), t.astype(jnp.float32)
  return kernel(x), (jnp.sum(jnp.sign(x_) * t), 2.0 * jnp.sum(x_ * t))
