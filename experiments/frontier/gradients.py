"""The gradient of each rate, and nu during training.

python -m experiments.frontier.gradients GRID OUT.png --cells normal-only l1-0p1

GRID is the workdir of a grid of experiments.frontier. The left half draws the
gradient at a weight against its size in quantization steps, from the formulas,
for a tensor with nu 0.7 and a root mean square of two steps. Each rate is
scaled to a root mean square gradient of one, as `bs.gradient_balance` scales
it. The right half draws nu against the update, from the logs of GRID's
trainings of one seed: nu of all matrices together or, for rates of scope
"tensor", the mean.
"""

import argparse
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from backslash_jax import ggd, rate
from experiments import palette, program

palette.use()

from matplotlib import pyplot  # noqa: E402

_NU = 0.7
_RMS = 2.0  # In steps.
_EPSILON = 0.5  # Half a step, the default of `bs.backslash`.


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("grid", type=pathlib.Path)
  parser.add_argument("out", type=pathlib.Path)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--cells", nargs="+", help="by default all")
  options = parser.parse_args()
  figure, (left, right) = pyplot.subplots(
    1, 2, figsize=(12, 4.5), layout="constrained"
  )
  _draw_gradients(left)
  _draw_nu(right, options.grid, options.seed, options.cells)
  figure.savefig(options.out, dpi=120)


def gradients(x: jax.Array) -> dict[str, jax.Array]:
  """Unscaled gradient of each rate at weights of x steps, shaped as x."""
  return {
    "L0.5": 0.5 * rate.direction(x, 0.5, _EPSILON),
    "L1": rate.direction(x, 1.0, _EPSILON),
    "L2": 2.0 * rate.direction(x, 2.0, _EPSILON),
    f"dggr and bits, nu {_NU}": _NU * rate.direction(x, _NU, _EPSILON),
  }


def _alpha() -> float:
  """The scale at which the root mean square is _RMS."""
  unit = jnp.exp(jnp.diff(jax.lax.lgamma(jnp.array([1 / _NU, 3 / _NU]))))
  return float(_RMS / jnp.sqrt(unit[0]))


def _draw_gradients(axis):
  # Starts above 0, where the density is infinite.
  x = jnp.linspace(0.0, 8.0, 1602)[1:]
  weights = jnp.exp(ggd.log_prob(x, _NU, _alpha()))
  for name, gradient in gradients(x).items():
    scale = jnp.sqrt(jnp.sum(weights * gradient**2) / jnp.sum(weights))
    axis.plot(x, gradient / scale, label=name)
  axis.set_xlabel("size of the weight, in quantization steps")
  axis.set_ylabel("gradient towards zero, relative")
  axis.set_ylim(0, 4)
  axis.set_title("gradient of the rates")
  axis.legend()


def _draw_nu(axis, grid, seed, cells):
  histories = {}
  for path in sorted(grid.glob(f"cells/*-seed{seed}/metrics.jsonl")):
    records = [json.loads(line) for line in path.read_text().splitlines()]
    train = [r for r in records if r["split"] == "train"]
    name = path.parent.name.removesuffix(f"-seed{seed}")
    if train and (not cells or name in cells):
      histories[name] = np.array([(r["update"], r["nu"]) for r in train])
  if not histories:
    raise SystemExit(f"{grid} has no such cells/*-seed{seed}/metrics.jsonl")
  for i, (name, history) in enumerate(histories.items()):
    style = palette.style(i) | {"marker": ""}
    axis.plot(*history.T, label=name, linewidth=1, **style)
  axis.set_xlabel("update")
  axis.set_ylabel("nu")
  axis.set_title(f"shape during training, seed {seed}")
  axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)


if __name__ == "__main__":
  program.end(main)
