"""Quantization of trained parameters. Needs NumPy only.

STEP, check_step, steps_by_name   the step, or one step per leaf (step)
quantize, dequantize,
rate_distortion, apply            from a tensor to integers and back (levels)
absmax_steps, sensitive_steps,
allocate, choose_step             choosing the steps (choice)
"""

from backslash_jax.quantize.choice import (
  absmax_steps,
  allocate,
  choose_step,
  sensitive_steps,
)
from backslash_jax.quantize.levels import (
  apply,
  dequantize,
  quantize,
  rate_distortion,
)
from backslash_jax.quantize.step import STEP, check_step, steps_by_name

__all__ = [
  "STEP",
  "absmax_steps",
  "allocate",
  "apply",
  "check_step",
  "choose_step",
  "dequantize",
  "quantize",
  "rate_distortion",
  "sensitive_steps",
  "steps_by_name",
]
