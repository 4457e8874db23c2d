"""Functions without branches and loops, for several processes on CPUs.

XLA on CPU begins what follows a branch or a loop in a program before that has
ended. If both have collectives, their order differs between processes, and Gloo
ends them with "collective mismatch" or lets them wait for ever. Without
branches and loops the collectives of a program run one after the other.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

# Primitives that only call a function, and the parameter that holds it.
_CALLS = {
  "jit": "jaxpr",
  "pjit": "jaxpr",
  "checkpoint": "jaxpr",
  "remat2": "jaxpr",
  "closed_call": "call_jaxpr",
  "custom_jvp_call": "call_jaxpr",
  "custom_vjp_call": "call_jaxpr",
}


def straight(function: Callable[..., Any]) -> Callable[..., Any]:
  """The same function of trees of arrays, to be called inside jit.

  All branches are computed and one is selected. Loops of a known length over
  matrices are unrolled; those over scalars and vectors stay, since they have no
  collectives, and so does what is inside `shard_map`, which has its own at its
  end.
  """

  def run(*arguments):
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    found = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(arguments))
    return jax.tree.unflatten(jax.tree.structure(shapes), found)

  return run


def _evaluate(jaxpr, consts, arguments: Sequence[Any]) -> list[Any]:
  values = dict(zip(jaxpr.constvars, consts, strict=True))
  values |= zip(jaxpr.invars, arguments, strict=True)

  def read(x):
    return x.val if isinstance(x, core.Literal) else values[x]

  for equation in jaxpr.eqns:
    with equation.ctx.manager:
      results = _apply(equation, [read(x) for x in equation.invars])
    values |= zip(equation.outvars, results, strict=True)
  return [read(x) for x in jaxpr.outvars]


def _apply(equation, arguments):
  """The results of one equation, a list."""
  name, parameters = equation.primitive.name, equation.params
  if name in _CALLS:
    return _call(parameters[_CALLS[name]], arguments)
  # A choice by platform is made when the program is compiled.
  if name == "cond" and not parameters.get("branches_platforms"):
    which, *operands = arguments
    results = [_call(b, operands) for b in parameters["branches"]]
    return [
      jax.lax.select_n(which, *cases) for cases in zip(*results, strict=True)
    ]
  if name == "scan" and any(jnp.ndim(x) >= 2 for x in arguments):
    return _unrolled(parameters, arguments)
  return _as_it_is(equation, arguments)


def _as_it_is(equation, arguments):
  """The results of an equation by JAX itself."""
  rest = equation.primitive.get_bind_params(equation.params)
  results = equation.primitive.bind(*arguments, **rest)
  return results if equation.primitive.multiple_results else [results]


def _call(function, arguments):
  if isinstance(function, core.ClosedJaxpr):
    return _evaluate(function.jaxpr, function.consts, arguments)
  return _evaluate(function, (), arguments)


def _unrolled(parameters, arguments):
  """The results of a scan, iteration by iteration."""
  first = parameters["num_consts"]
  last = first + parameters["num_carry"]
  consts, carry = arguments[:first], arguments[first:last]
  order = list(range(parameters["length"]))
  if parameters["reverse"]:
    order.reverse()
  rows: dict[int, list[Any]] = {}
  for i in order:
    row = [x[i] for x in arguments[last:]]
    found = _call(parameters["jaxpr"], [*consts, *carry, *row])
    carry, rows[i] = found[: last - first], found[last - first :]
  stacked = zip(*(rows[i] for i in sorted(rows)), strict=True)
  return [*carry, *map(jnp.stack, stacked)]
