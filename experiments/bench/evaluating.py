"""Processor time to score an example of the quickstart, by the batch size.

python -m experiments.bench.evaluating [--repeats=14]

Writes results/evaluating_cpu.json: milliseconds per example.
"""

import sys

import jax

from configs import quickstart
from experiments import data, learner, program, scoring
from experiments.bench import timing

_SIZES = (32, 64, 128, 256)
_EXAMPLES = 256


def _main(argv):
  del argv
  config = quickstart.get_config()
  forward, params = learner.build(config, data.load_task(config.data))
  score = jax.jit(lambda params, batch: scoring.scored(forward, params, batch))

  def passes(size):
    batch = next(iter(data.eval_batches(config.data, "test", size)))
    return lambda: [score(params, batch) for _ in range(_EXAMPLES // size)]

  times = timing.measure(
    {str(size): passes(size) for size in _SIZES}, timing.REPEATS.value
  )
  found = {
    size: timing.summary([1e3 * s / _EXAMPLES for s in clocks["processor"]])
    for size, clocks in times.items()
  }
  command = " ".join(["python -m experiments.bench.evaluating", *sys.argv[1:]])
  timing.write("evaluating", command, found)


if __name__ == "__main__":
  program.run(_main)
