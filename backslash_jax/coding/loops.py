"""Chooses the module that runs the row loops of rANS.

`loops_numpy` and `loops_numba` have the same functions with the same results:
`magnitude_sums`, `squares`, `look_up`, `encode_rows`, `decode_rows` and
`decode_trellis`, documented in `loops_numpy`.
"""

import importlib
import importlib.util
import sys
import types

from backslash_jax.coding import loops_numpy

_COMPILED = "backslash_jax.coding.loops_numba"
_LARGE = 1 << 16  # Fewer symbols do not justify the time to import numba.


def choose(size: int) -> types.ModuleType:
  """The module for `size` symbols: compiled if numba is installed."""
  if size < _LARGE and _COMPILED not in sys.modules:
    return loops_numpy
  try:
    return importlib.import_module(_COMPILED)
  except ImportError:
    return loops_numpy


def compiled() -> bool:
  """Whether numba is installed; without it threads do not speed up coding."""
  return importlib.util.find_spec("numba") is not None
