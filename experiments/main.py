"""python -m experiments.main --config=configs/quickstart.py --workdir=DIR"""

import functools
import pathlib
import sys
from typing import Any

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from experiments import (
  cells,
  distributed,
  metrics,
  report,
  resume,
  scoring,
  settings,
)


def train_and_evaluate(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> dict[str, Any]:
  """Trains and evaluates every arm of config, then compares them.

  A second call with the same workdir resumes what was stopped and repeats
  nothing that is finished.

  Args:
    config: as configs/default.py describes it.
    workdir: gets a directory for each arm, see `cells.Cell`, and the report.

  Returns:
    What report.json holds.

  Raises:
    UserError: what the user can fix, with the field or path that it is about.
  """
  distributed.initialize(config)
  planned = cells.of_arms(config, workdir)
  resume.prepare_directory(workdir)
  scores: dict[str, scoring.Score] = {}
  with cells.take(list(planned.values())) as taken:
    evaluations = {c.directory: cells.finish(c, scores) for c in taken}
  result = {}
  if distributed.is_main():
    runs = {
      name: report.Run(
        evaluations[cell.directory],
        metrics.read(cell.training / "metrics.jsonl"),
        cells.load(cell)[0],
      )
      for name, cell in planned.items()
    }
    result = report.write(runs, config.data.name, workdir)
  distributed.barrier("reported")  # A process that leaves ends the others.
  return result


def launch(function):
  """Runs the program: function(config, workdir) with the values of the flags.

  A UserError becomes one line on stderr.
  """
  config = config_flags.DEFINE_config_file(
    "config", None, "The experiment, a file of configs/.", lock_config=True
  )
  workdir = flags.DEFINE_string(
    "workdir", None, "Directory of everything that is written."
  )
  main = functools.partial(_main, function, config, workdir)
  app.run(main, flags_parser=functools.partial(_parse, config))


def _main(function, config, workdir, argv):
  if len(argv) > 1:
    _fail(f"unexpected arguments: {' '.join(argv[1:])}")
  if not config.value or not workdir.value:
    _fail("both --config=FILE and --workdir=DIR are needed")
  # Errors are raised. Orbax would also log each of them four times.
  logging.set_verbosity(logging.FATAL)
  try:
    function(config.value, pathlib.Path(workdir.value))
  except settings.UserError as error:
    _fail(error, error.exit_code)


def _parse(config, argv):
  """Parses the flags; an unknown config field is one line, no traceback."""
  try:
    rest = flags.FLAGS(argv)
    # A file that is missing is an error when a field is read.
    _ = config.value is not None and config.value.to_dict
    return rest
  except flags.Error as error:
    _fail(str(error).strip().splitlines()[-1])  # A traceback precedes it.
  except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    _fail(settings.explain_flags(argv, error))


def _fail(message, exit_code=1):
  print(f"error: {message}", file=sys.stderr)
  sys.exit(exit_code)


if __name__ == "__main__":
  launch(train_and_evaluate)
