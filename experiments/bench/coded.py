"""Weights that stay coded in memory: bytes, decoding speed, and peak memory.

python -m experiments.bench.coded [--parameters=300] [--repeats=16]

Matrices of 2^20 random weights at 1, 2 and 3 bits: the bytes in memory beside
those of the file, and the time of decoding beside a copy of the dense array and
beside `bs.load`. Then processes that each hold a model of Llama's shapes with
so many million random weights, and multiply by all of its matrices, one layer
after the other: dense in float32 and bfloat16, packed and coded. The file has
one layer, which every process repeats in its memory. Linux only. Writes
results/coded_cpu.json and the tables of docs/memory.md.
"""

import ctypes
import dataclasses
import gc
import json
import math
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import backslash_jax as bs
from experiments import program
from experiments.bench import memory, timing

_PARAMETERS = flags.DEFINE_integer("parameters", 300, "Million weights.")
_BITS = flags.DEFINE_list("bits", ["1", "2", "3"], "Of the model's files.")
_HOLD = flags.DEFINE_string("hold", None, "For the measured processes: a file.")
_KIND = flags.DEFINE_string("kind", None, "For the measured processes.")
_DEPTH = flags.DEFINE_integer("depth", 1, "For the measured processes.")

# Steps in units of the scale of a Laplace distribution, by bits.
STEPS = {"1": 3.15, "2": 1.45, "3": 0.69}
_SIDE = 1024
_WIDTH, _HIDDEN, _HEADS = 1024, 2816, 256


def main(argv):
  del argv
  if _HOLD.value:
    print(json.dumps(_held(_HOLD.value, _KIND.value, _DEPTH.value)))
    return
  with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory) / "x.safetensors"
    matrices = {bits: _matrix(path, bits) for bits in STEPS}
    models: dict[str, Any] = {}
    for bits in _BITS.value:
      models[bits] = _model(path, bits)
      if not models.get("dense"):  # It is the same at any number of bits.
        depth = models[bits]["layers"]
        models["dense"] = {k: _process(path, k, depth) for k in memory.DENSE}
  command = (
    "python -m experiments.bench.coded"
    f" --parameters={_PARAMETERS.value} --bits={','.join(_BITS.value)}"
    f" --repeats={timing.REPEATS.value}"
  )
  timing.write("coded", command, {"matrices": matrices, "models": models})
  memory.update()


def _matrix(path: pathlib.Path, bits: str) -> dict[str, Any]:
  """Bytes and times of a matrix."""
  x = np.random.default_rng(0).laplace(size=[_SIDE, _SIDE]).astype(np.float32)
  report = bs.save(path, {"x": x}, step=STEPS[bits])
  payload = report.tensors[0].bytes
  dense = jnp.asarray(bs.load(path)["x"])
  found: dict[str, Any] = {"file_bits": 8 * payload / x.size}
  decode, copy = jax.jit(bs.decode), jax.jit(jnp.copy)
  candidates = {"copy": lambda: copy(dense), "load": lambda: bs.load(path)["x"]}
  for kind, coded in (("packed", "packed"), ("coded", True)):
    leaf = bs.load(path, coded=coded)["x"]
    np.testing.assert_array_equal(decode(leaf), dense)
    found[f"{kind}_bits"] = 8 * leaf.nbytes / x.size
    candidates[kind] = lambda leaf=leaf: decode(leaf)
  found["coded_over_file"] = found["coded_bits"] / found["file_bits"]
  times = timing.measure(candidates, timing.REPEATS.value)
  found["times"] = timing.compare(times, "copy")
  found["million_weights_per_processor_second"] = {
    name: x.size / 1e6 / own["processor"]["seconds"]["median"]
    for name, own in found["times"].items()
  }
  return found


def _model(path: pathlib.Path, bits: str) -> dict[str, Any]:
  """What processes take that hold a model packed and coded."""
  rng = np.random.default_rng(0)
  shapes = {
    "query": (_WIDTH, _WIDTH),
    "key": (_WIDTH, _HEADS),
    "value": (_WIDTH, _HEADS),
    "out": (_WIDTH, _WIDTH),
    "gate": (_WIDTH, _HIDDEN),
    "up": (_WIDTH, _HIDDEN),
    "down": (_HIDDEN, _WIDTH),
  }
  layer = sum(math.prod(shape) for shape in shapes.values())
  depth = max(round(_PARAMETERS.value * 1e6 / layer), 1)
  tree = {
    name: rng.laplace(scale=0.02, size=(1, *shape)).astype(np.float32)
    for name, shape in shapes.items()
  }
  report = bs.save(path, tree, step=0.02 * STEPS[bits])
  found: dict[str, Any] = {
    "parameters": depth * layer,
    "layers": depth,
    "file_bits": report.bits_per_parameter,
    "file_bytes_of_a_layer": report.bytes,
  }
  del tree
  return found | {kind: _process(path, kind, depth) for kind in memory.SMALL}


def _process(path: pathlib.Path, kind: str, depth: int) -> dict[str, Any]:
  """What a process finds that holds so many times the layer in the file."""
  command = [sys.executable, "-m", "experiments.bench.coded"]
  command += [f"--hold={path}", f"--kind={kind}", f"--depth={depth}"]
  done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
  return json.loads(done.stdout.splitlines()[-1])


def _repeated(leaf: Any, depth: int) -> Any:
  """A stack of one layer so many times, each with memory of its own."""
  if not isinstance(leaf, bs.Coded | bs.Packed):
    return jnp.concatenate([leaf] * depth)
  parts: dict[str, Any] = {
    k: jnp.concatenate([x] * depth) for k, x in leaf.own().items()
  }
  shared = leaf.shared()
  words = [shared["words"].size, 0] if "words" in shared else []
  # Where those of a layer begin; 0 for what `begins` counts otherwise.
  sizes = jnp.array([*words, shared["places"].size, 0], jnp.int32)
  layers = jnp.arange(depth, dtype=jnp.int32)[:, None]
  parts["begins"] += layers * sizes[None]
  parts |= {k: jnp.concatenate([x] * depth, -1) for k, x in shared.items()}
  return dataclasses.replace(leaf, **parts)


def _held(path: str, kind: str | None, depth: int) -> dict[str, Any]:
  """Memory and time of this process, which holds the model of a file."""
  x = jnp.ones([8, _WIDTH], jnp.bfloat16)
  if kind in memory.SMALL:
    layer = bs.load(path, coded=True if kind == "coded" else kind, stacked="*")
  else:
    layer = {k: jnp.array(a, kind) for k, a in bs.load(path).items()}

  @jax.jit
  def forward(tree, x):
    def layer(x, i):
      # Each matrix for itself: what counts is reading or decoding it.
      own = bs.decode(tree, at=i)
      parts = [
        jnp.sum(
          jax.lax.dot_general(
            jnp.broadcast_to(x[:, :1], (8, w.shape[0])),
            w.astype(jnp.bfloat16),
            (((1,), (0,)), ((), ())),
          ),
          1,
        )
        for w in own.values()
      ]
      y = jnp.sum(jnp.stack(parts), 0)
      return x + y[:, None].astype(x.dtype), None

    return jax.lax.scan(layer, x, jnp.arange(depth))[0]

  def repeated(layer):
    return {k: _repeated(layer.pop(k), depth) for k in list(layer)}

  # The compiler's memory is not the weights'.
  compiled = forward.lower(jax.eval_shape(repeated, dict(layer)), x).compile()
  before = _resident() - sum(leaf.nbytes for leaf in jax.tree.leaves(layer))
  tree = jax.block_until_ready(repeated(layer))
  held = _resident() - before
  _forget_peak()
  (times,) = timing.measure({"": lambda: compiled(tree, x)}, 3).values()
  return {
    "weights_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(tree)),
    "resident_bytes": held,
    "peak_bytes_of_forward": _peak() - before,
    "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    "seconds": {clock: min(samples) for clock, samples in times.items()},
  }


def _resident() -> int:
  """Bytes of this process in memory now, without what was freed."""
  gc.collect()
  ctypes.CDLL(None).malloc_trim(0)
  return _status("VmRSS")


def _peak() -> int:
  """The most bytes since `_forget_peak`."""
  return _status("VmHWM")


def _forget_peak() -> None:
  pathlib.Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  value = next(x for x in lines if x.startswith(field)).split()[1]
  return 1024 * int(value)


if __name__ == "__main__":
  program.run(main)
