"""The command line: backslash-jax compress, decompress, inspect."""

import argparse
import contextlib
import dataclasses
import fnmatch
import json
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from rich import progress as rich_progress

import backslash_jax
from backslash_jax import archive, tree
from backslash_jax.archive import plain
from backslash_jax.cli import files, show, steps

_DESCRIPTION = """\
Compresses the weights of a model: rounds them to multiples of a step, and
stores the integers with an entropy coder fitted to their distribution.

  backslash-jax compress model.safetensors model.coded --step 2^-8
  backslash-jax inspect model.coded
  backslash-jax decompress model.coded again.safetensors

The input of compress is a safetensors file or a Hugging Face directory. In a
directory and below, every *.safetensors file is coded, and the rest is copied.
"""

_COMPRESS = """\
Weights are rounded to multiples of the step, so no weight moves by more than
half a step plus the rounding of its dtype. 2^-8 suits most models; try coarser
steps and evaluate the result.

By default, matrices are quantized and everything else (norms, biases, integers)
is stored exactly. --mask and --exclude change which tensors are quantized.
With --mu 0.1, some weights are rounded toward zero instead, by less than one
step, where that saves the most bits.

Always stored exactly: floats of 8 bits or fewer, tensors whose relative error
(rms error / rms of the tensor) would exceed --max-error, and tensors whose code
would be larger than the exact tensor. The output lists them.

In a directory, weights in other formats (pytorch_model*.bin, tf_model.h5,
flax_model.msgpack) beside a safetensors file are not copied.
"""

_EXIT = (
  "exit codes: 0 success, 1 bad file or invalid value, 2 wrong usage, "
  "130 interrupted"
)


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs a command line; returns the exit code."""
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(AttributeError, OSError):
      # Tensor names may have characters that the terminal's encoding lacks.
      stream.reconfigure(errors="backslashreplace")  # pyrefly: ignore
  options = _parser().parse_args(arguments)
  console = show.console(stderr=options.json)
  try:
    result = options.command(options, console)
    with show.naming_output():
      if options.json:
        print(json.dumps(result, indent=2))
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


def _fail(message: object) -> int:
  print(f"backslash-jax: {show.printable(str(message))}", file=sys.stderr)
  return 1


def _discard_output() -> None:
  """Else Python writes what is left, and fails again, when it ends."""
  with contextlib.suppress(OSError, ValueError):
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    "backslash-jax",
    description=_DESCRIPTION,
    epilog=_EXIT,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--version",
    action="version",
    version=f"backslash-jax {backslash_jax.__version__}",
  )
  commands = parser.add_subparsers(required=True, metavar="COMMAND")

  def add(name, command, summary, **keywords):
    sub = commands.add_parser(
      name,
      help=summary,
      epilog=_EXIT,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      **keywords,
    )
    sub.set_defaults(command=command)
    sub.add_argument("input", type=Path, help="file or directory")
    sub.add_argument("--json", action="store_true", help="print JSON")
    return sub

  def writes(sub, what):
    sub.add_argument("output", type=Path, help=what)
    sub.add_argument(
      "--force", action="store_true", help="replace existing output"
    )

  sub = add("compress", _compress, "compress a model", description=_COMPRESS)
  writes(sub, "coded file or directory")
  sub.add_argument(
    "--step",
    required=True,
    help="quantization step: 2^-8, 1/256, 0.004, or absmax/127 for each "
    "tensor's largest magnitude divided by 127",
  )
  sub.add_argument(
    "--coder",
    choices=archive.CODERS,
    default="rans",
    help="entropy coder; default: rans",
  )
  sub.add_argument(
    "--mask",
    action="append",
    metavar="PATTERN",
    help="quantize floating tensors with names that match this glob pattern, "
    "such as '*.weight', instead of all matrices; repeatable",
  )
  sub.add_argument(
    "--exclude",
    action="append",
    default=[],
    metavar="PATTERN",
    help="do not quantize tensors with names that match this glob pattern; "
    "repeatable",
  )
  sub.add_argument(
    "--mu",
    type=float,
    default=0.0,
    help="extra squared error, in step^2, accepted per bit saved: 0 rounds to "
    "nearest (default), 0.1 is a usual value",
  )
  sub.add_argument(
    "--max-error",
    type=float,
    default=archive.MAX_ERROR,
    metavar="RATIO",
    help="largest relative error of a quantized tensor, default %(default)s; "
    "inf for no limit",
  )
  sub.add_argument(
    "--report", action="store_true", help="show the file size with each coder"
  )
  sub = add("decompress", _decompress, "convert back to plain safetensors")
  writes(sub, "safetensors file or directory")
  sub = add("inspect", _inspect, "show the coded size of each tensor")
  sub.add_argument(
    "--plot", action="store_true", help="plot each histogram with its fit"
  )
  return parser


def _compress(options, console) -> dict:
  steps.parse(options.step)
  plan = files.plan(
    options.input, options.output, force=options.force, redundant=False
  )
  models = [_uncoded(source) for source, _ in plan.models]
  chosen = _chosen(models, options)
  reports, costs = [], dict.fromkeys(archive.CODERS, 0)
  for (source, target), params, names in zip(
    plan.models, models, chosen, strict=True
  ):
    keywords = dict(
      step=steps.of_tensors(options.step, {n: params[n] for n in names}),
      mu=options.mu,
      max_error=options.max_error,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    total = sum(x.size for x in params.values())
    with (
      _Bar(console, f"compress {source.name}", total) as advance,
      warnings.catch_warnings(record=True) as warned,
    ):
      warnings.simplefilter("always")
      coder = options.coder
      reports.append(
        archive.save(target, params, coder=coder, progress=advance, **keywords)
      )
    for warning in warned:
      show.line(console, f"warning: {warning.message}")
    if options.report:
      for coder in archive.CODERS:
        costs[coder] += _cost(target.parent, params, coder, keywords)
  _copy(plan, console)
  for source, _ in plan.models:
    if lost := plain.metadata(source).keys() - {"format"}:
      names = ", ".join(map(repr, sorted(lost)))
      show.line(console, f"metadata not kept, of {source}: {names}")
  result = _summary([s for s, _ in plan.models], reports)
  show.compressed(console, result, options.max_error)
  if options.report:
    result["coders"] = costs
    show.costs(console, costs, result["parameters"])
  return result


def _cost(folder: Path, params: dict, coder: str, keywords: dict) -> int:
  """Bytes of a model with another coder."""
  with (
    tempfile.TemporaryDirectory(dir=folder) as scratch,
    warnings.catch_warnings(),
  ):
    warnings.simplefilter("ignore")
    path = Path(scratch) / "file"
    return archive.save(path, params, coder=coder, **keywords).bytes


def _uncoded(source: Path) -> dict:
  """The tensors of a file that can be coded."""
  if plain.is_coded(source):
    raise ValueError(f"{source}: already a coded file")
  params = plain.read(source)
  if not params:
    raise ValueError(f"{source}: the file contains no tensors")
  return params


def _summary(sources: list[Path], reports: list[archive.Report]) -> dict:
  """What `compress` reports, as JSON."""
  tensors = [t for report in reports for t in report.tensors]
  after = sum(report.bytes for report in reports)
  parameters = sum(report.parameters for report in reports)
  errors = [(t.relative_error or 0.0, t.name) for t in tensors if t.step]
  worst, name = max(errors, default=(None, None))
  return {
    "input_bytes": sum(source.stat().st_size for source in sources),
    "output_bytes": after,
    "parameters": parameters,
    "bits_per_parameter": 8 * after / max(parameters, 1),
    "relative_error": {
      "median": statistics.median(e for e, _ in errors) if errors else None,
      "largest": worst,
      "tensor": name,
    },
    "exact": {
      "error": [t.name for t in tensors if t.kept == "error"],
      "size": [t.name for t in tensors if t.kept == "size"],
      "dtype": [t.name for t in tensors if _is_narrow(t.dtype)],
    },
  }


def _decompress(options, console) -> dict:
  plan = files.plan(options.input, options.output, force=options.force)
  reports = [archive.inspect(source) for source, _ in plan.models]
  total = 0
  for (source, target), report in zip(plan.models, reports, strict=True):
    shapes = {t.name: (t.dtype, t.shape) for t in report.tensors}
    target.parent.mkdir(parents=True, exist_ok=True)
    with _Bar(
      console, f"decompress {source.name}", report.parameters
    ) as advance:
      plain.write(target, shapes, _advancing(archive.stream(source), advance))
    total += target.stat().st_size
  _copy(plan, console)
  show.line(console, f"{total:,} bytes of safetensors in {options.output}")
  return {
    "output_bytes": total,
    "files": [str(target) for _, target in plan.models],
  }


def _inspect(options, console) -> dict:
  reports = [archive.inspect(file) for file in files.models(options.input)]
  for report in reports:
    if not options.json:
      show.report(console, report)
      if options.plot:
        show.plot(console, report)
  return {"files": [_as_json(report) for report in reports]}


def _copy(plan: files.Plan, console) -> None:
  for source, target in plan.copies:
    files.copy(source, target)
  for file in plan.skipped:
    show.line(console, f"not copied, as its weights are coded: {file}")


def _chosen(models: list[dict], options) -> list[list[str]]:
  """The names of the tensors to quantize, of each file.

  A pattern has to match a tensor of one of the files, not of each.
  """
  floating = [{n: x for n, x in m.items() if tree.is_float(x)} for m in models]
  if options.mask is None:
    flags = [tree.select(params, tree.matrices) for params in models]
    chosen = [{n for n, flag in own.items() if flag} for own in flags]
  else:
    chosen = _matching("--mask", options.mask, floating)
  excluded = _matching("--exclude", options.exclude, models)
  return [
    [
      name
      for name in params
      if name in own - other and not _is_narrow(params[name].dtype.name)
    ]
    for params, own, other in zip(models, chosen, excluded, strict=True)
  ]


def _matching(option: str, patterns, models: list[dict]) -> list[set[str]]:
  """The names that match a pattern, of each file; ValueError if none does."""
  found: list[set[str]] = [set() for _ in models]
  for pattern in patterns:
    own = [
      {pattern} & params.keys() or set(fnmatch.filter(params, pattern))
      for params in models
    ]
    if not any(own):
      raise ValueError(
        f"{option}: no tensor that can be chosen matches {pattern!r}"
      )
    found = [a | b for a, b in zip(found, own, strict=True)]
  return found


def _is_narrow(dtype: str) -> bool:
  """Whether values are quantized already: a float of 8 bits or fewer."""
  return dtype.startswith(("float8", "float6", "float4"))


class _Bar:
  """A progress bar that counts parameters; hidden without a terminal."""

  def __init__(self, console, title: str, total: int):
    self._bar = rich_progress.Progress(
      *rich_progress.Progress.get_default_columns(),
      console=console,
      transient=True,
      disable=not console.is_terminal,
    )
    self._task = self._bar.add_task(title, total=total)

  def __enter__(self):
    self._bar.start()
    return lambda count: self._bar.advance(self._task, count)

  def __exit__(self, *exception):
    self._bar.stop()


def _advancing(tensors, advance):
  for name, tensor in tensors:
    advance(tensor.size)
    yield name, tensor


def _as_json(report: archive.Report) -> dict:
  fields = dataclasses.asdict(report)
  return fields | {"bits_per_parameter": report.bits_per_parameter}
