"""The coded model file: save, load, inspect. Reading needs NumPy alone."""

from backslash_jax.archive.bases import Base
from backslash_jax.archive.container import ArchiveError
from backslash_jax.archive.file import (
  CODERS,
  MAX_ERROR,
  Report,
  TensorReport,
  inspect,
  load,
  save,
  stream,
)

__all__ = [
  "CODERS",
  "MAX_ERROR",
  "ArchiveError",
  "Base",
  "Report",
  "TensorReport",
  "inspect",
  "load",
  "save",
  "stream",
]
