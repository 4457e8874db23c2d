"""Which tensors are quantized, and with which steps."""

import fnmatch
import math
import re
from collections.abc import Callable
from typing import Any

from backslash_jax import quantize, tree
from backslash_jax.archive import differences
from backslash_jax.cli import goal

# The step of each tensor, by name, at a scale; see `goal.Steps`. The scale is
# None if --step gives the steps.
Allocation = Callable[[Any], dict[str, float]]

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_STEP = re.compile(rf"({_NUMBER})(?:(\^|\*\*|/)([+-]?{_NUMBER}))?", re.ASCII)


def parse(text: str) -> float | None:
  """The step of 2^-8, 2**-8, 1/256 or 0.004; None for absmax/127.

  Raises:
    ValueError: if it is anything else.
  """
  if count(text) is not None:
    return None
  try:
    match = _STEP.fullmatch(text)
    if match is None:
      raise ValueError
    base, operator, other = match.groups()
    step = float(base)
    if operator:
      step = step / float(other) if operator == "/" else step ** float(other)
    quantize.check_step(step)
  except (ValueError, OverflowError, ZeroDivisionError):
    raise ValueError(
      f"--step {text}: give a positive number such as 2^-8, or absmax/127"
    ) from None
  return step


def count(text: str) -> int | None:
  """The 127 of absmax/127, or None."""
  match = re.fullmatch(r"absmax/0*([1-9][0-9]{0,8})", text)
  return int(match[1]) if match else None


def of_tensors(text: str, params: dict) -> dict[str, float]:
  """The step of each tensor."""
  step = parse(text)
  if step is not None:
    return dict.fromkeys(params, step)
  levels = count(text)
  assert levels is not None
  found = quantize.absmax_steps(params, levels, mask=None) if params else {}
  for name, own in found.items():
    if not 0 < own < math.inf:
      raise ValueError(
        f"tensor {name!r}: --step {text} is {own} for it, which is no step: its"
        " values are not all finite; leave it out with --exclude"
      )
  return found


def check(options) -> None:
  """Raises ValueError if --step is not understood, or not for a difference."""
  if options.step and parse(options.step) is None and options.base:
    raise ValueError(
      f"--step {options.step}: with --base, give a number such as 2^-8"
    )


def allocation(params: dict, names: list[str], base, options) -> Allocation:
  """The steps of the tensors that are quantized, of one file.

  Args:
    params: all tensors of the file.
    names: of those to quantize.
    base: an `archive.Base`, or None.
    options: of the command line.
  """
  if base is not None:
    return _of_difference(params, names, base, options)
  quantized = {name: params[name] for name in names}
  if options.step is None:
    return goal.Steps(quantized, options.max_error)
  found = of_tensors(options.step, quantized)
  return lambda _: found


def _of_difference(params, names, base, options) -> Allocation:
  number = parse(options.step) if options.step else None
  taken = differences.taken_from(base, params)
  excluded: set[str] = set()
  if options.mask is None:
    (excluded,) = _matching("--exclude", options.exclude, [params])
    excluded |= set(scales_of_quantized([params]))

  def steps(scale):
    own = number or scale
    if options.mask is not None:
      return dict.fromkeys(names, own)
    found = differences.steps(params, own, tree.matrices, taken)
    return {
      name: step
      for name, step in found.items()
      if name not in excluded and not is_narrow(params[name].dtype.name)
    }

  return steps


def chosen(models: list[dict], options) -> list[list[str]]:
  """The names of the tensors to quantize, of each file.

  A pattern has to match a tensor of one of the files, not of each.
  """
  floating = [{n: x for n, x in m.items() if tree.is_float(x)} for m in models]
  if options.mask is None:
    flags = [tree.select(params, tree.matrices) for params in models]
    scales = set(scales_of_quantized(models))
    chosen = [{n for n, flag in own.items() if flag} - scales for own in flags]
  else:
    chosen = _matching("--mask", options.mask, floating)
  excluded = _matching("--exclude", options.exclude, models)
  return [
    [
      name
      for name in params
      if name in own - other and not is_narrow(params[name].dtype.name)
    ]
    for params, own, other in zip(models, chosen, excluded, strict=True)
  ]


def _matching(option: str, patterns, models: list[dict]) -> list[set[str]]:
  """The names that match a pattern, of each file; ValueError if none does."""
  found: list[set[str]] = [set() for _ in models]
  for pattern in patterns:
    own = [
      {pattern} & params.keys() or set(fnmatch.filter(params, pattern))
      for params in models
    ]
    if not any(own):
      raise ValueError(
        f"{option}: no tensor that can be chosen matches {pattern!r}"
      )
    found = [a | b for a, b in zip(found, own, strict=True)]
  return found


def scales_of_quantized(models: list[dict]) -> list[str]:
  """The floating tensors that belong to a larger quantized one.

  Such as scales, zeros and codebooks, whatever their names: those of a module
  that has a matrix of integers or narrow floats, or below the name of one.
  """
  modules: dict[str, int] = {}
  for params in models:
    for name, x in params.items():
      is_quantized = x.dtype.kind in "iu" or is_narrow(x.dtype.name)
      for module in (_module(name), name) if is_quantized else ():
        if len(x.shape) >= 2 and module:
          modules[module] = max(modules.get(module, 0), x.size)
  return [
    name
    for params in models
    for name, x in params.items()
    if tree.is_float(x)
    and not is_narrow(x.dtype.name)
    and len(x.shape) >= 2
    and x.size < modules.get(_module(name), 0)
  ]


def _module(name: str) -> str:
  """The name without its last part."""
  return re.sub(r"(?:^|[./])[^./]*$", "", name)


def is_narrow(dtype: str) -> bool:
  """Whether values are quantized already: a float of 8 bits or fewer."""
  # The underscore tells float6_e2m3fn from float64.
  return dtype.startswith(("float8_", "float6_", "float4_"))
