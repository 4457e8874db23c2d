"""Compiles the decoding step of a model for a TPU slice that is not there.

python -m experiments.bench.aot_serve --save=serve

A row of tokens goes through the model with a full cache of keys and values, in
bfloat16, with dense, packed and coded weights. Needs libtpu and no TPU. Prints
what one chip holds and the smallest slice that the step fits, by the compiler's
own count; nothing is run. --save=NAME keeps the numbers in
experiments/bench/results.
"""

import dataclasses
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from flax import traverse_util
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import backslash_jax as bs
from backslash_jax import tree
from experiments import settings, sharding
from experiments.bench import aot, roofline, timing
from experiments.models import cache, compact, functional, llama

# Name -> the size, and slots of the cache of one row.
MODELS = {
  "Llama 3.2 1B": ("3.2-1b", 8192),
  "DeepSeek 7B": ("deepseek-7b", 4096),
}
# Kind -> bits of a level, or on average of a coded one.
KINDS = {
  "dense bfloat16": 16.0,
  "packed, 8 bits": 8.0,
  "packed, 4 bits": 4.0,
  "coded, 3 bits": 3.0,
  "coded, 2 bits": 2.0,
}
# Slices by the number of chips that split a layer.
SLICES = {1: "v5e:2x2", 4: "v5e:2x2", 8: "v5e:2x4"}
_MEMORY = re.compile(r"Used ([\d.]+)([KMG])i?B? of ([\d.]+)([KMG])")


class Step(NamedTuple):
  """What the compiler says of a decoding step, bytes per chip.

  Attributes:
    weights: of the weights in memory.
    cache: of keys and values.
    temporary: of everything else that is live; None if it does not fit.
    peak: of all memory at once.
    fits: whether the compiler could place it.
  """

  weights: int
  cache: int
  temporary: int | None
  peak: int
  fits: bool


def compile_step(
  config: llama.ModelConfig, kind: str, devices: Sequence[Any], slots: int
) -> Step:
  """Compiles a decoding step of one row.

  Args:
    config: of the model, its blocks stacked.
    kind: one of KINDS.
    devices: which split the layers; dense weights only, if there are several.
    slots: of the cache.
  """
  mesh = jax.make_mesh(
    (1, 1, len(devices)),
    sharding.AXES,
    (AxisType.Auto,) * 3,
    devices=list(devices),
  )
  forward = functional.forward(config)
  params = stored(config, kind)
  known = jax.eval_shape(lambda: cache.empty(config, 1, slots))
  placed = _placed(params, mesh)
  whole = NamedSharding(mesh, PartitionSpec())
  heads = PartitionSpec(None, None, None, "tensor")
  known_placed = jax.tree.map(
    lambda x: NamedSharding(mesh, heads) if x.ndim == 5 else whole, known
  )

  def step(params, tokens, known):
    with sharding.use(mesh):
      return forward.decode(params, tokens, known)

  lowered = jax.jit(
    step,
    donate_argnums=2,
    in_shardings=(placed, whole, known_placed),
    out_shardings=(whole, known_placed),
  ).lower(params, jax.ShapeDtypeStruct((1,), jnp.int32), known)
  sizes = _bytes(params, placed), _bytes(known, known_placed)
  try:
    memory: Any = lowered.compile().memory_analysis()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return Step(*sizes, None, _used(str(error)), False)
  peak = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )
  return Step(*sizes, memory.temp_size_in_bytes, peak, True)


def stored(config: llama.ModelConfig, kind: str) -> Any:
  """The shapes of a model's parameters as they lie in memory."""
  flat = functional.flatten(
    jax.eval_shape(lambda: functional.split(_fresh(config))[1])
  )
  matrices = tree.selected(flat)
  return traverse_util.unflatten_dict(
    {
      name: compact.Parameter(_leaf(name, x, kind)) if name in matrices else x
      for name, x in flat.items()
    },
    sep="/",
  )


def _fresh(config):
  from experiments import models

  return models.from_config(config)


def _leaf(name: str, x: Any, kind: str) -> Any:
  """The shapes of one matrix in memory, its layers apart if it has some."""
  if kind.startswith("dense"):
    return x
  grid = x.shape[:1] if "/layers/" in name else ()
  block = (*(1 for _ in grid), *x.shape[len(grid) :])
  size = int(np.prod(block))
  bits = KINDS[kind]

  def child(shape, dtype):
    return jax.ShapeDtypeStruct((*grid, *shape), dtype)

  common = {
    "places": child((0,), jnp.int32),
    "values": child((0,), x.dtype),
    "scale": child((2,), jnp.float32),
    "block": block,
    "divided": len(grid),
    "dtype": x.dtype,
  }
  if kind.startswith("packed"):
    return bs.Packed(
      octets=child((int(size * bits) // 8,), jnp.uint8),
      lowest=child((), jnp.int32),
      bits=int(bits),
      **common,
    )
  rows = 2 if bits <= 2 else 1
  lanes = 2048
  return bs.Coded(
    words=child((int(size * bits) // 16,), jnp.uint16),
    counts=child((lanes,), jnp.uint16),
    states=child((lanes,), jnp.uint32),
    frequency=child((256,), jnp.uint16),
    tuples=child((256,), jnp.uint32),
    rows=rows,
    **common,
  )


def _placed(params: Any, mesh: Mesh) -> Any:
  """Where the leaves lie: dense ones are split, the others are not."""
  whole = NamedSharding(mesh, PartitionSpec())
  split = sharding.parameters(
    jax.tree.map(
      lambda p: p.source if compact.is_parameter(p) else p,
      params,
      is_leaf=compact.is_parameter,
    ),
    mesh,
  )
  if mesh.size == 1:
    return jax.tree.map(lambda _: whole, params)
  return jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(split))


def _bytes(shapes: Any, placed: Any) -> int:
  """What one chip holds of a tree."""
  pairs = zip(jax.tree.leaves(shapes), jax.tree.leaves(placed), strict=True)
  return sum(
    int(np.prod(s.shard_shape(x.shape))) * x.dtype.itemsize for x, s in pairs
  )


def _used(message: str) -> int:
  """Bytes that the compiler would have needed."""
  if not (match := _MEMORY.search(message)):
    raise ValueError(f"the compiler's message has changed: {message[:300]}")
  unit = {"K": 2**10, "M": 2**20, "G": 2**30}[match[2]]
  return int(float(match[1]) * unit)


def table(results: dict[str, dict[str, Any]]) -> str:
  """The results as a table in Markdown, GiB per chip."""
  lines = [
    "| model, cache | weights in memory | weights, GiB | cache | temporaries |"
    " peak, GiB | chips |",
    "|---|---|---|---|---|---|---|",
  ]
  gib = 2**30
  for name, kinds in results.items():
    for kind, by_chips in kinds.items():
      for chips, found in by_chips.items():
        step = Step(**found)
        temporary = step.temporary
        cells = [
          f"{name}, {MODELS[name][1]:,} tokens",
          kind,
          f"{step.weights / gib:.2f}",
          f"{step.cache / gib:.2f}",
          "" if temporary is None else f"{temporary / gib:.2f}",
          f"{step.peak / gib:.2f}",
          str(chips) if step.fits else f"not {chips}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


_SAVE = flags.DEFINE_string("save", None, "Name to keep the numbers by.")


def _main(argv):
  del argv
  logging.set_verbosity(logging.ERROR)
  jax.config.update("jax_platforms", "cpu")  # Whatever this host has.
  results: dict[str, Any] = {}
  try:
    for name, (size, slots) in MODELS.items():
      config = dataclasses.replace(
        llama.SIZES[size], scan=True, dtype="bfloat16", param_dtype="bfloat16"
      )
      results[name] = {}
      for kind in KINDS:
        found = results[name][kind] = {}
        for chips, slice_ in SLICES.items():
          devices = aot.topology_devices(slice_)[:chips]
          step = compile_step(config, kind, devices, slots)
          found[str(chips)] = step._asdict()
          print(name, kind, chips, step, file=sys.stderr)
          if step.fits:
            break
  except settings.UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
  if _SAVE.value:
    command = " ".join(["python -m experiments.bench.aot_serve", *sys.argv[1:]])
    memory = roofline.CHIPS["v5e"].memory
    timing.write(_SAVE.value, command, {"GiB": memory, "models": results})
  print(table(results))


if __name__ == "__main__":
  app.run(_main)
