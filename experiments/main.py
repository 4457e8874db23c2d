"""python -m experiments.main --config=configs/quickstart.py --workdir=DIR"""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from experiments import settings, train

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The experiment, a file of configs/.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where all results go.")


def _fail(message, exit_code=1):
  print(f"error: {message}", file=sys.stderr)
  sys.exit(exit_code)


def _unraisable(found):
  """Hides what tensorstore's threads report when a checkpoint failed."""
  if str(found.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(found)


def _parse(argv):
  """Parses the flags; an unknown config field is one line, no traceback."""
  try:
    rest = flags.FLAGS(argv)
    _ = _CONFIG.value  # A file that does not load is an error here.
    return rest
  except flags.Error as error:
    _fail(str(error).strip().splitlines()[-1])  # Before it, a traceback.
  except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    _fail(settings.explain_flags(argv, error))


def _main(function, argv):
  if len(argv) > 1:
    _fail(f"unexpected arguments: {' '.join(argv[1:])}")
  if not _CONFIG.value or not _WORKDIR.value:
    _fail("both --config=FILE and --workdir=DIR are needed")
  # What goes wrong is raised; orbax would log it four times over as well.
  logging.set_verbosity(logging.FATAL)
  try:
    function(_CONFIG.value, pathlib.Path(_WORKDIR.value))
  except settings.UserError as error:
    _fail(error, error.exit_code)


def launch(function):
  """Runs the program: function(config, workdir) on what the flags say."""
  sys.unraisablehook = _unraisable
  app.run(lambda argv: _main(function, argv), flags_parser=_parse)


if __name__ == "__main__":
  launch(train.train_and_evaluate)
