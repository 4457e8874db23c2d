"""What a fine-tune keeps of what it has learned, by the size of its file."""

import json

import pytest

from experiments import settings
from experiments.frontier import kept


def _write(directory, name, exact, files):
  def scores(value):
    return {"accuracy": value, "loss": 4 - value}

  cell = directory / "cells" / name
  cell.mkdir(parents=True)
  evaluation = {
    "parameters": 800,
    "exact": {s: scores(exact) for s in ("validation", "test")},
    "quantized": [
      {
        "bytes": size,
        "bits": {"entropy": 0.1},
        "validation": scores(value),
        "test": scores(value),
      }
      for size, value in files
    ],
  }
  text = json.dumps({"key": "", "evaluation": evaluation})
  (cell / "evaluation.json").write_text(text)


@pytest.fixture
def cells(tmp_path):
  _write(
    tmp_path, "delta-only-seed0", 0.8, [(100, 0.8), (40, 0.793), (10, 0.0)]
  )
  _write(tmp_path, "lora-8-seed0-rate0.001", 0.79, [(80, 0.7)])
  _write(tmp_path, "lora-4-seed0-rate0.001", 0.78, [(60, 0.795)])
  return kept.read(tmp_path)


def test_the_smallest_file_that_keeps_the_accuracy(cells):
  table = kept.classes_table(cells, examples=400)
  assert table.rows == [
    ["delta", "0", "80.0 ± 2.0"]
    + ["1.000", "100", "80.0 ± 2.0"]
    + ["0.400", "40", "79.3 ± 2.0"],
    ["lora", "0", "79.0 ± 2.0"] + 2 * ["0.600", "60", "79.5 ± 2.0"],
  ]


def test_the_bits_that_keep_a_part_of_the_gain(cells):
  table = kept.language_table(cells)
  delta, lora = table.rows
  assert delta[:4] == ["delta", "0", "3.2000", "0.8000"]
  # Half of the gain, between 0.1 and 0.4 bits.
  assert float(delta[4]) == pytest.approx(0.1 * 4 ** (0.4 / 0.793), abs=1e-3)
  assert delta[6] == "0.399"
  assert lora[4:] == ["< 0.600", "< 0.600", "< 0.600"]


def test_every_file_is_listed(cells):
  table = kept.files_table(cells, loss=False)
  assert table.rows[:2] == [
    ["delta", "only", "0", "float32", "32", "-", "80.0"],
    ["delta", "only", "0", "fitted", "1.0000", "100", "80.0"],
  ]
  assert len(table.rows) == 8


def test_without_the_baseline_there_is_nothing_to_compare_with(tmp_path):
  with pytest.raises(settings.UserError, match="has no finished delta"):
    kept.read(tmp_path)
