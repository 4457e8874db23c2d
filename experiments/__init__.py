"""Experiments: the programs, `python -m experiments.NAME`, and their parts."""

import sys


def _quietly(kind, error, traceback):
  """Ends a program that is interrupted, as while it is imported, in a line."""
  if issubclass(kind, KeyboardInterrupt):
    print("error: interrupted", file=sys.stderr)
  else:
    sys.__excepthook__(kind, error, traceback)


if sys.argv[:1] == ["-m"]:  # Python is about to run one of the programs.
  sys.excepthook = _quietly
