"""Which implementation reduces a tensor."""

import functools

import jax
import jax.numpy as jnp

from backslash_jax.moments import pallas_gpu, pallas_tpu, reference

IMPLEMENTATIONS = {
  "xla": reference,
  "pallas_tpu": pallas_tpu,
  "pallas_gpu": pallas_gpu,
}
# Reading fewer bytes than this takes no longer than starting a kernel; XLA
# fuses what is small with its neighbours.
MIN_KERNEL_BYTES = 2**20


def sums(
  x: jax.Array, implementation: str | None, platform: str
) -> tuple[jax.Array, jax.Array]:
  """(sum |x|, sum x^2), float32 scalars, of a tensor that one device holds.

  Args:
    x: floating array.
    implementation: a key of IMPLEMENTATIONS or None.
    platform: of the device, "cpu", "gpu" or "tpu".

  Raises:
    NotImplementedError: the one that is named does not exist, does not take
      this tensor or does not run on this platform.
  """
  if implementation is None:
    small = x.size * x.dtype.itemsize < MIN_KERNEL_BYTES
    if platform != "tpu" or small or pallas_tpu.limitation(x):
      return reference.sums(x)
    # The program may still be for the host of the TPU.
    return jax.lax.platform_dependent(
      x, tpu=lambda x: _apply(x, pallas_tpu.sums), default=reference.sums
    )
  if implementation not in IMPLEMENTATIONS:
    raise NotImplementedError(
      f"moments has no implementation {implementation!r}; there are"
      f" {', '.join(IMPLEMENTATIONS)}"
    )
  module = IMPLEMENTATIONS[implementation]
  limitation = module.limitation(x)
  if platform not in module.PLATFORMS:
    limitation = f"it runs on {module.PLATFORMS[0]}, found {platform}"
  if limitation:
    raise NotImplementedError(
      f"moments with implementation={implementation!r}: {limitation}; None and"
      " 'xla' take every floating tensor on every platform"
    )
  return _apply(x, module.sums)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _apply(x, kernel):
  """kernel(x), with the derivative that Pallas does not have."""
  return kernel(x)


@_apply.defjvp
def _apply_jvp(kernel, primals, tangents):
  (x,), (t,) = primals, tangents
  x_, t = x.astype(jnp.float32), t.astype(jnp.float32)
  return kernel(x), (jnp.sum(jnp.sign(x_) * t), 2.0 * jnp.sum(x_ * t))
