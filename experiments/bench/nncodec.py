"""NNCodec (ISO/IEC 15938-17) beside this project's file, at equal steps.

python -m experiments.bench.nncodec MODEL PYTHON [--names GLOB]

A MODEL is a safetensors file or a Hugging Face directory; its linear layers'
matrices are coded, or those whose names match GLOB. PYTHON is an interpreter
that has the package nncodec:

  python3.11 -m venv nnc
  nnc/bin/pip install nncodec==2.1.3

It compiles its C++ part, and needs PyTorch and NumPy 1. Each codec runs in a
process of its own. NNCodec's quantization parameter 4 log2(step) gives a step
of a power of two. Its dependent quantizer has levels of half the step of ours,
so ours gets twice the step. Writes results/nncodec_cpu.json and a table of
docs/coding.md.
"""

import argparse
import fnmatch
import json
import math
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from experiments import include, program
from experiments.bench import coding, timing

_STEPS = (2**-4,)
_NNCODEC = """
import json, sys, time
import numpy as np
from nncodec import nn
params = dict(np.load(sys.argv[1]))
options = {"qp": int(sys.argv[3]), "use_dq": sys.argv[4] == "trellis",
           "results": sys.argv[2], "verbose": False}
times = [time.process_time()]
data = nn.encode(params, options)
times.append(time.process_time())
found = nn.decode(data)
times.append(time.process_time())
size = len(data)
"""
_OURS = """
import json, sys, time
import numpy as np
from backslash_jax import archive
params = dict(np.load(sys.argv[1]))
file = sys.argv[2] + "/file"
archive.save(file, {"warm": np.ones((512, 512), np.float32)}, step=0.3)
archive.load(file)  # Imports the compiled loops.
times = [time.process_time()]
step = float(sys.argv[3])
size = archive.save(file, params, step=step, quantizer=sys.argv[4]).bytes
times.append(time.process_time())
found = archive.load(file)
times.append(time.process_time())
"""
_REPORT = """
errors = [np.square(params[k] - found[k], dtype=float).sum() for k in params]
print("RESULT", json.dumps({
  "bytes": size,
  "squared_error": float(sum(errors)),
  "encode_seconds": times[1] - times[0],
  "decode_seconds": times[2] - times[1],
}))
"""


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("model", type=pathlib.Path)
  parser.add_argument("python")
  parser.add_argument("--names", default="*")
  options = parser.parse_args()
  (model,) = coding.load(options.model).values()
  params: dict[str, Any] = {
    name: x for name, x in model.items() if fnmatch.fnmatch(name, options.names)
  }
  size = sum(x.size for x in params.values())
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    file = str(pathlib.Path(folder) / "params.npz")
    np.savez(file, **params)
    for step in _STEPS:
      for quantizer in ("scalar", "trellis"):
        own = step if quantizer == "scalar" else 2 * step
        parameter = round(4 * math.log2(step))
        rows += [
          {"step": step, "quantizer": quantizer, "codec": codec}
          | _run(python, script, file, folder, number, quantizer)
          for codec, python, script, number in (
            ("file, rans", sys.executable, _OURS, own),
            ("NNCodec", options.python, _NNCODEC, parameter),
          )
        ]
  command = "python -m experiments.bench.nncodec MODEL PYTHON"
  command += f" --names='{options.names}'"
  timing.write("nncodec", command, {"parameters": size, "rows": rows})
  include.update(coding.DOCS, {"nncodec": _table(rows, size)})


def _run(python: str, script: str, *arguments) -> dict:
  done = subprocess.run(
    [python, "-W", "ignore", "-c", script + _REPORT, *map(str, arguments)],
    check=True,
    capture_output=True,
    text=True,
  )
  (line,) = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
  return json.loads(line.removeprefix("RESULT "))


def _table(rows: list[dict], size: int) -> str:
  header = ["codec", "quantizer", "levels", "bits per parameter"]
  header += ["squared error", "encoding, s", "decoding, s"]
  cells = [
    [
      row["codec"],
      row["quantizer"],
      f"2^{math.log2(row['step']):.0f}",
      f"{8 * row['bytes'] / size:.3f}",
      f"{row['squared_error']:.0f}",
      f"{row['encode_seconds']:.2f}",
      f"{row['decode_seconds']:.2f}",
    ]
    for row in rows
  ]
  return include.table(header, cells)


if __name__ == "__main__":
  program.end(main)
