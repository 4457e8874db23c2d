"""Where a model's arrays lie on a mesh, said in logical names.

The models name the dimensions of their activations and say where parameters are
used. What a name means is up to a `Placement`, such as `sharding.Placement`.
Without one, as on one device, the functions here return what they are given.
"""

import contextlib
import contextvars
import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
from jax.typing import DTypeLike

from backslash_jax import tree
from experiments.models import compact

Names = tuple[str | None, ...]  # Of an array's dimensions; None: kept whole.


class Placement(Protocol):
  """What the logical names mean."""

  @property
  def platform(self) -> str:
    """Of the devices: "cpu", "gpu" or "tpu"."""

  def constrain(self, x: jax.Array, names: Names) -> jax.Array:
    """x, split as the names of its dimensions say."""

  def gather(self, name: str, x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """A parameter made whole for a computation in `dtype`."""

  def per_device(
    self, function: Callable, inputs: tuple[Names, ...], output: Names
  ) -> Callable:
    """The function, computed by each device on its part of the arrays.

    `inputs` has the names of every array in the arguments, in their order.
    """

  def over_batch(
    self, function: Callable, name: str, dtype: DTypeLike
  ) -> Callable:
    """The function, computed by each device on its part of the batch.

    Its first argument is a parameter of this name, or a tuple of such: each
    device gets all of it in `dtype`, and its gradient is summed once. The
    others, and the results, are arrays [B, ...].
    """

  def parts(self, name: str, size: int) -> int:
    """Into how many parts a dimension of an activation is split."""


_CURRENT: contextvars.ContextVar[Placement | None] = contextvars.ContextVar(
  "placement", default=None
)


@contextlib.contextmanager
def use(placement: Placement | None) -> Iterator[None]:
  """What is traced inside has this placement."""
  token = _CURRENT.set(placement)
  try:
    yield
  finally:
    _CURRENT.reset(token)


def is_placed() -> bool:
  """Whether there is a placement."""
  return _CURRENT.get() is not None


def platform() -> str:
  """See `Placement.platform`."""
  placement = _CURRENT.get()
  return jax.default_backend() if placement is None else placement.platform


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """See `Placement.constrain`."""
  placement = _CURRENT.get()
  return x if placement is None else placement.constrain(x, names)


def gather(
  params: Any,
  dtype: DTypeLike,
  *,
  skip: str | None = None,
  after: jax.Array | None = None,
) -> Any:
  """See `Placement.gather`; what is coded in memory is decoded.

  Args:
    params: tree of parameters, a model's or a block's.
    dtype: of the computation.
    skip: regular expression: parameters in whose names it is found stay split.
    after: see `compact.dense`.
  """
  params = compact.dense(params, skip=skip, dtype=dtype, after=after)
  placement = _CURRENT.get()
  if placement is None:
    return params

  def leaf(name, x):
    if skip and re.search(skip, name):
      return x
    return placement.gather(name, x, dtype)

  return tree.map_named(leaf, params)


def per_device(
  function: Callable, inputs: tuple[Names, ...], output: Names
) -> Callable:
  """See `Placement.per_device`."""
  placement = _CURRENT.get()
  if placement is None:
    return function
  return placement.per_device(function, inputs, output)


def over_batch(function: Callable, name: str, dtype: DTypeLike) -> Callable:
  """See `Placement.over_batch`."""
  placement = _CURRENT.get()
  if placement is None:
    return lambda x, *arrays: function(_cast(x, dtype), *arrays)
  return placement.over_batch(function, name, dtype)


def parts(name: str, size: int) -> int:
  """See `Placement.parts`."""
  placement = _CURRENT.get()
  return 1 if placement is None else placement.parts(name, size)


def _cast(arrays: Any, dtype: DTypeLike) -> Any:
  return jax.tree.map(lambda x: x.astype(dtype), arrays)
