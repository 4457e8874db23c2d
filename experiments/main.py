"""python -m experiments.main --config=configs/quickstart.py --workdir=DIR"""

import difflib
import functools
import pathlib
import runpy
from typing import Any

import ml_collections
from absl import flags
from flax import traverse_util
from ml_collections import config_flags

from experiments import (
  cells,
  distributed,
  metrics,
  program,
  report,
  resume,
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
  scores: cells.Scores = {}
  with cells.take(list(planned.values())) as taken:
    evaluations = {c.directory: cells.finish(c, scores) for c in taken}
  result = {}
  if distributed.is_main():
    runs = {
      name: report.Run(
        evaluations[cell.directory],
        metrics.read(cell.training / "metrics.jsonl"),
        cells.stored_params(cell),
      )
      for name, cell in planned.items()
    }
    result = report.write(runs, config.data.name, workdir)
  distributed.barrier("reported")  # A process that leaves ends the others.
  return result


def launch(function, output="workdir"):
  """Runs the program: function(config, path) with the values of the flags.

  `output` is the name of the flag with the path.

  See `program.run` for its end.
  """
  config = config_flags.DEFINE_config_file(
    "config", None, "The experiment, a file of configs/.", lock_config=True
  )
  directory = flags.DEFINE_string(
    output, None, "Directory of everything that is written."
  )

  def main(argv):
    del argv
    if not config.value or not directory.value:
      raise settings.UserError(
        f"both --config=FILE and --{output}=DIR are needed"
      )
    with distributed.membership():
      function(config.value, pathlib.Path(directory.value))

  program.run(main, functools.partial(_parse, config))


def _parse(config, argv):
  """Parses the flags; an unknown config field is one line, no traceback."""
  try:
    rest = flags.FLAGS(argv)
    # A file that is missing is an error when a field is read.
    _ = config.value is not None and config.value.to_dict
    return rest
  except flags.Error as error:
    lines = str(error).strip().splitlines()
    if any(line.startswith("Traceback") for line in lines):
      lines = lines[-1:]
    raise settings.UserError(" ".join(lines)) from None
  except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    raise settings.UserError(explain_flags(argv, error)) from None


def explain_flags(argv: list[str], error: Exception) -> str:
  """A line about a wrong command line, with near matches of unknown fields."""
  paths = [a.removeprefix("--config=") for a in argv if "--config=" in a]
  # The text after a colon is the argument of get_config.
  path, *arguments = paths[-1].split(":", 1) if paths else ["None"]
  if not pathlib.Path(path).is_file():
    return f"--config={path}: there is no such file"
  try:
    config = runpy.run_path(path)["get_config"](*arguments)
  except ValueError as load_error:
    return f"--config={paths[-1]}: {load_error}"
  except Exception as load_error:
    return f"--config={path} does not load: {load_error!r}"
  known = traverse_util.flatten_dict(config.to_dict(), sep=".")
  for argument in argv:
    field = argument.split("=")[0].removeprefix("--config.")
    if argument.startswith("--config.") and field not in known:
      near = difflib.get_close_matches(field, known, n=1)
      hint = f"; did you mean {near[0]}?" if near else ""
      return f"config.{field}: {path} has no such field{hint}"
  return f"in the flags: {error}"


if __name__ == "__main__":
  launch(train_and_evaluate)
