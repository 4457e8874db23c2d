"""Plain rounding and rate-distortion optimized quantization, by accuracy.

python -m experiments.bench.quantizers RUN ...

RUN is the directory of one finished training, such as runs/quickstart/normal;
several are the same training with other seeds. Codes the parameters to files
over a grid of steps and of prices mu, measures the test accuracy of what the
files hold, and compares at equal bytes. Writes results/quantizers_cpu.json and
the table of docs/coding.md.
"""

import argparse
import json
import pathlib
import tempfile

import jax
import ml_collections
import numpy as np

import backslash_jax as bs
from experiments import (
  cells,
  data,
  include,
  learner,
  program,
  report,
  scoring,
  sharding,
)
from experiments.bench import coding, timing

_STEPS = tuple(2.0 ** (-k / 2) for k in range(5, 11))
_PRICES = (0.0, 0.05, 0.1, 0.2)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("run", type=pathlib.Path, nargs="+")
  runs = [_measured(run) for run in parser.parse_args().run]
  command = "python -m experiments.bench.quantizers RUN ..."
  timing.write("quantizers", command, {"runs": runs})
  include.update(
    coding.DOCS, {"quantizers": _table([r["gains"] for r in runs])}
  )


def _measured(run):
  """The points of a training, and what a price gains."""
  config = json.loads((run / "config.json").read_text())
  config = ml_collections.ConfigDict(config)
  forward, _ = learner.build_abstract(config, data.load_task(config.data))
  params = bs.load(run / cells.TRAINED)["params"]
  score = scoring.make_score(config, forward, sharding.make_mesh(config))
  points = [
    {"mu": mu, "step": step} | _point(params, step, mu, score)
    for mu in _PRICES
    for step in _STEPS
  ]
  curves = {mu: [p for p in points if p["mu"] == mu] for mu in _PRICES}
  gains = {str(mu): _gains(curves[0.0], curves[mu]) for mu in _PRICES[1:]}
  return {"points": points, "gains": gains}


def _point(params, step, mu, score):
  """Bytes, mean squared error and test scores of one file."""
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "file"
    saved = bs.save(file, params, step=step, mu=mu)
    coded = bs.load(file)
  errors = [
    np.sum(np.square(np.asarray(a, np.float64) - b))
    for a, b in zip(
      jax.tree.leaves(params), jax.tree.leaves(coded), strict=True
    )
  ]
  mse = float(sum(errors) / saved.parameters)
  return {"bytes": saved.bytes, "mse": mse} | score(coded, "test")


def _gains(plain, priced):
  """At each of priced's sizes within plain's: what it has over plain.

  Plain rounding is interpolated in the logarithm of the size.
  """
  size = np.log([p["bytes"] for p in plain])[::-1]
  order = np.argsort(size)
  result = []
  for p in priced:
    at = np.log(p["bytes"])
    if not size.min() <= at <= size.max():
      continue
    both = {"step": p["step"], "bytes": p["bytes"]}
    for name in ("accuracy", "loss"):
      values = np.array([q[name] for q in plain])[::-1][order]
      both[name] = p[name] - float(np.interp(at, size[order], values))
    values = np.log([q["mse"] for q in plain])[::-1][order]
    both["mse"] = float(p["mse"] / np.exp(np.interp(at, size[order], values)))
    result.append(both)
  return result


def _table(runs):
  """Means over the runs, and standard deviations."""
  header = ["mu", "bytes", "squared error", "accuracy, points", "loss, nats"]
  rows = []
  for mu in runs[0]:
    for step in _STEPS:
      found = [p for run in runs for p in run[mu] if p["step"] == step]
      if len(found) < len(runs):
        continue
      size = np.mean([p["bytes"] for p in found])
      mse = report.spread([p["mse"] for p in found], ".3f")
      accuracy = report.spread([100 * p["accuracy"] for p in found], "+.2f")
      loss = report.spread([p["loss"] for p in found], "+.4f")
      rows.append([mu, f"{size:,.0f}", f"x {mse}", accuracy, loss])
  return include.table(header, rows)


if __name__ == "__main__":
  program.end(main)
