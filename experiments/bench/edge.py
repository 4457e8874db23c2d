"""What a structured rate makes of a classifier on a small machine.

python -m experiments.bench.edge train --workdir=runs/edge
python -m experiments.bench.edge prune --workdir=runs/edge
python -m experiments.bench.edge measure --workdir=runs/edge

trains every arm of configs/edge.py with each seed; prunes what was trained;
and measures size and speed in ONNX Runtime. The results go to
experiments/results/edge as JSON, and `experiments.bench.edge_report` makes
tables, figures and docs/edge.md of them.
"""

import argparse
import copy
import functools
import json
import lzma
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import backslash_jax as bs
from backslash_jax import magnitude
from configs import edge
from experiments import (
  cells,
  deploy,
  evaluate,
  export,
  functional,
  groups,
  settings,
  sharding,
  simplify,
)
from experiments.bench import timing

RESULTS = pathlib.Path(__file__).parent.parent / "results" / "edge"
SEEDS = (0, 1, 2)
RATES = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
BATCHES = (1, 32)
ARMS = ("normal", "l1", "backslash", "structured")
MEASURED = ("normal", "structured")
PRUNED = "normal, pruned"


def arms(workdir: pathlib.Path, seed: int) -> dict[str, cells.Cell]:
  """The trainings of one seed, by the names of their arms."""
  config = copy.deepcopy(edge.get_config())
  config.seed = seed
  found = settings.arms(config.lock(), workdir / f"seed{seed}")
  return {
    name: cells.Cell(config=arm, directory=directory, training=directory)
    for name, (arm, directory) in found.items()
  }


def train(
  workdir: pathlib.Path, seeds: tuple[int, ...], names: tuple[str, ...]
) -> None:
  """Trains and codes whatever is not there yet of these arms."""
  scores: dict[str, evaluate.Score] = {}
  for seed in seeds:
    trainings = arms(workdir, seed)
    for name in names:
      cells.finish(trainings[name], scores)


def prune(
  workdir: pathlib.Path, seeds: tuple[int, ...], names: tuple[str, ...]
) -> None:
  """Accuracy against pruning rate, of single weights and of whole units.

  Goes on where it was stopped; delete the results to begin anew.
  """
  score = None
  rows = _finished("pruning")
  done = {(r["arm"], r["seed"], r["kind"], r["rate"]) for r in rows}
  for seed in seeds:
    trainings = arms(workdir, seed)
    for name in names:
      cell = trainings[name]
      config = cell.config
      units = groups.declare(config.model, config.structure.groups)
      trained = deploy.read(cell.directory)
      if score is None:
        forward = functional.forward(trained.model_config)
        score = evaluate.make_score(config, forward, sharding.make_mesh(config))
      params = bs.load(cell.directory / cells.TRAINED)
      for kind, options in (
        ("weights", {"scope": "model"}),
        ("units", {"groups": units, "scope": "model"}),
      ):
        for rate in RATES:
          if (name, seed, kind, rate) in done:
            continue
          pruned = magnitude.prune(params, rate, **options)
          accuracy = score(pruned, "test")["accuracy"]
          row = {"arm": name, "seed": seed, "kind": kind, "rate": rate}
          rows.append(row | {"accuracy": accuracy})
          print(rows[-1], flush=True)
          _save("pruning", {"rows": rows})


def measure(
  workdir: pathlib.Path, seeds: tuple[int, ...], repeats: int
) -> None:
  """Size and speed of the models, normal, pruned and of a structured rate."""
  rows = []
  for seed in seeds:
    rows += _measure(arms(workdir, seed), seed, repeats)
  _save("models", {"repeats": repeats, "rows": rows})


def _measure(trainings, seed, repeats):
  """The rows of one seed."""
  config = trainings["normal"].config
  trained = {n: deploy.read(trainings[n].directory) for n in MEASURED}
  whole = trained["normal"].model_config
  score = evaluate.make_score(
    config, functional.forward(whole), sharding.make_mesh(config)
  )
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    coded = {name: trained[name].file for name in MEASURED}
    coded[PRUNED] = folder / "pruned"
    wanted = simplify.simplify(whole, bs.load(coded["structured"]))
    _prune_to(flops(wanted), trainings["normal"], trained["normal"], folder)
    rows, files = {}, {}
    for name, source in coded.items():
      params = bs.load(source)
      rows[name] = _facts(
        folder, name, simplify.simplify(whole, params), source
      )
      rows[name]["accuracy"] = score(params, "test")["accuracy"]
      files[name] = folder / f"{name}.onnx"
    for name in MEASURED:
      file = files[f"{name}, int8"] = folder / f"{name}.int8.onnx"
      export.write_int8(files[name], file)
      accuracy = deploy.score(config, file, "test")
      rows[f"{name}, int8"] = {"accuracy": accuracy, **_file_sizes(file)}
    for name, row in rows.items():
      row |= {"name": name, "seed": seed}
      row["peak_memory"] = _peak_memory(files[name])
      row["latency"] = {}
    for threads in (1, None):
      for size in BATCHES:
        key = f"batch {size}, {'1 thread' if threads else 'all cores'}"
        seconds = _latency(files, size, threads, repeats)
        for name, samples in seconds.items():
          rows[name]["latency"][key] = timing.summary(samples)
  for row in rows.values():
    print(json.dumps(row), flush=True)
  return list(rows.values())


def _prune_to(limit, cell, trained, folder):
  """Codes the normal weights, without so many units that no more work is left.

  Units go by their norms, as `magnitude.kept` takes them, at the smallest rate
  (to 0.4%) with which the model costs at most `limit` operations. What is left
  is coded with the step of the normal model, in the file `pruned`.
  """
  params = bs.load(cell.directory / cells.TRAINED)
  units = groups.declare(cell.config.model, cell.config.structure.groups)

  def at(rate):
    pruned = magnitude.prune(params, rate, scope="model", groups=units)
    return jax.device_get(pruned)

  low, high = 0.0, 0.999
  for _ in range(8):
    middle = (low + high) / 2
    if flops(simplify.simplify(trained.model_config, at(middle))) <= limit:
      high = middle
    else:
      low = middle
  steps = {t.name: t.step for t in bs.inspect(trained.file).tensors if t.step}
  bs.save(folder / "pruned", at(high), step=steps, select=list(steps))


def _facts(folder, name, model, source):
  """Sizes of a model's files, its parameters and its work."""
  path = folder / f"{name}.onnx"
  export.write_onnx(model, path)
  archive = deploy.save_archive(folder / "coded", source, model)
  return {
    "parameters": sum(x.size for x in jax.tree.leaves(model.params)),
    "fp16": 2 * sum(x.size for x in jax.tree.leaves(bs.load(source))),
    "flops": flops(model),
    "archive": archive.bytes,
    **_file_sizes(path),
    "units": [vars(line) for line in model.report],
  }


def _file_sizes(path):
  data = path.read_bytes()
  return {"onnx": len(data), "onnx_xz": len(lzma.compress(data))}


def flops(model: simplify.Simplified, length: int = 128) -> float:
  """Floating point operations for one sequence, as XLA counts them."""
  shape = jax.ShapeDtypeStruct((1, length), np.int32)
  mask = jax.ShapeDtypeStruct((1, length), np.bool_)
  forward = jax.jit(functional.forward(model.config))
  analysis: Any = forward.lower(model.params, shape, mask).cost_analysis()
  return analysis["flops"]


def _batch(size):
  rng = np.random.default_rng(0)
  tokens = rng.integers(32, 127, (size, 128)).astype(np.int32)
  return tokens, np.ones((size, 128), bool)


def _latency(files, size, threads, repeats):
  """Seconds of every call, by file; the files take turns."""
  runs: dict[str, Callable[[], Any]] = {
    name: functools.partial(
      export.onnx_runner(path, threads=threads), *_batch(size)
    )
    for name, path in files.items()
  }
  for _ in range(10):  # Until the caches and the clock are warm.
    for run in runs.values():
      run()
  return timing.seconds(runs, repeats)


def _peak_memory(path):
  """Bytes that a process holds at most which serves a file in batches of 32."""
  command = [sys.executable, "-m", "experiments.bench.serve", str(path)]
  found = subprocess.run(command, capture_output=True, check=True, text=True)
  return int(found.stdout)


def _finished(name):
  """The rows that are there already."""
  path = RESULTS / f"{name}.json"
  if not path.exists():
    return []
  return json.loads(path.read_text())["results"]["rows"]


def _save(name, results):
  RESULTS.mkdir(parents=True, exist_ok=True)
  document = {"machine": timing.machine(), "results": results}
  text = json.dumps(document, indent=1)
  (RESULTS / f"{name}.json").write_text(text + "\n")


def _main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("what", choices=("train", "prune", "measure"))
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
  parser.add_argument("--arms", nargs="+", default=ARMS)
  parser.add_argument("--repeats", type=int, default=100)
  flags = parser.parse_args()
  if flags.what == "measure":
    measure(flags.workdir, flags.seeds, flags.repeats)
  elif flags.what == "prune":
    prune(flags.workdir, flags.seeds, flags.arms)
  else:
    train(flags.workdir, flags.seeds, flags.arms)


if __name__ == "__main__":
  _main()
