"""A forward pass with dense, packed and coded weights: time and memory.

python -m experiments.bench.forward --model=CODED --name=minilm --batches=1,32

CODED is a directory that `backslash-jax compress` wrote, or the workdir of a
finished training. All kinds of weights are in one process and take turns, and
their outputs are compared. The table of docs/memory.md is written, too.
"""

import dataclasses
import functools
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import include, program
from experiments.bench import timing
from experiments.serve import model

_MODEL = flags.DEFINE_string("model", None, "The directory.", required=True)
_NAME = flags.DEFINE_string("name", None, "Of the results.", required=True)
_BATCHES = flags.DEFINE_list("batches", ["1", "32"], "Rows of a batch.")
_LENGTH = flags.DEFINE_integer("length", 128, "Tokens of a row.")
KINDS = ("float32", "bfloat16", "packed", "coded")
DOCS = pathlib.Path(__file__).parents[2] / "docs" / "memory.md"


def read(path: pathlib.Path, kind: str) -> model.Served:
  """The model with its weights of a kind; all compute in float32."""
  if kind not in ("float32", "bfloat16"):
    return model.read(path, kind)
  served = model.read(path)
  tensors = {
    name: x.astype(kind) if jnp.issubdtype(x.dtype, jnp.floating) else x
    for name, x in served.tensors.items()
  }
  return dataclasses.replace(served, tensors=tensors)


def measure(found: dict[str, model.Served], rows: int) -> dict[str, Any]:
  """Times and temporaries of a batch, by kind of weights."""
  vocabulary = found["float32"].config.vocab_size
  rng = np.random.default_rng(0)
  shape = (rows, _LENGTH.value)
  tokens = rng.integers(vocabulary, size=shape).astype(np.int32)
  batch = tokens, np.ones(shape, bool)
  candidates, temporaries = {}, {}
  for kind, served in found.items():
    forward = jax.jit(
      lambda tensors, *batch, served=served: served.forward(
        served.params(tensors), *batch
      )
    )
    compiled = forward.lower(served.tensors, *batch).compile()
    memory: Any = compiled.memory_analysis()
    temporaries[kind] = memory.temp_size_in_bytes
    candidates[kind] = functools.partial(compiled, served.tensors, *batch)
  wanted = candidates["float32"]()
  for kind in ("packed", "coded"):
    np.testing.assert_array_equal(candidates[kind](), wanted)
  times = timing.measure(candidates, timing.REPEATS.value)
  return {
    "times": timing.compare(times, "float32"),
    "temporary_bytes": temporaries,
  }


def table(document: dict[str, Any]) -> str:
  """The results as a table in Markdown, in MB of 10^6 bytes."""
  machine, results = document["machine"], document["results"]
  lines = [
    f"    {document['command']}",
    "",
    f"{machine['host']}, jax {machine['jax']}, {document['date']}."
    f" {results['parameters'] / 1e6:,.2f} million parameters,"
    f" {results['file_bytes'] / 1e6:,.2f} MB in the file.",
    "",
    "| weights | in memory, MB | float32 / this |"
    + "".join(
      f" temporaries of {rows} rows, MB | processor seconds | / float32 |"
      for rows in results["batches"]
    ),
    "|---|---:|---:|" + 3 * len(results["batches"]) * "---:|",
  ]
  sizes = results["weights_bytes"]
  for kind in KINDS:
    cells = [kind, f"{sizes[kind] / 1e6:,.2f}"]
    cells.append(f"{sizes['float32'] / sizes[kind]:.1f}")
    for found in results["batches"].values():
      own = found["times"][kind]["processor"]
      cells.append(f"{found['temporary_bytes'][kind] / 1e6:,.1f}")
      cells.append(f"{own['seconds']['median']:.3g}")
      cells.append(f"{own['ratio']['median']:.2f}")
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


def main(argv):
  del argv
  path = pathlib.Path(_MODEL.value)
  found = {kind: read(path, kind) for kind in KINDS}
  training = found["float32"].training
  files = [training.file] if training else path.glob("*.safetensors")
  results = {
    "parameters": sum(x.size for x in found["float32"].tensors.values()),
    "file_bytes": sum(file.stat().st_size for file in files),
    "weights_bytes": {kind: served.nbytes for kind, served in found.items()},
    "batches": {n: measure(found, int(n)) for n in _BATCHES.value},
  }
  command = " ".join(["python -m experiments.bench.forward", *sys.argv[1:]])
  name = f"forward_{_NAME.value}"
  timing.write(name, command, results)
  document = json.loads((timing.RESULTS / f"{name}_cpu.json").read_text())
  text = table(document)
  include.update(DOCS, {f"forward {_NAME.value}": text})


if __name__ == "__main__":
  program.run(main)
