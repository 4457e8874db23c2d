"""The report's figures, as PNG files."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import backslash_jax as bs
from backslash_jax import sampling
from experiments import atomic, evaluate, palette
from experiments.frontier import bjontegaard

palette.use()

from matplotlib import pyplot  # noqa: E402

_VALUES = 1 << 24  # Most parameters from which a histogram is drawn.
TITLES = {
  "histogram.png": "Parameters and their generalized Gaussian",
  "rate.png": "nu and bits per parameter during training",
  "accuracy_bits.png": "Accuracy against the size of the file",
  "accuracy_pruning.png": "Accuracy against pruning rate",
}

# Of the frontier's accuracies, as a fraction of the best: models below are of
# no use, and their range would hide the differences of the others.
_LEAST = 0.75


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
  """Draws accuracy against bits per parameter: a panel per method.

  Each has a line per seed, with markers at the measured files, and the baseline
  in gray. Accuracies far below the best are cut off.

  Args:
    path: of the PNG file.
    curves: of method and seed.
    baseline: the method in every panel.
    task: its name.
  """
  methods = [name for name in curves if name != baseline] or [baseline]
  rows = -(-len(methods) // 5)
  columns = -(-len(methods) // rows)
  figure, axes = pyplot.subplots(
    rows,
    columns,
    figsize=(0.6 + 2.2 * columns, 1.0 + 2.0 * rows),
    sharex=True,
    sharey=True,
    squeeze=False,
    layout="constrained",
  )
  for i in range(len(methods), rows * columns):
    axes.flat[i].set_visible(False)
    axes.flat[i - columns].tick_params(labelbottom=True)
  for axis, method in zip(axes.flat, methods, strict=False):
    _curves(axis, curves.get(baseline, {}), color=palette.GRAY, markersize=3)
    if method != baseline:
      _curves(axis, curves[method], color=palette.COLORS[0], markersize=4)
    axis.set_title(method, fontsize=10)
    axis.grid(alpha=0.3)
  axes[0, 0].set_xscale("log", base=2)
  axes[0, 0].xaxis.set_major_formatter("{x:g}")
  every = [c.metric for own in curves.values() for c in own.values()]
  best = 100 * np.concatenate(every).max()
  axes[0, 0].set_ylim(_LEAST * best, 1.02 * best)
  figure.supxlabel("bits of the file per parameter")
  figure.supylabel("test accuracy, %")
  figure.suptitle(f"{task}: each method, and {baseline} in gray")
  _save(figure, path)


def _curves(axis, own, **style):
  """A line per seed, with a marker at each measured file."""
  for seed, curve in own.items():
    i = seed % len(palette.MARKERS)
    axis.plot(
      np.exp(curve.log_rate),
      100 * curve.metric,
      linestyle="-",
      linewidth=1,
      marker=palette.MARKERS[i],
      **style,
    )


def _histogram(runs):
  figure, axes = _subplots(len(runs))
  for axis, (name, run) in zip(axes, runs.items(), strict=True):
    x = _sample(evaluate.matrices(run.params), run.evaluation)
    limit = max(float(np.quantile(np.abs(x), 0.999)), 1e-6)
    axis.hist(x, np.linspace(-limit, limit, 201), density=True, alpha=0.5)
    # An even number of points: the density may be infinite at 0.
    grid = np.linspace(-limit, limit, 1000, dtype=np.float32)
    nu, alpha, density = _density(x, grid)
    axis.plot(grid, density, linewidth=1)
    axis.set_yscale("log")
    axis.set_title(f"{name}: nu {float(nu):.2f}, alpha {float(alpha):.2g}")
    axis.set_xlabel("parameter")
  axes[0].set_ylabel("density")
  return figure


@jax.jit  # One program compiles faster than its operations one by one.
def _density(x, grid):
  """Shape and scale of the generalized Gaussian of x, and its density."""
  moments = bs.moments.moments(x)
  nu = bs.moments.shape_parameter(moments)
  alpha = bs.ggd.scale(nu, moments.abs_sum / moments.count)
  return nu, alpha, jnp.exp(bs.ggd.log_prob(grid, nu, alpha))


def _sample(matrices, evaluation):
  """Values of the matrices: all, or an even sample if there are many."""
  every = -(-evaluation["matrix_parameters"] // _VALUES)

  def some(m):
    return np.ravel(m)[sampling.strata(m.size, -(-m.size // every))]

  return np.concatenate([some(m) for m in matrices])


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
  for k, (name, e) in enumerate(report["evaluations"].items()):
    bits = [8 * q["bytes"] / e["parameters"] for q in e["quantized"]]
    accuracy = [100 * q["test"]["accuracy"] for q in e["quantized"]]
    style = palette.style(k)
    (line,) = axis.plot(bits, accuracy, markersize=4, label=name, **style)
    i = e["shipped"]
    axis.plot(bits[i], accuracy[i], "o", markersize=9, color=line.get_color())
    exact = 100 * e["exact"]["test"]["accuracy"]
    axis.axhline(exact, color=line.get_color(), linestyle=":", linewidth=1)
  axis.set_xlabel("bits of the file per parameter (large circle: shipped)")
  axis.set_ylabel("test accuracy, % (dotted: float32)")
  axis.legend()
  return figure


def _accuracy_pruning(report):
  figure, (axis,) = _subplots(1)
  for k, (name, e) in enumerate(report["evaluations"].items()):
    rates = [100 * p["rate"] for p in e["pruned"]]
    accuracy = [100 * p["test"]["accuracy"] for p in e["pruned"]]
    axis.plot(rates, accuracy, markersize=4, label=name, **palette.style(k))
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
