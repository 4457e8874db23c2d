"""The coded model file: save, load, stream.

Quantized tensors are coded with the model that fits them, the others kept bit
for bit. The file's layout is specified in docs/format.md.
"""

import dataclasses
import fnmatch
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from backslash_jax import tree
from backslash_jax.archive import (
  bases,
  container,
  differences,
  host,
  index,
  nesting,
  report,
  schema,
)
from backslash_jax.archive.decoder import Decoder
from backslash_jax.archive.encoder import Encoder
from backslash_jax.archive.index import Entry
from backslash_jax.archive.report import Report
from backslash_jax.coding import coders

CODERS = coders.NAMES
QUANTIZERS = ("scalar", "trellis")
# The bound of `compress` on the relative error of a tensor. Above half the root
# mean square of the tensor, the step was not meant for it.
MAX_ERROR = 0.5


def save(
  path: str | os.PathLike,
  params,
  *,
  step: float | Mapping[str, float] | None,
  mask: tree.Mask = tree.matrices,
  base: Any = None,
  coder: str = "rans",
  mu: float = 0.0,
  quantizer: str = "scalar",
  max_error: float = math.inf,
  metadata: Mapping[str, str] | None = None,
  progress: Callable[[int], object] | None = None,
) -> Report:
  """Writes `params` to a coded model file, whole or not at all.

  A tensor whose code would be larger than the tensor itself is stored exactly.

  Args:
    path: the file; an existing one is replaced.
    params: nested dicts, lists and tuples of arrays, NumPy's or JAX's.
    step: quantization step: a number, or steps by name, as `bs.steps` gives
      them. None stores everything exactly.
    mask: the tensors that are quantized, see `bs.matrices`; with steps by name
      the default means those that are named. The rest is stored exactly. With
      a base and one step, the default also quantizes the differences of all
      other floating tensors, such as biases, with a quarter of the step.
    base: what `params` were fine-tuned from: a tree, a safetensors file, plain
      or coded, a directory of them as of Hugging Face, or a `bs.Base`. Tensors
      are matched by name, and the differences from them are quantized and
      coded. The file loads with the same base only. What the base has not, or
      in another shape, is coded as it is.
    coder: one of CODERS.
    mu: extra squared error, in step^2, accepted per bit saved: 0 rounds to
      nearest, see quantize.rate_distortion.
    quantizer: one of QUANTIZERS. "scalar" (default): all values are multiples
      of the step. "trellis": dependent quantization, with fewer bytes at the
      same error, for the coder "rans". Values are multiples of half a step, and
      move by up to a step. Not for models that were trained with rounding.
      Small, constant and very finely quantized tensors and the differences from
      a base are scalar nevertheless.
    max_error: tensors whose relative error would be larger are stored exactly.
      By default none are; the command line takes MAX_ERROR.
    metadata: free text by name that the file keeps, as that of a safetensors
      file; at most 2^18 characters in all.
    progress: called with the number of parameters that each chunk has added.

  Returns:
    What the file weighs, with the relative error of each tensor.

  Raises:
    ValueError: if a tensor cannot be quantized, or nothing is in the base; it
      says which and why.
    TypeError: if `params` holds what is not an array of numbers.

  Warns:
    UserWarning: if all values of a tensor that is not zero became zero, or the
      whole difference did, or if the base has a tensor in another shape.
  """
  if not max_error >= 0:
    raise ValueError(f"max_error is {max_error}: it must not be negative")
  if coder not in CODERS:
    raise ValueError(f"coder {coder!r}: it must be one of {', '.join(CODERS)}")
  if quantizer not in QUANTIZERS:
    raise ValueError(
      f"quantizer {quantizer!r}: it must be one of {', '.join(QUANTIZERS)}"
    )
  if quantizer == "trellis" and coder != "rans":
    raise ValueError(
      f"coder {coder!r}: the quantizer 'trellis' needs the coder 'rans'"
    )
  metadata = schema.check_metadata(metadata)
  structure, leaves = nesting.describe(params)
  dtypes = {name: _dtype(name, leaf) for name, leaf in leaves}
  pool = host.Pool()
  leaves = [(name, pool.hosted(name, leaf)) for name, leaf in leaves]
  known, taken = None, {}
  if base is not None:
    known = bases.of(base)
    taken = differences.taken_from(known, dict(leaves))
  steps = {}
  if step is not None:
    steps = differences.steps(params, step, mask, taken)
  entries = []
  for name, leaf in leaves:
    own = _step_of(name, steps[name]) if name in steps else None
    kind = index.EXACT if own is None else coder
    entry = Entry(name, dtypes[name], leaf.shape, own, kind)
    if known and name in taken:
      entry = entry._replace(base=known.digest(taken[name]))
    entries.append(entry)

  def arrays():
    return [
      differences.Difference(entry, leaf, known.tensors[taken[name]])
      if known and name in taken
      else leaf
      for entry, (name, leaf) in zip(entries, leaves, strict=True)
    ]

  with container.Writer(path) as writer:
    encoder = Encoder(arrays(), entries, mu, quantizer == "trellis")
    chunks = _write(writer, encoder, progress)
    errors = [
      differences.relative_error(encoder.distortion(i), entry, leaf)
      for i, (entry, (_, leaf)) in enumerate(zip(entries, leaves, strict=True))
    ]
    if kept := _kept(encoder, entries, errors, max_error):
      # Which chunk holds what depends on it, so all chunks are written again.
      for i in kept:
        entries[i] = entries[i]._replace(step=None, coder=index.EXACT)
      writer.restart()
      encoder = Encoder(arrays(), entries, mu, quantizer == "trellis")
      chunks = _write(writer, encoder, None)
    entries = encoder.entries()
    if filler := schema.filler(entries, writer.payload_size):
      chunks.append(writer.chunk(bytes(filler)))
    writer.finish(schema.to_json(structure, entries, chunks, metadata))
  for text in _warnings(encoder, entries, known):
    warnings.warn(f"{path}: {text}", stacklevel=2)
  found = report.inspect(path)
  tensors = [
    dataclasses.replace(
      t,
      relative_error=0.0 if entries[i].step is None else errors[i],
      kept=kept.get(i),
    )
    for i, t in enumerate(found.tensors)
  ]
  return dataclasses.replace(found, tensors=tuple(tensors))


def _write(writer, encoder: Encoder, progress) -> list:
  """Writes all chunks; returns the [size, checksum] of each."""
  chunks = []
  for parts, data in encoder.chunks():
    chunks.append(writer.chunk(data))
    if progress:
      progress(encoder.parameters(parts))
  return chunks


def _warnings(encoder, entries: list[Entry], base) -> Iterator[str]:
  """What is odd about a file that was written."""
  found = [(e, encoder.distortion(i)) for i, e in enumerate(entries)]
  if erased := [e.name for e, d in found if d.erased and e.base is None]:
    yield f"all values became zero, at the steps given, of {_some(erased)}"
  changes = [d for e, d in found if e.base is not None]
  if any(d.erased for d in changes) and not any(d.nonzero for d in changes):
    yield "the whole difference became zero: take a finer step"
  if base is None:
    return
  if other := [
    e.name for e in entries if e.base is None and e.name in base.tensors
  ]:
    yield (
      f"coded as they are, since {base.name} has another shape or kind of them:"
      f" {_some(other)}"
    )


def _kept(
  encoder, entries: list[Entry], errors: list[float], max_error: float
) -> dict[int, str]:
  """The quantized tensors that had better be stored exactly, and why."""
  kept = {}
  for i, entry in enumerate(entries):
    if entry.step is None:
      continue
    if errors[i] > max_error:
      kept[i] = "error"
    elif encoder.is_larger(i):
      kept[i] = "size"
  return kept


def _some(names: list[str]) -> str:
  shown = ", ".join(map(repr, names[:5]))
  return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class Leaves(Protocol):
  """Makes leaves of levels, in place of arrays."""

  def takes(self, entry: Entry) -> bool:
    """Whether it makes the leaf of a tensor."""

  def leaf(self, entry: Entry, levels: np.ndarray) -> Any:
    """The leaf, of int32 levels in the shape of the tensor."""


def load(
  path: str | os.PathLike,
  *,
  names: Iterable[str] | None = None,
  base: Any = None,
  sharding=None,
  leaves: Callable[[list[Entry]], Leaves] | None = None,
  progress: Callable[[int], object] | None = None,
):
  """Reads a coded model file.

  `bs.load` says what it returns and raises, and what the arguments are, but for
  `leaves`: from the entries of the file to what makes other leaves of some.
  """
  with container.Reader(path) as reader:
    structure, entries, chunks, _ = report.read_index(reader)
    wanted = {entry.name for entry in entries}
    sums = differences.Sums(reader, entries, base)
    if names is not None:
      wanted = _matching(reader.path, sorted(wanted), names)
    found: dict[str, Any] = {}
    made = leaves(entries) if leaves else None

    def rows(entry: Entry) -> tuple[int, int] | None:
      if entry.name not in wanted:
        return None
      if sharding is None:
        return 0, entry.matrix[0]
      return _local_rows(entry, sharding_of(entry.name, entry.shape, sharding))

    takes = made.takes if made else lambda entry: False
    decoder = Decoder(reader, entries, rows, takes)
    for parts, complete in decoder.run(chunks):
      for entry, array in complete:
        if made and takes(entry):
          found[entry.name] = made.leaf(entry, array)
          continue
        array = sums.of(entry, array)
        if sharding is not None:
          array = _placed(array, sharding_of(entry.name, entry.shape, sharding))
        found[entry.name] = array
      if progress and parts:
        progress(index.parameters(entries, parts))
    if names is not None:
      return found
    return nesting.rebuild(structure, found.__getitem__)


def stream(
  path: str | os.PathLike, *, base: Any = None, stored: bool = False
) -> Iterator[tuple[str, np.ndarray]]:
  """(name, tensor) pairs of a file, each as soon as it is decoded.

  For a file that is larger than memory: tensors that together are larger than
  the largest are not in memory at once, except for those that the caller keeps
  and for one copy of a tensor that the file stores once and has twice.
  `base` and ArchiveError as of `load`. With `stored` the differences are given
  as they are stored, without a base.
  """
  with container.Reader(path) as reader:
    _, entries, chunks, _ = report.read_index(reader)
    sums = None if stored else differences.Sums(reader, entries, base)
    decoder = Decoder(reader, entries, lambda e: (0, e.matrix[0]))
    for _, complete in decoder.run(chunks):
      # Nothing here keeps a tensor that is given away.
      yield from map(sums.named if sums else _named, complete)


def _named(pair: tuple[Entry, np.ndarray]) -> tuple[str, np.ndarray]:
  return pair[0].name, pair[1]


def _step_of(name: str, step: Any) -> float:
  """The step of one tensor as a number."""
  found = float(np.asarray(step))
  if not 0 < found < math.inf:
    raise ValueError(
      f"tensor {name!r}: the step is {found:g}; have the steps been chosen? See"
      " bs.steps"
    )
  return found


def _dtype(name: str, leaf) -> np.dtype:
  try:
    return index.dtype_of(np.dtype(leaf.dtype).name)
  except (TypeError, ValueError):
    raise TypeError(
      f"tensor {name!r} has dtype {leaf.dtype}: only numbers can be stored;"
      " leave it out, as nnx.state(model, nnx.Param) leaves out random keys"
    ) from None


def _matching(path: str, known: list[str], names: Iterable[str]) -> set[str]:
  """The known names that match one of the patterns."""
  found = set()
  for pattern in [names] if isinstance(names, str) else names:
    matches = [pattern] if pattern in known else fnmatch.filter(known, pattern)
    if not matches:
      raise KeyError(f"{path} has no tensor named {pattern!r}")
    found.update(matches)
  return found


def sharding_of(name: str, shape: tuple[int, ...], sharding):
  """That of a tensor, of one for all or of a callable.

  Raises:
    TypeError: it is something else.
  """
  found = sharding(name, shape) if callable(sharding) else sharding
  wanted = "addressable_devices_indices_map"
  if found is not None and not hasattr(found, wanted):
    raise TypeError(
      f"the sharding of tensor {name!r} is {found!r}: it must be a"
      " jax.sharding.Sharding, or a callable from a name and shape to one"
    )
  return found


def _local_rows(entry: Entry, sharding) -> tuple[int, int]:
  """The rows of the entry's matrix that this process's shards span."""
  try:
    shards = sharding.addressable_devices_indices_map(entry.shape).values()
  except ValueError as error:
    raise ValueError(
      f"tensor {entry.name!r} of shape {entry.shape} does not fit its sharding:"
      " give one that does, sharding=f with f(name, shape) gives each tensor"
      f" its own ({error})"
    ) from error
  rows = entry.matrix[0]
  if not entry.shape or rows == 0:
    return 0, rows
  spans = [shard[0].indices(entry.shape[0]) for shard in shards]
  each = rows // entry.shape[0]
  return (
    each * min(start for start, _, _ in spans),
    each * max(stop for _, stop, _ in spans),
  )


def _placed(array: np.ndarray, sharding):
  import jax

  return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
