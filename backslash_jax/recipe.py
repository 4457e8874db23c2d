"""The training recipes of docs/frontier.md as one function."""

import jax
import numpy as np
import optax

from backslash_jax import (
  control,
  fitting,
  moments,
  quantize,
  transform,
  tree,
)

# The step before steps are fitted. Fitted steps for a bit or so are about as
# coarse, so that the bits measured before and after them agree.
_UNTIL_BEGIN = 4 * quantize.STEP


def recommended(
  bits: float | jax.Array,
  *,
  begin: int | jax.Array | None = None,
  limit: float = 30.0,
  step: float | None = None,
  mask: tree.Mask = tree.DEFAULT,
  sharding: moments.Sharding | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Trains towards a file with `bits` bits per parameter.

  | model                           | arguments                         |
  |---------------------------------|-----------------------------------|
  | classifier, from scratch        | `bits`                            |
  | same, a smaller file            | `bits, begin=2 * updates / 3`     |
  | language model, from scratch    | `bits, begin=..., limit=0`        |
  | fine-tuned, 1 bit or less       | `bits, begin=..., limit=0.3`      |

  Without `begin`, the rate is the L1 norm of the selected leaves. A controller
  sets its weight to reach `bits` at the quantization step `step`. L1 saves as
  much as any other rate in docs/frontier.md and is the most stable when steered
  to a target.

  With `begin`, each selected leaf also gets its own quantization step in that
  update. The steps are chosen to reach `bits` over all selected leaves. From
  then on, the loss must use the rounded parameters. For language models,
  `limit=0` turns the rate off: zeroing weights costs them too much accuracy.

  >>> import backslash_jax as bs, optax
  >>> tx = optax.chain(bs.recommended(bits=1.0), optax.adamw(3e-3))

  With `begin`, compute the loss of the rounded parameters:

      loss(bs.round_through(params, bs.steps(opt_state)), batch)

  Save the model with `bs.save(path, params, step=bs.steps(opt_state))`.

  Args:
    bits: target for the selected leaves in the file, bits per parameter, in
      (0, 32), or (0, 16] with `begin`. The other leaves are stored exactly.
    begin: update in which the steps are fitted. None (default) uses `step` for
      all leaves.
    limit: largest norm of the rate's gradient, as a multiple of the task's;
      default 30. Use 1 or less to fine-tune a pretrained model, see
      `target_rate`. 0 turns the rate off.
    step: quantization step of the file; with `begin`, the step in force before
      that update. None (default): `bs.STEP`; with `begin`, four times that. At
      a fine step rounding alone loses nothing, and fewer bits at a fine step
      lose less accuracy than the same bits at a coarser one.
    mask: selects the leaves to which the rate and the quantization apply; see
      `bs.matrices`, the default.
    sharding: sharding of params, see `bs.backslash`.

  Returns:
    `bs.backslash` with these arguments.

  Raises:
    ValueError: if an argument is out of range, or if `limit` is 0 without
      `begin`, which would not compress the model. A traced `limit` is not
      checked.
  """
  is_free = isinstance(limit, int | float) and limit == 0
  # As an array, from `optax.inject_hyperparams`, it is refused if not traced.
  is_traced = isinstance(limit, jax.core.Tracer)
  is_zero = not is_traced and np.ndim(limit) == 0 and limit == 0
  if is_zero and begin is None:
    raise ValueError(
      "recommended: limit=0 leaves out the rate, and without begin no steps are"
      " fitted, so nothing would be compressed; give begin, or a limit above 0"
    )
  chosen = quantize.STEP if step is None else step
  if begin is not None:
    chosen = fitting.fit_steps(
      bits, begin=begin, step=_UNTIL_BEGIN if step is None else step
    )
  return transform.backslash(
    0.0 if is_free else control.target_rate(bits, limit=limit),
    shape=1.0,
    step=chosen,
    mask=mask,
    sharding=sharding,
  )
