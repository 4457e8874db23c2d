"""How each rate pulls on a weight, and what it does to nu while training runs.

python -m experiments.frontier.gradients GRID OUT.png --cells normal-only l1-0p1

GRID is the workdir of a grid of experiments.frontier. The left half draws the
pull on a weight of so many steps, from the formulas: for a tensor with nu 0.7
whose root mean square is two steps, each rate scaled to a root mean square pull
of one, as `bs.gradient_balance` scales it. The right half draws nu against the
step, as GRID's trainings of one seed logged it: of all matrices together, or,
for rates of scope "tensor", the mean over them.
"""

import argparse
import json
import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from backslash_jax import code_length, ggd, rate

matplotlib.use("Agg")

from matplotlib import pyplot

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
  _draw_pulls(left)
  _draw_nu(right, options.grid, options.seed, options.cells)
  figure.savefig(options.out, dpi=120)


def pulls(x: jax.Array) -> dict[str, jax.Array]:
  """Gradient of each rate at weights of x steps, before scaling, as x."""
  return {
    "L0.5": 0.5 * rate.direction(x, 0.5, _EPSILON),
    "L1": rate.direction(x, 1.0, _EPSILON),
    "L2": 2.0 * rate.direction(x, 2.0, _EPSILON),
    f"dggr and bits, nu {_NU}": _NU * rate.direction(x, _NU, _EPSILON),
    "code_length": code_length.gradient(x, _NU, _alpha(), 1.0),
  }


def _alpha() -> float:
  """The scale at which the root mean square is _RMS."""
  unit = jnp.exp(jnp.diff(jax.lax.lgamma(jnp.array([1 / _NU, 3 / _NU]))))
  return float(_RMS / jnp.sqrt(unit[0]))


def _draw_pulls(axis):
  # Halves of a step would be the infinite density at 0.
  x = jnp.linspace(0.0, 8.0, 1602)[1:]
  weights = jnp.exp(ggd.log_prob(x, _NU, _alpha()))
  for name, pull in pulls(x).items():
    scale = jnp.sqrt(jnp.sum(weights * pull**2) / jnp.sum(weights))
    style = "--" if name == "code_length" else "-"
    axis.plot(x, pull / scale, style, label=name)
  axis.set_xlabel("size of the weight, in quantization steps")
  axis.set_ylabel("pull towards zero, relative")
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
      histories[name] = np.array([(r["step"], r["nu"]) for r in train])
  if not histories:
    raise SystemExit(f"{grid} has no such cells/*-seed{seed}/metrics.jsonl")
  for i, (name, history) in enumerate(histories.items()):
    style = ("-", "--", ":", "-.")[i // 10 % 4]
    axis.plot(*history.T, style, color=f"C{i % 10}", label=name, linewidth=1)
  axis.set_xlabel("step")
  axis.set_ylabel("nu")
  axis.set_title(f"shape during training, seed {seed}")
  axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)


if __name__ == "__main__":
  main()
