"""What files of whole models weigh, and how long coding them takes.

python -m experiments.bench.files MODEL ... [--zipnn PYTHON]

A MODEL is a safetensors file. Writes results/files_cpu.json and a table of
docs/coding.md. What the JSON has of other versions of the format stays, so the
table compares them. PYTHON is an interpreter that has the package zipnn.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import warnings

from backslash_jax import archive
from backslash_jax.archive import container, plain
from experiments import include, program
from experiments.bench import timing

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "coding.md"
_RESULTS = timing.RESULTS / "files_cpu.json"
_STEPS = {"exact": None, "2^-9": 2**-9, "2^-6": 2**-6, "2^-3": 2**-3}
_REPEATS = 3
_ZIPNN = """
import sys, zipnn
kind = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[sys.argv[2]]
coder = zipnn.ZipNN(bytearray_dtype=kind, input_format="byte")
print(len(coder.compress(open(sys.argv[1], "rb").read())))
"""


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("models", nargs="+", type=pathlib.Path)
  parser.add_argument("--zipnn")
  options = parser.parse_args()
  rows = []
  if _RESULTS.exists():
    rows = json.loads(_RESULTS.read_text())["results"]
  for path in options.models:
    for step in _STEPS:
      found = _measure(path, step)
      if step == "exact" and options.zipnn:
        found["zipnn"] = _zipnn(path, options.zipnn)
      same = {k: found[k] for k in ("model", "step", "version")}
      rows = [r for r in rows if not same.items() <= r.items()] + [found]
  timing.write("files", "python -m experiments.bench.files MODEL ...", rows)
  include.update(DOCS, {"files": _table(rows)})


def _measure(path: pathlib.Path, step: str) -> dict:
  params = plain.read(path)
  with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Tensors that a coarse step makes zero.
    file = pathlib.Path(folder) / "file"
    times = timing.measure(
      {
        "encode": lambda: archive.save(file, params, step=_STEPS[step]).bytes,
        "decode": lambda: len(archive.load(file)),
      },
      _REPEATS,
    )
    size = file.stat().st_size
  return {
    "model": path.parent.name,
    "step": step,
    "version": container.VERSION,
    "plain": path.stat().st_size,
    "bytes": size,
  } | {
    f"{name}_seconds": statistics.median(clocks["processor"])
    for name, clocks in times.items()
  }


def _zipnn(path: pathlib.Path, python: str) -> int:
  header = plain.read(path)
  largest = max(header.values(), key=lambda x: x.nbytes).dtype.name
  kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[largest]
  done = subprocess.run(
    [python, "-W", "ignore", "-c", _ZIPNN, path, kind],
    check=True,
    capture_output=True,
    text=True,
  )
  return int(done.stdout)


def _table(rows: list[dict]) -> str:
  versions = sorted({row["version"] for row in rows})
  lines = [
    "| model | step | plain | zipnn | "
    + " | ".join(f"version {v} | encode, decode" for v in versions)
    + " |",
    "|---|---|---:|---:|" + "---:|---:|" * len(versions),
  ]
  for model, step in dict.fromkeys((r["model"], r["step"]) for r in rows):
    own = {
      r["version"]: r for r in rows if (r["model"], r["step"]) == (model, step)
    }
    row = max(own.values(), key=lambda r: r.get("zipnn", 0))
    other = f"{row['zipnn']:,}" if "zipnn" in row else ""
    cells = [
      f"{own[v]['bytes']:,} | {own[v]['encode_seconds']:.2f}, "
      f"{own[v]['decode_seconds']:.2f}"
      if v in own
      else " | "
      for v in versions
    ]
    lines.append(
      f"| {model} | {step} | {row['plain']:,} | {other} | "
      + " | ".join(cells)
      + " |"
    )
  return "\n".join(lines)


if __name__ == "__main__":
  program.end(main)
