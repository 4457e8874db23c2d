"""Terminal output: tables, and histograms with their fits."""

import math

import numpy as np
from rich import table as rich_table

from backslash_jax import archive


def costs(console, costs: dict[str, int], parameters: int) -> None:
  """A table of the file size with each coder, smallest first."""
  table = rich_table.Table("coder", "bytes", "bits per parameter")
  for coder, size in sorted(costs.items(), key=lambda item: item[1]):
    table.add_row(coder, f"{size:,}", f"{8 * size / max(parameters, 1):.3f}")
  console.print(table)


def report(console, weighed: archive.Report) -> None:
  """A table of a file's tensors."""
  columns = ("shape", "dtype", "step", "nu", "alpha", "coder", "bits", "bytes")
  table = rich_table.Table("tensor", *columns)
  for t in weighed.tensors:
    size = max(math.prod(t.shape), 1)
    table.add_row(
      t.name,
      "x".join(map(str, t.shape)) or "scalar",
      t.dtype,
      _number(t.step),
      _number(t.nu),
      _number(t.alpha),
      t.coder,
      f"{t.bits / size:.3f}",
      f"{t.bytes:,}",
    )
  console.print(table)
  console.print(
    f"{weighed.path}: {weighed.parameters:,} parameters, "
    f"{weighed.bytes:,} bytes, {weighed.bits_per_parameter:.3f} bits per "
    "parameter"
  )


def _number(value: float | None) -> str:
  return "" if value is None else f"{value:.4g}"


def plot(console, weighed: archive.Report) -> None:
  """A histogram of each quantized tensor; a mark shows the fit."""
  fits = {t.name: t for t in weighed.tensors if t.nu is not None}
  for name, values in archive.stream(weighed.path):
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
    density = np.exp(-(np.abs(fine * t.step / t.alpha) ** t.nu)).mean(0)
    density *= t.nu / (2 * math.gamma(1 / t.nu)) * width * t.step / t.alpha
    console.print(f"[bold]{name}[/bold]  nu {t.nu:.3g}, alpha {t.alpha:.3g}")
    share = counts / symbols.size
    peak = max(share.max(), density.max())
    for left, own, fit in zip(edges, share, density, strict=False):
      bar = "█" * round(50 * own / peak)
      mark = round(50 * fit / peak)
      line = bar.ljust(mark)[:mark] + "◆" + bar[mark + 1 :]
      console.print(f"{(left + width / 2) * t.step:10.4g} {line}")
