"""python -m experiments.main --config=configs/quickstart.py --workdir=DIR"""

import functools
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from experiments import settings, train


def _fail(message, exit_code=1):
  print(f"error: {message}", file=sys.stderr)
  sys.exit(exit_code)


def _unraisable(found):
  """Hides what tensorstore's threads report when a checkpoint failed."""
  if str(found.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(found)


def _parse(config, argv):
  """Parses the flags; an unknown config field is one line, no traceback."""
  try:
    rest = flags.FLAGS(argv)
    _ = config.value  # A file that does not load is an error here.
    return rest
  except flags.Error as error:
    _fail(str(error).strip().splitlines()[-1])  # Before it, a traceback.
  except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    _fail(settings.explain_flags(argv, error))


def _main(function, config, workdir, argv):
  if len(argv) > 1:
    _fail(f"unexpected arguments: {' '.join(argv[1:])}")
  if not config.value or not workdir.value:
    _fail("both --config=FILE and --workdir=DIR are needed")
  # What goes wrong is raised; orbax would log it four times over as well.
  logging.set_verbosity(logging.FATAL)
  try:
    function(config.value, pathlib.Path(workdir.value))
  except settings.UserError as error:
    _fail(error, error.exit_code)


def launch(function):
  """Runs the program: function(config, workdir) on what the flags say."""
  config = config_flags.DEFINE_config_file(
    "config", None, "The experiment, a file of configs/.", lock_config=True
  )
  workdir = flags.DEFINE_string("workdir", None, "Where all results go.")
  sys.unraisablehook = _unraisable
  main = functools.partial(_main, function, config, workdir)
  app.run(main, flags_parser=functools.partial(_parse, config))


if __name__ == "__main__":
  launch(train.train_and_evaluate)
