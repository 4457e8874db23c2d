"""The recipes of docs/frontier.md, as one function."""

import jax
import optax

from backslash_jax import (
  control,
  fitting,
  moments,
  quantize,
  transform,
  tree,
)


def recommended(
  bits: float | jax.Array,
  *,
  begin: int | jax.Array | None = None,
  limit: float = 30.0,
  step: float = quantize.STEP,
  mask: tree.Mask = tree.DEFAULT,
  sharding: moments.Sharding | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Trains towards a file of so many bits per parameter.

  | model                           | arguments                         |
  |---------------------------------|-----------------------------------|
  | classifier, from scratch        | `bits`                            |
  | the same, about a tenth smaller | `bits, begin=2 * updates / 3`     |
  | language model, from scratch    | `bits, begin=..., limit=0`        |
  | fine-tuned, 1 bit or less       | `bits, begin=..., limit=0.3`      |

  Without `begin`: the L1 norm of the selected leaves, weighted by a controller
  that steers them to `bits` at the quantization step `step`. L1 saves as much
  as any other rate in docs/frontier.md, and is the most stable when steered to
  a target. With `begin`: in that update each leaf gets a quantization step of
  its own, all together for `bits`, and the loss then has to see the rounded
  parameters. A language model needs all of its weights: there `limit=0` leaves
  the rate out.

  >>> import backslash_jax as bs, optax
  >>> tx = optax.chain(bs.recommended(bits=1.0), optax.adamw(3e-3))

  With `begin` the loss is that of the rounded parameters,

    loss(bs.round_through(params, bs.steps(opt_state)), batch)

  and every model is saved with `bs.save(path, params, step=bs.steps(state))`.

  Args:
    bits: bits per parameter of the selected leaves in the file, in (0, 32). The
      other leaves are in the file exactly.
    begin: update in which the steps are fitted; None: all have `step`.
    limit: how many times as hard as the task the rate may pull; 1 or less
      to fine-tune a pretrained model, see `target_rate`; 0: no rate.
    step: quantization step of the file, or until `begin`: so fine that rounding
      to it alone loses nothing. Fewer bits at a fine step lose less accuracy
      than the same bits at a coarser one.
    mask: the leaves that are priced and quantized, see `bs.matrices`.
    sharding: of params, see `bs.backslash`.

  Returns:
    `bs.backslash` with these arguments.

  Raises:
    ValueError: for an argument out of its range; for a limit of 0 without
      `begin`, which would leave the model as it is.
  """
  is_free = isinstance(limit, int | float) and limit == 0
  if is_free and begin is None:
    raise ValueError(
      "recommended: limit=0 leaves out the rate, and without begin no steps are"
      " fitted: give one of them"
    )
  chosen = step
  if begin is not None:
    chosen = fitting.fit_steps(bits, begin=begin, step=step)
  return transform.backslash(
    0.0 if is_free else control.target_rate(bits, limit=limit),
    shape=1.0,
    step=chosen,
    mask=mask,
    sharding=sharding,
  )
