"""What bounds encoding and decoding a file: its stages, one after another.

python -m experiments.bench.stages [--before FILE]

One float32 matrix of Laplace values at about two bits per parameter. The stages
are those of `bs.save` and `bs.load` on one thread, by processor time, and they
take turns. Then the whole calls with one and with two threads. Writes
results/stages_cpu.json and a table of docs/coding.md. FILE is what another
version has written, for the table to compare.
"""

import argparse
import json
import os
import pathlib
import tempfile
import zlib
from collections.abc import Callable

import numpy as np

from backslash_jax import archive, quantize
from backslash_jax.archive import index, parallel, quantizing
from backslash_jax.coding import fit, lanes, models, piece, rans
from experiments import include, program
from experiments.bench import coding, timing

_SHAPE = (4096, 4096)
_SCALE = 0.65  # In steps.
_STEP = 2.0**-6


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--repeats", type=int, default=9)
  parser.add_argument("--before", type=pathlib.Path)
  options = parser.parse_args()
  rng = np.random.default_rng(0)
  matrix = rng.laplace(scale=_SCALE * _STEP, size=_SHAPE).astype(np.float32)
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "file"
    candidates = _stages(matrix) | _whole(matrix, file)
    times = timing.measure(candidates, options.repeats)
    bits = 8 * file.stat().st_size / matrix.size
  rows = {
    name: {
      clock: timing.summary([s / matrix.size * 1e9 for s in samples])
      for clock, samples in clocks.items()
    }
    for name, clocks in times.items()
  }
  speedups = {
    name: timing.summary(
      [
        one / two
        for one, two in zip(
          times[f"{name}, 1 thread"]["wall"],
          times[f"{name}, 2 threads"]["wall"],
          strict=True,
        )
      ]
    )
    for name in ("save", "load")
  }
  results = {"bits": bits, "nanoseconds": rows, "speedups": speedups}
  if options.before:
    before = json.loads(options.before.read_text())
    before = before["results"].get("before") or before["results"]
    results["before"] = {k: v for k, v in before.items() if k != "before"}
  timing.write("stages", "python -m experiments.bench.stages", results)
  if "before" in results:
    include.update(coding.DOCS, {"stages": _table(results)})


def _stages(matrix: np.ndarray) -> dict[str, Callable]:
  rows = index.CHUNK // matrix.shape[1]
  blocks = [matrix[i : i + rows] for i in range(0, matrix.shape[0], rows)]
  symbols = [quantize.quantize(block, _STEP) for block in blocks]
  model = fit.fit(symbols[0], sample=True)
  coded = [piece.prepare(own, model) for own in symbols]
  counts = [int(one.length / rans.LANE_BITS) for one in coded]
  chunks = [rans.encode_pieces([(own, model)])[0] for own in symbols]
  pieces = [piece.Piece(own.shape, model) for own in symbols]
  tables = models.decoding([models.tabulate(*model[:3])], 1)
  found = [
    rans.decode_pieces(data, [one])[0]
    for data, one in zip(chunks, pieces, strict=True)
  ]
  out = np.empty(index.CHUNK, matrix.dtype)

  def encode_lanes():
    for one, count in zip(coded, counts, strict=True):
      lanes.encode(one.segments, count, 20 * count)

  def decode_lanes():
    for data, own in zip(chunks, symbols, strict=True):
      rans._open(memoryview(data), own.size)[0].segment(tables, None, own.size)

  def dequantize():
    for own in found:
      for start in range(0, own.size, quantizing.BLOCK):
        block = own[start : start + quantizing.BLOCK]
        out[start : start + block.size] = quantize.dequantize(
          block, _STEP, out.dtype
        )

  def each(function, *lists):
    return lambda: [function(*own) for own in zip(*lists, strict=True)][-1]

  return {
    "quantize": each(lambda x: quantize.quantize(x, _STEP), blocks),
    "error": each(
      lambda x, q: quantizing.distortion(x, q, _STEP), blocks, symbols
    ),
    "fit": lambda: fit.fit(symbols[0], sample=True),
    "look up": each(lambda q: piece.prepare(q, model), symbols),
    "rANS, encoding": encode_lanes,
    "whole chunks, encoding": each(
      lambda q: rans.encode_pieces([(q, model)])[0], symbols
    ),
    "checksums": each(zlib.crc32, chunks),
    "rANS, decoding": decode_lanes,
    "whole chunks, decoding": each(
      lambda data, one: rans.decode_pieces(data, [one])[0], chunks, pieces
    ),
    "dequantize": dequantize,
  }


def _whole(matrix: np.ndarray, file: pathlib.Path) -> dict[str, Callable]:
  def with_workers(count: int, function: Callable) -> Callable:
    def run():
      before, parallel.workers = parallel.workers, lambda: count
      try:
        return function()
      finally:
        parallel.workers = before

    return run

  def save():
    return archive.save(file, {"matrix": matrix}, step=_STEP).bytes

  def load():
    return archive.load(file)["matrix"]

  return {
    f"{name}, {count} thread{'s' * (count > 1)}": with_workers(count, function)
    for name, function in (("save", save), ("load", load))
    for count in (1, 2)
    if count <= (os.cpu_count() or 1)
  }


def _table(results: dict) -> str:
  header = ["stage", "ns per parameter, before", "now"]
  header += ["million a second", "now"]
  rows = []
  for name, row in results["nanoseconds"].items():
    both = results["before"]["nanoseconds"][name], row
    times = [one["processor"]["median"] for one in both]
    cells = [f"{x:.2f}" for x in times] + [f"{1e3 / x:.0f}" for x in times]
    rows.append([name, *cells])
  return include.table(header, rows)


if __name__ == "__main__":
  program.end(main)
