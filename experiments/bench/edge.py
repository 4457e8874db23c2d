"""What a structured rate makes of a classifier on a small machine.

python -m experiments.bench.edge --config=configs/edge.py --workdir=runs/edge \\
  --results=experiments/results/edge --repeats=60

trains every arm of the config with each seed; prunes what was trained; and
measures size and speed in ONNX Runtime. The results are JSON, and
`experiments.bench.edge_report` makes tables and a figure of them.
"""

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
import ml_collections
import numpy as np
from absl import flags

import backslash_jax as bs
from backslash_jax.structure import magnitude
from experiments import atomic, cells, main, scoring, settings, sharding
from experiments.bench import timing
from experiments.deploy import export, release, simplify
from experiments.models import functional, units

STAGES = ("train", "prune", "measure")
RATES = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
BATCHES = (1, 32)
MEASURED = ("normal", "structured")
PRUNED = "normal, pruned"


def arms(
  config: ml_collections.ConfigDict, workdir: pathlib.Path, seed: int
) -> dict[str, cells.Cell]:
  """The trainings of one seed, by the names of their arms."""
  config = copy.deepcopy(config).unlock()
  config.seed = seed
  return cells.of_arms(config.lock(), workdir / f"seed{seed}")


def train(trainings: list[cells.Cell]) -> None:
  """Trains and codes whatever is not there yet."""
  scores: cells.Scores = {}
  with cells.take(trainings) as taken:
    for cell in taken:
      cells.finish(cell, scores)


def prune(trainings: list[cells.Cell], results: pathlib.Path) -> None:
  """Accuracy against pruning rate, of single weights and of whole units.

  Goes on where it was stopped; delete the results to begin anew.
  """
  score = None
  rows = _finished(results / "pruning.json")
  done = {(r["arm"], r["seed"], r["kind"], r["rate"]) for r in rows}
  for cell in trainings:
    config, name = cell.config, cell.name
    declared = units.declare(config.model, config.structure.groups)
    trained = release.read(cell.directory)
    if score is None:
      forward = functional.forward(trained.model_config)
      score = scoring.make_score(config, forward, sharding.make_mesh(config))
    params, _ = cells.load(cell)
    for kind, options in (
      ("weights", {"scope": "model"}),
      ("units", {"groups": declared, "scope": "model"}),
    ):
      for rate in RATES:
        if (name, config.seed, kind, rate) in done:
          continue
        pruned = magnitude.prune(params, rate, **options)
        accuracy = score(pruned, "test")["accuracy"]
        row = {"arm": name, "seed": config.seed, "kind": kind, "rate": rate}
        rows.append(row | {"accuracy": accuracy})
        print(rows[-1], flush=True)
        _save(results / "pruning.json", {"rows": rows})


def measure(
  planned: list[dict[str, cells.Cell]], repeats: int, results: pathlib.Path
) -> None:
  """Size and speed of the models, normal, pruned and of a structured rate.

  Goes on after the last seed that was measured; delete the results to begin
  anew.
  """
  rows = _finished(results / "models.json")
  done = {r["seed"] for r in rows}
  for trainings in planned:
    if trainings["normal"].config.seed not in done:
      rows += _measure(trainings, repeats)
      _save(results / "models.json", {"repeats": repeats, "rows": rows})


def _measure(trainings, repeats):
  """The rows of one seed."""
  config = trainings["normal"].config
  length = config.data.seq_len
  trained = {n: release.read(trainings[n].directory) for n in MEASURED}
  whole = trained["normal"].model_config
  score = scoring.make_score(
    config, functional.forward(whole), sharding.make_mesh(config)
  )
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    coded = {name: trained[name].file for name in MEASURED}
    coded[PRUNED] = folder / "pruned"
    wanted = simplify.simplify(whole, bs.load(coded["structured"]))
    _prune_to(
      flops(wanted, length), trainings["normal"], trained["normal"], folder
    )
    rows, files = {}, {}
    for name, source in coded.items():
      params = bs.load(source)
      rows[name] = _facts(
        folder, name, simplify.simplify(whole, params), source, length
      )
      rows[name]["accuracy"] = score(params, "test")["accuracy"]
      files[name] = folder / f"{name}.onnx"
    for name in MEASURED:
      file = files[f"{name}, int8"] = folder / f"{name}.int8.onnx"
      export.write_int8(files[name], file)
      accuracy = release.score(config, file, "test")
      rows[f"{name}, int8"] = {"accuracy": accuracy, **_file_sizes(file)}
    for name, row in rows.items():
      row |= {"name": name, "seed": config.seed}
      row["peak_memory"] = _peak_memory(files[name], length)
      row["latency"] = {}
    for threads in (1, None):
      for size in BATCHES:
        key = f"batch {size}, {'1 thread' if threads else 'all cores'}"
        seconds = _latency(files, (size, length), threads, repeats)
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
  params, _ = cells.load(cell)
  length = cell.config.data.seq_len
  declared = units.declare(cell.config.model, cell.config.structure.groups)

  def at(rate):
    pruned = magnitude.prune(params, rate, scope="model", groups=declared)
    return jax.device_get(pruned)

  low, high = 0.0, 0.999
  for _ in range(8):
    middle = (low + high) / 2
    pruned = simplify.simplify(trained.model_config, at(middle))
    if flops(pruned, length) <= limit:
      high = middle
    else:
      low = middle
  steps = {t.name: t.step for t in bs.inspect(trained.file).tensors if t.step}
  bs.save(folder / "pruned", at(high), step=steps, mask=list(steps))


def _facts(folder, name, model, source, length):
  """Sizes of a model's files, its parameters and its work."""
  path = folder / f"{name}.onnx"
  export.write_onnx(model, path)
  archive = release.save_archive(folder / "coded", source, model)
  return {
    "parameters": sum(x.size for x in jax.tree.leaves(model.params)),
    "fp16": 2 * sum(x.size for x in jax.tree.leaves(bs.load(source))),
    "flops": flops(model, length),
    "archive": archive.bytes,
    **_file_sizes(path),
    "units": [vars(line) for line in model.report],
  }


def _file_sizes(path):
  data = path.read_bytes()
  return {"onnx": len(data), "onnx_xz": len(lzma.compress(data))}


def flops(model: simplify.Simplified, length: int) -> float:
  """Floating point operations for one sequence, as XLA counts them."""
  shape = jax.ShapeDtypeStruct((1, length), np.int32)
  mask = jax.ShapeDtypeStruct((1, length), np.bool_)
  forward = jax.jit(functional.forward(model.config))
  analysis: Any = forward.lower(model.params, shape, mask).cost_analysis()
  return analysis["flops"]


def _batch(shape):
  rng = np.random.default_rng(0)
  return rng.integers(32, 127, shape, np.int32), np.ones(shape, bool)


def _latency(files, shape, threads, repeats):
  """Seconds of every call, by file; the files take turns."""
  runs: dict[str, Callable[[], Any]] = {
    name: functools.partial(
      export.onnx_runner(path, threads=threads), *_batch(shape)
    )
    for name, path in files.items()
  }
  for _ in range(10):  # Until the caches and the clock are warm.
    for run in runs.values():
      run()
  return timing.seconds(runs, repeats)


def _peak_memory(path, length):
  """Bytes that a process holds at most which serves a file in batches of 32."""
  command = [sys.executable, "-m", "experiments.bench.serve", str(path)]
  command.append(str(length))
  found = subprocess.run(command, capture_output=True, check=True, text=True)
  return int(found.stdout)


def _finished(path):
  """The rows that are there already."""
  if not path.exists():
    return []
  return json.loads(path.read_text())["results"]["rows"]


def _save(path, results):
  document = {"machine": timing.machine(), "results": results}
  atomic.write_text(path, json.dumps(document, indent=1) + "\n")


def _main():
  do = flags.DEFINE_multi_enum("do", STAGES, STAGES, "Stages; all, by default.")
  seeds = flags.DEFINE_multi_integer("seed", (0, 1, 2), "Of the trainings.")
  names = flags.DEFINE_multi_string("arm", None, "Train, prune only these.")
  results = flags.DEFINE_string(
    "results", None, "Where the results go; default: results in the workdir."
  )

  def run(config, workdir):
    unknown = sorted(set(names.value or ()) - set(config.arms))
    if unknown:
      raise settings.UserError(
        f"--arm: {', '.join(unknown)} not in config.arms:"
        f" {', '.join(config.arms)}"
      )
    planned = [arms(config, workdir, seed) for seed in seeds.value]
    chosen = [
      cell
      for trainings in planned
      for name, cell in trainings.items()
      if names.value is None or name in names.value
    ]
    place = pathlib.Path(results.value or workdir / "results")
    if "train" in do.value:
      train(chosen)
    if "prune" in do.value:
      prune(chosen, place)
    if "measure" in do.value:
      measure(planned, timing.REPEATS.value, place)

  main.launch(run)


if __name__ == "__main__":
  _main()
