"""How a program starts and ends: flags, one line for an error, exit codes."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags, logging

from experiments import settings


def run(
  main: Callable[[list[str]], Any],
  parse: Callable[[list[str]], list[str]] = app.parse_flags_with_usage,
) -> None:
  """Parses the flags and runs main on what remains; it ends as `end`.

  It defines --verbose, which shows what `end` leaves out and what the libraries
  log.

  Args:
    main: gets the name of the program and its arguments.
    parse: in place of absl's parser of flags.
  """
  verbose = flags.DEFINE_bool(
    "verbose", False, "Show the traceback of an error, and the libraries' log."
  )

  def started(argv):
    if not verbose.value:
      # Errors are raised. Orbax would also log each of them four times.
      logging.set_verbosity(logging.FATAL)
    if len(argv) > 1:
      raise settings.UserError(f"unexpected arguments: {' '.join(argv[1:])}")
    main(argv)

  end(
    lambda: app.run(started, flags_parser=parse),
    lambda: flags.FLAGS.is_parsed() and verbose.value,
  )


def end(
  main: Callable[[], Any], is_verbose: Callable[[], bool] = lambda: False
) -> None:
  """Runs main; what the user can fix or did is a line, not a traceback.

  The exit code is that of a UserError, 1 without memory, 130 after Ctrl-C, and
  SIGPIPE ends the program if nobody reads what it prints.
  """
  try:
    try:
      main()
    except settings.UserError as error:
      if is_verbose():
        print(error.details, file=sys.stderr)
        traceback.print_exception(error)
      fail(error, error.exit_code)
    finally:
      if sys.stdout is not None:  # It is None if it was closed at the start.
        sys.stdout.flush()
  except (MemoryError, jax.errors.JaxRuntimeError) as error:
    line = " ".join(str(error).split("\n")[:1])
    if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in line:
      raise
    fail(
      f"out of memory ({line}): choose a smaller config.model or"
      " config.data.batch_size, or more devices in config.mesh.fsdp"
    )
  except KeyboardInterrupt:
    fail("interrupted", 128 + signal.SIGINT)
  except BrokenPipeError:
    # As other programs end. JAX's sockets need it to be ignored until here.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)


def fail(message: object, exit_code: int = 1) -> None:
  """Ends the program with a line on stderr."""
  with contextlib.suppress(OSError):  # The terminal may be gone.
    print(f"error: {message}", file=sys.stderr)
  sys.exit(exit_code)
