"""Rate-constrained training: the loss includes the bits that the weights take.

>>> import backslash_jax as bs, optax
>>> tx = optax.chain(bs.backslash(1e3), optax.adamw(3e-5))
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# The module of each public name. Names are imported on first use: a program
# that only reads files needs neither JAX nor optax.
_MODULES = {
  "archive": ("ArchiveError", "Base", "Report", "inspect", "save"),
  "coded": ("Coded", "Packed", "decode"),
  "control": ("gradient_balance", "target_rate"),
  "difference": ("apply_delta", "delta"),
  "quantize": ("STEP",),
  "recipe": ("recommended",),
  "rounding": ("round_through",),
  "fitting": ("fit_steps", "steps"),
  "loading": ("load",),
  "transform": ("BackslashState", "backslash"),
  "tree": ("matrices",),
}
_HOMES = {name: home for home, names in _MODULES.items() for name in names}
_PUBLIC_MODULES = ("feedback", "ggd", "moments", "quantize", "structure")

if TYPE_CHECKING:
  from backslash_jax import feedback, ggd, moments, quantize, structure
  from backslash_jax.archive import (
    ArchiveError,
    Base,
    Report,
    inspect,
    save,
  )
  from backslash_jax.coded import Coded, Packed, decode
  from backslash_jax.control import gradient_balance, target_rate
  from backslash_jax.difference import apply_delta, delta
  from backslash_jax.fitting import fit_steps, steps
  from backslash_jax.loading import load
  from backslash_jax.quantize import STEP
  from backslash_jax.recipe import recommended
  from backslash_jax.rounding import round_through
  from backslash_jax.transform import BackslashState, backslash
  from backslash_jax.tree import matrices

__all__ = [
  "STEP",
  "ArchiveError",
  "BackslashState",
  "Base",
  "Coded",
  "Packed",
  "Report",
  "apply_delta",
  "backslash",
  "decode",
  "delta",
  "feedback",
  "fit_steps",
  "ggd",
  "gradient_balance",
  "inspect",
  "load",
  "matrices",
  "moments",
  "quantize",
  "recommended",
  "round_through",
  "save",
  "steps",
  "structure",
  "target_rate",
]


def __getattr__(name: str) -> Any:
  if name in _PUBLIC_MODULES:
    return importlib.import_module(f"backslash_jax.{name}")
  if name in _HOMES:
    module = importlib.import_module(f"backslash_jax.{_HOMES[name]}")
    return getattr(module, name)
  raise AttributeError(f"module 'backslash_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
  return [*__all__, "__version__"]
