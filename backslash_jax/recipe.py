"""The recipe for a classifier of a given size."""

from typing import Any

import optax

from backslash_jax import control, rounding, transform


def recommended(
  bits: float,
  *,
  step: float = 2**-6,
  limit: float = 30.0,
  mask: rounding.Mask | None = rounding.matrices,
  **options: Any,
) -> optax.GradientTransformationExtraArgs:
  """Trains towards a file of so many bits per parameter.

  The L1 norm of the matrices, weighted by a controller that closes in on the
  target, so that no weight of the rate has to be tuned. L1 saves as much as any
  other rate in docs/frontier.md, and bears a target best; `fit_steps` beside it
  saves another tenth. A language model can spare no weight: there `fit_steps`
  alone is ahead; and the two together for a fine-tuned model of less than a
  bit.

  >>> import backslash_jax as bs, optax
  >>> tx = optax.chain(bs.recommended(bits=1.0), optax.adamw(3e-3))

  Args:
    bits: of the priced leaves, per parameter, in (0, 32): what they take when
      they are quantized with `step`. The others are in the file exactly.
    step: quantization step of the file, as for `bs.save`: so fine that
      rounding to it alone costs nothing. Fewer bits at a fine step lose less
      accuracy than the same file by a coarser step.
    limit: how many times as hard as the task the rate may pull; 1 or less
      to fine-tune a pretrained model, see `target_rate`.
    mask: the leaves that are priced, as in `bs.backslash`; their bits are
      what is asked for.
    **options: further ones of `bs.backslash`.

  Returns:
    `bs.backslash` with the target and shape 1.

  Raises:
    ValueError: for an argument out of its range.
  """
  return transform.backslash(
    control.target_rate(bits, limit=limit),
    shape=1.0,
    step=step,
    mask=mask,
    **options,
  )
