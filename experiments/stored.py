"""The trained parameters on disk, and on their way there and back.

No process ever holds more than its share of the parameters and a tensor or two:
they are gathered one at a time, read back one at a time, and loaded by every
process onto its own devices.
"""

import contextlib
import itertools
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import backslash_jax as bs
from backslash_jax import tree
from experiments import distributed, sharding

_SMALL = 1 << 20  # Bytes of a tensor that may stay in memory.


class Tensor:
  """A tensor of a coded file, decoded whenever it is read."""

  def __init__(self, path: pathlib.Path, report: Any):
    self._path, self._name = path, report.name
    self.shape, self.dtype = report.shape, np.dtype(report.dtype)
    self.ndim, self.size = len(self.shape), int(np.prod(self.shape))

  def __array__(self, dtype=None, copy=None):
    del copy
    x = bs.load(self._path, names=[self._name])[self._name]
    return x if dtype is None else x.astype(dtype)


def tensors(path: pathlib.Path, prefix: str = "") -> dict[str, Tensor]:
  """The tensors of a file whose names begin with prefix, by the rest of it."""
  return {
    t.name.removeprefix(prefix): Tensor(path, t)
    for t in bs.inspect(path).tensors
    if t.name.startswith(prefix)
  }


def like(params: Any, found: Mapping[str, Any]) -> Any:
  """A tree like params with `found` by the name of each leaf in its place."""
  return tree.map_named(lambda name, _: found[name], params)


def load(path: pathlib.Path, mesh: Mesh) -> Any:
  """What `bs.save` wrote, every tensor split over the mesh as a parameter is.

  Raises:
    ArchiveError: the file is damaged.
  """
  shapes = {
    t.name: jax.ShapeDtypeStruct(t.shape, np.dtype(t.dtype))
    for t in bs.inspect(path).tensors
  }
  placed = sharding.parameters(shapes, mesh)
  return bs.load(path, sharding=lambda name, shape: placed[name])


def save(path: pathlib.Path, params: Any, steps: Mapping[str, Any]) -> None:
  """Writes {"params": params, "steps": steps} exactly; all processes call it.

  Raises:
    OSError: the file cannot be written.
  """
  with _gathered(params, path.parent) as whole:
    if distributed.is_main():
      bs.save(path, {"params": whole, "steps": steps}, step=None, mask=())


def gathered(params: Any) -> Any:
  """The whole parameters in the memory of process 0; None elsewhere.

  Only for a model that fits there.
  """
  if jax.process_count() == 1:
    return params
  return tree.map_named(lambda name, x: distributed.gather(x, name), params)


@contextlib.contextmanager
def _gathered(params: Any, directory: pathlib.Path) -> Iterator[Any]:
  """The whole tensors, in files of process 0, which are removed in the end."""
  if jax.process_count() == 1:
    yield params
    return
  with contextlib.ExitStack() as stack:
    files = ""
    if distributed.is_main():
      files = stack.enter_context(tempfile.TemporaryDirectory(dir=directory))
    numbers = itertools.count()

    def keep(name, x):
      array = distributed.gather(x, name)
      if array is None or array.nbytes <= _SMALL:
        return array
      path = pathlib.Path(files, str(next(numbers)))
      kept = np.memmap(path, array.dtype, "w+", shape=array.shape)
      kept[:] = array
      return kept

    yield tree.map_named(keep, params)
