"""The command line: backslash-jax compress, decompress, inspect."""

import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
from collections.abc import Generator, Sequence

from backslash_jax import archive
from backslash_jax.archive import naming, plain
from backslash_jax.cli import arguments, beside, compress, files, show


def main(words: Sequence[str] | None = None) -> int:
  """Runs a command line; returns the exit code."""
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(AttributeError, OSError):
      # Tensor names may have characters that the terminal's encoding lacks.
      stream.reconfigure(errors="backslashreplace")  # pyrefly: ignore
  parser = arguments.parser(compress.run, _decompress, _inspect)
  options = parser.parse_args(words)
  console = show.console(stderr=options.json)
  try:
    with _stopping():
      result = options.command(options, console)
    with show.naming_output():
      if options.json:
        print(json.dumps(result, indent=2))
      if sys.stdout is not None:  # It is None if it was closed at the start.
        sys.stdout.flush()
  except (archive.ArchiveError, ValueError, TypeError, KeyError) as error:
    return _fail(error.args[0] if isinstance(error, KeyError) else error)
  except BrokenPipeError:
    _discard_output()
    return 1
  except OSError as error:
    if error.filename == show.OUTPUT:
      _discard_output()
    where = f"{error.filename}: " if error.filename else ""
    return _fail(f"{where}{error.strerror or error}")
  except KeyboardInterrupt:
    _fail("interrupted")
    return 130
  return 0


@contextlib.contextmanager
def _stopping() -> Generator[None]:
  """Makes SIGTERM and SIGHUP exceptions, so that nothing is left behind."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def stop(number, frame):
    raise SystemExit(128 + number)

  names = [n for n in ("SIGTERM", "SIGHUP") if hasattr(signal, n)]
  numbers = [getattr(signal, name) for name in names]
  before = {
    number: signal.signal(number, stop)
    for number in numbers
    if signal.getsignal(number) is signal.SIG_DFL
  }
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _fail(message: object) -> int:
  print(f"backslash-jax: {show.printable(str(message))}", file=sys.stderr)
  return 1


def _discard_output() -> None:
  """Else Python writes what is left, and fails again, when it ends."""
  with contextlib.suppress(OSError, ValueError):
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _decompress(options, console) -> dict:
  files.check_base(options.base, options.output)
  base = None if options.base is None else archive.Base(options.base)
  if (
    options.base
    and not options.input.is_dir()
    and beside.KEY in archive.inspect(options.input).metadata
    and not files.is_model_file(options.output)
  ):
    plan = files.plan_directory(
      options.input, options.output, force=options.force
    )
  else:
    plan = files.plan(
      options.input, options.output, naming.plain, force=options.force
    )
  reports = [archive.inspect(source) for source, _ in plan.models]
  total = 0
  with files.writing(plan) as staged:
    for (source, target), report in zip(staged.models, reports, strict=True):
      shapes = {t.name: (t.dtype, t.shape) for t in report.tensors}
      target.parent.mkdir(parents=True, exist_ok=True)
      with show.Bar(
        console, f"decompress {source.name}", report.parameters
      ) as advance:
        tensors = _advancing(archive.stream(source, base=base), advance)
        metadata = dict(report.metadata)
        metadata.pop(compress.BASE, None)
        packed = metadata.pop(beside.KEY, "{}")
        plain.write(target, shapes, tensors, metadata)
      total += target.stat().st_size
      if staged.folder and options.base:
        beside.unpack(source, packed, options.base, target.parent)
    compress.copy(staged, console)
  show.line(console, f"{total:,} bytes of safetensors in {options.output}")
  return {
    "output_bytes": total,
    "files": [str(target) for _, target in plan.models],
  }


_UNITS = {
  "bytes": "of the whole file; of a tensor, its part of the payload",
  "bits": "of a tensor's integers, by the model that codes them",
  "bits_per_parameter": "bits of the whole file per parameter",
  "times_smaller_than_float32": "4 bytes per parameter / bytes",
  "times_smaller_than_float16": "2 bytes per parameter / bytes",
  "times_smaller_than_bfloat16": "2 bytes per parameter / bytes",
  "step": "in the units of the tensor, as alpha",
  "nu": "none: the shape of the generalized Gaussian",
  "repeated_rows": "rows",
}


def _inspect(options, console) -> dict:
  reports = [archive.inspect(file) for file in files.models(options.input)]
  total = _sizes(reports)
  if not options.json:
    if len(reports) > 1:
      show.summary(console, options.input, total)
    for report in reports:
      show.summary(console, report.path, _sizes([report]))
      if report.is_difference:
        show.difference(console, report, report.metadata.get(compress.BASE))
      show.report(console, report)
      if options.plot:
        show.plot(console, report)
  return {
    "units": _UNITS,
    "summary": total,
    "files": [_as_json(report) for report in reports],
  }


def _sizes(reports: list[archive.Report]) -> dict:
  """The sizes of files together, as JSON."""
  parameters = sum(report.parameters for report in reports)
  size = sum(report.bytes for report in reports)
  return {
    "parameters": parameters,
    "bytes": size,
    "bits_per_parameter": 8 * size / max(parameters, 1),
    "times_smaller_than_float32": 4 * parameters / size,
    "times_smaller_than_float16": 2 * parameters / size,
    "times_smaller_than_bfloat16": 2 * parameters / size,
  }


def _advancing(tensors, advance):
  for name, tensor in tensors:
    advance(tensor.size)
    yield name, tensor


def _as_json(report: archive.Report) -> dict:
  fields = dataclasses.asdict(report)
  return fields | {"bits_per_parameter": report.bits_per_parameter}
