"""Many fine-tunes of one base: their memory, and switching between them.

python -m experiments.bench.fine_tunes MODEL [--count=10]

MODEL is a safetensors file or a Hugging Face directory. Each fine-tune is the
model with normal changes of 0.0012 in every matrix and vector, of the largest
matrix in 6,000 rows, as fine-tuning MiniLM on SST-2 gave. The base stays on the
devices, the fine-tunes are coded files. Writes
results/fine_tunes_PLATFORM.json.
"""

import argparse
import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax
import numpy as np

import backslash_jax as bs
from backslash_jax import tree
from experiments import program
from experiments.bench import timing

STEP = 2.0**-8
CHANGE = 0.0012  # Root mean square.
ROWS = 6000


def tuned(base: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
  """A model as fine-tuning leaves it."""
  rng = np.random.default_rng(seed)
  largest = max(base, key=lambda name: base[name].size)
  found = {}
  for name, x in base.items():
    change = CHANGE * rng.standard_normal(x.shape, np.float32)
    if name == largest:
      touched = rng.permutation(x.shape[0])[:ROWS]
      change[np.delete(np.arange(x.shape[0]), touched)] = 0
    found[name] = (x + change).astype(x.dtype)
  return found


def measure(model: pathlib.Path, count: int, folder: pathlib.Path) -> Any:
  """Bytes and seconds of `count` fine-tunes of a model."""
  known = bs.Base(model).tensors
  params = {n: np.asarray(x) for n, x in known.items() if tree.is_float(x)}
  files = [folder / f"{i}.safetensors" for i in range(count)]
  for i, file in enumerate(files):
    bs.save(file, tuned(params, i), base=params, step=STEP)
  whole = folder / "whole.safetensors"
  bs.save(whole, tuned(params, 0), step=STEP)
  base = bs.Base(jax.device_put(params))
  first, times, processor, held = 0.0, [], [], 0
  for i, file in enumerate([files[0], *files]):
    start = time.perf_counter(), time.process_time()
    served = jax.block_until_ready(bs.load(file, base=base))
    if i == 0:  # The base is hashed, and the sums are compiled.
      first = time.perf_counter() - start[0]
      continue
    times.append(time.perf_counter() - start[0])
    processor.append(time.process_time() - start[1])
    held = sum(x.nbytes for x in jax.live_arrays())
    del served
  start = time.perf_counter()
  jax.block_until_ready(jax.device_put(bs.load(whole)))
  size = sum(x.nbytes for x in params.values())
  return {
    "parameters": sum(x.size for x in params.values()),
    "fine_tunes": count,
    "base_bytes": size,
    "fine_tunes_bytes": sum(file.stat().st_size for file in files),
    "device_bytes": held,
    "whole_models_bytes": count * size,
    "first_seconds": first,
    "switch_seconds": statistics.median(times),
    "switch_processor_seconds": statistics.median(processor),
    "load_whole_coded_seconds": time.perf_counter() - start,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("model", type=pathlib.Path)
  parser.add_argument("--count", type=int, default=10)
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    found = measure(options.model, options.count, pathlib.Path(folder))
  command = "python -m experiments.bench.fine_tunes MODEL"
  timing.write("fine_tunes", command, found)


if __name__ == "__main__":
  program.end(main)
