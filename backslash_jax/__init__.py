"""Rate-constrained training: the price of a parameter, in bits, is minimized.

>>> import backslash_jax as bs, optax
>>> tx = optax.chain(bs.backslash(1e3), optax.adamw(3e-5))
"""

from backslash_jax import ggd
from backslash_jax.archive import ArchiveError, Report, inspect, load, save
from backslash_jax.control import gradient_balance, target_rate
from backslash_jax.moments import Moments, moments, shape_parameter
from backslash_jax.recipe import recommended
from backslash_jax.rounding import matrices, perturb, round_through
from backslash_jax.steps import FitStepsState, fit_steps
from backslash_jax.transform import BackslashState, backslash

__all__ = [
  "ArchiveError",
  "BackslashState",
  "FitStepsState",
  "Moments",
  "Report",
  "backslash",
  "fit_steps",
  "ggd",
  "gradient_balance",
  "inspect",
  "load",
  "matrices",
  "moments",
  "perturb",
  "recommended",
  "round_through",
  "save",
  "shape_parameter",
  "target_rate",
]
