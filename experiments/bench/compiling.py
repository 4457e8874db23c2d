"""Processor seconds to trace, lower and compile a training update.

python -m experiments.bench.compiling --config=configs/quickstart.py \
  [--vocabulary=N] [--name=NAME]

Without the rate and with it, without a cache of compiled programs. Adds a row
per candidate to results/compiling_cpu.json.
"""

import json
import sys
import time

import jax
from absl import flags

from experiments import program
from experiments.bench import timing, update

_NAME = flags.DEFINE_string("name", "quickstart", "Of the model in the table.")
_CANDIDATES = ("plain", "rate paid")
_PARTS = ("trace", "lower", "compile")


def _main(argv):
  del argv
  jax.config.update("jax_enable_compilation_cache", False)
  path = timing.RESULTS / "compiling_cpu.json"
  rows = json.loads(path.read_text())["results"] if path.exists() else []
  rows = [row for row in rows if row["model"] != _NAME.value]
  for candidate in _CANDIDATES:
    step, arguments = update.jitted(
      update.CONFIG.value,
      *update.CANDIDATES[candidate],
      update.VOCABULARY.value,
    )
    seconds, stage = {}, step
    for part in _PARTS:
      start = time.process_time()
      stage = (
        stage.trace(*arguments) if part == "trace" else getattr(stage, part)()
      )
      seconds[part] = time.process_time() - start
    rows.append({"model": _NAME.value, "candidate": candidate, **seconds})
  command = " ".join(["python -m experiments.bench.compiling", *sys.argv[1:]])
  timing.write("compiling", command, rows)


if __name__ == "__main__":
  program.run(_main)
