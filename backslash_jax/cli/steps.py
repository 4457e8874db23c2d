"""What the option --step says."""

import math
import re

from backslash_jax import quantize

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_STEP = re.compile(rf"({_NUMBER})(?:(\^|\*\*|/)([+-]?{_NUMBER}))?")


def parse(text: str) -> float | None:
  """The step of 2^-8, 2**-8, 1/256 or 0.004; None for absmax/127.

  Raises:
    ValueError: if it is anything else.
  """
  if count(text) is not None:
    return None
  try:
    match = _STEP.fullmatch(text)
    if match is None:
      raise ValueError
    base, operator, other = match.groups()
    step = float(base)
    if operator:
      step = step / float(other) if operator == "/" else step ** float(other)
    quantize.check_step(step)
  except (ValueError, OverflowError, ZeroDivisionError):
    raise ValueError(
      f"--step {text}: give a positive number such as 2^-8, or absmax/127"
    ) from None
  return step


def count(text: str) -> int | None:
  """The 127 of absmax/127, or None."""
  match = re.fullmatch(r"absmax/0*([1-9][0-9]{0,8})", text)
  return int(match[1]) if match else None


def of_tensors(text: str, params: dict) -> dict[str, float]:
  """The step of each tensor."""
  step = parse(text)
  if step is not None:
    return dict.fromkeys(params, step)
  levels = count(text)
  assert levels is not None
  found = quantize.absmax_steps(params, levels, mask=None) if params else {}
  for name, own in found.items():
    if not 0 < own < math.inf:
      raise ValueError(
        f"tensor {name!r}: --step {text} is {own} for it, which is no step: its"
        " values are not all finite; leave it out with --exclude"
      )
  return found
