"""The device mesh, and how parameters, activations and batches lie on it.

A parameter's path gives its dimensions logical names, the models name those of
their activations, and the rules below say over which mesh axis a name is split.
"data" holds copies of the model. "fsdp" splits parameters and optimizer state
between devices that each see their own examples: a layer's parameters are
gathered where the layer is computed, and their gradients reduced and scattered.
"tensor" splits the computation within a layer.
"""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from backslash_jax import tree
from experiments import settings
from experiments.models import partition

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))

# Path -> the logical names of the last dimensions; stacked layers have more
# dimensions in front, which stay whole. The first match counts.
DIMENSIONS = (
  (r"attention/(query|key|value)/kernel$", ("width", "heads")),
  (r"attention/(query|key|value)/bias$", ("heads",)),
  (r"attention/out/kernel$", ("heads", "width")),
  (r"mlp/(up|gate)/kernel$", ("width", "mlp")),
  (r"mlp/(up|gate)/bias$", ("mlp",)),
  (r"mlp/down/kernel$", ("mlp", "width")),
  (r"(embed|word)/embedding$", ("vocabulary", "width")),
  (r"embedding$", (None, "width")),
  (r"lm_head/kernel$", ("width", "vocabulary")),
  (r"kernel$", ("width", None)),
)

# Logical name -> mesh axis. What has none, norms and biases, is replicated.
RULES = {
  "width": "fsdp",
  "heads": "tensor",
  "mlp": "tensor",
  "vocabulary": "tensor",
}

# The same of activations: the batch keeps fsdp, so their width is whole.
ACTIVATION_RULES = {
  "batch": BATCH[0],
  "heads": "tensor",
  "kv_heads": "tensor",
  "mlp": "tensor",
  "vocabulary": "tensor",
}

# Sizes that the data determines: not split if the axis does not divide them.
_GIVEN = ("batch", "vocabulary")
_PLAIN = {"kv_heads": "heads of keys and values", "mlp": "hidden units"}


def make_mesh(
  config: ml_collections.ConfigDict, devices: Any | None = None
) -> Mesh:
  """The mesh of config.mesh, over all devices of all processes.

  Args:
    config: as configs/default.py describes it; in config.mesh one axis may be
      -1, which gives it all remaining devices.
    devices: to use instead, as of a topology.

  Raises:
    UserError: the axes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = [config.mesh[axis] for axis in AXES]
  asked = ", ".join(f"{a}={n}" for a, n in zip(AXES, sizes, strict=True))
  known = math.prod(n for n in sizes if n != -1)
  if sizes.count(-1) > 1 or any(n == 0 or n < -1 for n in sizes):
    raise settings.UserError(
      f"config.mesh is {asked}: sizes are positive, and one of them may be -1"
    )
  if -1 in sizes and len(devices) % known == 0:
    sizes[sizes.index(-1)] = len(devices) // known
  if math.prod(sizes) != len(devices):
    raise settings.UserError(
      f"config.mesh is {asked}, but there are {len(devices)} devices: the"
      " product of the axes must be that number; -1 for one axis fits it"
    )
  return jax.make_mesh(
    tuple(sizes), AXES, (AxisType.Auto,) * len(AXES), devices=devices
  )


def parameters(params: Any, mesh: Mesh) -> Any:
  """NamedSharding of every parameter, a tree like params.

  Args:
    params: tree of arrays or of their shapes.
    mesh: with AXES.

  Raises:
    UserError: a mesh axis does not divide a dimension that is split over it.
  """
  leaves, treedef = jax.tree.flatten(params)
  problems: list[str] = []
  shardings = [
    NamedSharding(mesh, _spec(name, x.shape, mesh, problems))
    for name, x in zip(tree.names(params), leaves, strict=True)
  ]
  if problems:
    more = f", and so for {len(problems) - 1} more" if len(problems) > 1 else ""
    raise settings.UserError(f"{problems[0]}{more}")
  return treedef.unflatten(shardings)


def like(state: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
  """Shardings of a state that holds copies of params, as an optimizer's does.

  A leaf whose path ends with that of a parameter of the same shape gets the
  parameter's sharding; all others are replicated.
  """
  known = {
    (path, x.shape): s
    for (path, x), s in zip(
      jax.tree.leaves_with_path(params), jax.tree.leaves(shardings), strict=True
    )
  }

  def leaf(path, x):
    for i in range(len(path)):
      if (path[i:], x.shape) in known:
        return known[path[i:], x.shape]
    return NamedSharding(mesh, PartitionSpec())

  return jax.tree.map_with_path(leaf, state)


@dataclasses.dataclass(frozen=True)
class Placement:
  """What the logical names of `experiments.models.partition` mean on a mesh."""

  mesh: Mesh

  @property
  def platform(self) -> str:
    """Of the devices: "cpu", "gpu" or "tpu"."""
    return self.mesh.devices.flat[0].platform

  def constrain(self, x: jax.Array, names: partition.Names) -> jax.Array:
    """x, split as the names of its dimensions say.

    Raises:
      UserError: an axis does not divide the dimension that it splits.
    """
    spec = self._activation(names, x.shape)
    return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

  def gather(self, name: str, x: jax.Array, dtype: Any) -> jax.Array:
    """A parameter that is whole over fsdp, cast to `dtype` before it.

    Its gradient is split as the parameter is. What fsdp does not split is left
    as it is.

    Args:
      name: of its path at least the end, such as "mlp/up/kernel".
      x: the parameter.
      dtype: of the computation.
    """
    spec = _spec(name, x.shape, self.mesh, [])
    if RULES["width"] not in spec:
      return x
    whole = [None if axis == RULES["width"] else axis for axis in spec]
    split, gathered = (
      NamedSharding(self.mesh, PartitionSpec(*s)) for s in (spec, whole)
    )
    return _gather(x.astype(dtype), split, gathered)

  def per_device(self, function, inputs, output):
    """The function, computed by each device on its part of the arrays.

    `inputs` has the names of every array in the arguments, in their order; the
    result has the shape of the first of them.
    """

    def mapped(*arguments):
      arrays, structure = jax.tree.flatten(arguments)
      specs = [
        self._activation(names, x.shape)
        for names, x in zip(inputs, arrays, strict=True)
      ]
      return jax.shard_map(
        function,
        mesh=self.mesh,
        in_specs=structure.unflatten(specs),
        out_specs=self._activation(output, arguments[0].shape),
        check_vma=False,
      )(*arguments)

    return mapped

  def over_batch(self, function, name, dtype):
    """The function, computed by each device on its part of the batch.

    Its first argument is a parameter of this name, or a tuple of such: each
    device gets all of it in `dtype`, but for what tensor splits, and its
    gradient is summed once. The others, and the results, are arrays [B, ...].
    """

    def mapped(x, *arrays):
      spec = _spec(name, jax.tree.leaves(x)[0].shape, self.mesh, [])
      own = [axis if axis == RULES["width"] else None for axis in spec]
      batch = self._activation(("batch",), arrays[0].shape[:1])

      def whole(x):
        x = x.astype(dtype)
        for i, axis in enumerate(own):
          if axis:
            x = jax.lax.all_gather(x, axis, axis=i, tiled=True)
        return x

      def gathered(x, *arrays):
        x = jax.tree.map(whole, x)
        # Only the axes within a layer are left to the compiler.
        with partition.use(None):
          return function(x, *arrays)

      return jax.shard_map(
        gathered,
        mesh=self.mesh,
        in_specs=(PartitionSpec(*own), *([batch] * len(arrays))),
        out_specs=batch,
        axis_names=set(BATCH[0]),
        check_vma=False,
      )(x, *arrays)

    return mapped

  def parts(self, name: str, size: int) -> int:
    """Into how many parts a dimension of an activation is split."""
    (axis,) = self._activation((name,), (size,))
    return _size(self.mesh, axis) if axis else 1

  def _activation(self, names, shape):
    """PartitionSpec of an activation."""
    entries = []
    for name, size in zip(names, shape, strict=True):
      axis = ACTIVATION_RULES.get(name)
      if axis and size % _size(self.mesh, axis):
        if name not in _GIVEN:
          raise settings.UserError(
            f"config.mesh.{axis} is {_size(self.mesh, axis)}, which does not"
            f" divide the {_PLAIN.get(name, name)}, {size}: choose a divisor"
          )
        axis = None
      entries.append(axis)
    return PartitionSpec(*entries)


@contextlib.contextmanager
def use(mesh: Mesh | None) -> Iterator[None]:
  """Models that are traced inside are computed on the mesh.

  Raises:
    UserError: they cannot be.
  """
  placement = None
  if mesh is not None:
    placement = Placement(mesh)
    if mesh.size == 1 and placement.platform == jax.default_backend():
      placement = None
  try:
    with partition.use(placement):
      yield
  except NotImplementedError as error:
    raise settings.UserError(str(error)) from error


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x, split, gathered):
  """An array gathered from its shards."""
  x = jax.lax.with_sharding_constraint(x, split)
  return jax.lax.with_sharding_constraint(x, gathered)


def _gather_forward(x, split, gathered):
  # Not a call of `_gather`: its result would be stored for the backward pass.
  x = jax.lax.with_sharding_constraint(x, split)
  return jax.lax.with_sharding_constraint(x, gathered), None


def _gather_backward(split, gathered, _, gradient):
  # Whole first: the partitioner would otherwise rather split what the gradient
  # is computed from, which grows with the batch.
  gradient = jax.lax.with_sharding_constraint(gradient, gathered)
  return (jax.lax.with_sharding_constraint(gradient, split),)


_gather.defvjp(_gather_forward, _gather_backward)


def _size(mesh, axes):
  """Devices along an axis, or along several together."""
  return math.prod(
    mesh.shape[a] for a in ([axes] if isinstance(axes, str) else axes)
  )


def _spec(name, shape, mesh, problems):
  """PartitionSpec of one parameter; appends a problem if sizes do not fit."""
  matches = (names for pattern, names in DIMENSIONS if re.search(pattern, name))
  names = next(matches, ())
  entries: list[str | None] = [None] * len(shape)
  split = {name for name, axis in RULES.items() if mesh.shape[axis] > 1}
  for i, logical in enumerate(reversed(names), 1):
    if i > len(shape) or logical not in split:
      continue
    axis = RULES[logical]
    if shape[-i] % mesh.shape[axis] == 0:
      entries[-i] = axis
    elif logical not in _GIVEN:
      problems.append(
        f"config.mesh.{axis} is {mesh.shape[axis]}, wanted a divisor of the"
        f" {logical} of {name}, {shape[-i]} of {shape}"
      )
  return PartitionSpec(*entries)
