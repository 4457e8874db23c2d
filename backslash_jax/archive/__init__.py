"""The coded model file: save, load, inspect. Reading needs NumPy alone."""

from backslash_jax.archive.bases import Base
from backslash_jax.archive.container import ArchiveError
from backslash_jax.archive.file import (
  CODERS,
  MAX_ERROR,
  QUANTIZERS,
  load,
  save,
  stream,
)
from backslash_jax.archive.report import Report, TensorReport, inspect
from backslash_jax.archive.schema import MAX_METADATA

__all__ = [
  "CODERS",
  "MAX_ERROR",
  "MAX_METADATA",
  "QUANTIZERS",
  "ArchiveError",
  "Base",
  "Report",
  "TensorReport",
  "inspect",
  "load",
  "save",
  "stream",
]
