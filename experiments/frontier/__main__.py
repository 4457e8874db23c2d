"""The frontier: methods x operating points x seeds, coded to real files.

python -m experiments.frontier --config=configs/frontier_modules.py \\
  --workdir=runs/frontier_modules

The grid is data, `config.grid`, see configs/frontier.py. Each cell is trained
and evaluated in its own directory, as in experiments.main. The results are
written after every cell, and a grid that was stopped resumes. Several processes
may run the same command at the same time. `--norun` writes the results of the
finished cells. `--rows` names the frontier.csv of an earlier run, whose rows
are shown together with the new cells.
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
