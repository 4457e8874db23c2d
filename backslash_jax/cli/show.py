"""Terminal output: tables, and histograms with their fits."""

import contextlib
import errno
import math
import os
from collections.abc import Generator

import numpy as np
from rich import cells
from rich import console as rich_console
from rich import progress as rich_progress
from rich import table as rich_table

from backslash_jax import archive

_WIDE = 1 << 20  # Columns of what is no terminal: no name is cut.
_SHORTEST = 16  # Columns of a name in a terminal that is too narrow.

OUTPUT = "standard output"


@contextlib.contextmanager
def naming_output() -> Generator[None]:
  """Makes an OSError without a file name OUTPUT."""
  try:
    yield
  except OSError as error:
    if error.errno is None or error.filename is not None:
      raise
    raise OSError(error.errno, os.strerror(error.errno), OUTPUT) from error


class _Console(rich_console.Console):
  """A console whose errors are OSErrors of OUTPUT, a closed pipe's as well."""

  def print(self, *objects, **keywords):
    with naming_output():
      super().print(*objects, **keywords)

  def on_broken_pipe(self):
    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def console(*, stderr: bool = False) -> rich_console.Console:
  """Standard output, or the standard error."""
  made = _Console(
    stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=True
  )
  if not made.is_terminal:
    made.width = _WIDE
  return made


def printable(text: str) -> str:
  """The text with escapes for what would control a terminal."""
  return "".join(
    c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
  )


def line(console, text: str) -> None:
  """Prints a line, however long."""
  console.print(printable(text))


def costs(console, costs: dict[str, int], parameters: int) -> None:
  """A table of the file size with each coder, smallest first."""
  table = rich_table.Table("coder", "bytes", "bits per parameter")
  for coder, size in sorted(costs.items(), key=lambda item: item[1]):
    table.add_row(coder, f"{size:,}", f"{8 * size / max(parameters, 1):.3f}")
  console.print(table, soft_wrap=False)


def compressed(console, result: dict, max_error: float) -> None:
  """What became of a model: sizes, errors, and what is exact and why."""
  before, after = result["input_bytes"], result["output_bytes"]
  line(
    console,
    f"{before:,} -> {after:,} bytes, {100 * after / before:.1f}%, "
    f"{result['bits_per_parameter']:.3f} bits per parameter",
  )
  error = result["relative_error"]
  if error["tensor"] is not None:
    line(
      console,
      f"relative error of the quantized tensors: median {error['median']:.3g},"
      f" largest {error['largest']:.3g} ({error['tensor']!r})",
    )
  reasons = {
    "error": f"the relative error would be above {max_error:g}",
    "size": "the code would be larger",
    "dtype": "8 bits or fewer already",
    "scales": "of tensors that are quantized already",
  }
  for reason, text in reasons.items():
    if names := result["exact"][reason]:
      shown = ", ".join(map(repr, names[:5]))
      more = f" and {len(names) - 5} more" if len(names) > 5 else ""
      line(console, f"stored exactly, {text}: {shown}{more}")


def summary(console, title: object, found: dict) -> None:
  """A line of what a model weighs; `found` is of `main`'s JSON."""
  line(
    console,
    f"{title}: {found['parameters']:,} parameters, {found['bytes']:,} bytes,"
    f" {found['bits_per_parameter']:.3f} bits per parameter;"
    f" {found['times_smaller_than_float32']:.2f} times smaller than float32,"
    f" {found['times_smaller_than_float16']:.2f} than float16 or bfloat16",
  )


def report(console, weighed: archive.Report) -> None:
  """A table of a file's tensors; names are shortened in a narrow terminal."""
  columns = ("shape", "dtype", "step", "nu", "alpha", "coder", "bits", "bytes")
  rows = [
    (
      printable(t.name),
      "x".join(map(str, t.shape)) or "scalar",
      t.dtype,
      _number(t.step),
      _number(t.nu),
      _number(t.alpha),
      _coder(t),
      f"{t.bits / max(math.prod(t.shape), 1):.3f}",
      f"{t.bytes:,}",
    )
    for t in weighed.tensors
  ]
  # A column takes three more for its padding and its border.
  own = zip(columns, *(rest for _, *rest in rows), strict=True)
  taken = 4 + sum(3 + max(map(len, column)) for column in own)
  width = max(console.width - taken, _SHORTEST)
  dots = "..." if console.options.ascii_only else "\N{HORIZONTAL ELLIPSIS}"
  table = rich_table.Table(
    rich_table.Column("tensor", overflow="fold"),
    *(rich_table.Column(name, no_wrap=True) for name in columns),
  )
  for name, *rest in rows:
    table.add_row(shortened(name, width, dots), *rest)
  console.print(table, soft_wrap=False)


def shortened(text: str, width: int, dots: str) -> str:
  """The text in so many columns, with dots for what its middle has too much."""
  if cells.cell_len(text) <= width:
    return text
  room = width - len(dots)
  end = cells.set_cell_size(text[::-1], room - room // 2)[::-1]
  return cells.set_cell_size(text, room // 2) + dots + end


def _coder(tensor: archive.TensorReport) -> str:
  if tensor.same is not None:
    return "same"
  trellis = ", trellis" if tensor.quantizer == "trellis" else ""
  return tensor.coder + trellis


def difference(console, weighed: archive.Report, name: str | None) -> None:
  """What a file is a difference from, by the name that it keeps."""
  own = sum(t.base is not None for t in weighed.tensors)
  line(
    console,
    f"the difference from {name or 'another model'}: {own} of"
    f" {len(weighed.tensors)} tensors; the others are stored as they are",
  )


def _number(value: float | None) -> str:
  return "" if value is None else f"{value:.4g}"


def plot(console, weighed: archive.Report) -> None:
  """A histogram of each quantized tensor; a mark shows the fit."""
  fits = {t.name: t for t in weighed.tensors if t.nu is not None}
  # Not all terminals have the block and the diamond.
  full, point = ("#", "o") if console.options.ascii_only else ("█", "◆")
  for name, values in archive.stream(weighed.path, stored=True):
    if name not in fits:
      continue
    t = fits[name]
    assert t.step is not None
    assert t.nu is not None
    assert t.alpha is not None
    symbols = np.rint(values.astype(np.float64) / t.step).ravel()
    spread = max(int(np.quantile(np.abs(symbols), 0.98)), 4)
    width = max(-(-2 * spread // 24), 1)
    edges = np.arange(-spread - width / 2, spread + width, width)
    counts, _ = np.histogram(symbols, edges)
    fine = np.linspace(edges[:-1], edges[1:], 33)[:-1] + width / 64
    with np.errstate(over="ignore"):
      density = np.exp(-(np.abs(fine * t.step / t.alpha) ** t.nu)).mean(0)
    density *= t.nu / (2 * math.gamma(1 / t.nu)) * width * t.step / t.alpha
    line(console, f"{name}  nu {t.nu:.3g}, alpha {t.alpha:.3g}")
    share = counts / symbols.size
    peak = max(share.max(), density.max())
    for left, own, fit in zip(edges, share, density, strict=False):
      bar = full * round(50 * own / peak)
      mark = round(50 * fit / peak)
      bar = bar.ljust(mark)[:mark] + point + bar[mark + 1 :]
      line(console, f"{(left + width / 2) * t.step:10.4g} {bar}")


class Bar:
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
