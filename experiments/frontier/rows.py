"""Rows, one per coded file of a grid: from cells, from CSV, merged."""

import csv
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from experiments import settings

Row = dict[str, Any]


def _optional(kind):
  return lambda text: kind(text) if text else None


_FIELDS = {
  "method": str,
  "point": str,
  "seed": int,
  "learning_rate": float,
  "step": _optional(float),
  "levels": _optional(int),
  "scale": _optional(float),
  "bytes": int,
  "bits": float,
  "validation_accuracy": float,
  "validation_loss": float,
  "test_accuracy": float,
  "test_loss": float,
}


def of_cell(cell: Any, evaluation: dict[str, Any]) -> list[Row]:
  """One row per coded file of a cell.

  Args:
    cell: a `grid.Cell`.
    evaluation: of the cell, from `evaluate.evaluate`.

  Returns:
    Dicts of method, point, seed and learning_rate; the quantizer, one of step,
    levels and scale, the others None; bytes of the file; bits, which are
    8 bytes / parameters; accuracy and loss in nats of the validation and of the
    test split.
  """
  return [
    {
      "method": cell.method,
      "point": cell.point,
      "seed": cell.seed,
      "learning_rate": cell.learning_rate,
      "step": q.get("step"),
      "levels": q.get("levels"),
      "scale": q.get("scale"),
      "bytes": q["bytes"],
      "bits": 8 * q["bytes"] / evaluation["parameters"],
      "validation_accuracy": q["validation"]["accuracy"],
      "validation_loss": q["validation"]["loss"],
      "test_accuracy": q["test"]["accuracy"],
      "test_loss": q["test"]["loss"],
    }
    for q in evaluation["quantized"]
  ]


def read_csv(path: pathlib.Path) -> list[Row]:
  """The rows of a frontier.csv.

  Raises:
    UserError: it cannot be read, or is not one.
  """
  try:
    with path.open(newline="") as file:
      return [
        {name: kind(row[name]) for name, kind in _FIELDS.items()}
        for row in csv.DictReader(file)
      ]
  except OSError as error:
    raise settings.UserError(
      f"cannot read {path}: {error.strerror or error}"
    ) from error
  except (KeyError, TypeError, ValueError) as error:
    raise settings.UserError(
      f"{path} is not a frontier.csv, a line of it has another field or value:"
      f" {error}"
    ) from error


def merge(
  earlier: Iterable[Row], rows: Sequence[Row], baseline: str
) -> list[Row]:
  """All rows in the order of their seeds, the baseline's first.

  Args:
    earlier: of another run.
    rows: of this run; they replace earlier ones of the same method, point and
      seed.
    baseline: the method that comes first.
  """

  def cell(row):
    return row["seed"], row["method"] != baseline, row["method"], row["point"]

  own = {cell(row) for row in rows}
  kept = [row for row in earlier if cell(row) not in own]
  return sorted([*kept, *rows], key=cell)


def write_csv(path: pathlib.Path, rows: Sequence[Row]) -> None:
  """Writes rows, at least one, as `read_csv` reads them."""
  with path.open("w", newline="") as file:
    writer = csv.DictWriter(file, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
