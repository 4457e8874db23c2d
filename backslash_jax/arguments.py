"""The check of arguments that are numbers."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def check(
  where: str,
  name: str,
  value: Any,
  wanted: str,
  is_good: Callable[[Any], bool],
  *,
  kind: type | tuple[type, ...] = (int, float, np.integer, np.floating),
) -> None:
  """Raises ValueError unless `value` is a number that `is_good` accepts.

  JAX arrays pass, because they may be traced. NumPy arrays without axes count
  as their scalars.

  Args:
    where: the function, for the message.
    name: of the argument.
    value: found.
    wanted: in words.
    is_good: called with real numbers alone.
    kind: types that count as numbers; a bool never does.
  """
  if isinstance(value, jax.Array):
    return
  number = value
  if isinstance(value, np.ndarray) and value.ndim == 0:
    number = value[()]
  if isinstance(number, bool) or not isinstance(number, kind):
    good = False
  else:
    good = bool(is_good(number))
  if not good:
    raise ValueError(f"{where}: {name} must be {wanted}, found {value!r}")


def check_count(where: str, name: str, value: Any, low: int) -> None:
  """`check` of a number of updates, at least `low`."""
  check(
    where,
    name,
    value,
    "a positive integer" if low else "a non-negative integer",
    lambda v: low <= v < 2**31,
    kind=(int, np.integer),
  )
