"""The frontier: methods x operating points x seeds, each coded to real files.

python -m experiments.frontier --config=configs/frontier_modules.py \\
  --workdir=runs/frontier_modules

The grid is data, `config.grid`, as configs/frontier.py describes it. Every cell
trains and evaluates in a directory of its own, as in experiments.main. A grid
that was stopped goes on where it was, and the results are written after every
cell. `--norun` writes those of the cells that are there. `--rows` names the
frontier.csv of an earlier run, which is shown together with the new cells.
"""

import pathlib

from absl import flags

from experiments import main
from experiments.frontier import grid


def _main():
  trains = flags.DEFINE_boolean(
    "run", True, "Train the cells that are missing."
  )
  earlier = flags.DEFINE_string(
    "rows", None, "frontier.csv of an earlier run, to show it as well."
  )

  def launched(config, workdir):
    path = None if earlier.value is None else pathlib.Path(earlier.value)
    return grid.run(config, workdir, train=trains.value, earlier=path)

  main.launch(launched)


if __name__ == "__main__":
  _main()
