"""The recipe that gave the smallest files at equal accuracy."""

from typing import Any

import optax

from backslash_jax import control, rounding, transform


def recommended(
  bits: float, *, step: float = 2**-6, **options: Any
) -> optax.GradientTransformationExtraArgs:
  """Trains towards a file of so many bits per parameter.

  The code length in bits, each tensor under its own scale, weighted by a
  controller that closes in on the target: of all methods in docs/frontier.md
  what gave the smallest files at equal accuracy. No weight has to be tuned.

  >>> import backslash_jax as bs, optax
  >>> tx = optax.chain(bs.recommended(bits=1.0), optax.adamw(3e-3))

  Args:
    bits: of the matrices, per parameter, in (0, 32): what they take when they
      are quantized with `step`. Biases and scales are in the file exactly.
    step: quantization step of the file, as for `bs.save`: so fine that
      rounding to it alone costs nothing. Coarser files lose accuracy, and
      fewer bits at a fine step lose less of it.
    **options: further ones of `bs.backslash`.

  Returns:
    `backslash` with rate "bits", scope "tensor", the target and the matrices.

  Raises:
    ValueError: for an argument out of its range.
  """
  chosen = {"rate": "bits", "scope": "tensor", "mask": rounding.matrices}
  return transform.backslash(
    control.target_rate(bits), step=step, **chosen | options
  )
