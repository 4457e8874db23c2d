"""Trainings by several processes on CPUs, for benchmarks and tests."""

import os
import pathlib
import socket
import subprocess
import sys
import time

from experiments import metrics

ROOT = pathlib.Path(__file__).parents[2]
# A short training of the quickstart's model, which is the default.
FIELDS: dict[str, object] = {
  "total_updates": 40,
  "log_every": 1,
  "eval_every": 20,
  "checkpoint_every": 5,
  "rate.shape": 1.0,
  "rate.target": 1.0,
  "evaluate.steps": (2.0**-5,),
  "evaluate.pruning_rates": (),
  "data.max_eval": 512,
  "mesh.data": 1,
  "mesh.fsdp": 2,
}


class Processes:
  """Processes of experiments.main on CPUs that form one training.

  Args:
    workdir: theirs; process i writes what it prints to `workdir`.log.i.
    fields: of the config, by "a.b".
    count: of processes; all together have two devices.
    config: the file.
    cache: directory of compiled programs.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    fields: dict[str, object],
    count: int = 2,
    config: str = "configs/default.py",
    cache: pathlib.Path | None = None,
  ):
    with socket.socket() as s:
      s.bind(("localhost", 0))
      port = s.getsockname()[1]
    devices = f"--xla_force_host_platform_device_count={2 // count}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices}
    if cache:
      environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
      environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    joined: dict[str, object] = {}
    if count > 1:
      joined = {
        "distributed.enable": True,
        "distributed.coordinator": f"localhost:{port}",
        "distributed.processes": count,
      }
    self.workdir = workdir
    self._logs = [
      workdir.with_name(f"{workdir.name}.log.{i}") for i in range(count)
    ]
    self.processes = []
    for i, log in enumerate(self._logs):
      every = fields | joined
      if count > 1:
        every["distributed.process"] = i
      with log.open("w") as out:
        self.processes.append(
          subprocess.Popen(
            [
              *(sys.executable, "-m", "experiments.main"),
              *(f"--config={config}", f"--workdir={workdir}"),
              *(f"--config.{k}={_flag(v)}" for k, v in every.items()),
            ],
            cwd=ROOT,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
          )
        )

  def wait(self, seconds: float = 900) -> tuple[list[int], list[str]]:
    """Their exit codes and what they printed, once all have ended.

    Raises:
      TimeoutExpired: one is still there after `seconds`.
    """
    deadline = time.monotonic() + seconds
    for p in self.processes:
      p.wait(max(deadline - time.monotonic(), 0.01))
    codes = [p.returncode for p in self.processes]
    return codes, [log.read_text() for log in self._logs]

  def is_over(self) -> bool:
    """Whether one of them has ended."""
    return any(p.poll() is not None for p in self.processes)

  def records(self) -> list[dict]:
    """What they have written to metrics.jsonl."""
    return metrics.read(self.workdir / "metrics.jsonl")

  def kill(self) -> None:
    """Ends them all, as a cluster does."""
    for p in self.processes:
      p.kill()
      p.wait()


def _flag(value):
  return value if isinstance(value, str) else repr(value)
