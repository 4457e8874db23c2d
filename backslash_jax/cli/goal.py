"""The steps of tensors at a scale, and the scale for a size: --bits, --size.

Each tensor's step is one number for the model, the scale, times a weight of the
tensor. The scale is found by coding the model a few times.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from backslash_jax import quantize

NEAR = 0.005  # A file is taken that is smaller than the goal by this share.
_TRIES = 24
_OCTAVES = 12.0  # How far the scale may be from the first guess.
_BITS_OF_GAUSSIAN = 2.05  # Entropy at a step of one standard deviation.
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"(\d+\.?\d*|\.\d+)\s*([KMG]?i?B|)", re.I | re.A)


def one(x: np.ndarray) -> float:
  """The same step for every tensor."""
  del x
  return 1.0


def largest(x: np.ndarray) -> float:
  """Steps proportional to the largest magnitude."""
  return float(np.abs(x).max(initial=0))


def rms(x: np.ndarray) -> float:
  """Steps proportional to the root mean square."""
  return float(np.sqrt(np.square(x, dtype=np.float64).mean())) if x.size else 0


def root(x: np.ndarray) -> float:
  """Steps proportional to the square root of the root mean square."""
  return rms(x) ** 0.5


class Steps:
  """The steps of tensors at a scale.

  A step is never so coarse that the relative error would exceed `max_error`,
  as the tensor would then be stored exactly.

  Args:
    params: the tensors to quantize, by name.
    max_error: as for `archive.save`.
    rule: gives the weight of a tensor.
  """

  def __init__(
    self,
    params: Mapping[str, np.ndarray],
    max_error: float,
    rule: Callable[[np.ndarray], float] = root,
  ):
    self._params, self._max_error = params, max_error
    self._rms = {name: rms(np.asarray(x)) for name, x in params.items()}
    self._weights = {
      name: rule(np.asarray(x)) or 1.0 for name, x in params.items()
    }
    self._limits: dict[str, float] = {}

  def __call__(self, scale: float) -> dict[str, float]:
    return {name: self._step(name, scale) for name in self._params}

  def scale(self, bits: float) -> float:
    """About the scale that gives so many bits per parameter."""
    total = size = 0.0
    for name, x in self._params.items():
      if self._rms[name]:
        total += x.size * math.log2(self._rms[name] / self._weights[name])
        size += x.size
    return 2 ** (total / max(size, 1) + _BITS_OF_GAUSSIAN - bits)

  def _step(self, name: str, scale: float) -> float:
    step = scale * self._weights[name]
    # No value moves by more than half a step.
    if step <= 2 * self._max_error * self._rms[name] or not self._rms[name]:
      return step
    if name not in self._limits:
      self._limits[name] = self._limit(name)
    return min(step, self._limits[name])

  def _limit(self, name: str) -> float:
    """The coarsest step whose relative error is in bounds, to an eighth."""
    x = np.asarray(self._params[name], np.float32)
    good = min(2 * self._max_error, 1.0) * self._rms[name]
    bad = 2.5 * largest(x)  # All values are zero.
    if self._max_error >= 1:
      return bad
    while bad > good * 2**0.125:
      step = math.sqrt(good * bad)
      error = rms(
        x - quantize.dequantize(quantize.quantize(x, step), step, x.dtype)
      )
      if error <= 0.99 * self._max_error * self._rms[name]:
        good = step
      else:
        bad = step
    return good


class Goal(NamedTuple):
  """A size to reach.

  Attributes:
    text: the option, for errors.
    bytes: of all files.
    parameters: in all files.
  """

  text: str
  bytes: int
  parameters: int

  @property
  def bits(self) -> float:
    """Bits per parameter."""
    return 8 * self.bytes / max(self.parameters, 1)


def parse(bits: float | None, size: str | None, parameters: int) -> Goal | None:
  """The goal of --bits or --size; None if there is none.

  Raises:
    ValueError: if it is no size.
  """
  if bits is not None:
    if not 0 < bits < math.inf:
      raise ValueError(f"--bits {bits:g}: give a positive number")
    return Goal(f"--bits {bits:g}", int(bits * parameters / 8), parameters)
  if size is None:
    return None
  match = _SIZE.fullmatch(size)
  found = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
  if found < 1:
    raise ValueError(
      f"--size {size}: give bytes, such as 40000000, 40MB (10^6) or 40MiB"
    )
  return Goal(f"--size {size}", found, parameters)


def start(allocations: Iterable[Callable], bits: float) -> float:
  """A first guess of the scale for so many bits per parameter."""
  bits = min(bits, 12.0)  # Finer steps could be too fine for the coder.
  found = [own.scale(bits) for own in allocations if isinstance(own, Steps)]
  return float(np.exp(np.mean(np.log(found)))) if found else 2.0**-8


def solve(size: Callable[[float], int], goal: Goal, start: float) -> float:
  """The scale at which the files are as large as the goal, or a little smaller.

  Args:
    size: bytes of the files at a scale; falls with it.
    goal: what to reach.
    start: a first guess.

  Raises:
    ValueError: if there is none; it gives the smallest or largest size.
  """
  fits: tuple[float, int] | None = None  # Logarithm of the scale, bytes.
  over: tuple[float, int] | None = None
  x = middle = math.log2(start)
  for _ in range(_TRIES):
    bytes_ = size(2**x)
    if bytes_ <= goal.bytes:
      before, fits = fits, (x, bytes_)
    else:
      before, over = over, (x, bytes_)
    if fits and fits[1] >= (1 - NEAR) * goal.bytes:
      break
    if fits and over:
      a, b = over, fits
      # Sizes are near a line in the logarithm of the step. Kept off the ends,
      # so that both ends come nearer.
      target = (1 - NEAR / 2) * goal.bytes
      share = (a[1] - target) / max(a[1] - b[1], 1)
      x = a[0] + (b[0] - a[0]) * min(max(share, 0.05), 0.95)
      continue
    if before and before[1] == bytes_:
      break  # A coarser or a finer step changes nothing.
    # An octave of the step is at first taken for a bit per parameter.
    slope = max(goal.parameters, 1) / 8
    if before and before[0] != x:
      slope = abs((bytes_ - before[1]) / (x - before[0]))
    move = 1.05 * (bytes_ - goal.bytes) / slope
    x += math.copysign(max(abs(move), 0.02), move)
    x = min(max(x, middle - _OCTAVES), middle + _OCTAVES)
  if fits is None:
    assert over is not None
    raise ValueError(_unreachable(goal, "smallest", over[1]))
  if over is None and fits[1] < (1 - NEAR) * goal.bytes:
    raise ValueError(_unreachable(goal, "largest", fits[1]))
  return 2 ** fits[0]


def _unreachable(goal: Goal, which: str, size: int) -> str:
  bits = 8 * size / max(goal.parameters, 1)
  return (
    f"{goal.text}: the {which} size that steps can give is {size:,} bytes,"
    f" {bits:.3f} bits per parameter"
  )
