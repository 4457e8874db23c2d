"""Compiles the decoding step of a model for a TPU slice that is not there.

python -m experiments.bench.aot_serve --write

A token of each row goes through the model with a cache of keys and values, in
bfloat16, with dense, packed and coded weights. Needs libtpu and no TPU. Prints
what one chip holds and the smallest slice that the step fits, by the compiler's
own count; nothing is run. --write keeps the numbers in
experiments/bench/results.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from flax import nnx, traverse_util
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import backslash_jax as bs
from backslash_jax import tree
from experiments import program, settings, sharding
from experiments.bench import aot, roofline, timing
from experiments.models import cache, compact, functional, llama, sizes

# Name -> the size, rows and slots of the cache.
MODELS = {
  "Llama 3.2 1B, 1 x 8,192": ("3.2-1b", 1, 8192),
  "DeepSeek 7B, 1 x 4,096": ("deepseek-7b", 1, 4096),
}
# Kind -> bits of a level, or on average of a coded one.
KINDS = {
  "dense bfloat16": 16.0,
  "packed, 4 bits": 4.0,
  "coded, 2 bits": 2.0,
}
# Slices by the number of chips that split a layer.
SLICES = {1: "v5e:2x2", 4: "v5e:2x2", 8: "v5e:2x4"}
_LANES = 2048  # That decode a block side by side, about.
# What the compiler says of a program that does not fit; the "temporaries" are
# arguments and results, too.
_NEEDED = re.compile(
  r"(?:HLO temporaries \(|Used )([\d.]+)([KMG])(?:\) exceeds| of)"
)


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
  config: llama.ModelConfig,
  kind: str,
  devices: Sequence[Any],
  rows: int,
  slots: int,
) -> Step:
  """Compiles a decoding step.

  Args:
    config: of the model, its blocks stacked.
    kind: one of KINDS.
    devices: which split the layers; dense weights only, if there are several.
    rows: of the cache.
    slots: likewise.
  """
  mesh = jax.make_mesh(
    (1, 1, len(devices)),
    sharding.AXES,
    (AxisType.Auto,) * 3,
    devices=list(devices),
  )
  forward = functional.forward(config)
  params = stored(config, kind)
  known = jax.eval_shape(lambda: cache.empty(config, rows, slots))
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
  ).lower(params, jax.ShapeDtypeStruct((rows,), jnp.int32), known)
  sizes = _bytes(params, placed), _bytes(known, known_placed)
  try:
    memory: Any = lowered.compile().memory_analysis()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    if not (match := _NEEDED.search(str(error))):
      raise
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}[match[2]]
    return Step(*sizes, None, int(float(match[1]) * unit), False)
  peak = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )
  return Step(*sizes, memory.temp_size_in_bytes, peak, True)


def stored(config: llama.ModelConfig, kind: str) -> Any:
  """The shapes of a model's parameters as they lie in memory."""
  state = nnx.state(sizes.abstract(config), nnx.Param)
  flat = functional.flatten(nnx.to_pure_dict(state))
  if not kind.startswith("dense"):
    flat |= {
      name: _parameter(name, x, kind) for name, x in tree.selected(flat).items()
    }
  return traverse_util.unflatten_dict(flat, sep="/")


def _parameter(name: str, x: Any, kind: str) -> compact.Parameter:
  """A matrix in memory: its layers apart, or by blocks of tokens."""
  if "/layers/" in name:
    return compact.Parameter(_leaf(x, kind, x.shape[0]))
  is_head = name.startswith("lm_head")  # Stored with a row for each token.
  if is_head:
    x = jax.ShapeDtypeStruct(x.shape[::-1], x.dtype)
  blocks = compact.block_count(*x.shape)
  return compact.Parameter(
    _leaf(x, kind, blocks), transposed=is_head, blocks=blocks
  )


def _leaf(x: Any, kind: str, blocks: int) -> Any:
  """The shapes of a matrix that is coded or packed in equal blocks of rows."""
  grid = (blocks,)
  block = (x.shape[0] // blocks, *x.shape[1:])
  size = int(np.prod(block))
  bits = KINDS[kind]

  def child(shape, dtype):
    return jax.ShapeDtypeStruct((*grid, *shape), dtype)

  def shared(size, dtype):
    return jax.ShapeDtypeStruct((size,), dtype)

  common = {
    "places": shared(0, jnp.int32),
    "values": shared(0, x.dtype),
    "most": 0,
    "scale": child((2,), jnp.float32),
    "block": block,
    "divided": len(grid),
    "each": blocks,
    "dtype": x.dtype,
  }
  if kind.startswith("packed"):
    return bs.Packed(
      octets=child((int(size * bits) // 8,), jnp.uint8),
      lowest=child((), jnp.int32),
      begins=child((2,), jnp.int32),
      bits=int(bits),
      **common,
    )
  rows = 2 if bits <= 2 else 1
  segments = -(-block[-1] // _LANES)
  lanes = -(-block[-1] // segments) * max(1, _LANES // block[-1])
  words = int(size * bits) // 16
  return bs.Coded(
    words=shared(blocks * words, jnp.uint16),
    begins=child((4,), jnp.int32),
    counts=child((lanes,), jnp.uint8),
    states=child((lanes,), jnp.uint32),
    frequency=child((1, 256), jnp.uint16),
    tuples=child((1, 256, rows), jnp.int8),
    row_classes=child((0,), jnp.int8),
    column_classes=child((0,), jnp.int8),
    segments=segments,
    longest=-(-words // lanes),
    **common,
  )


def _placed(params: Any, mesh: Mesh) -> Any:
  """Where the leaves lie: dense ones are split, the others are not."""
  if mesh.size == 1:
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda _: whole, params)
  return sharding.parameters(params, mesh)


def _bytes(shapes: Any, placed: Any) -> int:
  """What one chip holds of a tree."""
  pairs = zip(jax.tree.leaves(shapes), jax.tree.leaves(placed), strict=True)
  return sum(
    int(np.prod(s.shard_shape(x.shape))) * x.dtype.itemsize for x, s in pairs
  )


def table(results: dict[str, dict[str, Any]]) -> str:
  """The results as a table in Markdown, GiB per chip."""
  lines = [
    "| model, tokens in the cache | weights in memory | weights, GiB | cache |"
    " temporaries | peak, GiB | chips |",
    "|---|---|---|---|---|---|---|",
  ]
  gib = 2**30
  for name, kinds in results.items():
    for kind, by_chips in kinds.items():
      for chips, found in by_chips.items():
        step = Step(**found)
        temporary = step.temporary
        cells = [
          name,
          kind,
          f"{step.weights / gib:.2f}",
          f"{step.cache / gib:.2f}",
          "" if temporary is None else f"{temporary / gib:.2f}",
          f"{step.peak / gib:.2f}",
          str(chips) if step.fits else f"not {chips}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


_WRITE = flags.DEFINE_bool("write", False, "Keeps the numbers.")
_MODELS = flags.DEFINE_multi_string(
  "model", list(MODELS), "What is compiled; the others keep their numbers."
)


def _main(argv):
  del argv
  logging.set_verbosity(logging.ERROR)
  jax.config.update("jax_platforms", "cpu")  # Whatever this host has.
  found: dict[str, Any] = {}
  try:
    for name in _MODELS.value:
      size, rows, slots = MODELS[name]
      config = dataclasses.replace(
        llama.SIZES[size], scan=True, dtype="bfloat16", param_dtype="bfloat16"
      )
      found[name] = {}
      for kind in KINDS:
        by_chips = found[name][kind] = {}
        for chips, topology in SLICES.items():
          devices = aot.topology_devices(topology)[:chips]
          step = compile_step(config, kind, devices, rows, slots)
          by_chips[str(chips)] = step._asdict()
          print(name, kind, chips, step, file=sys.stderr, flush=True)
          if step.fits or not kind.startswith("dense"):
            break
  except settings.UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
  if _WRITE.value:
    path = timing.RESULTS / "decoding_cpu.json"
    if path.exists():
      found = json.loads(path.read_text())["results"]["models"] | found
    found = {name: found[name] for name in MODELS if name in found}
    memory = roofline.CHIPS["v5e"].memory
    command = "python -m experiments.bench.aot_serve --write"
    timing.write("decoding", command, {"GiB": memory, "models": found})
  print(table(found))


if __name__ == "__main__":
  program.run(_main)
