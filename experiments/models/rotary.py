"""Rotary positions: pairs of features, turned by angles of their position.

Shapes as in layers.py.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
  """Llama 3's longer wavelengths for a context longer than pretraining's.

  Source: Dubey et al. 2024, arXiv 2407.21783, and the released models.
  """

  factor: float
  low_frequency_factor: float
  high_frequency_factor: float
  original_max_positions: int


@dataclasses.dataclass(frozen=True)
class Rotary:
  """The angles of rotary positions, see `rotate`."""

  theta: float = 1e4
  scaling: RotaryScaling | None = None

  def frequencies(self, half: int) -> jax.Array:
    """Radians per position, float32 [D / 2], given `half` = D / 2."""
    # Wavelengths from 2 pi to 2 pi times the base, geometrically.
    frequency_D = self.theta ** (-jnp.arange(half) / half)
    if self.scaling is None:
      return frequency_D
    low = self.scaling.low_frequency_factor
    high = self.scaling.high_frequency_factor
    # Turns in the original context: below `low` of them the wavelength is
    # stretched, above `high` it is kept, in between interpolated.
    turns_D = self.scaling.original_max_positions * frequency_D / (2 * math.pi)
    kept_D = jnp.clip((turns_D - low) / (high - low), 0, 1)
    return frequency_D * (kept_D + (1 - kept_D) / self.scaling.factor)


def rotate(
  x_BxTxHxD: jax.Array,
  rotary: Rotary,
  positions_BxT: jax.Array | None = None,
) -> jax.Array:
  """Rotary positions: turns pairs of features by angles of their position.

  Without `positions_BxT`, int32, they are 0, 1, 2, ...

  Source: Su et al. 2021, arXiv 2104.09864, in the layout that pairs the first
  half of the features with the second.
  """
  size, half = x_BxTxHxD.shape[1], x_BxTxHxD.shape[3] // 2
  frequency_D = rotary.frequencies(half)
  if positions_BxT is None:
    positions_BxT = jnp.arange(size)[None]
  angle_BxTxD = positions_BxT[:, :, None] * frequency_D[None, None]
  cos = jnp.cos(angle_BxTxD)[:, :, None].astype(x_BxTxHxD.dtype)
  sin = jnp.sin(angle_BxTxD)[:, :, None].astype(x_BxTxHxD.dtype)
  first, second = jnp.split(x_BxTxHxD, 2, axis=-1)
  return jnp.concatenate(
    [first * cos - second * sin, first * sin + second * cos], axis=-1
  )
