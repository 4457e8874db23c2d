"""Experiments: the programs, `python -m experiments.NAME`, and their parts."""

import signal
import sys
import threading


def _quietly(kind, error, traceback):
  """Ends a program that is interrupted, as while it is imported, in a line."""
  if issubclass(kind, KeyboardInterrupt):
    print("error: interrupted", file=sys.stderr)
  else:
    sys.__excepthook__(kind, error, traceback)


def _again(unraisable):
  """Interrupts once more where an interrupt was ignored.

  Python ignores what a callback of the garbage collector raises, and JAX has
  one: the program would go on.
  """
  if issubclass(unraisable.exc_type, KeyboardInterrupt):
    main = threading.main_thread().ident
    threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
  else:
    sys.__unraisablehook__(unraisable)


if sys.argv[:1] == ["-m"]:  # Python is about to run one of the programs.
  sys.excepthook = _quietly
  sys.unraisablehook = _again
