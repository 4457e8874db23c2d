"""The paper's tables and figures, from records that were made up."""

import csv
import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from absl import flags

from configs.paper import common, medium, numbers, rows, sweep, table6
from experiments import cells, settings
from experiments.paper import figures, plan, reproduce, tables
from tests import paths, tiny

PLACES = plan.Places(
  workdir=pathlib.Path("runs"), results=pathlib.Path("results")
)
STEPS = 2.0**-8, 2.0**-4, 2.0**-2


def _record(bits, accuracies, *, nu=1.0):
  """A record whose quantized models have these bits and accuracies."""
  quantized = [
    {
      "step": step,
      "bytes": int(1000 * b / 8),
      "bits": {
        "fixed": 10,
        "exp_golomb": b,
        "huffman": b,
        "entropy": b,
      },
      "test": {"accuracy": a, "loss": 0.5},
      "validation": {"accuracy": a, "loss": 0.5},
    }
    for step, b, a in zip(STEPS, bits, accuracies, strict=True)
  ]
  scores = {"accuracy": accuracies[0], "loss": 0.5}
  return {
    "evaluation": {
      "parameters": 1000,
      "exact": {"test": scores, "validation": scores},
      "quantized": quantized,
      "shipped": 1,
      "pruned": [{"rate": 0.5, "test": {"accuracy": 0.5, "loss": 0.7}}],
    },
    "exp_golomb_orders": [bits[0] + k for k in plan.ORDERS],
    "distribution": {
      "nu": nu,
      "alpha": 0.1,
      "deviation": 0.1,
      "limit": 0.3,
      "density": [0.0, 2.0, 0.0],
    },
    "history": [
      {"update": s, "loss": 1 / s, "accuracy": s / 8, "nu": nu, "bits": 4.0}
      for s in range(1, 9)
    ],
  }


NORMAL = _record((8.0, 4.0, 2.0), (0.9, 0.8, 0.6))
SMALLER = _record((3.0, 2.0, 1.5), (0.7, 0.7, 0.5))


def _records(names, seeds=(0, 1)):
  return {
    name: {s: NORMAL if name.endswith("normal") else SMALLER for s in seeds}
    for name in names
  }


def test_a_cell_is_compared_with_the_normal_model_at_its_accuracy():
  found = tables.measure(SMALLER, NORMAL)
  assert found["file"] == 3.0
  assert found["accuracy"] == pytest.approx(70)
  # Half way between the steps of 80% and of 60%.
  assert found["coarser_exp_golomb"] == pytest.approx(3.0)
  assert found["reached"]
  assert found["train_accuracy"] == pytest.approx(100 * 7.5 / 8)
  assert not tables.measure(NORMAL, SMALLER)["reached"]


def test_a_cell_with_steps_of_its_own_is_compared_by_its_file():
  fitted = json.loads(json.dumps(SMALLER))
  shipped = fitted["evaluation"]["quantized"][1]
  del shipped["step"]
  fitted["evaluation"] |= {"quantized": [shipped], "shipped": 0}
  found = tables.measure(fitted, NORMAL)
  assert found["shipped_file"] == 2.0
  assert found["coarser_shipped_file"] == pytest.approx(3.0)
  assert "exp_golomb" not in found


@pytest.mark.parametrize("table", tables.NAMES)
def test_a_table_shows_the_paper_and_every_cell(tmp_path, table):
  names = tables.cell_names(table)
  records = _records(reproduce.with_normal(names))
  stated = numbers.TABLE_3 if table == "3" else tables.SPECS[table].paper
  lacking = [*(stated or names)][-1]
  del records[lacking]
  tables.write(table, records, tmp_path)
  text = (tmp_path / f"table_{table}.md").read_text()
  assert f"Not run: {lacking}." in text
  assert all(f"| {name} |" in text for name in names)
  assert "3.00 ± 0.00" in text
  with (tmp_path / f"table_{table}.csv").open() as file:
    lines = list(csv.DictReader(file))
  assert {r["cell"] for r in lines if r["seed"] == "1"} == {*names} - {lacking}
  wanted = {"paper", "0", "1"} if stated else {"0", "1"}
  assert {r["seed"] for r in lines} == wanted


def test_only_seeds_that_have_a_normal_training_are_compared():
  records = _records(["sweep/normal", "sweep/lambda10"])
  del records["sweep/normal"][0]
  assert len(tables.measured(records, "sweep/lambda10")) == 1


@pytest.mark.parametrize("figure", figures.FIGURES)
def test_a_figure_is_drawn_and_its_points_kept(tmp_path, figure):
  _, names, _ = figures.FIGURES[figure]
  figures.write(figure, _records(reproduce.with_normal(names)), tmp_path)
  picture = (tmp_path / f"figure_{figure}.png").read_bytes()
  assert picture.startswith(b"\x89PNG")
  with (tmp_path / f"figure_{figure}.csv").open() as file:
    lines = list(csv.DictReader(file))
  assert lines
  assert np.isfinite([float(r["y"]) for r in lines]).all()


def test_a_figure_without_records_is_not_written(tmp_path, capsys):
  figures.write("7", {}, tmp_path)
  assert not list(tmp_path.iterdir())
  assert "none of its cells" in capsys.readouterr().out


@pytest.mark.parametrize("profile", common.PROFILES)
def test_every_number_of_the_paper_has_a_cell(profile):
  planned = plan.plan(profile, PLACES, [0])
  names = {c.name for c in planned}
  stated = (numbers.TABLE_3, numbers.TABLE_4, numbers.TABLE_5, numbers.TABLE_6)
  assert names >= {name for table in (*stated, numbers.SWEEP) for name in table}
  for _, shown, _ in figures.FIGURES.values():
    assert names >= set(shown)


def test_the_medium_profile_moves_a_weight_as_far_as_the_paper():
  lmbda = sweep.get_config("medium").arms.lambda1000.rate
  per_update = lmbda.lmbda / medium.SIZES["bert"]
  paper = 1000 / common.PAPER_SIZE * common.RATE_UPDATES
  assert per_update * lmbda.stop_update == pytest.approx(
    paper * common.UPDATES["imdb"], rel=0.01
  )


def test_equal_cells_of_two_tables_are_one():
  planned = {c.name: c for c in plan.plan("full", PLACES, [0])}
  assert planned["table4_bert/normal"].record == planned["sweep/normal"].record
  assert (
    planned["table4_bert/backslash"].training
    == planned["sweep/lambda1000"].directory
  )
  small = {c.name: c for c in plan.plan("small", PLACES, [0])}
  assert small["table6/normal"].record == small["sweep/normal"].record


def test_one_arm_can_be_asked_for_alone():
  assert list(table6.get_config("full/l1").arms) == ["l1"]
  alone = rows.get_config("table4_bert/small/algorithm1")
  assert list(alone.arms) == ["algorithm1"]
  for argument in ("tiny", "small/l7"):
    with pytest.raises(ValueError, match=r"small, medium, full"):
      table6.get_config(argument)
  with pytest.raises(ValueError, match="one of table4_bert, "):
    rows.get_config("table4_bart")


def test_the_committed_records_are_those_of_the_configs():
  results = paths.ROOT / "experiments/results/paper/small"
  places = dataclasses.replace(PLACES, results=results)
  planned = plan.plan("small", places, [0, 1, 2])
  records = {c.record: plan.read(c) for c in planned if c.record.exists()}
  assert set(records) == set(results.glob("cells/*.json"))
  assert all(records.values())


def _cell(tmp_path):
  return plan.Cell(
    config=tiny.config(evaluate__steps=(plan.STEP,)),
    directory=tmp_path / "cell",
    training=tmp_path / "cell",
    name="sweep/normal",
    seed=0,
    record=tmp_path / "results" / "cell.json",
  )


@pytest.mark.slow
def test_a_cell_is_run_once_and_recorded(tmp_path, monkeypatch):
  cell = _cell(tmp_path)
  plan.run([cell], ["sweep/normal"])
  record = plan.read(cell)
  assert record is not None
  golomb = plan.quantized(record)["bits"]["exp_golomb"]
  assert record["exp_golomb_orders"][0] == pytest.approx(golomb)
  distribution = record["distribution"]
  width = 2 * distribution["limit"] / len(distribution["density"])
  assert width * sum(distribution["density"]) == pytest.approx(1, abs=0.01)
  assert record["history"][-1]["update"] == cell.config.total_updates

  def refuse(*_):
    raise AssertionError("what is finished was done again")

  monkeypatch.setattr(cells, "finish", refuse)
  plan.run([cell], ["sweep/normal"])


def test_a_record_of_another_configuration_is_none(tmp_path):
  cell = _cell(tmp_path)
  cell.record.parent.mkdir()
  cell.record.write_text(json.dumps({"config": {"seed": 7}}))
  assert plan.read(cell) is None
  cell.record.write_text("{")
  with pytest.raises(settings.UserError, match=r"cell\.json is not a record"):
    plan.read(cell)


def test_a_command_draws_the_committed_results_again(tmp_path):
  kept = paths.ROOT / "experiments" / "results" / "paper" / "small"
  shutil.copytree(kept / "cells", tmp_path / "cells")
  command = [sys.executable, "-m", "experiments.paper.figures", "--figure=8"]
  command += ["--norun", "--seeds=0,1,2", f"--results={tmp_path}"]
  subprocess.run(command, cwd=paths.ROOT, check=True)
  drawn = (tmp_path / "figure_8.csv").read_text()
  assert drawn == (kept / "figure_8.csv").read_text()
  assert (tmp_path / "figure_8.png").stat().st_size > 10_000


def test_patterns_choose_cells():
  cells = ["table4_gpt2/normal", "table4_gpt2/backslash", "sweep/normal"]
  assert reproduce.matching(cells, []) == set(cells)
  assert reproduce.matching(cells, ["table4*"]) == set(cells[:2])
  with pytest.raises(settings.UserError, match="no cell matches 'table5'"):
    reproduce.matching(cells, ["table5"])


def test_only_the_chosen_cells_are_run(monkeypatch):
  ran, written = [], []
  monkeypatch.setattr(plan, "run", lambda _, names: ran.append(set(names)))
  values = types.SimpleNamespace(
    table="all",
    profile="medium",
    source=None,
    encoder=None,
    llama=None,
    workdir=None,
    results="results",
    seeds=["0"],
    cells=["sweep/lambda1000"],
    run=True,
  )
  monkeypatch.setattr(flags, "FLAGS", values)
  reproduce._main(
    "table",
    ("3", "sweep"),
    tables.cell_names,
    lambda name, records, _: written.append((name, set(records))),
    [],
  )
  assert ran == [set(), {"sweep/lambda1000"}]
  assert written[1][1] == {f"sweep/{arm}" for arm in sweep.ARMS}
