"""Coded model files to arrays, or to weights that stay coded in memory."""

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from backslash_jax import archive, tree
from backslash_jax.archive import file


def load(
  path: str | os.PathLike,
  *,
  names: Iterable[str] | None = None,
  base: Any = None,
  sharding=None,
  coded: bool | str = False,
  stacked: tree.Mask = (),
  blocks: Mapping[str, int] | None = None,
  progress: Callable[[int], object] | None = None,
):
  """Reads a coded model file.

  Args:
    path: the file.
    names: patterns of tensor names, as of a shell; a flat dict of those that
      match is returned, and only their chunks are read.
    base: the base of a file that holds differences, as for `save`. Its tensors
      may be JAX arrays; then so are the differences' sums, placed alike.
    sharding: a jax.sharding.Sharding, or a callable from a tensor's name and
      shape to one: the tensors are then JAX arrays, placed accordingly, and
      only the chunks of this process's shards are decoded.
    coded: whether quantized tensors stay small in memory: they are
      `bs.Coded` leaves with True, about as large as in the file, and
      `bs.Packed` leaves of 2 to 16 bits per parameter with "packed".
      `bs.decode` gives their arrays, inside jit. Tensors that are exact, empty,
      of more than 32 bits or differences from a base are arrays as ever, and
      so is what would not be smaller.
    stacked: with `coded`, selects as a mask the tensors whose first axis is
      that of layers. Each layer is coded on its own, and
      `bs.decode(leaf, at=layer)` decodes one, such as in the body of a
      `jax.lax.scan` over the numbers of the layers.
    blocks: with `coded`, into how many equal blocks of rows a tensor is
      divided, by its name. `bs.decode(leaf, at=block)` decodes one. A tensor
      that is an array is not divided: of it, `at` counts the rows.
    progress: called with the number of parameters that each chunk has added.

  Returns:
    The tree that was saved, with the same dtypes and the quantized values.

  Raises:
    ArchiveError: if the file is not exactly what `save` wrote, or `base` is
      not the one that it was saved with; it names a tensor that differs.
    KeyError: if a name in `names` matches nothing.
    ValueError: if `coded` is something else, a tensor has no such blocks, or
      `stacked` or `blocks` is given without `coded`.
  """
  options = {"names": names, "base": base, "progress": progress}
  if coded is False:
    if blocks or not (isinstance(stacked, tuple | list) and not stacked):
      raise ValueError(
        "stacked and blocks are for coded=True and coded='packed'; arrays have"
        " their layers along the first axis"
      )
    return archive.load(path, sharding=sharding, **options)
  from backslash_jax.coded import transcode  # Imports JAX.

  return archive.load(
    path,
    sharding=sharding,
    leaves=lambda entries: transcode.Transcoder(
      entries,
      coded,
      stacked,
      functools.partial(file.sharding_of, sharding=sharding),
      blocks or {},
    ),
    **options,
  )
