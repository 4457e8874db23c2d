"""The tables of docs/edge.md, from results that are easy to check."""

import json
import pathlib

import pytest

from configs import edge as edge_config
from configs import edge_sst2
from experiments.bench import edge, edge_report
from tests import tiny


def _model(name, seed, accuracy, seconds):
  keys = [f"batch {b}, {c}" for b in (1, 32) for c in ("1 thread", "all cores")]
  return {
    "name": name,
    "seed": seed,
    "accuracy": accuracy,
    "parameters": 100,
    "fp16": 200,
    "flops": 1000.0,
    "archive": 50,
    "onnx": 400,
    "onnx_xz": 300,
    "peak_memory": 2**20,
    "latency": {key: {"median": seconds} for key in keys},
    "units": [{"group": "mlp", "layer": "a", "before": 8, "after": 4 + seed}],
  }


ROWS = [
  _model(name, seed, accuracy + 0.01 * seed, seconds)
  for seed in (1, 0)
  for name, accuracy, seconds in (
    ("normal", 0.7, 0.002),
    ("structured", 0.69, 0.001),
    (edge.PRUNED, 0.5, 0.001),
  )
]


@pytest.mark.parametrize("config", [edge_config, edge_sst2])
def test_every_seed_has_trainings_of_its_own(config):
  found = config.get_config()
  cells = edge.arms(found, pathlib.Path("run"), 1)
  assert set(edge.MEASURED) <= cells.keys() == set(found.arms)
  assert {c.config.seed for c in cells.values()} == {1}
  assert cells["normal"].directory == pathlib.Path("run/seed1/normal")


def test_models_have_a_row_each_with_their_spread_over_seeds():
  table = edge_report.size_table(ROWS)
  assert [row[0] for row in table.rows] == ["normal", "structured", edge.PRUNED]
  assert table.rows[0][1] == "70.5 ± 0.7"
  assert table.rows[0][-1] == "4.0 ± 0.0"
  speed = edge_report.speed_table(ROWS)
  assert speed.rows[0][1] == "2.000 ± 0.000"
  assert speed.rows[1][speed.header.index("examples / s, all cores")] == (
    "32,000 ± 0"
  )
  assert len({len(row) for row in [speed.header, *speed.rows]}) == 1


def test_ratios_compare_the_same_seeds():
  against_normal, against_pruned = edge_report.ratio_table(ROWS).rows
  assert against_normal[1:3] == ["-1.0 ± 0.0", "2.00 ± 0.00"]
  assert against_pruned[1:3] == ["19.0 ± 0.0", "1.00 ± 0.00"]
  assert edge_report.units_table(ROWS).rows == [["mlp a", "8", "4, 5"]]


def test_pruning_has_a_table_for_weights_and_one_for_units(tmp_path):
  rows = [
    {"arm": arm, "seed": seed, "kind": kind, "rate": rate, "accuracy": value}
    for arm in ("normal", "l1")
    for seed in (0, 1)
    for kind, value in (("weights", 0.7), ("units", 0.6))
    for rate in (0.0, 0.8)
  ]
  weights, units = edge_report.pruning_tables(rows)
  assert weights.header == ["training", "0%", "80%"]
  assert weights.rows[1] == ["l1", "70.0 ± 0.0", "70.0 ± 0.0"]
  assert units.rows[0][1] == "60.0 ± 0.0"
  edge_report.draw_pruning(rows, tmp_path / "figure.png")
  assert (tmp_path / "figure.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_training_becomes_the_tables_and_goes_on_where_it_was(tmp_path):
  pytest.importorskip("onnxruntime", reason="the extra `deploy` has it")
  config = edge_config.get_config()
  config.update_from_flattened_dict(
    tiny.FIELDS | {"rate.lmbda": 0.0, "data.max_eval": 100}
  )
  config.arms.structured.structure.update({"begin_update": 2, "end_update": 8})
  del config.arms.l1, config.arms.backslash, config.arms.group
  config.lock()
  trainings = edge.arms(config, tmp_path, 0)
  cells = list(trainings.values())
  results = tmp_path / "results"
  edge.train(cells)
  edge.prune(cells[:1], results)
  first = _rows(results / "pruning.json")
  edge.prune(cells, results)
  edge.measure([trainings], 2, results)
  models = _rows(results / "models.json")
  edge.measure([trainings], 2, results)
  rows = _rows(results / "pruning.json")
  assert rows[: len(first)] == first
  assert len(rows) == len(cells) * len(edge_report.KINDS) * len(edge.RATES)
  # What is measured is not measured again.
  assert models == _rows(results / "models.json")
  flops = {r["name"]: r["flops"] for r in models if "flops" in r}
  assert flops["structured"] < flops["normal"]
  assert flops[edge.PRUNED] <= flops["structured"]
  edge_report.write(results)
  for name in ("size", "speed", "ratios", "units", "weights", "pruned_units"):
    assert "| ---: |" in (results / f"{name}.md").read_text()


def _rows(path):
  return json.loads(path.read_text())["results"]["rows"]
