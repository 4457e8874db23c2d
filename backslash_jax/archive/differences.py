"""A tensor as the difference from its base, and the sum that gives it back.

Quantized, the difference is a number of steps. A tensor of at most 32 bits is
the sum in float32, a longer one in float64, of the base and of the value that
the symbol stands for, rounded to the tensor's dtype. Where the symbol is 0 it
is the base itself, so an unchanged value keeps its bits. Stored exactly, the
difference is the exclusive or of the bits.
"""

import functools
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from backslash_jax import quantize, tree
from backslash_jax.archive import bases, container
from backslash_jax.archive.index import Entry
from backslash_jax.archive.quantizing import Distortion

# With one step for all, that of vectors is this part of it. They are so few
# that it costs nothing.
VECTORS = 0.25


def steps(
  params: Any, step: Any, mask: tree.Mask, taken: Mapping[str, str]
) -> dict[str, Any]:
  """The step of every tensor that is quantized, by name.

  Args:
    params: the tree.
    step: as for `save`; not None.
    mask: as for `save`. By default, with one step for all, the floating tensors
      that are differences get a step too.
    taken: the tensors that are differences.
  """
  if mask is not tree.matrices or isinstance(step, Mapping) or not taken:
    return quantize.steps_by_name(params, step, mask)
  quantize.check_step(step)
  floating = {n: x for n, x in tree.named_leaves(params) if tree.is_float(x)}
  flags = tree.select(floating, tree.matrices)
  return {
    name: step if flags[name] else VECTORS * step
    for name in floating
    if flags[name] or name in taken
  }


def taken_from(base: bases.Base, leaves: Mapping[str, Any]) -> dict[str, str]:
  """The name in the base of each tensor that is stored as a difference.

  A tensor that the base lacks, but that is equal to one that it has, is the
  difference from the same: tied weights.

  Raises:
    ValueError: as `bases.Base.match`.
  """
  found = base.match(leaves)
  alike: dict[tuple, list[str]] = {}
  for name in found:
    alike.setdefault(_kind(leaves[name]), []).append(name)
  for name, x in leaves.items():
    if name in found or _kind(x) not in alike or x.size < 2:
      continue
    own = bases.digest(x)
    for other in alike[_kind(x)]:
      if bases.digest(leaves[other]) == own:
        found[name] = found[other]
        break
  return found


class Difference:
  """A tensor as the array that is stored of it, computed when it is needed.

  Args:
    entry: of the tensor; the array has its `stored_dtype`.
    x: the tensor.
    base: what it differs from, of its shape.
  """

  def __init__(self, entry: Entry, x: Any, base: Any):
    self._entry, self._x, self._base = entry, x, base
    self.shape, self.size = tuple(x.shape), x.size
    self.dtype = entry.stored_dtype

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    return _computed(self)

  def compute(self) -> np.ndarray:
    x, base = np.asarray(self._x), np.asarray(self._base)
    if self._entry.step is None:
      return _exclusive_or(x, base.astype(x.dtype))
    with np.errstate(invalid="ignore", over="ignore"):
      found = x.astype(self.dtype) - base.astype(self.dtype)
      if not np.isfinite(found).all():
        found[_bits(x) == _bits(base.astype(x.dtype))] = 0
    return self._bounded(found, x, base)

  def _bounded(self, found, x, base) -> np.ndarray:
    """The difference, a step less where the sum would not be finite."""
    step = self._entry.step
    assert step is not None
    with np.errstate(over="ignore", invalid="ignore"):
      levels = np.rint(found.astype(np.float64) / step)
      values = quantize.dequantize(levels, step, self.dtype)
      total = _sum(base, values, self.dtype, x.dtype)
      beyond = np.isfinite(x) & np.isfinite(levels) & ~np.isfinite(total)
    if beyond.any():
      found[beyond] -= np.sign(found[beyond]) * self.dtype.type(step)
    return found


def add(entry: Entry, stored: np.ndarray, base: Any) -> Any:
  """The tensor of an entry from the array that is stored of it, and its base.

  A base that is a JAX array gives one, placed alike; an unchanged tensor is
  then the base's own array. Otherwise the result is a new NumPy array.
  """
  jax = sys.modules.get("jax")
  if not (jax and isinstance(base, jax.Array)) or entry.step is None:
    own = np.asarray(base)
    if entry.step is None:
      found = _exclusive_or(stored, own.astype(entry.dtype))
    else:
      found = _sum(own, stored, entry.stored_dtype, entry.dtype)
    if not (jax and isinstance(base, jax.Array)):
      return found
    return jax.device_put(found, base.sharding)
  if not stored.any() and base.dtype == entry.dtype:
    return base
  placed = jax.device_put(stored, base.sharding)
  return _compiled_sum(jax)(base, placed, entry.stored_dtype, entry.dtype)


def relative_error(distortion: Distortion, entry: Entry, leaf: Any) -> float:
  """rms of the error / rms of the tensor itself, also of a difference."""
  if entry.base is None or entry.step is None:
    return distortion.relative
  power = sum(
    float(np.square(block, dtype=np.float64).sum())
    for block in np.array_split(np.asarray(leaf).reshape(-1), 64)
    if block.size
  )
  return entry.step * (distortion.error / power) ** 0.5 if power else 0.0


class Sums:
  """The tensors of a file from the arrays that are stored of them.

  Args:
    reader: of the file.
    entries: its tensors.
    base: a source of `bases.Base`; None if there is none.

  Raises:
    ArchiveError: if the file needs a base and gets none, or has no use for it.
  """

  def __init__(self, reader: container.Reader, entries: list[Entry], base: Any):
    self._reader = reader
    needed = any(entry.base is not None for entry in entries)
    if needed and base is None:
      raise reader.error(
        "a difference from another model: pass that as base, bs.load(path,"
        " base=...), or --base on the command line"
      )
    if base is not None and not needed:
      raise reader.error("no difference: it loads without a base")
    self._base = bases.of(base) if needed else None

  def of(self, entry: Entry, stored: np.ndarray) -> Any:
    """The tensor of an entry; ArchiveError if the base lacks what it needs."""
    if entry.base is None:
      return stored
    assert self._base is not None
    try:
      own = self._base.find(entry.name, entry.base)
    except ValueError as error:
      raise self._reader.error(f"another base: {error}") from None
    if not bases.can_be_base(own, entry):
      raise self._reader.error(
        f"tensor {entry.name!r} cannot be a difference from one of the shape"
        f" {tuple(own.shape)} and the dtype {own.dtype}"
      )
    return add(entry, stored, own)

  def named(self, pair: tuple[Entry, np.ndarray]) -> tuple[str, Any]:
    """The name and the tensor of an (entry, stored array) pair."""
    return pair[0].name, self.of(*pair)


@functools.cache
def _compiled_sum(jax):
  return jax.jit(_sum, static_argnums=(2, 3))


def _sum(base, values, wide, dtype):
  """base + values in `wide`, rounded to `dtype`; base where values are 0."""
  jax = sys.modules.get("jax")
  xp = jax.numpy if jax and isinstance(base, jax.Array) else np
  with np.errstate(over="ignore", invalid="ignore"):
    total = (base.astype(wide) + values).astype(dtype)
    return xp.where(values == 0, base.astype(dtype), total)


def _exclusive_or(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  octets = _octets(a) ^ _octets(b)
  return octets.view(a.dtype).reshape(a.shape)


def _octets(x: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(x).reshape(-1).view(np.uint8)


def _bits(x: np.ndarray) -> np.ndarray:
  """The bits of a floating array, as integers of its shape."""
  return np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}").reshape(x.shape)


def _kind(x: Any) -> tuple:
  return tuple(x.shape), np.dtype(x.dtype).name


@functools.lru_cache(maxsize=4)
def _computed(difference: Difference) -> np.ndarray:
  found = difference.compute()
  found.flags.writeable = False
  return found
