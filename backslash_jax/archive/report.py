"""What a coded model file weighs, from its index alone."""

import dataclasses
import math
import os
from collections.abc import Mapping

import numpy as np

from backslash_jax.archive import container, index, schema
from backslash_jax.coding import models


@dataclasses.dataclass(frozen=True)
class TensorReport:
  """What one tensor weighs.

  Attributes:
    name: its path in the tree, keys joined by "/".
    shape: as saved.
    dtype: NumPy's name of it.
    step: distance of the quantizer's levels; None if it is kept exactly.
    nu: shape of the generalized Gaussian that fits its values, or None.
    alpha: scale of the same, in the tensor's own units, or None.
    coder: how its integers are coded, or "exact".
    bits: the code length that its model gives it.
    bytes: its part of the payload; where tensors share a chunk, by their bits.
    relative_error: rms of the quantization error / rms of the tensor. Only
      `save` knows it; None from `inspect`.
    quantizer: "scalar" or "trellis"; None if it is exact.
    kept: why `save` stored it exactly although it has a step: "error" or
      "size"; None otherwise, and from `inspect`.
    same: the name of the equal tensor that is stored for both; None if it is
      stored itself.
    repeated_rows: rows of its matrix that are equal to an earlier one, and not
      stored.
    base: the digest of the tensor of the base that it is stored as the
      difference from; None if it is stored as it is. Step, nu, alpha and bits
      are then of the difference, the relative error is that of the tensor.
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
  relative_error: float | None = None
  quantizer: str | None = None
  kept: str | None = None
  same: str | None = None
  repeated_rows: int = 0
  base: str | None = None


@dataclasses.dataclass(frozen=True)
class Report:
  """What a file weighs: `bytes` of it, `parameters` in it, and each tensor.

  `metadata` is the free text by name that the file keeps.
  """

  path: str
  bytes: int
  parameters: int
  tensors: tuple[TensorReport, ...]
  metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def is_difference(self) -> bool:
    """Whether the file needs its base."""
    return any(t.base for t in self.tensors)

  @property
  def bits_per_parameter(self) -> float:
    """All bits of the file, headers and checksums included, per parameter."""
    return 8 * self.bytes / max(self.parameters, 1)


def inspect(path: str | os.PathLike) -> Report:
  """What a file weighs, from its index alone; ArchiveError if that is bad."""
  with container.Reader(path) as reader:
    _, entries, chunks, metadata = read_index(reader)
    own = np.zeros(len(entries))
    # A filler, the chunk that may follow, belongs to no tensor.
    for parts, (_, size, _) in zip(index.plan(entries), chunks, strict=False):
      bits = np.array([float(entries[part.tensor].bits) for part in parts])
      share = (
        bits / bits.sum() if bits.any() else np.full(bits.size, 1 / bits.size)
      )
      own[[part.tensor for part in parts]] += size * share
    ends = np.round(np.cumsum(own))  # Whole bytes that sum to the payload.
    tensors = tuple(
      TensorReport(
        name=entry.name,
        shape=entry.shape,
        dtype=entry.dtype.name,
        step=entry.step,
        nu=entry.reported_nu,
        alpha=entry.reported_alpha,
        coder=entry.coder,
        quantizer=_quantizer(entry, entries),
        bits=entry.bits,
        bytes=int(size),
        same=None if entry.same is None else entries[entry.same].name,
        repeated_rows=entry.repeats.rows.size if entry.repeats else 0,
        base=entry.base,
      )
      for entry, size in zip(entries, np.diff(ends, prepend=0.0), strict=True)
    )
    parameters = sum(math.prod(entry.shape) for entry in entries)
    return Report(reader.path, reader.size, parameters, tensors, metadata)


def _quantizer(entry: index.Entry, entries: list[index.Entry]) -> str | None:
  if entry.step is None:
    return None
  stored = entry if entry.same is None else entries[entry.same]
  return "trellis" if isinstance(stored.model, models.Trellis) else "scalar"


def read_index(reader: container.Reader):
  """The index of an open file, checked; ArchiveError if it is invalid."""
  try:
    return schema.from_json(
      reader.index, reader.payload_size, reader.size, reader.version
    )
  except (ValueError, TypeError, LookupError, RecursionError) as error:
    raise reader.error(f"the index is invalid: {error}") from None
