"""What coding a large file takes: processor time and peak memory.

python -m experiments.bench.large [--sizes=1e8,5e8]

For each size, writes a plain safetensors file of bfloat16 Laplace values in
tensors of 2048 x 2048, codes it at about two bits per parameter with
`backslash-jax compress` and writes it back with `backslash-jax decompress`,
each in its own process. Writes results/large_cpu.json.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

import numpy as np

from experiments import program
from experiments.bench import timing

_SHAPE = (2048, 2048)
_SCALE = 0.65  # In steps.
_STEP = 2.0**-6


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--sizes", default="1e8,5e8")
  options = parser.parse_args()
  rows = [_measure(float(size)) for size in options.sizes.split(",")]
  command = f"python -m experiments.bench.large --sizes={options.sizes}"
  timing.write("large", command, rows)


def _measure(size: float) -> dict:
  count = round(size / np.prod(_SHAPE))
  with tempfile.TemporaryDirectory() as folder:
    plain, coded, back = (
      pathlib.Path(folder) / f"{name}.safetensors"
      for name in ("plain", "coded", "back")
    )
    _write(plain, count)
    row = {
      "parameters": count * int(np.prod(_SHAPE)),
      "plain": plain.stat().st_size,
      "compress": _run("compress", plain, coded, "--step", str(_STEP)),
      "coded": coded.stat().st_size,
      "decompress": _run("decompress", coded, back),
    }
  return row


def _write(path: pathlib.Path, count: int) -> None:
  """A file of `count` tensors, written one after another."""
  size = 2 * int(np.prod(_SHAPE))
  header = {
    f"layers/{i:05}/kernel": {
      "dtype": "BF16",
      "shape": _SHAPE,
      "data_offsets": [i * size, (i + 1) * size],
    }
    for i in range(count)
  }
  text = json.dumps(header).encode()
  text = text.ljust(-(-len(text) // 8) * 8)
  rng = np.random.default_rng(0)
  with path.open("wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for _ in range(count):
      wide = rng.standard_exponential(_SHAPE, np.float32)
      wide *= rng.choice(np.array([-1, 1], np.float32), _SHAPE)
      wide *= np.float32(_SCALE * _STEP)
      file.write((wide.view(np.uint32) >> 16).astype("<u2").tobytes())


def _run(*arguments) -> dict:
  """Elapsed and processor seconds and the largest resident memory, in MiB."""
  start = time.perf_counter()
  command = [sys.executable, "-m", "backslash_jax", *map(str, arguments)]
  process = os.posix_spawn(sys.executable, command, os.environ)
  _, status, usage = os.wait4(process, 0)
  if status:
    raise SystemExit(f"{command} failed")
  return {
    "wall": time.perf_counter() - start,
    "processor": usage.ru_utime + usage.ru_stime,
    "peak_mib": usage.ru_maxrss / 1024,
  }


if __name__ == "__main__":
  program.end(main)
