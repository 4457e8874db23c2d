"""Several processes are one training, whatever becomes of them or the mesh."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import data, distributed, interrupt, main, metrics, settings
from tests import paths, tiny

FIELDS = {
  "total_updates": 40,
  "log_every": 4,
  "eval_every": 20,
  "evaluate.steps": (2.0**-5,),
  "evaluate.pruning_rates": (0.5,),
  "mesh.data": 1,
  "mesh.fsdp": 2,
}


class Processes:
  """`count` processes of experiments.main, each with 2 / count devices."""

  def __init__(self, workdir, cache, count=2):
    with socket.socket() as s:
      s.bind(("localhost", 0))
      port = s.getsockname()[1]
    fields = {f"--config.{k}={v!r}" for k, v in FIELDS.items()}
    devices = f"--xla_force_host_platform_device_count={2 // count}"
    environment = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": devices,
      "JAX_COMPILATION_CACHE_DIR": str(cache),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    self.workdir = workdir
    self.processes = []
    for i in range(count):
      join = [
        "--config.distributed.enable=True",
        f"--config.distributed.coordinator=localhost:{port}",
        f"--config.distributed.processes={count}",
        f"--config.distributed.process={i}",
      ]
      command = [
        *(sys.executable, "-m", "experiments.main"),
        *("--config=configs/default.py", f"--workdir={workdir}"),
        *tiny.flags(),
        *fields,
        *(join if count > 1 else ()),
      ]
      self.processes.append(
        subprocess.Popen(
          command,
          cwd=paths.ROOT,
          env=environment,
          text=True,
          stdout=subprocess.PIPE,
          stderr=subprocess.STDOUT,
        )
      )

  def wait(self):
    """Their exit codes and outputs."""
    outputs = [p.communicate(timeout=900)[0] for p in self.processes]
    return [p.returncode for p in self.processes], outputs

  def wait_for_checkpoint(self, step):
    path = self.workdir / "checkpoints" / str(step)
    deadline = time.monotonic() + 900
    while not path.exists():
      running = [p.poll() is None for p in self.processes]
      assert all(running), self.wait()
      assert time.monotonic() < deadline
      time.sleep(0.01)

  def kill(self):
    for p in self.processes:
      p.kill()
      p.communicate()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, cache):
  """The workdir of one process that trained alone and was let be."""
  workdir = tmp_path_factory.mktemp("unbroken")
  codes, outputs = Processes(workdir, cache, count=1).wait()
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
  broken = Processes(tmp_path, cache)
  broken.wait_for_checkpoint(8)
  broken.processes[1].kill()
  time.sleep(1)
  broken.kill()  # What a cluster does to the others.
  assert not (tmp_path / "checkpoints" / "40").exists()

  codes, outputs = Processes(tmp_path, cache).wait()
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
  stopped = Processes(tmp_path, cache)
  stopped.wait_for_checkpoint(4)
  stopped.processes[1].send_signal(signal.SIGTERM)
  codes, outputs = stopped.wait()
  assert codes != [0, 0], outputs
  assert "resumes from the checkpoint" in outputs[0], outputs
  codes, outputs = Processes(tmp_path, cache).wait()
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


def test_one_process_needs_no_cluster():
  distributed.initialize(tiny.config())
  assert distributed.is_main()
  distributed.barrier("none to wait for")
  assert distributed.gather({"a": np.ones(2)})["a"].sum() == 2
