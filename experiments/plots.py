"""The report's figures, as PNG files."""

import pathlib
from typing import Any

import jax.numpy as jnp
import matplotlib
import numpy as np

import backslash_jax as bs
from experiments import atomic, evaluate
from experiments.frontier import bjontegaard

matplotlib.use("Agg")

from matplotlib import pyplot

TITLES = {
  "histogram.png": "Parameters and their generalized Gaussian",
  "rate.png": "nu and bits per parameter during training",
  "accuracy_bits.png": "Accuracy against the size of the file",
  "accuracy_pruning.png": "Accuracy against pruning rate",
}


def write(
  report: dict[str, Any], runs: dict[str, Any], directory: pathlib.Path
) -> None:
  """Draws every figure of TITLES into directory.

  Args:
    report: from `report.compare`.
    runs: `report.Run` by name.
    directory: where the files go.
  """
  figures = {
    "histogram.png": _histogram(runs),
    "rate.png": _rate(runs),
    "accuracy_bits.png": _accuracy_bits(report),
    "accuracy_pruning.png": _accuracy_pruning(report),
  }
  for name, figure in figures.items():
    figure.suptitle(TITLES[name])
    _save(figure, directory / name)


def write_frontier(
  path: pathlib.Path,
  curves: dict[str, dict[int, bjontegaard.Curve]],
  baseline: str,
  task: str,
) -> None:
  """Draws accuracy against bits per parameter, with bars over the seeds.

  Args:
    path: of the PNG file.
    curves: of method and seed.
    baseline: the method that stands out.
    task: its name.
  """
  figure, axis = pyplot.subplots(figsize=(10, 6), layout="constrained")
  for i, (method, own) in enumerate(curves.items()):
    # Where all seeds have a curve; where they share nothing, all points.
    low = max(c.log_rate[0] for c in own.values())
    high = min(c.log_rate[-1] for c in own.values())
    if low > high:
      bits = np.exp(np.concatenate([c.log_rate for c in own.values()]))
      accuracy = np.concatenate([c.metric for c in own.values()])
      axis.plot(bits, 100 * accuracy, "x", color=f"C{i % 10}", label=method)
      continue
    bits = np.exp(np.linspace(low, high, 12 if low < high else 1))
    accuracy = np.array(
      [[bjontegaard.metric_at(c, b) for b in bits] for c in own.values()], float
    )
    axis.errorbar(
      bits,
      100 * accuracy.mean(axis=0),
      yerr=100 * accuracy.std(axis=0, ddof=1) if len(own) > 1 else None,
      color=f"C{i % 10}",
      linestyle=("-", "--", ":", "-.")[i // 10 % 4],
      linewidth=2.5 if method == baseline else 1.2,
      marker=".",
      capsize=2,
      label=method,
    )
  axis.set_xscale("log", base=2)
  axis.xaxis.set_major_formatter("{x:g}")
  axis.set_xlabel("bits of the file per parameter")
  axis.set_ylabel("test accuracy, %")
  axis.set_title(f"{task}: accuracy against the size of the file")
  axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
  _save(figure, path)


def _histogram(runs):
  figure, axes = _subplots(len(runs))
  for axis, (name, run) in zip(axes, runs.items(), strict=True):
    x = np.concatenate([np.ravel(m) for m in evaluate.matrices(run.params)])
    moments = bs.moments.moments(jnp.asarray(x))
    nu = bs.moments.shape_parameter(moments)
    alpha = bs.ggd.scale(nu, moments.abs_sum / moments.count)
    limit = max(float(np.quantile(np.abs(x), 0.999)), 1e-6)
    axis.hist(x, np.linspace(-limit, limit, 201), density=True, alpha=0.5)
    # An even number of points: the density may be infinite at 0.
    grid = jnp.linspace(-limit, limit, 1000)
    axis.plot(grid, jnp.exp(bs.ggd.log_prob(grid, nu, alpha)), linewidth=1)
    axis.set_yscale("log")
    axis.set_title(f"{name}: nu {float(nu):.2f}, alpha {float(alpha):.2g}")
    axis.set_xlabel("parameter")
  axes[0].set_ylabel("density")
  return figure


def _rate(runs):
  figure, axes = _subplots(2)
  for name, run in runs.items():
    records = [r for r in run.history if r["split"] == "train"]
    updates = [r["update"] for r in records]
    axes[0].plot(updates, [r["nu"] for r in records], label=name)
    axes[1].plot(updates, [r["bits"] for r in records], label=name)
  for axis, label in zip(axes, ("nu", "bits per parameter"), strict=True):
    axis.set_xlabel("update")
    axis.set_ylabel(label)
    axis.legend()
  return figure


def _accuracy_bits(report):
  figure, (axis,) = _subplots(1)
  for name, e in report["evaluations"].items():
    bits = [8 * q["bytes"] / e["parameters"] for q in e["quantized"]]
    accuracy = [100 * q["test"]["accuracy"] for q in e["quantized"]]
    (line,) = axis.plot(bits, accuracy, marker=".", label=name)
    i = e["shipped"]
    axis.plot(bits[i], accuracy[i], "o", color=line.get_color())
    exact = 100 * e["exact"]["test"]["accuracy"]
    axis.axhline(exact, color=line.get_color(), linestyle=":", linewidth=1)
  axis.set_xlabel("bits of the file per parameter (circle: shipped)")
  axis.set_ylabel("test accuracy, % (dotted: float32)")
  axis.legend()
  return figure


def _accuracy_pruning(report):
  figure, (axis,) = _subplots(1)
  for name, e in report["evaluations"].items():
    rates = [100 * p["rate"] for p in e["pruned"]]
    accuracy = [100 * p["test"]["accuracy"] for p in e["pruned"]]
    axis.plot(rates, accuracy, marker=".", label=name)
  axis.set_xlabel("matrix elements set to zero, %")
  axis.set_ylabel("test accuracy, %")
  axis.legend()
  return figure


def _subplots(count):
  figure, axes = pyplot.subplots(
    1, count, figsize=(5 * count, 4), squeeze=False, layout="constrained"
  )
  return figure, axes[0]


def _save(figure, path):
  atomic.write(path, lambda file: figure.savefig(file, dpi=120, format="png"))
  pyplot.close(figure)
