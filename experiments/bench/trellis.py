"""A trellis against scalar quantizers, by bytes at equal error and divergence.

python -m experiments.bench.trellis RUN [--every N --first I]

RUN is the directory of one finished training, such as that of a fine-tuned
encoder. Codes its parameters to files with steps by sensitivity, over a grid of
mean steps, with both quantizers and two prices mu. Compares the squared error,
the squared error weighted by the sensitivities, and the divergence of the
predictions on the validation split from those of the exact model.

The points are added to RUN/trellis.jsonl, and those that are there are not
measured again. N processes may share the work, each with its own I below N. The
last of them writes results/trellis_cpu.json and the table of docs/coding.md.
"""

import argparse
import functools
import itertools
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import backslash_jax as bs
from backslash_jax import quantize, tree
from experiments import (
  cells,
  data,
  include,
  learner,
  program,
  scoring,
  sharding,
)
from experiments.bench import coding, timing

_METHODS = (
  ("scalar", 0.0),
  ("trellis", 0.0),
  ("scalar", 0.05),
  ("trellis", 0.05),
)
_STEPS = tuple(2.0 ** (-k / 4) for k in (17, 13, 21, 15, 19, 11, 23, 25))
_METRICS = ("error", "weighted error", "divergence")
_RATES = (1.8, 2.0, 2.5, 3.0, 3.5, 3.75)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("run", type=pathlib.Path)
  parser.add_argument("--every", type=int, default=1)
  parser.add_argument("--first", type=int, default=0)
  options = parser.parse_args()
  found = options.run / "trellis.jsonl"
  wanted = [
    {"quantizer": quantizer, "mu": mu, "step": step}
    for (quantizer, mu), step in itertools.product(_METHODS, _STEPS)
  ]
  known = [p.items() for p in _read(found)]
  if missing := [
    key
    for key in wanted[options.first :: options.every]
    if not any(key.items() <= items for items in known)
  ]:
    measure = _measure(options.run)
    for key in missing:
      point = key | measure(**key)
      with found.open("a") as file:
        file.write(json.dumps(point) + "\n")
  points = _read(found)
  if len(points) == len(wanted):
    savings = compare(points)
    command = "python -m experiments.bench.trellis RUN"
    timing.write("trellis", command, {"points": points, "savings": savings})
    include.update(coding.DOCS, {"trellis": table(savings)})


def _read(path):
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text().splitlines()]


def _measure(run):
  """The function (mean step, quantizer, mu) -> what a file has."""
  config = json.loads((run / "config.json").read_text())
  config = ml_collections.ConfigDict(config)
  forward, _ = learner.build_abstract(config, data.load_task(config.data))
  params = bs.load(run / cells.TRAINED)["params"]
  score = scoring.make_score(config, forward, sharding.make_mesh(config))
  squares = score.squares(params, 24)
  count = sum(x.size for x in jax.tree.leaves(params))
  predict = functools.partial(_predict, jax.jit(forward), config)
  exact, targets = predict(params)

  def measure(step, quantizer, mu):
    steps = quantize.sensitive_steps(params, step, squares)
    with tempfile.TemporaryDirectory() as folder:
      file = pathlib.Path(folder) / "file"
      report = bs.save(file, params, step=steps, quantizer=quantizer, mu=mu)
      coded = bs.load(file)
    errors = {
      name: float(np.sum(np.square(np.asarray(x, np.float64) - y)))
      for (name, x), (_, y) in zip(
        tree.named_leaves(params), tree.named_leaves(coded), strict=True
      )
    }
    weights = {name: float(w) for name, w in tree.named_leaves(squares)}
    logs, _ = predict(coded)
    hits = logs.argmax(-1) == targets
    return {
      "bytes": report.bytes,
      "bits": report.bits_per_parameter,
      "error": sum(errors.values()) / count,
      "weighted error": sum(errors[n] * weights[n] for n in steps),
      "divergence": float(np.mean((np.exp(exact) * (exact - logs)).sum(-1))),
      "loss": float(-np.mean(np.take_along_axis(logs, targets[:, None], 1))),
      "accuracy": float(np.mean(hits)),
    }

  return measure


def _predict(forward, config, params):
  """The log-probabilities and targets of the validation split."""
  logs, targets = [], []
  for batch in data.eval_batches(config.data, "validation", 64):
    own = jax.nn.log_softmax(forward(params, batch["tokens"], batch["mask"]))
    known = batch["weights"].ravel() > 0
    logs.append(np.asarray(jnp.reshape(own, (known.size, -1)))[known])
    targets.append(batch["targets"].ravel()[known])
  return np.concatenate(logs).astype(np.float64), np.concatenate(targets)


def compare(points: list[dict]) -> dict[str, dict[str, float]]:
  """Bytes that the trellis saves at equal metrics, as fractions.

  Both quantizers have the better mu at every point. The metrics are
  interpolated in the logarithms.

  Returns:
    By metric and bits per parameter of the trellis.
  """
  curves: dict = {}
  for point in points:
    key = point["quantizer"], point["mu"]
    curves.setdefault(key, []).append(point)
  result: dict = {}
  for metric in _METRICS:
    result[metric] = {}
    for rate in _RATES:
      reached = [
        np.exp(value)
        for (kind, _), own in curves.items()
        if kind == "trellis"
        and (value := _at(own, "bits", metric, rate)) is not None
      ]
      if not reached:
        continue
      others = [
        np.exp(value)
        for (kind, _), own in curves.items()
        if kind == "scalar"
        and (value := _at(own, metric, "bits", min(reached))) is not None
      ]
      if others:
        result[metric][f"{rate:g}"] = 1 - rate / float(min(others))
  return result


def _at(points, given, wanted, value):
  """log of `wanted` where `given` has the value; None outside the points."""
  known = sorted((np.log(p[given]), np.log(p[wanted])) for p in points)
  x, y = np.array(known).T
  inside = x[0] <= np.log(value) <= x[-1]
  return float(np.interp(np.log(value), x, y)) if inside else None


def table(savings: dict[str, dict[str, float]]) -> str:
  """The savings in percent, a row for each rate."""
  lines = [
    f"| bits per parameter | {' | '.join(_METRICS)} |",
    "|---|" + "---:|" * len(_METRICS),
  ]
  for rate in (f"{rate:g}" for rate in _RATES):
    row = (savings[metric].get(rate) for metric in _METRICS)
    shown = ("-" if x is None else f"{100 * x:.1f}%" for x in row)
    lines.append(f"| {rate} | {' | '.join(shown)} |")
  return "\n".join(lines)


if __name__ == "__main__":
  program.end(main)
