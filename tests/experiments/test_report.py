"""The comparison: its arithmetic, and one set of numbers in every form."""

import json

import numpy as np
import pytest

from experiments import plots, report, settings


def _evaluation(sizes, accuracies, *, shipped, exact=0.76, parameters=1000):
  """An evaluation with the given files, finest step first."""
  bits = {"fixed": 4, "exp_golomb": 3.0, "huffman": 2.5, "entropy": 2.25}
  return {
    "parameters": parameters,
    "matrix_parameters": parameters - 100,
    "exact": {
      split: {"loss": 1.0, "accuracy": exact}
      for split in ("validation", "test")
    },
    "quantized": [
      {
        "step": 2.0 ** (k - 8),
        "bytes": size,
        "bits": bits,
        "validation": {"loss": 1.5, "accuracy": accuracy - 0.01},
        "test": {
          "loss": 1.25,
          "accuracy": accuracy,
          "accuracy_error": 0.007,
        },
      }
      for k, (size, accuracy) in enumerate(zip(sizes, accuracies, strict=True))
    ],
    "pruned": [
      {"rate": rate, "test": {"loss": 1.0, "accuracy": exact * (1 - rate)}}
      for rate in (0.0, 0.5, 0.8, 0.9)
    ],
    "shipped": shipped,
  }


@pytest.fixture
def evaluations():
  return {
    "normal": _evaluation((900, 700, 500), (0.76, 0.75, 0.65), shipped=1),
    "backslash": _evaluation((300, 200), (0.74, 0.70), shipped=0, exact=0.745),
  }


@pytest.fixture
def runs(evaluations):
  rng = np.random.default_rng(0)
  history = [
    {"update": 10, "split": "train", "nu": 1.5, "bits": 5.0},
    {"update": 10, "split": "validation", "loss": 1.0},
    {"update": 20, "split": "train", "nu": 1.0, "bits": 4.0},
  ]
  params = {
    "kernel": np.float32(rng.laplace(size=(30, 30))),
    "bias": np.zeros(100, np.float32),
  }
  return {
    name: report.Run(evaluation, history, params)
    for name, evaluation in evaluations.items()
  }


def test_baseline_is_interpolated_between_neighbouring_steps():
  points = [(900, 0.76), (700, 0.75), (500, 0.65)]
  assert report.baseline_bytes(points, 0.75) == (700, True)
  assert report.baseline_bytes(points, 0.70) == (pytest.approx(600), True)
  assert report.baseline_bytes(points, 0.10) == (500, True)


def test_baseline_takes_its_best_where_accuracy_is_not_monotone():
  points = [(900, 0.70), (700, 0.80), (500, 0.60), (400, 0.72), (300, 0.1)]
  size, reached = report.baseline_bytes(points, 0.71)
  # On the way from 0.72 at 400 down to 0.1 at 300.
  assert reached
  assert 300 < size < 400


def test_baseline_that_is_never_so_accurate_says_so():
  points = [(900, 0.76), (800, 0.76), (500, 0.65)]
  assert report.baseline_bytes(points, 0.77) == (800, False)


def test_comparison_is_what_it_says(evaluations):
  comparison = report.compare(evaluations, "task")["comparison"]
  assert list(comparison) == ["normal", "backslash"]
  c = comparison["backslash"]
  assert c["bytes"] == 300
  assert c["file_bits"] == pytest.approx(2.4)
  assert c["fp16_saving"] == pytest.approx(1 - 300 / 2000)
  # 0.74 lies a tenth of the way from 0.75 at 700 to 0.65 at 500.
  assert c["baseline_bytes"] == pytest.approx(680)
  assert c["baseline_saving"] == pytest.approx(1 - 300 / 680)
  assert c["accuracy_change"] == pytest.approx(-0.02)
  assert c["pruned_rate"] == 0.8
  assert c["pruned_accuracy"] == pytest.approx(0.149)
  assert comparison["normal"]["baseline_bytes"] is None


def test_every_form_shows_the_same_numbers(runs, tmp_path, capsys):
  found = report.write(runs, "task", tmp_path)
  assert json.loads((tmp_path / "report.json").read_text()) == found
  markdown = (tmp_path / "report.md").read_text()
  printed = capsys.readouterr().out
  rows = [row for table in report.make_tables(found)[:3] for row in table.rows]
  assert "task, test accuracy (standard error 0.7 points)" in printed
  assert ["backslash", "300", "2,000", "85.0%", "680", "55.9%"] in rows
  assert ["backslash", "74.5%", "74.0%", "-2.0 points", "14.9% at 80%"] in rows
  for row in rows:
    assert "| " + " | ".join(row) + " |" in markdown
    assert all(cell in printed for cell in row)
  # The tables fit a terminal; the last lines name a file.
  tables = printed.split("The rest")[0].splitlines()
  assert max(map(len, tables)) <= 80


def test_figures_are_written_and_shown(runs, tmp_path):
  report.write(runs, "task", tmp_path)
  markdown = (tmp_path / "report.md").read_text()
  for name in plots.TITLES:
    assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert f"({name})" in markdown


def test_one_training_without_pruning_is_reported(runs, tmp_path):
  run = runs["normal"]
  run.evaluation["pruned"] = []
  found = report.write({"run": run}, "task", tmp_path)
  assert found["comparison"]["run"]["pruned_accuracy"] is None


def test_workdir_that_cannot_be_written_is_named(runs, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(settings.UserError, match=str(tmp_path / "file")):
    report.write(runs, "task", tmp_path / "file")
