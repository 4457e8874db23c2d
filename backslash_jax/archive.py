"""The coded model file: save, load, inspect.

Quantized tensors are coded with the model that fits them, the others kept bit
for bit. The file's layout is specified in docs/format.md.
"""

import dataclasses
import fnmatch
import math
import os
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from backslash_jax import container, quantize, tree
from backslash_jax.coding import exp_golomb
from backslash_jax.container import ArchiveError

CHUNK = 1 << 20
CODERS = ("exp_golomb", "exp_golomb_ranked")


@dataclasses.dataclass(frozen=True)
class TensorReport:
  """What one tensor weighs.

  Attributes:
    name: its path in the tree, keys joined by "/".
    shape: as saved.
    dtype: NumPy's name of it.
    step: distance of the quantizer's levels; None if it is kept exactly.
    nu: shape of the generalized Gaussian that fits its integers, or None.
    alpha: scale of the same, in the tensor's own units, or None.
    coder: how its integers are coded, or "exact".
    bits: the code length that its model gives it, in bits.
    bytes: its part of the payload.
  """

  name: str
  shape: tuple[int, ...]
  dtype: str
  step: float | None
  nu: float | None
  alpha: float | None
  coder: str
  bits: int
  bytes: int


@dataclasses.dataclass(frozen=True)
class Report:
  """What a file weighs: `bytes` of it, `parameters` in it, and each tensor."""

  path: str
  bytes: int
  parameters: int
  tensors: tuple[TensorReport, ...]

  @property
  def bits_per_parameter(self) -> float:
    """All bits of the file, headers and checksums included, per parameter."""
    return 8 * self.bytes / max(self.parameters, 1)


def save(
  path: str | os.PathLike,
  params,
  *,
  step: float | Mapping[str, float] = 2**-8,
  coder: str = "exp_golomb",
  select=None,
) -> Report:
  """Writes `params` to a coded model file, whole or not at all.

  Args:
    path: the file; an existing one is replaced.
    params: nested dicts, lists and tuples of arrays, NumPy's or JAX's.
    step: distance of the quantizer's levels, or one per tensor name.
    coder: one of CODERS.
    select: what is quantized: None for the floating tensors of two or more
      dimensions, a tree of bools or a callable from `params` to one, or name
      patterns as of a shell ("*/kernel"). The rest is stored exactly.

  Raises:
    ValueError: if a tensor cannot be quantized; it says which and why.
    TypeError: if `params` holds what is not an array.
  """
  if coder not in CODERS:
    raise ValueError(f"coder {coder!r}: it must be one of {', '.join(CODERS)}")
  structure, leaves = tree.describe(params)
  chosen = _selected(params, leaves, select)
  tensors, chunks = [], []
  with container.Writer(path) as writer:
    for name, leaf in leaves:
      array = np.asarray(leaf)
      entry = [_dtype_name(name, array.dtype), list(array.shape)]
      if name in chosen:
        tensor_step = step[name] if isinstance(step, Mapping) else float(step)
        symbols = _quantized(name, array, tensor_step).reshape(-1)
        model = exp_golomb.fit(symbols, ranked=coder == "exp_golomb_ranked")
        ranks = None if model.ranks is None else model.ranks.tolist()
        bits = exp_golomb.code_length(symbols, model)
        entry += [tensor_step, coder, [model.order, ranks], bits]
        for start in range(0, symbols.size, CHUNK):
          piece = symbols[start : start + CHUNK]
          chunks.append(writer.chunk(exp_golomb.encode(piece, model)))
      else:
        entry += [None, "exact", None, 8 * array.nbytes]
        octets = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for start in range(0, octets.size, CHUNK):
          chunks.append(writer.chunk(octets[start : start + CHUNK].tobytes()))
      tensors.append(entry)
    writer.finish([structure, tensors, chunks])
  return inspect(path)


def load(
  path: str | os.PathLike,
  *,
  names: Iterable[str] | None = None,
  sharding=None,
):
  """Reads a coded model file.

  Args:
    path: the file.
    names: patterns of tensor names; a flat dict of those that match is
      returned, and only their chunks are read.
    sharding: a jax.sharding.Sharding, or a callable from name and shape to
      one: the tensors are then JAX arrays placed accordingly.

  Returns:
    The tree that was saved, with the same dtypes and the quantized values.

  Raises:
    ArchiveError: if the file is not exactly what `save` wrote.
    KeyError: if a name in `names` matches nothing.
  """
  with container.Reader(path) as reader:
    structure, entries = _parse(reader)
    if names is None:
      decode = iter(entries.values())
      return tree.rebuild(
        structure, lambda _: _place(_decode(reader, next(decode)), sharding)
      )
    found = {}
    for pattern in names:
      matches = fnmatch.filter(entries, pattern)
      if not matches:
        raise KeyError(f"{reader.path} has no tensor named {pattern!r}")
      found |= dict.fromkeys(matches)
    return {
      name: _place(_decode(reader, entries[name]), sharding) for name in found
    }


def inspect(path: str | os.PathLike) -> Report:
  """What a file weighs, from its index alone; ArchiveError if that is bad."""
  with container.Reader(path) as reader:
    _, entries = _parse(reader)
    tensors = tuple(entry.report() for entry in entries.values())
    parameters = sum(math.prod(t.shape) for t in tensors)
    return Report(reader.path, reader.size, parameters, tensors)


@dataclasses.dataclass
class _Entry:
  """A tensor of the index and where its chunks are."""

  name: str
  dtype: np.dtype
  shape: tuple[int, ...]
  step: float | None
  coder: str
  model: object
  bits: int
  chunks: list[tuple[int, int, int]]  # Offset, size, checksum.

  def report(self) -> TensorReport:
    return TensorReport(
      self.name,
      self.shape,
      self.dtype.name,
      self.step,
      None,
      None,
      self.coder,
      self.bits,
      sum(size for _, size, _ in self.chunks),
    )


def _parse(reader: container.Reader):
  """The structure and the entries by name, validated."""
  try:
    structure, tensors, chunks = reader.index
    found = list(tree.names(structure))
    if len(found) != len(tensors) or len(set(found)) != len(found):
      raise ValueError("the tree and the tensors do not match")
    entries, offset = {}, 0
    queue = iter(chunks)
    for name, (dtype, shape, step, coder, model, bits) in zip(
      found, tensors, strict=True
    ):
      dtype = _dtype(dtype)
      shape = tuple(int(n) for n in shape)
      items = math.prod(shape) * (1 if step is not None else dtype.itemsize)
      own = []
      for _ in range(-(-items // CHUNK)):
        size, checksum = next(queue)
        own.append((offset, size, checksum))
        offset += size
      entries[name] = _Entry(name, dtype, shape, step, coder, model, bits, own)
    if offset != reader.payload_size or next(queue, None) is not None:
      raise ValueError("the chunks do not cover the payload")
    return structure, entries
  except (ValueError, TypeError, LookupError, StopIteration) as error:
    raise reader.error(f"the index is invalid: {error}") from None


def _decode(reader: container.Reader, entry: _Entry) -> np.ndarray:
  items = math.prod(entry.shape)
  try:
    if entry.step is None:
      data = b"".join(reader.chunk(*chunk) for chunk in entry.chunks)
      return np.frombuffer(data, entry.dtype).reshape(entry.shape).copy()
    out = np.empty(items, entry.dtype)
    order, ranks = entry.model
    ranks = None if ranks is None else np.array(ranks, np.int32)
    for i, chunk in enumerate(entry.chunks):
      start, stop = i * CHUNK, min((i + 1) * CHUNK, items)
      symbols = exp_golomb.decode(
        reader.chunk(*chunk), exp_golomb.Model(order, ranks), stop - start
      )
      out[start:stop] = quantize.dequantize(symbols, entry.step, entry.dtype)
    return out.reshape(entry.shape)
  except (ValueError, TypeError, MemoryError) as error:
    raise reader.error(f"tensor {entry.name!r}: {error}") from None


def _place(array: np.ndarray, sharding):
  if sharding is None:
    return array
  import jax

  return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)


def _selected(params, leaves, select) -> set[str]:
  """The names of the tensors to quantize."""
  floating = {n for n, leaf in leaves if _is_floating(leaf.dtype)}
  if select is None:
    return {n for n, leaf in leaves if len(leaf.shape) >= 2 and n in floating}
  if isinstance(select, str):
    select = [select]
  if isinstance(select, (list, tuple)) and all(
    isinstance(item, str) for item in select
  ):
    return {n for p in select for n in fnmatch.filter(floating, p)}
  chosen = select(params) if isinstance(select, Callable) else select
  _, flags = tree.describe(_as_arrays(chosen))
  if [n for n, _ in flags] != [n for n, _ in leaves]:
    raise ValueError("select is a tree of bools with another structure")
  names = {n for n, flag in flags if flag}
  if names - floating:
    raise ValueError(f"select names {min(names - floating)}: not floating")
  return names


def _as_arrays(node):
  """A tree of bools as a tree of NumPy bools, which have a dtype."""
  if isinstance(node, Mapping):
    return {k: _as_arrays(child) for k, child in node.items()}
  if type(node) in (list, tuple):
    return type(node)(_as_arrays(child) for child in node)
  return None if node is None else np.bool_(node)


def _quantized(name: str, array: np.ndarray, step: float) -> np.ndarray:
  try:
    return quantize.quantize(array, step)
  except ValueError as error:
    raise ValueError(f"tensor {name!r}: {error}") from None


def _is_floating(dtype) -> bool:
  name = np.dtype(dtype).name
  return "float" in name and "complex" not in name


def _dtype_name(name: str, dtype: np.dtype) -> str:
  try:
    known = _dtype(dtype.name) == dtype
  except ValueError:
    known = False
  if not known:
    raise TypeError(f"tensor {name!r} has dtype {dtype}: not a number's")
  return dtype.name


def _dtype(name: str) -> np.dtype:
  """The dtype of a name, those of ml_dtypes included."""
  if not isinstance(name, str):
    raise ValueError(f"dtype {name!r}")
  try:
    dtype = np.dtype(name)
  except TypeError:
    import ml_dtypes

    dtype = np.dtype(getattr(ml_dtypes, name, "V"))
  if dtype.hasobject or dtype.itemsize == 0 or dtype.name != name:
    raise ValueError(f"unknown dtype {name!r}")
  return dtype.newbyteorder("<") if dtype.isbuiltin == 1 else dtype


__all__ = ["ArchiveError", "Report", "TensorReport", "inspect", "load", "save"]
