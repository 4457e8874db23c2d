"""The steps at which a metric of the user falls by no more than so much."""

import contextlib
import importlib
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

FINEST = 10.0  # Bits per parameter with which the search begins.
_OCTAVES = 12.0  # How much coarser the steps may become.
_RESOLUTION = 0.06  # Octaves between the steps where the search ends.

Metric = Callable[[dict[str, Any]], Any]


def check(options) -> None:
  """Raises ValueError if --tolerance and --evaluate do not fit together."""
  if (options.tolerance is None) != (options.evaluate is None):
    given, other = "--tolerance", "--evaluate"
    if options.tolerance is None:
      given, other = other, given
    raise ValueError(f"{given} is given without {other}: they need each other")
  if options.tolerance is not None and not 0 <= options.tolerance < math.inf:
    raise ValueError(
      f"--tolerance {options.tolerance:g}: give a number of at least 0"
    )


def load(text: str) -> Metric:
  """The function of module:function; modules are found from here too.

  Raises:
    ValueError: there is no such module or function, or it cannot be imported.
  """
  module, _, name = text.partition(":")
  if not module or not name:
    raise ValueError(f"--evaluate {text}: give module:function")
  here = os.getcwd()
  if here not in sys.path:
    sys.path.insert(0, here)
  try:
    function = getattr(importlib.import_module(module), name)
  except Exception as error:
    raise ValueError(
      f"--evaluate {text}: cannot import it: {_one_line(error)}"
    ) from error
  if not callable(function):
    raise ValueError(f"--evaluate {text}: {name} is no function")
  return function


def measure(
  function: Metric, params: Mapping[str, Any], text: str, what: str
) -> float:
  """The metric of parameters by name.

  Raises:
    ValueError: the function raises, or returns no finite number.
  """
  try:
    with contextlib.redirect_stdout(sys.stderr):  # stdout may be for JSON.
      found = float(function(dict(params)))
  except Exception as error:
    raise ValueError(
      f"--evaluate {text}: it failed on {what}: {_one_line(error)}"
    ) from error
  if not math.isfinite(found):
    raise ValueError(
      f"--evaluate {text}: it returned {found} for {what}: it must return a"
      " finite number, of which more is better"
    )
  return found


def search(good: Callable[[float], bool], finest: float, text: str) -> float:
  """The coarsest scale that is good, by bisection of its logarithm.

  Args:
    good: whether a scale is within the tolerance.
    finest: the scale with which the search begins.
    text: the option, for errors.

  Raises:
    ValueError: the finest is not good.
  """
  if not good(finest):
    raise ValueError(
      f"{text}: the finest steps tried lose more: give a larger tolerance"
    )
  low = math.log2(finest)
  high = low + _OCTAVES
  while high - low > _RESOLUTION:
    middle = (low + high) / 2
    low, high = (middle, high) if good(2**middle) else (low, middle)
  return 2**low


def _one_line(error: Exception) -> str:
  text = " ".join(str(error).split())
  return f"{type(error).__name__}: {text}" if text else type(error).__name__
