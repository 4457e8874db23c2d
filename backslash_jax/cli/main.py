"""The command line: backslash-jax compress, decompress, inspect."""

import argparse
import dataclasses
import fnmatch
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich import console as rich_console
from rich import progress as rich_progress

import backslash_jax
from backslash_jax import archive, quantize, tree
from backslash_jax.archive import plain
from backslash_jax.cli import show

_DESCRIPTION = """\
Compresses the weights of a model: rounds them to multiples of a step, and
stores the integers with an entropy coder fitted to their distribution.

  backslash-jax compress model.safetensors model.coded --step 2^-8
  backslash-jax inspect model.coded
  backslash-jax decompress model.coded again.safetensors

The input of compress is a safetensors file or a Hugging Face directory. In a
directory, each *.safetensors shard is coded, and all other files are copied.
"""

_COMPRESS = """\
Weights are rounded to multiples of the step, so no weight moves by more than
half a step. 2^-8 suits most models; try coarser steps and evaluate the result.
By default, matrices are quantized and everything else (norms, biases, integers)
is stored exactly. --mask and --exclude change which tensors are quantized.
With --mu 0.1, some weights are rounded toward zero instead, by less than one
step, where that saves the most bits.
"""

_EXIT = "exit codes: 0 success, 1 bad file or invalid value, 2 wrong usage"


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs a command line; returns the exit code."""
  options = _parser().parse_args(arguments)
  console = rich_console.Console(stderr=options.json)
  try:
    result = options.command(options, console)
  except (archive.ArchiveError, ValueError, TypeError, KeyError) as error:
    message = error.args[0] if isinstance(error, KeyError) else error
    print(f"backslash-jax: {message}", file=sys.stderr)
    return 1
  except OSError as error:
    where = f"{error.filename}: " if error.filename else ""
    print(f"backslash-jax: {where}{error.strerror or error}", file=sys.stderr)
    return 1
  if options.json:
    print(json.dumps(result, indent=2))
  return 0


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

  sub = add("compress", _compress, "compress a model", description=_COMPRESS)
  sub.add_argument("output", type=Path, help="coded file or directory")
  sub.add_argument(
    "--step",
    required=True,
    help="quantization step: 2^-8, 0.004, or absmax/127 for each tensor's "
    "largest magnitude divided by 127",
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
    "--report", action="store_true", help="show the file size with each coder"
  )
  sub = add("decompress", _decompress, "convert back to plain safetensors")
  sub.add_argument("output", type=Path, help="safetensors file or directory")
  sub = add("inspect", _inspect, "show the coded size of each tensor")
  sub.add_argument(
    "--plot", action="store_true", help="plot each histogram with its fit"
  )
  return parser


def _compress(options, console) -> dict:
  files = _files(options.input, options.output)
  reports, costs = [], dict.fromkeys(archive.CODERS, 0)
  for source, target in files:
    params = plain.read(source)
    if not params:
      raise ValueError(f"{source}: the file contains no tensors")
    step = _steps(options.step, _quantized(params, options))
    total = sum(x.size for x in params.values())
    with _Bar(console, f"compress {source.name}", total) as advance:
      reports.append(
        archive.save(
          target,
          params,
          step=step,
          coder=options.coder,
          mu=options.mu,
          progress=advance,
        )
      )
    if options.report:
      with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        for coder in archive.CODERS:
          report = archive.save(
            Path(folder) / "file",
            params,
            step=step,
            coder=coder,
            mu=options.mu,
          )
          costs[coder] += report.bytes
  before = sum(source.stat().st_size for source, _ in files)
  after = sum(report.bytes for report in reports)
  parameters = sum(report.parameters for report in reports)
  result = {
    "input_bytes": before,
    "output_bytes": after,
    "parameters": parameters,
    "bits_per_parameter": 8 * after / max(parameters, 1),
  }
  console.print(
    f"{before:,} -> {after:,} bytes, {100 * after / before:.1f}%, "
    f"{result['bits_per_parameter']:.3f} bits per parameter"
  )
  if options.report:
    result["coders"] = costs
    show.costs(console, costs, parameters)
  return result


def _decompress(options, console) -> dict:
  files = _files(options.input, options.output)
  total = 0
  for source, target in files:
    report = archive.inspect(source)
    shapes = {t.name: (t.dtype, t.shape) for t in report.tensors}
    with _Bar(
      console, f"decompress {source.name}", report.parameters
    ) as advance:
      plain.write(target, shapes, _advancing(archive.stream(source), advance))
    total += target.stat().st_size
  console.print(f"{total:,} bytes of safetensors in {options.output}")
  return {"output_bytes": total, "files": [str(target) for _, target in files]}


def _inspect(options, console) -> dict:
  files = [source for source, _ in _files(options.input, None)]
  reports = [archive.inspect(file) for file in files]
  for report in reports:
    if not options.json:
      show.report(console, report)
      if options.plot:
        show.plot(console, report)
  return {"files": [_as_json(report) for report in reports]}


def _files(source: Path, target: Path | None) -> list[tuple[Path, Path]]:
  """(source, target) files; copies the other files of a directory."""
  if not source.is_dir():
    return [(source, target or source)]
  shards = sorted(source.glob("*.safetensors"))
  named = source / "model.safetensors.index.json"
  if named.exists():
    try:
      weights = json.loads(named.read_text())["weight_map"]
      shards = sorted({source / Path(name).name for name in weights.values()})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
      raise ValueError(f"{named}: not a shard index: {error}") from None
  if not shards:
    raise ValueError(f"{source}: the directory has no *.safetensors file")
  if target is None:
    return [(shard, shard) for shard in shards]
  if target.resolve() == source.resolve():
    raise ValueError(f"{target}: the output must not be the input directory")
  target.mkdir(parents=True, exist_ok=True)
  for file in source.iterdir():
    if file.is_file() and file not in shards:
      shutil.copy2(file, target / file.name)
  return [(shard, target / shard.name) for shard in shards]


def _quantized(params: dict, options) -> dict:
  """The tensors to quantize, by name."""
  mask = tree.matrices if options.mask is None else options.mask
  chosen = {n for n, flag in tree.select(params, mask).items() if flag}
  for pattern in options.exclude:
    found = fnmatch.filter(params, pattern)
    if not found:
      raise ValueError(f"--exclude: no tensor matches {pattern!r}")
    chosen -= set(found)
  return {name: x for name, x in params.items() if name in chosen}


def _steps(text: str, params: dict) -> dict[str, float]:
  """Parses 2^-8, 0.004 or absmax/127 into a step for each tensor."""
  try:
    if text.startswith("absmax/"):
      levels = int(text.removeprefix("absmax/"))
      return quantize.absmax_steps(params, levels, mask=None) if params else {}
    base, power, exponent = text.partition("^")
    step = float(base) ** float(exponent) if power else float(base)
    quantize.check_step(step)
  except (ValueError, OverflowError, ZeroDivisionError):
    raise ValueError(
      f"--step {text}: give a positive number such as 2^-8, or absmax/127"
    ) from None
  return dict.fromkeys(params, step)


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
