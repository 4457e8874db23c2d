"""Several processes are one training, whatever becomes of them or the mesh."""

import json
import os
import signal
import socket
import threading
import time

import jax
import numpy as np
import pytest

from experiments import (
  data,
  distributed,
  interrupt,
  main,
  metrics,
  settings,
  stored,
  watch,
)
from experiments.bench import processes
from tests import tiny

# The model of the quickstart.
FIELDS = processes.FIELDS | {"evaluate.pruning_rates": (0.5,)}


def _wait_for_checkpoint(running, step):
  deadline = time.monotonic() + 900
  while not (running.workdir / "checkpoints" / str(step)).exists():
    assert not running.is_over(), running.wait()
    assert time.monotonic() < deadline
    time.sleep(0.01)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, cache):
  """The workdir of one process that trained alone and was let be."""
  workdir = tmp_path_factory.mktemp("unbroken")
  codes, outputs = processes.Processes(
    workdir, FIELDS, count=1, cache=cache
  ).wait()
  assert codes == [0], outputs
  return workdir


def _assert_same_numbers(workdir, other):
  one, two = (metrics.read(w / "metrics.jsonl") for w in (workdir, other))
  assert [(r["update"], r["split"]) for r in one] == [
    (r["update"], r["split"]) for r in two
  ]
  for a, b in zip(one, two, strict=True):
    values = [[r[k] for k in sorted(a) if k != "split"] for r in (a, b)]
    np.testing.assert_allclose(*values, rtol=1e-3, err_msg=str(a["update"]))


@pytest.mark.slow
def test_a_killed_process_and_a_restart_end_as_one_process_alone(
  unbroken, tmp_path, cache
):
  broken = processes.Processes(tmp_path, FIELDS, cache=cache)
  _wait_for_checkpoint(broken, 10)
  broken.processes[1].kill()
  codes, outputs = broken.wait()  # The other ends by itself.
  assert codes[0] not in (0, None)
  assert "lost the connection" in outputs[0], outputs
  assert not (tmp_path / "checkpoints" / "40").exists()

  codes, outputs = processes.Processes(tmp_path, FIELDS, cache=cache).wait()
  assert codes == [0, 0], outputs
  _assert_same_numbers(tmp_path, unbroken)
  quantized = [
    json.loads((w / "evaluation.json").read_text())["evaluation"]["quantized"]
    for w in (tmp_path, unbroken)
  ]
  assert abs(quantized[0][0]["bytes"] / quantized[1][0]["bytes"] - 1) < 0.01
  # Process 1 has nothing to say; Gloo, which is not ours, says who connects.
  said = [x for x in outputs[1].splitlines() if "[Gloo]" not in x]
  assert not [x for x in said if x.strip()], said
  assert "run 40/40" in outputs[0]


@pytest.mark.parametrize("processes", [2, 4])
def test_the_processes_share_the_batch_of_one(processes):
  config = tiny.config()

  def batches(index, count):
    return iter(
      data.train_dataset(
        config.data,
        seed=config.seed,
        batch_size=config.data.batch_size // count,
        process_index=index,
        process_count=count,
      )
    )

  (alone,) = [batches(0, 1)]
  parts = [batches(i, processes) for i in range(processes)]
  for _ in range(3):
    whole = next(alone)
    for i, part in enumerate(map(next, parts)):
      for key, rows in part.items():
        np.testing.assert_array_equal(rows, whole[key][i::processes])


@pytest.mark.slow
def test_sigterm_to_one_process_saves_and_ends_all(unbroken, tmp_path, cache):
  stopped = processes.Processes(tmp_path, FIELDS, cache=cache)
  _wait_for_checkpoint(stopped, 5)
  stopped.processes[1].send_signal(signal.SIGTERM)
  codes, outputs = stopped.wait()
  assert codes != [0, 0], outputs
  assert "resumes from the checkpoint" in outputs[0], outputs
  codes, outputs = processes.Processes(tmp_path, FIELDS, cache=cache).wait()
  assert codes == [0, 0], outputs
  _assert_same_numbers(tmp_path, unbroken)


@pytest.mark.slow
def test_a_checkpoint_is_restored_onto_another_mesh(tmp_path, monkeypatch):
  stay, move = tmp_path / "stay", tmp_path / "move"
  data_parallel = {"mesh__data": 8}
  main.train_and_evaluate(tiny.config(**data_parallel), stay)
  show = metrics.Progress.show

  def show_and_signal(self, update, values):
    show(self, update, values)
    if update == 5:
      os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(metrics.Progress, "show", show_and_signal)
    with pytest.raises(interrupt.StoppedError):
      main.train_and_evaluate(tiny.config(**data_parallel), move)
  other = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
  main.train_and_evaluate(tiny.config(**other), move)
  _assert_same_numbers(move, stay)


def test_processes_that_cannot_meet_are_told_what_to_set(monkeypatch):
  def refuse(**kwargs):
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(distributed.jax.distributed, "initialize", refuse)
  config = tiny.config(distributed__enable=True)
  with pytest.raises(settings.UserError, match="give all three"):
    distributed.initialize(config)


def _joined(**fields):
  """The config of one of two processes."""
  fields = {
    "enable": True,
    "coordinator": "localhost:12345",
    "processes": 2,
    "process": 1,
    **fields,
  }
  return tiny.config(**{f"distributed__{k}": v for k, v in fields.items()})


@pytest.mark.parametrize(
  "address", ["localhost", "localhost:", "localhost:http", "host:70000", ":1"]
)
def test_an_address_that_is_none_is_refused(address):
  with pytest.raises(settings.UserError, match="wanted host:port"):
    distributed.initialize(_joined(coordinator=address))


def test_a_port_that_is_taken_is_refused():
  with socket.socket() as s:
    s.bind(("", 0))
    s.listen()
    address = f"localhost:{s.getsockname()[1]}"
    with pytest.raises(settings.UserError, match="process of an earlier run"):
      distributed.initialize(_joined(coordinator=address, process=0))


def test_who_waits_for_the_others_at_the_start_is_told_for_which(
  monkeypatch, capsys
):
  ended = threading.Event()
  monkeypatch.setattr(watch, "leave", lambda code: ended.set())
  monkeypatch.setattr(
    distributed.jax.distributed, "initialize", lambda **kwargs: ended.wait(60)
  )
  monkeypatch.setattr(distributed, "_answers", lambda address: False)
  monkeypatch.setattr(
    distributed.jax_distributed.global_state, "num_processes", 1
  )
  distributed.initialize(_joined(timeout=1))
  message = capsys.readouterr().err
  assert "process 0 does not answer at localhost:12345" in message
  assert "for 1 s, to join the other processes" in message


class _Watch:
  """Notes what the others are told."""

  def __init__(self):
    self.told = []

  def leave(self, message, code):
    self.told.append((message, code))


@pytest.mark.parametrize(
  ("error", "code", "text"),
  [
    (settings.UserError("no space left"), 1, "no space left"),
    (
      jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed"),
      1,
      "process 0 lost the connection to another process: UNKNOWN: Gloo",
    ),
    (ZeroDivisionError("by zero"), 1, "ZeroDivisionError"),
  ],
)
def test_an_error_ends_one_of_several_processes_at_once(
  monkeypatch, capsys, error, code, text
):
  one = _Watch()
  monkeypatch.setattr(distributed, "_watch", one)
  with distributed.membership():
    raise error
  ((message, found),) = one.told
  assert text in message
  assert found == code
  is_known = isinstance(error, settings.UserError) or "Gloo" in str(error)
  assert ("Traceback" in capsys.readouterr().err) is not is_known


def test_a_stop_of_all_processes_is_no_error(monkeypatch):
  monkeypatch.setattr(distributed, "_watch", _Watch())
  with pytest.raises(interrupt.StoppedError), distributed.membership():
    raise interrupt.StoppedError("stopped", 15)
  assert not distributed._watch.told


def test_one_process_needs_no_cluster():
  distributed.initialize(tiny.config())
  assert distributed.is_main()
  distributed.barrier("none to wait for")
  assert distributed.agree(3) == 3
  with distributed.waiting("finish an update"):
    pass
  params = {"a": np.ones(2)}
  assert stored.gathered(params) is params
