"""The paper's Figures 1 to 8, drawn from our measurements.

python -m experiments.paper.figures --figure=8 --profile=small --source=DATA

Runs or resumes the cells that are missing, and writes figure_8.png and its
points, figure_8.csv. See docs/reproduction.md.
"""

import csv
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import backslash_jax as bs
from configs.paper import numbers, sweep
from experiments import atomic, palette
from experiments.paper import reproduce, tables

palette.use()

from matplotlib import pyplot  # noqa: E402

MODELS = "table4_bert", "table4_gpt2", "table4_llama3", "table4_gemma2"
# The lines of Figures 7 and 8; the paper has no panel of the regularizers.
ARMS = dict.fromkeys(MODELS, ("normal", "backslash")) | {
  "table6": ("normal", "dggr", "l0p5", "l1", "l2")
}
# The cells of the sweep and their lambdas, by recipe.
SWEEPS: dict[str, dict[str, int]] = {
  recipe: {"sweep/normal": 0} | {f"sweep/{name}{v}": v for v in lambdas}
  for name, (recipe, lambdas) in sweep.LAMBDAS.items()
}
_SMOOTHED = 5  # Records that a loss is averaged over.


@dataclasses.dataclass(frozen=True)
class Series:
  """A line: x and y [P], and the deviation of y over the seeds, or None.

  The style "points" has a marker at each of them; "line" has none, "dots" only
  these, and "paper" is dotted, with crosses.
  """

  label: str
  x: np.ndarray
  y: np.ndarray
  deviation: np.ndarray | None = None
  style: str = "points"


@dataclasses.dataclass(frozen=True)
class Panel:
  """A diagram; logarithmic in y if `log` is "y", symmetrically in x if "s"."""

  title: str
  x_label: str
  y_label: str
  series: list[Series]
  log: str = ""


def histograms(records: reproduce.Records, names: Iterable[str]) -> list[Panel]:
  """Parameters of the first seed, with fitted distributions."""
  panels = []
  for name in names:
    for seed, record in list(records.get(name, {}).items())[:1]:
      found = record["distribution"]
      edges = np.linspace(
        -found["limit"], found["limit"], len(found["density"]) + 1
      )
      x = (edges[1:] + edges[:-1]) / 2
      nu, alpha = found["nu"], found["alpha"]
      # The middle bin's centre is 0, where the density may be infinite.
      fit = np.exp(bs.ggd.log_prob(jnp.asarray(x + 1e-9), nu, alpha))
      deviation = found["deviation"]
      normal = np.exp(-0.5 * (x / deviation) ** 2)
      normal /= deviation * np.sqrt(2 * np.pi)
      panels.append(
        Panel(
          f"{name}, seed {seed}",
          "parameter",
          "density",
          [
            Series("parameters", x, np.array(found["density"]), style="dots"),
            Series(f"generalized Gaussian, nu {nu:.2f}", x, fit, style="line"),
            Series("Gaussian", x, normal, style="line"),
          ],
          log="y",
        )
      )
  return panels


def cost(records: reproduce.Records) -> list[Panel]:
  """log10(D - 0.995 min D) against the update, D the task's loss, smoothed."""

  def of(record):
    loss = np.array([r["loss"] for r in record["history"]])
    width = min(_SMOOTHED, len(loss))
    smooth = np.convolve(loss, np.ones(width) / width, "valid")
    update = np.array([r["update"] for r in record["history"]])[width - 1 :]
    return update, np.log10(smooth - 0.995 * smooth.min())

  return _of_sweep(records, of, "log10(D - 0.995 min D)")


def shapes(records: reproduce.Records) -> list[Panel]:
  """nu against the update."""

  def of(record):
    history = record["history"]
    return tuple(np.array([r[k] for r in history]) for k in ("update", "nu"))

  return _of_sweep(records, of, "nu")


def against_lambda(
  records: reproduce.Records, keys: Mapping[str, str], y_label: str
) -> list[Panel]:
  """The values of `tables.measure` and of the paper against lambda.

  Args:
    records: of the sweep.
    keys: of `tables.measure` and of Numbers; the names of their lines.
    y_label: their unit.
  """
  panels = []
  for recipe, lambdas in SWEEPS.items():
    series = []
    for key, label in keys.items():
      ours = {
        float(value): [m[key] for m in found]
        for name, value in lambdas.items()
        if (found := tables.measured(records, name))
      }
      if ours:
        series.append(_over_seeds(f"{label}, ours", ours))
      stated = {
        SWEEPS["released"][name]: getattr(row, key)
        for name, row in numbers.SWEEP.items()
      }
      x, y = np.array([*stated]), np.array([*stated.values()])
      series.append(Series(f"{label}, paper", x, y, style="paper"))
    panels.append(Panel(recipe, "lambda of the paper", y_label, series, "s"))
  return panels


def per_model(
  records: reproduce.Records,
  points: Callable[[Mapping[str, Any]], dict[float, float]],
  x_label: str,
) -> list[Panel]:
  """Test accuracy of the normal and the rate-trained models, a panel each.

  Args:
    records: of ARMS.
    points: x -> accuracy in %, of a record.
    x_label: what x is.
  """
  panels = []
  for model, arms in ARMS.items():
    series = []
    for arm in arms:
      found = [points(r) for r in records.get(f"{model}/{arm}", {}).values()]
      if found and found[0]:
        values = {x: [p[x] for p in found] for x in found[0]}
        series.append(_over_seeds(arm, values))
    if series:
      panels.append(Panel(model, x_label, "test accuracy, %", series))
  return panels


def pruning(record: Mapping[str, Any]) -> dict[float, float]:
  """Pruning rate in % -> test accuracy in %; 0 is the unpruned model."""
  evaluation = record["evaluation"]
  exact = {0.0: 100 * evaluation["exact"]["test"]["accuracy"]}
  return exact | {
    100 * p["rate"]: 100 * p["test"]["accuracy"] for p in evaluation["pruned"]
  }


def quantization(record: Mapping[str, Any]) -> dict[float, float]:
  """-log2 of the step -> test accuracy in %."""
  return {
    float(-np.log2(q["step"])): 100 * q["test"]["accuracy"]
    for q in record["evaluation"]["quantized"]
  }


_PAIRS = tuple(f"{m}/{arm}" for m, arms in ARMS.items() for arm in arms)
_NORMAL = tuple(f"{model}/normal" for model in MODELS)
_SWEPT = tuple(dict.fromkeys(n for names in SWEEPS.values() for n in names))
_THREE = "sweep/normal", "sweep/lambda10", "sweep/lambda1000"
_CODES = {"exp_golomb": "EG", "huffman": "HM"}
_ACCURACIES = {"accuracy": "test", "train_accuracy": "train"}

# By number: title, the cells that it shows, and what makes its panels.
FIGURES: dict[
  str, tuple[str, Sequence[str], Callable[[reproduce.Records], list[Panel]]]
] = {
  "1": (
    "Parameters of normally trained models",
    _NORMAL,
    lambda records: histograms(records, _NORMAL),
  ),
  "2": ("The loss during training", _SWEPT, cost),
  "3": ("nu during training", _SWEPT, shapes),
  "4": (
    "Code length against lambda",
    _SWEPT,
    lambda records: against_lambda(records, _CODES, "bits per parameter"),
  ),
  "5": (
    "Accuracy against lambda",
    _SWEPT,
    lambda records: against_lambda(records, _ACCURACIES, "accuracy, %"),
  ),
  "6": (
    "Parameters by lambda",
    _THREE,
    lambda records: histograms(records, _THREE),
  ),
  "7": (
    "Accuracy against the quantization step",
    _PAIRS,
    lambda records: per_model(records, quantization, "-log2 of the step"),
  ),
  "8": (
    "Accuracy against the pruning rate",
    _PAIRS,
    lambda records: per_model(records, pruning, "elements set to zero, %"),
  ),
}


def write(
  figure: str, records: reproduce.Records, results: pathlib.Path
) -> None:
  """Writes figure_NAME.png and figure_NAME.csv into results.

  Nothing is written if no cell of the figure was run.
  """
  title, names, make = FIGURES[figure]
  if not any(records.get(name) for name in names):
    print(f"figure {figure}: none of its cells was run")
    return
  panels = make(records)
  path = results / f"figure_{figure}"
  atomic.write(
    path.with_suffix(".png"), lambda file: _draw(file, title, panels)
  )
  atomic.write(path.with_suffix(".csv"), lambda file: _write_csv(file, panels))


def _of_sweep(records, of, y_label) -> list[Panel]:
  """A line per lambda: the mean over the seeds of (x, y) = of(record)."""
  panels = []
  for recipe, lambdas in SWEEPS.items():
    series = []
    for name, value in lambdas.items():
      found = [of(record) for record in records.get(name, {}).values()]
      if found:
        y = np.mean([y for _, y in found], axis=0)
        line = Series(f"lambda {value}", found[0][0], y, style="line")
        series.append(line)
    if series:
      panels.append(Panel(recipe, "update", y_label, series))
  return panels


def _over_seeds(label: str, values: Mapping[float, list[float]]) -> Series:
  """x -> values of the seeds, as a line of their means."""
  y = np.array([np.mean(v) for v in values.values()])
  deviation = None
  if all(len(v) > 1 for v in values.values()):
    deviation = np.array([np.std(v, ddof=1) for v in values.values()])
  return Series(label, np.array([*values], float), y, deviation)


def _draw(path: pathlib.Path, title: str, panels: Sequence[Panel]) -> None:
  columns = min(len(panels), 2)  # More are too small in a page's width.
  rows = -(-len(panels) // columns)
  figure, axes = pyplot.subplots(
    rows,
    columns,
    figsize=(4.3 * columns, 3.4 * rows),
    squeeze=False,
    layout="constrained",
  )
  for axis in axes.flat[len(panels) :]:
    axis.set_visible(False)
  for axis, panel in zip(axes.flat, panels, strict=False):
    for i, line in enumerate(panel.series):
      axis.errorbar(
        line.x,
        line.y,
        yerr=line.deviation,
        capsize=2,
        linewidth=1.2,
        markersize=4,
        label=line.label,
        **_style(line.style, i),
      )
    if panel.log == "y":
      axis.set_yscale("log")
    if panel.log == "s":  # lambda may be 0.
      axis.set_xscale("symlog", linthresh=1)
    axis.set_title(panel.title)
    axis.set_xlabel(panel.x_label)
    axis.set_ylabel(panel.y_label)
    axis.legend(fontsize=8)
  figure.suptitle(title)
  figure.savefig(path, dpi=100, format="png")
  pyplot.close(figure)


def _style(kind: str, index: int) -> dict[str, Any]:
  style = palette.style(index)
  match kind:
    case "line":
      return style | {"marker": ""}
    case "dots":
      return style | {"linestyle": "", "marker": ".", "color": palette.GRAY}
    case "paper":
      return style | {"linestyle": ":", "marker": "x", "color": palette.GRAY}
  return style


def _write_csv(path: pathlib.Path, panels: Sequence[Panel]) -> None:
  with path.open("w", newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["panel", "series", "x", "y", "deviation"])
    for panel in panels:
      for line in panel.series:
        deviations = [""] * len(line.x)
        if line.deviation is not None:
          deviations = [f"{d:.4g}" for d in line.deviation]
        rows = zip(line.x, line.y, deviations, strict=True)
        for x, y, deviation in rows:
          writer.writerow(
            [panel.title, line.label, f"{x:.6g}", f"{y:.6g}", deviation]
          )


if __name__ == "__main__":
  reproduce.launch(
    "figure", list(FIGURES), lambda name: FIGURES[name][1], write
  )
