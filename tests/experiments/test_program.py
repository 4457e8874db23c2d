"""A program ends with one line and the usual exit code, not a traceback."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import jax
import pytest

from experiments import interrupt, program, settings


def _fails(main, **options):
  with pytest.raises(SystemExit) as caught:
    program.end(main, **options)
  return caught.value.code


def _raising(error):
  def main():
    raise error

  return main


def test_user_error_is_a_line(capsys):
  assert _fails(_raising(settings.UserError("no such file", "details"))) == 1
  assert capsys.readouterr().err == "error: no such file\n"


def test_verbose_shows_where_an_error_came_from(capsys):
  error = settings.UserError("no such file", "details of orbax")
  assert _fails(_raising(error), is_verbose=lambda: True) == 1
  shown = capsys.readouterr().err
  assert "details of orbax" in shown
  assert "Traceback" in shown
  assert shown.endswith("error: no such file\n")


def test_interrupt_is_a_line(capsys):
  assert _fails(_raising(KeyboardInterrupt())) == 130
  assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize(
  "error",
  [
    MemoryError("Unable to allocate 64 GiB"),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory.\nDetails"),
  ],
)
def test_too_little_memory_is_a_line(capsys, error):
  assert _fails(_raising(error)) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: out of memory (")
  assert "config.data.batch_size" in line


def test_other_errors_keep_their_traceback():
  with pytest.raises(ZeroDivisionError):
    program.end(lambda: 1 / 0)


def test_closed_output_ends_the_program_quietly():
  code = (
    "from experiments import program;"
    "program.end(lambda: [print(i) for i in range(20_000)])"
  )
  with subprocess.Popen(
    [sys.executable, "-c", code],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
  assert process.returncode == -signal.SIGPIPE  # 141 in a shell.


def test_output_that_is_closed_from_the_start_is_no_error(monkeypatch):
  monkeypatch.setattr(sys, "stdout", None)
  program.end(lambda: print("nobody reads this"))


def test_interrupt_while_importing_is_a_line():
  command = [sys.executable, "-X", "importtime", "-m", "experiments.main"]
  with subprocess.Popen(
    command, stderr=subprocess.PIPE, text=True, start_new_session=True
  ) as process:
    lines = iter(process.stderr)
    # Each line is of a module that has been imported.
    assert any("jax._src.config" in line for line in lines)
    process.send_signal(signal.SIGINT)
    rest = [line for line in lines if not line.startswith("import time:")]
  assert rest == ["error: interrupted\n"]
  assert process.returncode == -signal.SIGINT  # 130 in a shell.


def test_interrupt_that_a_callback_ignores_comes_again():
  code = (
    "import gc, signal, sys, time\n"
    "sys.argv = ['-m']\n"
    "import experiments\n"
    "gc.callbacks.append(lambda *_: signal.raise_signal(signal.SIGINT))\n"
    "gc.collect()\n"
    "gc.callbacks.clear()\n"
    "time.sleep(60)\n"
  )
  command = [sys.executable, "-c", code]
  ended = subprocess.run(command, stderr=subprocess.PIPE, text=True)
  assert ended.stderr == "error: interrupted\n"
  assert ended.returncode == -signal.SIGINT


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_first_signal_is_noted(name):
  number = getattr(signal, name)
  before = signal.getsignal(number)
  with interrupt.received() as numbers:
    os.kill(os.getpid(), number)
    assert numbers == [number]
    assert signal.getsignal(number) is before  # A second one ends at once.
  assert signal.getsignal(number) is before


def test_ignored_signal_stays_ignored():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with interrupt.received() as numbers:
      os.kill(os.getpid(), signal.SIGHUP)
      assert numbers == []
  finally:
    signal.signal(signal.SIGHUP, before)


def test_every_program_ends_so():
  """Also those of benchmarks, whose output is piped to head as well."""
  root = pathlib.Path(program.__file__).parent
  for path in root.rglob("*.py"):
    text = path.read_text()
    is_program = '__name__ == "__main__"' in text or path.stem == "__main__"
    if is_program and path.name != "include.py":  # It prints nothing.
      assert re.search(r"program\.(run|end)\(|launch\(", text), path


_TRAINING = """
import fcntl, pathlib, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from experiments import interrupt, program
def train():
  with interrupt.received() as numbers:
    print("ready", flush=True)
    while not numbers:
      time.sleep(0.01)
    print("update 7", flush=True)  # As the progress does.
    print("a warning", file=sys.stderr, flush=True)
    pathlib.Path(sys.argv[1]).write_text("checkpoint")
    raise interrupt.StoppedError("stopped by a signal", numbers[0])
program.end(train)
"""


def test_a_training_whose_terminal_is_gone_leaves_a_checkpoint(tmp_path):
  terminal, own = os.openpty()
  saved = tmp_path / "saved"
  with subprocess.Popen(
    [sys.executable, "-c", _TRAINING, saved],
    stdin=own,
    stdout=own,
    stderr=own,
    start_new_session=True,
  ) as process:
    os.close(own)
    shown = b""
    while b"ready" not in shown:
      shown += os.read(terminal, 1000)
    os.close(terminal)  # The kernel sends SIGHUP.
    process.wait()
  assert process.returncode == 128 + signal.SIGHUP
  assert saved.read_text() == "checkpoint"
