"""What an estimate of the shape in every fourth update changes in a model.

python -m experiments.bench.lag WORKDIR [--seeds N] [--updates N]

Trains the quickstart's model with the paper's rate (lambda 4), with an estimate
in every update and in every fourth one, from the seeds 0 to N - 1. Each is
coded with one step of 2^-4. Writes results/lag_cpu.json. A second call goes on
with what is there.
"""

import argparse
import pathlib
import statistics

import ml_collections

from configs import quickstart
from experiments import main as experiment
from experiments import program
from experiments.bench import timing

_EVERY = (1, 4)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("workdir", type=pathlib.Path)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--updates", type=int, default=332)
  options = parser.parse_args()
  rows = []
  for seed in range(options.seeds):
    config = _config(seed, options.updates)
    report = experiment.train_and_evaluate(config, options.workdir / str(seed))
    rows += [
      {
        "seed": seed,
        "update_every": every,
        "exact_accuracy": found["exact_accuracy"],
        "accuracy": found["accuracy"],
        "accuracy_error": found["accuracy_error"],
        "file_bits": found["file_bits"],
      }
      for every in _EVERY
      for found in [report["comparison"][f"every_{every}"]]
    ]
  means = {
    str(every): {
      key: statistics.fmean(r[key] for r in rows if r["update_every"] == every)
      for key in ("exact_accuracy", "accuracy", "file_bits")
    }
    for every in _EVERY
  }
  command = (
    f"python -m experiments.bench.lag WORKDIR --seeds={options.seeds}"
    f" --updates={options.updates}"
  )
  timing.write("lag", command, {"runs": rows, "means": means})


def _config(seed: int, updates: int) -> ml_collections.ConfigDict:
  config = quickstart.get_config()
  config.seed = seed
  config.total_updates = updates
  config.eval_every = config.checkpoint_every = updates
  config.evaluate.steps = (2**-4,)
  config.evaluate.pruning_rates = ()
  config.baseline = f"every_{_EVERY[0]}"
  config.arms = ml_collections.ConfigDict(
    {
      f"every_{every}": {"rate": {"lmbda": 4.0, "update_every": every}}
      for every in _EVERY
    }
  )
  return config


if __name__ == "__main__":
  program.end(main)
