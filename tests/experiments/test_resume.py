"""A run that was cut off ends as an unbroken one, bit for bit."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from experiments import (
  cells,
  evaluate,
  interrupt,
  main,
  metrics,
  resume,
  settings,
)
from tests import tiny

pytestmark = pytest.mark.usefixtures("no_figures")


def _config(**fields):
  """Steps are chosen after 4 updates, the run is stopped after 6."""
  return tiny.config(
    round_bits=3.0,
    round_begin_update=4,
    **{"evaluate__steps": (), "evaluate__scales": (0.5, 1.0)} | fields,
  )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  """The directory of a finished run."""
  directory = tmp_path_factory.mktemp("unbroken")
  main.train_and_evaluate(_config(), directory)
  return directory


@pytest.fixture(scope="module")
def stopped_once(unbroken, tmp_path_factory):
  """The directory of a run that SIGTERM stopped after update 6 of 12."""
  directory = tmp_path_factory.mktemp("stopped")
  show = metrics.Progress.show

  def show_and_signal(self, update, values):
    show(self, update, values)
    if update == 5:
      # Arrives while update 6 is under way.
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(metrics.Progress, "show", show_and_signal)
    with pytest.raises(
      interrupt.StoppedError, match="update 6 of 12"
    ) as caught:
      main.train_and_evaluate(_config(), directory)
  assert caught.value.exit_code == 128 + signal.SIGTERM
  return directory


@pytest.fixture
def stopped(stopped_once, tmp_path):
  return shutil.copytree(stopped_once, tmp_path, dirs_exist_ok=True)


def _assert_same_run(one, other):
  for name in ("metrics.jsonl", cells.TRAINED, evaluate.SHIPPED):
    assert (one / name).read_bytes() == (other / name).read_bytes()
  assert not (other / "checkpoints").exists()


def test_metrics_hold_every_interval_and_no_wall_clock(unbroken):
  records = metrics.read(unbroken / "metrics.jsonl")
  updates = [r["update"] for r in records if r["split"] == "train"]
  assert updates == [2, 4, 6, 8, 10, 12]
  updates = [r["update"] for r in records if r["split"] == "validation"]
  assert updates == [6, 12]
  assert not any("time" in k or "second" in k for r in records for k in r)
  assert list((unbroken / "tensorboard").iterdir())


def test_stopped_run_resumes_exactly(unbroken, stopped):
  assert metrics.read(stopped / "metrics.jsonl")[-1]["update"] == 6
  main.train_and_evaluate(_config(), stopped)
  _assert_same_run(unbroken, stopped)
  reports = [
    json.loads((d / "report.json").read_text()) for d in (unbroken, stopped)
  ]
  assert reports[0] == reports[1]


def test_records_after_the_checkpoint_are_dropped(unbroken, stopped):
  with (stopped / "metrics.jsonl").open("a") as file:
    file.write(
      '{"update": 8, "split": "train", "loss": 1.0}\n{"update": 10, "sp'
    )
  main.train_and_evaluate(_config(), stopped)
  _assert_same_run(unbroken, stopped)


def test_damaged_records_are_named(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"update": 2, "split": "train"}\nnonsense\n{"update": 4}\n')
  with pytest.raises(settings.UserError, match=r"metrics\.jsonl, line 2"):
    metrics.read(path)


def test_other_configuration_is_refused_by_field(stopped):
  config = _config(optimizer__learning_rate=0.5, model__width=32)
  with pytest.raises(settings.UserError) as caught:
    main.train_and_evaluate(config, stopped)
  message = str(caught.value)
  assert "config.optimizer.learning_rate was 0.001, is 0.5" in message
  assert "config.model.width was 16, is 32" in message
  assert "log_every" not in message


def test_what_is_only_written_down_may_change(unbroken, tmp_path):
  shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
  config = _config(log_every=5, keep_checkpoints=1, evaluate__scales=(2.0,))
  report = main.train_and_evaluate(config, tmp_path)
  (quantized,) = report["evaluations"]["run"]["quantized"]
  assert quantized["scale"] == 2.0


def test_damaged_checkpoint_is_named_and_an_earlier_one_goes_on(
  unbroken, stopped
):
  newest = stopped / "checkpoints" / "6"
  for path in newest.rglob("d/*"):
    path.write_bytes(bytes(path.stat().st_size))
  with pytest.raises(settings.UserError) as caught:
    main.train_and_evaluate(_config(), stopped)
  assert f"cannot read the checkpoint {newest}" in str(caught.value)
  assert "delete that folder to resume from update 4" in str(caught.value)
  shutil.rmtree(newest)
  main.train_and_evaluate(_config(), stopped)
  _assert_same_run(unbroken, stopped)


def test_lost_checkpoints_are_an_error(unbroken, tmp_path):
  shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
  (tmp_path / cells.TRAINED).unlink()
  with pytest.raises(settings.UserError, match="holds no checkpoint") as caught:
    main.train_and_evaluate(_config(), tmp_path)
  assert str(tmp_path / "checkpoints") in str(caught.value)


def _command(workdir):
  fields = ["--config.total_updates=200", "--config.checkpoint_every=20"]
  program = [sys.executable, "-m", "experiments.main"]
  where = ["--config=configs/default.py", f"--workdir={workdir}"]
  return [*program, *where, *tiny.flags(), *fields]


def _start(workdir):
  return subprocess.Popen(
    _command(workdir),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _wait_for(path: pathlib.Path, process):
  while not path.exists():
    assert process.poll() is None, process.communicate()
    time.sleep(0.005)


@pytest.mark.slow
def test_killed_run_resumes_exactly(tmp_path):
  killed, whole = tmp_path / "killed", tmp_path / "whole"
  process = _start(killed)
  _wait_for(killed / "checkpoints" / "20", process)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  assert not (killed / "checkpoints" / "200").exists()
  for directory in (killed, whole):
    process = _start(directory)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
  _assert_same_run(killed, whole)


@pytest.mark.slow
def test_full_disk_is_one_line(tmp_path, monkeypatch):
  # A limit on the size of files stands in for the disk, which it is for the
  # tests' own cache as well.
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  command = ["bash", "-c", 'ulimit -f 20; exec "$@"', "-", *_command(tmp_path)]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 1
  assert done.stderr.startswith("error: cannot write")
  assert str(tmp_path) in done.stderr
  assert "Traceback" not in done.stderr


def test_a_config_from_before_a_field_has_its_default(tmp_path):
  config = tiny.config(data__seq_len=64)
  resume.save_config(config, tmp_path)
  path = tmp_path / "config.json"
  values = json.loads(path.read_text())
  del values["data"]["language"], values["round_begin_update"]
  path.write_text(json.dumps(values))
  found = resume.read_config(tmp_path)
  assert found.data.language is False
  assert found.data.seq_len == 64
  assert resume.decisive(found) == resume.decisive(config)


@pytest.mark.parametrize("text", ["{", "[]", "7", '{"data": 1}x'])
def test_a_config_that_is_none_is_named(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(settings.UserError, match=r"cannot read .*config\.json"):
    resume.read_config(tmp_path)
