r"""Kills processes of a training at random moments, and resumes it.

python -m experiments.bench.kills --workdir=/tmp/kills --kills=20
Trains by two processes on CPUs, without a break. Then trains again, and sends
SIGKILL or SIGTERM to one of the processes or to both at a random moment. What
is left has to end by itself; the same command has to resume, and to end with
the same numbers. One line for each kill, then a summary as JSON.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

from absl import app, flags

_WORKDIR = flags.DEFINE_string("workdir", "/tmp/kills", "Is emptied first.")
_KILLS = flags.DEFINE_integer("kills", 20, "Number of kills.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments and the victims.")
_TIMEOUT = flags.DEFINE_integer("timeout", 120, "config.distributed.timeout.")
_LIMIT = flags.DEFINE_integer("limit", 900, "Seconds; then a process hangs.")

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

  def kill(self) -> None:
    """Ends them all, as a cluster does."""
    for p in self.processes:
      p.kill()
      p.wait()


def _flag(value):
  return value if isinstance(value, str) else repr(value)


def main(argv):
  del argv
  root = pathlib.Path(_WORKDIR.value)
  shutil.rmtree(root, ignore_errors=True)
  root.mkdir(parents=True)
  fields = FIELDS | {"distributed.timeout": _TIMEOUT.value}
  cache = root / "compiled"
  _finish(Processes(root / "unbroken", fields, cache=cache))  # Compiles.
  shutil.rmtree(root / "unbroken")
  began = time.monotonic()
  _finish(Processes(root / "unbroken", fields, cache=cache))
  length = time.monotonic() - began
  wanted = _numbers(root / "unbroken")
  chance = random.Random(_SEED.value)
  found = []
  trainings = 0
  workdir = root / "broken_0"
  while len(found) < _KILLS.value:
    running = Processes(workdir, fields, cache=cache)
    end = time.monotonic() + chance.uniform(0, length)
    while time.monotonic() < end and not running.is_over():
      time.sleep(0.05)
    if not running.is_over():
      found.append(_kill(running, chance))
      print(json.dumps({"kill": len(found), **found[-1]}), flush=True)
      if found[-1]["hung"]:
        running.kill()
      continue
    _finish(running)
    _compare(workdir, wanted)
    trainings += 1
    workdir = root / f"broken_{trainings}"
  _finish(Processes(workdir, fields, cache=cache))
  _compare(workdir, wanted)
  summary = {
    "kills": len(found),
    "hung": sum(k["hung"] for k in found),
    "trainings with the same numbers": trainings + 1,
    "longest end in seconds": max(k["seconds"] for k in found),
    "length of a training in seconds": round(length),
  }
  print(json.dumps(summary))


def _kill(running, chance):
  """Sends a signal to one or to both, and waits for the end of both."""
  victims = chance.choice([[0], [1], [0, 1]])
  number = chance.choice([signal.SIGKILL, signal.SIGTERM])
  records = running.workdir / "metrics.jsonl"
  update = len(records.read_text().splitlines()) if records.exists() else 0
  for i in victims:
    running.processes[i].send_signal(number)
  began = time.monotonic()
  try:
    codes, said = running.wait(_LIMIT.value)
  except subprocess.TimeoutExpired:
    codes, said = [p.poll() for p in running.processes], []
  lines = [line for text in said for line in text.splitlines()]
  return {
    "signal": number.name,
    "to": victims,
    "records": update,
    "codes": codes,
    "seconds": round(time.monotonic() - began, 1),
    "hung": None in codes,
    "said": [x[:200] for x in lines if x.startswith("error:")],
  }


def _finish(running):
  codes, said = running.wait(_LIMIT.value)
  if codes != [0, 0]:
    raise SystemExit(f"ended with {codes}:\n" + "\n".join(said))


def _numbers(workdir):
  evaluation = json.loads((workdir / "evaluation.json").read_text())
  return (workdir / "metrics.jsonl").read_text(), evaluation["evaluation"]


def _compare(workdir, wanted):
  if _numbers(workdir) != wanted:
    raise SystemExit(f"{workdir} ended with other numbers than an unbroken one")


if __name__ == "__main__":
  app.run(main)
