"""The grid of trainings: its plan, its resumption, what it shows."""

import contextlib
import csv
import json
import pathlib
import shutil

import ml_collections
import numpy as np
import pytest

from configs import frontier_bytes, frontier_modules, frontier_texts
from experiments import cells, settings, train
from experiments.frontier import grid, report, rows
from tests import paths, tiny

# get_config and the arguments of its small, full and invalid profile.
CONFIGS = [
  (module.get_config, "small", "full", "tiny")
  for module in (frontier_bytes, frontier_modules)
] + [
  (frontier_texts.get_config, task, f"{task}/full", f"{task}/tiny")
  for task in frontier_texts.TASKS
]


def _method(fields=None, **points):
  return {
    "learning_rate": None,
    "tuned_at": next(iter(points)),
    "fields": fields or {},
    "points": points,
  }


METHODS = {
  "normal": _method(only={}),
  "rdo": _method({"evaluate": {"mu": 0.3}}, only={}),
  "round": _method({"rate": {"balance": 1.0}}, coarse={"round_step": 0.25}),
}


def _config(**fields):
  config = tiny.config(
    total_updates=2,
    eval_every=2,
    optimizer__warmup_updates=1,
    rate__lmbda=0.0,
    evaluate__steps=(2.0**-4,),
    evaluate__pruning_rates=(),
  )
  with config.unlocked():
    config.grid = ml_collections.ConfigDict(
      {
        "baseline": "normal",
        "plain": "normal",
        "best": "rdo",
        "seeds": (0,),
        "bits": (2.0, 4.0),
        "floor": 0.5,
        "tune": False,
        "learning_rates": (1e-3, 1e-2),
        "methods": METHODS,
      }
      | fields
    )
  return config


def _refuse(*args):
  raise AssertionError("what is finished was done again")


@pytest.mark.slow
def test_a_stopped_grid_goes_on_and_repeats_nothing(tmp_path, monkeypatch):
  # Two seeds of one method are one program to compile.
  methods = {name: METHODS[name] for name in ("normal", "rdo")}
  config = _config(seeds=(0, 1), methods=methods)
  finish, trainings, original = cells.finish, [], train.train

  def counted(config, directory, *args):
    trainings.append(directory.name)
    return original(config, directory, *args)

  def stopped(cell, scores):
    if cell.seed == 1:
      raise KeyboardInterrupt
    return finish(cell, scores)

  monkeypatch.setattr(train, "train", counted)
  monkeypatch.setattr(cells, "finish", stopped)
  with pytest.raises(KeyboardInterrupt):
    grid.run(config, tmp_path)
  with (tmp_path / "frontier.csv").open() as file:
    partial = list(csv.DictReader(file))
  assert [r["method"] for r in partial] == ["normal", "rdo"]
  drawn = grid.run(config, tmp_path, train=False)
  assert [(r["method"], r["seed"]) for r in drawn] == [
    ("normal", 0),
    ("rdo", 0),
  ]
  with pytest.raises(settings.UserError, match="has no finished cell"):
    grid.run(config, tmp_path / "empty", train=False)

  monkeypatch.setattr(cells, "finish", finish)
  rows = grid.run(config, tmp_path)
  # Two ways to code one model are one training.
  assert trainings == ["normal-only-seed0", "normal-only-seed1"]
  assert len(rows) == 4
  assert not list(tmp_path.glob("cells/*/checkpoints"))
  for row, before in zip(rows, partial, strict=False):
    assert {k: "" if v is None else str(v) for k, v in row.items()} == before
  assert rows[1]["bytes"] < rows[0]["bytes"]
  for row in rows:
    name = f"{row['method']}-only-seed{row['seed']}"
    shipped = tmp_path / "cells" / name / "shipped.safetensors"
    assert shipped.stat().st_size == row["bytes"]
  assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")
  text = (tmp_path / "frontier.md").read_text()
  assert all(f"| {name} | " in text for name in methods)
  for name in ("rates", "accuracies", "best"):
    assert (tmp_path / f"{name}.md").read_text() in text

  monkeypatch.setattr(train, "train", _refuse)
  assert grid.run(config, tmp_path) == rows
  # Where another process has the baseline, its cells come last.
  monkeypatch.setattr(
    cells, "take", lambda planned: contextlib.nullcontext(reversed(planned))
  )
  assert grid.run(config, tmp_path) == rows
  monkeypatch.undo()
  shutil.rmtree(tmp_path / "cells" / "rdo-only-seed1")
  earlier = tmp_path / "earlier.csv"
  (tmp_path / "frontier.csv").rename(earlier)
  again = grid.run(config, tmp_path, train=False, earlier=earlier)
  assert again == rows
  with config.unlocked():
    config.total_updates = 3
  with pytest.raises(settings.UserError, match=r"total_updates was 2, is 3"):
    grid.run(config, tmp_path)


def test_earlier_rows_are_shown_unless_their_cell_was_run_again(tmp_path):
  def row(method, seed, accuracy):
    fields = dict.fromkeys(rows._FIELDS, 0.25)
    more = {"method": method, "point": "only", "seed": seed, "bytes": 7}
    more |= {"levels": None, "scale": None}
    return fields | more | {"test_accuracy": accuracy}

  earlier = [row("a", 1, 0.5), row("normal", 1, 0.5), row("normal", 0, 0.5)]
  path = tmp_path / "frontier.csv"
  rows.write_csv(path, earlier)
  assert rows.read_csv(path) == earlier
  merged = rows.merge(earlier, [row("normal", 1, 0.7)], "normal")
  assert [(r["method"], r["seed"], r["test_accuracy"]) for r in merged] == [
    ("normal", 0, 0.5),
    ("normal", 1, 0.7),
    ("a", 1, 0.5),
  ]
  path.write_text(path.read_text().replace(",7,", ",seven,"))
  with pytest.raises(settings.UserError, match=r"csv is not a frontier\.csv"):
    rows.read_csv(path)
  with pytest.raises(settings.UserError, match=r"cannot read .*: No such file"):
    rows.read_csv(tmp_path / "none.csv")


def _rows(method, bits, accuracies, seeds=(0, 1), validation=None):
  return [
    {
      "method": method,
      "seed": seed,
      "learning_rate": 1e-3,
      "bits": b,
      "validation_accuracy": v,
      "test_accuracy": a,
    }
    for seed in seeds
    for b, a, v in zip(bits, accuracies, validation or accuracies, strict=True)
  ]


BITS = np.array([1.0, 2.0, 3.0, 4.0])
ACCURACIES = [0.5, 0.7, 0.8, 0.85]


def _tables(*rows):
  curves = report.make_curves([r for group in rows for r in group])
  return report.make_tables(curves, _config(best="less").grid, "task")


def test_rows_alone_are_drawn(tmp_path):
  own = paths.ROOT / "experiments/results/frontier_modules_feedback"
  config = frontier_modules.get_config("small")
  config.grid.baseline = config.grid.plain = "l1"
  path = own / "frontier.csv"
  drawn = grid.run(config.lock(), tmp_path, train=False, earlier=path)
  assert drawn == rows.read_csv(path)
  assert (tmp_path / "rates.md").read_text() == (own / "rates.md").read_text()


def test_tables_show_the_rate_at_equal_accuracy():
  tables = _tables(
    _rows("normal", BITS, ACCURACIES),
    _rows("less", 0.7 * BITS, ACCURACIES),
    _rows("elsewhere", BITS, [0.1, 0.12, 0.13, 0.14]),
  )
  normal, less, elsewhere = tables["rates"].rows
  same = "+0.0 ± 0.0"
  assert normal == ["normal", "2 of 2", same, "50.0 to 85.0", same, same]
  assert less[2:] == ["-30.0 ± 0.0", "50.0 to 85.0"] + 2 * ["-30.0 ± 0.0"]
  assert elsewhere[1:] == ["0 of 2", "-", "no overlap", "-", "-"]
  accuracies = tables["accuracies"].rows
  assert accuracies[0] == ["normal", "2", "70.0 ± 0.0", "85.0 ± 0.0"]
  assert accuracies[1][-1] == "-"  # Its largest file has 2.8 bits.
  against, nothing = tables["best"].rows
  assert against == ["normal", "2 of 2", "-30.0 ± 0.0", "50.0 to 85.0"]
  assert nothing == ["elsewhere", "0 of 2", "-", "no overlap"]


def test_plain_rounding_is_beside_the_baseline():
  curves = report.make_curves(
    _rows("feedback", 0.5 * BITS, ACCURACIES)
    + _rows("normal", BITS, ACCURACIES)
    + _rows("less", 0.4 * BITS, ACCURACIES)
  )
  table = report.make_tables(curves, _config(baseline="feedback").grid, "task")[
    "rates"
  ]
  at = table.header.index("against normal")
  found = {row[0]: (row[2], row[at]) for row in table.rows}
  assert found == {
    "feedback": ("+0.0 ± 0.0", "-50.0 ± 0.0"),
    "normal": ("+100.0 ± 0.0", "+0.0 ± 0.0"),
    "less": ("-20.0 ± 0.0", "-60.0 ± 0.0"),
  }


def test_a_curve_is_chosen_on_the_validation_split():
  rows = _rows("normal", BITS, [0.5, 0.9, 0.8, 0.85], (0,))
  for row, v in zip(rows, [0.5, 0.4, 0.8, 0.85], strict=True):
    row["validation_accuracy"] = v
  (curve,) = report.make_curves(rows)["normal"].values()
  np.testing.assert_allclose(np.exp(curve.log_rate), [1, 3, 4])
  np.testing.assert_allclose(curve.metric, [0.5, 0.8, 0.85])


def test_tuning_takes_the_best_validation_accuracy_at_the_rates():
  """Where the baseline has 0.9 at best, less than 0.45 counts as 0.45."""

  def rows(method, validation, seed=0, rate=1e-3):
    found = _rows(method, BITS, 4 * [0.0], (seed,), validation=validation)
    return [row | {"learning_rate": rate} for row in found]

  found = report.tuned(
    rows("normal", [0.1, 0.2, 0.3, 0.9])
    + rows("normal", [0.1, 0.2, 0.3, 0.5], seed=1)
    + rows("l1", [0.1, 0.7, 0.3, 0.8])
    + rows("l1", [0.1, 0.7, 0.3, 0.8], seed=1)
    + rows("l1", [0.5, 0.75, 0.9, 0.8], rate=1e-2)
    + rows("l1", [0.5, 0.75, 0.9, 0.8], seed=1, rate=1e-2),
    _config(bits=(0.5, 1.0, 2.0)).grid,
  )
  assert found["normal"]["scores"] == {1e-3: pytest.approx(0.35)}
  first = np.mean([0.45, 0.45, 0.7, 0.25, 0.25, 0.7])
  second = np.mean([0.45, 0.5, 0.75, 0.25, 0.5, 0.75])
  assert found["l1"] == {
    "learning_rate": 1e-2,
    "scores": {1e-3: pytest.approx(first), 1e-2: pytest.approx(second)},
  }


def test_tuning_is_written_as_data_and_as_a_table(tmp_path):
  grid = _config(tune=True).grid
  rows = _rows("normal", BITS, 4 * [0.5], (0,))
  other = _rows("normal", BITS, 4 * [0.6], (0,))
  for row in other:
    row["learning_rate"] = 1e-2
  rows += other + _rows("rdo", BITS, 4 * [0.5], (0,))
  report.write_tuning(rows, grid, "task", tmp_path)
  found = json.loads((tmp_path / "tuning.json").read_text())
  assert found["normal"]["learning_rate"] == 1e-2
  table = (tmp_path / "tuning.md").read_text()
  assert "| method | point | best | 0.001 | 0.01 |" in table
  assert "| normal | only | 0.01 | 50.0 | 60.0 |" in table
  assert "| rdo | only | 0.001 | 50.0 | - |" in table


def test_tuning_plans_every_candidate_at_one_point():
  cells = grid.plan(_config(tune=True, seeds=(3, 4)), pathlib.Path("runs"))
  assert len(cells) == 12
  assert {c.seed for c in cells} == {3, 4}
  assert {c.config.optimizer.learning_rate for c in cells} == {1e-3, 1e-2}


def test_a_grid_takes_what_its_tuning_has_trained():
  """Also with a learning rate that is not that of the config."""
  methods = {
    "normal": METHODS["normal"] | {"learning_rate": 1e-2},
    "rdo": METHODS["rdo"],
  }
  workdir = pathlib.Path("runs")
  tuned = grid.plan(_config(tune=True, methods=methods), workdir)
  by_directory = {cell.directory: cell for cell in tuned}
  assert len(by_directory) == 4
  for cell in grid.plan(_config(methods=methods), workdir):
    assert cell.config == by_directory[cell.directory].config


def test_methods_without_a_learning_rate_have_that_of_the_optimizer():
  config = _config(
    methods=METHODS | {"rdo": METHODS["rdo"] | {"learning_rate": 1e-2}}
  )
  config.optimizer.learning_rate = 1e-4
  found = {
    cell.method: cell.config.optimizer.learning_rate
    for cell in grid.plan(config, pathlib.Path("runs"))
  }
  assert found == {"normal": 1e-4, "rdo": 1e-2, "round": 1e-4}


def test_tuning_takes_no_rows_of_an_earlier_run(tmp_path):
  with pytest.raises(settings.UserError, match="--rows shows an earlier grid"):
    grid.run(_config(tune=True), tmp_path, earlier=tmp_path / "rows.csv")


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"baseline": "l7"}, r"baseline is 'l7'"),
    (
      {"methods": METHODS | {"l1": _method({"rate": {"lambda": 1}}, a={})}},
      r"methods\.l1, point a: .*lambda",
    ),
    (
      {"methods": METHODS | {"l1": _method(a={"rate": {"balance": -1.0}})}},
      r"methods\.l1, point a: .*rate\.balance is -1",
    ),
    ({"methods": METHODS | {"a/b": _method(a={})}}, "directory"),
  ],
)
def test_bad_grids_are_named(fields, message):
  with pytest.raises(settings.UserError, match=message):
    grid.plan(_config(**fields), pathlib.Path("runs"))


def test_a_config_without_a_grid_is_explained(tmp_path):
  with pytest.raises(settings.UserError, match=r"config\.grid is missing"):
    grid.run(tiny.config(), tmp_path)


@pytest.mark.parametrize(("get_config", "small", "full", "tiny"), CONFIGS)
def test_the_grids_are_valid_and_no_directory_is_used_twice(
  get_config, small, full, tiny
):
  cells = grid.plan(get_config(small).lock(), pathlib.Path("runs"))
  assert len({c.directory for c in cells}) == len(cells)
  assert len({c.training for c in cells}) < len(cells)
  seeds = {c.seed for c in cells}
  assert {c.seed for c in cells if c.method == "normal"} == seeds
  assert {c.method for c in cells} < set(get_config(full).grid.methods)
  with pytest.raises(ValueError, match="'tiny'"):
    get_config(tiny)


@pytest.mark.parametrize("argument", ["", "small", "sst3/full"])
def test_an_unknown_text_is_named(argument):
  with pytest.raises(ValueError, match="one of sst2, newsgroups, imdb"):
    frontier_texts.get_config(argument)


def test_the_committed_rows_can_be_read():
  found = list((paths.ROOT / "experiments/results").glob("*/frontier.csv"))
  assert found
  for path in found:
    for row in rows.read_csv(path):
      given = [row[k] for k in ("step", "levels", "scale")]
      assert sum(value is not None for value in given) == 1


@pytest.mark.parametrize("module", [frontier_bytes, frontier_modules])
def test_the_grids_have_the_learning_rates_that_their_tuning_found(module):
  name = module.__name__.rpartition(".")[-1]
  path = paths.ROOT / "experiments/results" / name / "tuning.json"
  tuned = json.loads(path.read_text())
  config = module.get_config("small")
  cells = grid.plan(config, pathlib.Path("runs"))
  # These code the trainings of others.
  shared = {f"{m}_feedback": m for m in ("l1", "fitted")} | {
    "feedback": "normal"
  }
  assert {c.method for c in cells} - set(shared) == set(tuned)
  for cell in cells:
    found = tuned[shared.get(cell.method, cell.method)]
    assert cell.learning_rate == found["learning_rate"]
    assert tuple(map(float, found["scores"])) == config.grid.learning_rates


def test_every_method_of_the_full_grid_is_valid():
  config = frontier_modules.get_config("full").lock()
  with config.unlocked():
    config.grid.seeds = (0,)
  methods = {c.method for c in grid.plan(config, pathlib.Path("runs"))}
  assert methods == set(config.grid.methods)
