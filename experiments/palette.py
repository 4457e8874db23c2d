"""Colors and line styles of all figures, told apart without color vision.

Source: the palette of Okabe & Ito, jfly.uni-koeln.de/color, without yellow,
which is too light for lines.
"""

from typing import Any

import cycler
import matplotlib

COLORS = (
  "#0072b2",  # Blue.
  "#d55e00",  # Vermilion.
  "#009e73",  # Green.
  "#cc79a7",  # Purple.
  "#56b4e9",  # Light blue.
  "#e69f00",  # Orange.
  "#000000",
)
GRAY = "#888888"
MARKERS = "os^DvPX"
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


def use() -> None:
  """Makes it the default of matplotlib in this process."""
  matplotlib.use("Agg")
  matplotlib.rcParams["axes.prop_cycle"] = cycler.cycler(
    color=COLORS
  ) + cycler.cycler(linestyle=LINES)


def style(index: int) -> dict[str, Any]:
  """Color, line and marker of a curve that has measured points."""
  i = index % len(COLORS)
  return {"color": COLORS[i], "linestyle": LINES[i], "marker": MARKERS[i]}
