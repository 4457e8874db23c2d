"""The run of an accelerator: its stages, their time and their resumption."""

import functools
import json
import pathlib

import pytest

from configs.paper import common
from experiments import accelerator, settings
from experiments.paper import plan, reproduce, tables
from tests import paths


@functools.cache
def _cells(profile):
  places = plan.Places(workdir=pathlib.Path(), results=pathlib.Path())
  return {cell.name for cell in plan.plan(profile, places, [0])}


def _stage(name, code, share=1.0):
  return accelerator.Stage(name, ("-S", "-c", code), share)


def test_stages_end_in_time_and_the_same_command_goes_on(tmp_path):
  path, marks = tmp_path / "accelerator.json", tmp_path / "marks"
  mark = f"open({str(marks)!r}, 'a').write('x')"
  todo = [
    _stage("good", f"print('done'); {mark}"),
    _stage("bad", "raise SystemExit('no such weights')"),
    _stage("long", "import time; time.sleep(60)", share=0.02),
    _stage("last", mark),
  ]
  assert not accelerator.run(todo, path, 30.0)
  found = json.loads(path.read_text())
  assert {name: stage["status"] for name, stage in found.items()} == {
    "good": "finished",
    "bad": "failed",
    "long": "interrupted",
    "last": "finished",
  }
  assert found["good"]["last_lines"] == ["done"]
  assert found["bad"]["last_lines"] == ["no such weights"]
  assert found["long"]["seconds"] < 30
  # The second time, only what is not finished.
  todo[1:3] = [_stage("bad", "pass"), _stage("long", "pass")]
  assert accelerator.run(todo, path, 30.0)
  assert marks.read_text() == "xx"


def test_without_time_nothing_is_started(tmp_path):
  path = tmp_path / "accelerator.json"
  assert not accelerator.run([_stage("one", "pass")], path, 0.0)
  assert not path.exists()
  path.write_text("{")
  with pytest.raises(settings.UserError, match=r"accelerator\.json is damaged"):
    accelerator.run([], path, 1.0)


@pytest.mark.parametrize("tiny", [False, True])
def test_every_stage_is_a_command_that_there_is(tiny):
  for stage in accelerator.stages(pathlib.Path("runs"), tiny=tiny):
    _, module, *arguments = stage.command
    file = paths.ROOT / f"{module.replace('.', '/')}.py"
    assert file.exists()
    if "paper" not in module:
      continue
    given = dict(a.removeprefix("--").split("=", 1) for a in arguments)
    assert given["profile"] in common.PROFILES
    names = reproduce.with_normal(tables.cell_names(given["table"]))
    chosen = reproduce.matching(names, given["cells"].split(","))
    assert chosen & _cells(given["profile"])


def test_a_kernel_is_worth_it_where_it_is_faster_for_every_tensor():
  def tensor(speed):
    return {
      name: {"wall": {"GB/s": {"median": value}}}
      for name, value in (("xla", 1000.0), ("pallas_gpu", speed))
    }

  assert accelerator.is_worth({"a": tensor(1100), "b": tensor(1200)})["worth"]
  both = accelerator.is_worth({"a": tensor(1100), "b": tensor(900)})
  assert both == {"speedup": {"a": 1.1, "b": 0.9}, "worth": False}
  assert not accelerator.is_worth({"a": {"xla": tensor(1)["xla"]}})["worth"]
