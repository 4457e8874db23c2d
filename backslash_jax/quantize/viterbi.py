"""Trellis-coded quantization: the path of least squared error and bits."""

import math

import numpy as np

from backslash_jax import sampling
from backslash_jax.coding import classes, fit, fit_trellis, frequencies, trellis
from backslash_jax.coding.models import Trellis
from backslash_jax.quantize.step import check_step

_SAMPLE = 1 << 17  # Elements that the model is fitted to.
_MACHINES = 256  # Machines whose paths are searched at once,
_ROWS = 64  # and rows whose candidates are compared at once, to stay in cache.
_FINE = 64.0  # Steps; if more values are larger, symbols take about 8 bits.
_LARGEST = 1 << 14  # In steps.
_SMALLEST_SIZE = 1 << 10
_LAST = frequencies.LARGEST + 1
# The two states before each state; the parity of the symbol between them.
_BEFORE = np.argsort(trellis.NEXT, kind="stable").reshape(-1, 2).T // 2
_PARITY = np.argsort(trellis.NEXT, kind="stable").reshape(-1, 2).T % 2


def suits(x: np.ndarray, step: float) -> bool:
  """Whether a tensor is worth a trellis: not if small, constant or fine.

  Its values must be finite, and so must those that it is quantized to.
  """
  x = np.asarray(x)
  if x.size < _SMALLEST_SIZE:
    return False
  low, high = float(x.min()), float(x.max())
  largest = max(-low, high)
  if not low < high or not largest <= _LARGEST * step:
    return False
  with np.errstate(over="ignore"):
    limit = np.asarray(largest + step).astype(x.dtype)
  flat = x.reshape(-1)
  taken = np.abs(flat[sampling.strata(flat.size, 4096)].astype(np.float64))
  is_fine = np.quantile(taken, 0.8) > _FINE * step
  return bool(np.isfinite(limit)) and not is_fine


def symbols(x: np.ndarray, step: float, mu: float = 0.0) -> np.ndarray:
  """int32 symbols that minimize squared error / step^2 + mu * bits.

  The Viterbi algorithm finds the least sum over all paths through the trellis,
  for the bits of a model that is fitted to the symbols of a sample.

  Args:
    x: array of any shape for which `suits` is true; its last axis is
      the columns of the model.
    step: distance of the levels of each of the two quantizers, in the units of
      x. The levels of both together are multiples of half a step.
    mu: squared error, in step^2, that a bit is worth; 0.08 is a usual value.

  Returns:
    The symbols; what they stand for is trellis.levels(symbols) * step / 2.
  """
  check_step(step)
  if not 0 <= mu < math.inf:
    raise ValueError(f"mu is {mu}: it must be finite and not negative")
  x = np.asarray(x)
  columns = x.shape[-1] if x.ndim > 1 else 1
  scaled = np.divide(x, step, dtype=np.float64).astype(np.float32)
  scaled = scaled.reshape(-1, columns)
  if mu == 0:
    return _search(scaled, None, mu).reshape(x.shape)
  sample = scaled
  if x.size > _SAMPLE:
    taken = sampling.strata(scaled.shape[0], max(_SAMPLE // columns, 1))
    sample = scaled[taken]
  model = _first_model(sample)
  for _ in range(2):
    found = _search(sample, model, mu)
    found = fit_trellis.fit_trellis(found, sample=True)
    assert isinstance(found, Trellis)
    model = found
  return _search(scaled, model, mu).reshape(x.shape)


def _first_model(x: np.ndarray) -> Trellis:
  """The model of the nearest integers, for both quantizers."""
  plain, _ = fit.quantized_ggd(np.rint(x).astype(np.int32))
  points = (plain.row_alpha_index, plain.column_alpha_index)
  own = (plain.nu_index, plain.alpha_index, max(plain.tail, 1))
  return Trellis(*own, *points, *own)


def _search(x: np.ndarray, model: Trellis | None, mu: float) -> np.ndarray:
  """The symbols of the best path for a float32 matrix, in steps.

  Without a model, no symbol takes bits.
  """
  costs = np.zeros((2, 1, _LAST + 1), np.float32)
  places = np.zeros(x.shape, np.int32)
  if model is not None:
    nearest = classes.means(np.abs(np.rint(x)))
    row_class, column_class = classes.assign(nearest, model.even)
    total_class = row_class[:, None] + column_class
    low, high = int(total_class.min()), int(total_class.max())
    costs = fit_trellis.code_lengths(model, range(low, high + 1))
    costs *= np.float32(mu)
    places = ((total_class - low) * costs.shape[2]).astype(np.int32)
  size, count = x.size, trellis.width(x.size)
  length = -(-size // count)
  shape, pad = (length, count), (0, length * count - size)
  sizes = np.pad(np.abs(x).ravel(), pad).reshape(shape)
  places = np.pad(places.ravel(), pad).reshape(shape)
  found = np.empty(shape, np.int32)
  for start in range(0, count, _MACHINES):
    own = np.s_[:, start : start + _MACHINES]
    # The last row may have no symbols for the last machines.
    ends = np.minimum(size - (length - 1) * count - start, sizes[own].shape[1])
    found[own] = _paths(sizes[own], places[own], costs, max(int(ends), 0))
  found = found.ravel()[:size].reshape(x.shape)
  return np.where(x < 0, -found, found)


def _paths(x: np.ndarray, places, costs, ends: int) -> np.ndarray:
  """The magnitudes of the symbols of the best paths, int32 like x.

  Args:
    x: magnitudes of the values of each machine, float32 [rows, machines].
    places: where the costs of the class of each begin, int32, like x.
    costs: mu * bits, float32 [2, classes, magnitudes].
    ends: how many of the machines have a value in the last row.
  """
  length, count = x.shape
  chosen = np.empty((length, 4, count), np.int16)
  back = np.empty((length, trellis.STATES, count), bool)
  total = np.full((trellis.STATES, count), 1e30, np.float32)
  total[0] = 0
  for start in range(0, length, _ROWS):
    own = slice(start, start + _ROWS)
    metrics = _candidates(x[own], places[own], costs, chosen[own])
    if own.stop >= length:
      metrics[-1, :, ends:] = 0
    _extend(total, metrics, back[own])
  machines, state = np.arange(count), np.argmin(total, axis=0)
  out = np.empty((length, count), np.int32)
  for i in range(length - 1, -1, -1):
    way = back[i, state, machines].astype(np.intp)
    before = _BEFORE[way, state]
    out[i] = chosen[i, 2 * (before & 1) + _PARITY[way, state], machines]
    state = before
  return out


def _candidates(x, places, costs, chosen) -> np.ndarray:
  """The least cost of each quantizer and parity, float32 [rows, 4, count].

  Args:
    x: magnitudes, float32 [rows, count].
    places: where the costs of the class of each begin, int32, like x.
    costs: mu * bits, float32 [2, classes, magnitudes].
    chosen: int16 [rows, 4, count], set to the symbols of these costs.
  """
  metrics = np.empty(chosen.shape, np.float32)
  half, two = np.float32(0.5), np.float32(2)
  for odd in range(2):
    own = costs[odd].ravel()
    for parity in range(2):
      offset = np.float32(odd / 2 - parity)
      near = two * np.floor((x + offset) * half + half) + np.float32(parity)
      np.maximum(near, np.float32(parity), out=near)
      options = [near, np.maximum(near - two, np.float32(parity))]
      if not parity:
        options.append(np.zeros_like(x))
      least, symbol = None, near
      for k in options:
        value = k - half * (k > 0) if odd else k
        cost = np.square(x - value)
        cost += own.take(places + k.astype(np.int32).clip(max=_LAST))
        if least is None:
          least = cost
        else:
          symbol = np.where(cost < least, k, symbol)
          np.minimum(least, cost, out=least)
      metrics[:, 2 * odd + parity] = least
      chosen[:, 2 * odd + parity] = symbol
  return metrics


def _extend(total: np.ndarray, metrics: np.ndarray, back: np.ndarray) -> None:
  """Extends the best path to each state by the rows of metrics.

  Args:
    total: cost of each path so far, float32 [states, count], changed in place.
    metrics: see `_candidates`.
    back: bool [rows, states, count], set to which of the two ways into a state
      was better.
  """
  states, count = total.shape
  sums = np.empty((2, states, count), np.float32)  # By the next parity.
  ways = np.empty((2, states, count), np.float32)
  places = states * _PARITY + _BEFORE
  for metric, better in zip(metrics, back, strict=True):
    # The metrics are by quantizer and parity; the quantizer of the odd states
    # is the odd one.
    own = metric.reshape(2, 2, count).swapaxes(0, 1)[:, None]
    pairs = total.reshape(-1, 2, count)
    np.add(pairs, own, out=sums.reshape(2, -1, 2, count))
    sums.reshape(-1, count).take(places, axis=0, out=ways, mode="clip")
    np.less(ways[1], ways[0], out=better)
    np.minimum(ways[0], ways[1], out=total)
  total -= total.min(axis=0)
