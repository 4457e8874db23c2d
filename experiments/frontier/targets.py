"""How closely `bs.target_rate` meets its target, by size and learning rate.

python -m experiments.frontier.targets experiments/results/targets
python -m experiments.include docs/frontier.md experiments/results

trains small classifiers, with an initial lambda that is far too small and one
that is far too large. It writes results.json after every training, and its
table, targets.md. A run that was stopped resumes after the last training.
"""

import argparse
import functools
import itertools
import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import backslash_jax as bs
from experiments import atomic, program, report

STEP = bs.STEP
UPDATES = 1000
WIDTHS = (24, 240, 2400)  # Of the hidden layer; parameters are 42 times that.
LEARNING_RATES = (3e-4, 3e-3, 3e-2)
TARGETS = (1.5, 3.0)
INITIAL = (0.001, 1.0)
AXES = ("width", "learning_rate", "target", "initial")


@functools.cache
def problem(width: int) -> tuple[dict[str, jax.Array], Callable]:
  """A classifier of a teacher's noisy labels: parameters and loss.

  Args:
    width: of the hidden layer; the parameters are 42 times as many.

  Returns:
    The initial parameters, float32, and loss(parameters, rows), with rows int32
    below 4096.
  """
  keys = jax.random.split(jax.random.key(0), 6)
  x = jax.random.normal(keys[0], (4096, 32))
  hidden = jnp.tanh(x @ jax.random.normal(keys[1], (32, 64)) / 5)
  logits = hidden @ jax.random.normal(keys[2], (64, 10))
  y = jnp.argmax(logits + jax.random.gumbel(keys[3], logits.shape), -1)
  params = {
    "hidden": jax.random.normal(keys[4], (32, width)) / 32**0.5,
    "out": jax.random.normal(keys[5], (width, 10)) / width**0.5,
  }

  def loss(params, rows):
    logits = jax.nn.relu(x[rows] @ params["hidden"]) @ params["out"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, y[rows])
    return losses.mean()

  return params, loss


def train(
  controller: Any,
  *,
  width: int,
  learning_rate: float | optax.Schedule,
  updates: int,
  **options: Any,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """Trains on batches of 128 with Adam.

  Args:
    controller: of lambda.
    width: see `problem`.
    learning_rate: of Adam.
    updates: how many.
    **options: of `bs.backslash`.

  Returns:
    The parameters at the end, and "bits", "unmet" and "lmbda" of the optimizer
    state after every update, each [updates].
  """
  params, loss = problem(width)
  link = bs.backslash(controller, step=STEP, measure_every=4, **options)
  tx = optax.chain(link, optax.adam(learning_rate))

  @jax.jit
  def run(params, key):
    def body(carry, key):
      params, state = carry
      rows = jax.random.randint(key, (128,), 0, 4096)
      updates, state = tx.update(jax.grad(loss)(params, rows), state, params)
      seen = {n: optax.tree.get(state, n) for n in ("bits", "unmet", "lmbda")}
      return (optax.apply_updates(params, updates), state), seen

    keys = jax.random.split(key, updates)
    (params, _), seen = jax.lax.scan(body, (params, tx.init(params)), keys)
    return params, seen

  return jax.device_get(run(params, jax.random.key(1)))


def coded_bits(params: dict[str, jax.Array]) -> float:
  """Bits per parameter of the tensors in the coded file."""
  with tempfile.TemporaryDirectory() as folder:
    saved = bs.save(pathlib.Path(folder) / "file", params, step=STEP)
  return sum(t.bits for t in saved.tensors) / saved.parameters


def measure(path: pathlib.Path) -> list[dict[str, float]]:
  """Runs the trainings that the JSON file lacks; a row for each training."""
  rows = json.loads(path.read_text()) if path.exists() else []
  done = {tuple(row[axis] for axis in AXES) for row in rows}
  for values in itertools.product(WIDTHS, LEARNING_RATES, TARGETS, INITIAL):
    if values in done:
      continue
    width, learning_rate, target, initial = values
    params, seen = train(
      bs.target_rate(target, initial=initial),
      width=width,
      learning_rate=optax.cosine_decay_schedule(learning_rate, UPDATES),
      updates=UPDATES,
      shape=1.0,
    )
    rows.append(
      dict(zip(AXES, values, strict=True))
      | {
        "parameters": sum(x.size for x in params.values()),
        "file": coded_bits(params),
        "bits": float(seen["bits"][-1]),
        "unmet": int(seen["unmet"][-1]),
      }
    )
    print(rows[-1], flush=True)
    atomic.write_text(path, json.dumps(rows, indent=1) + "\n")
  return rows


def table(rows: list[dict[str, float]]) -> report.Table:
  """The bits reached, by size and learning rate, for every target and start.

  A star marks the targets that were missed, see `bs.target_rate`.
  """
  columns = list(itertools.product(TARGETS, INITIAL))
  found = {tuple(row[axis] for axis in AXES): row for row in rows}
  body = []
  for width, learning_rate in itertools.product(WIDTHS, LEARNING_RATES):
    own = [found[width, learning_rate, *column] for column in columns]
    cells = [
      f"{row['bits']:.2f}{'*' if row['unmet'] else ''}, {row['file']:.2f}"
      for row in own
    ]
    body.append([f"{own[0]['parameters']:,}", f"{learning_rate:g}", *cells])
  header = ["parameters", "learning rate"]
  header += [f"{target:g} bits, from {start:g}" for target, start in columns]
  return report.Table("What a target becomes", header, body)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("results", type=pathlib.Path)
  results = parser.parse_args().results
  rows = measure(results / "results.json")
  atomic.write_text(results / "targets.md", report.markdown(table(rows)))


if __name__ == "__main__":
  program.end(main)
