r"""Kills processes of a training at random moments, and resumes it.

python -m experiments.bench.kills --workdir=/tmp/kills --kills=20 --save=kills
Trains by two processes on CPUs, without a break. Then trains again, and sends
SIGKILL or SIGTERM to one of the processes or to both at a random moment. What
is left has to end by itself; the same command has to resume, and to end with
the same numbers. Several trainings run at once, which keeps the cores busy. One
line for each kill, then a summary as JSON. The same command continues.
"""

import concurrent.futures
import functools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import jax
from absl import flags

from experiments import program
from experiments.bench import processes, timing

_WORKDIR = flags.DEFINE_string("workdir", "/tmp/kills", "Of the trainings.")
_KILLS = flags.DEFINE_integer("kills", 20, "Number of kills.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments and the victims.")
_TIMEOUT = flags.DEFINE_integer("timeout", 120, "config.distributed.timeout.")
_LIMIT = flags.DEFINE_integer("limit", 900, "Seconds; then a process hangs.")
_AT_ONCE = flags.DEFINE_integer("at_once", 4, "Trainings that run at once.")
_SAVE = flags.DEFINE_string("save", None, "Name to keep the result by.")

_RECORDS = 42  # Of every update, and two of the validation.


class Log:
  """What was found until now, a line for each; it outlives the program."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._lock = threading.Lock()
    lines = path.read_text().splitlines() if path.exists() else []
    self.found: list[dict[str, Any]] = [json.loads(line) for line in lines]

  def note(self, **found: Any) -> None:
    """Adds a line."""
    with self._lock, self._path.open("a") as out:
      self.found.append(found)
      print(json.dumps(found), file=out)
      print(json.dumps(found), flush=True)

  def of(self, kind: str) -> list[dict[str, Any]]:
    """The lines that have this field."""
    return [x for x in self.found if kind in x]


def main(argv):
  del argv
  root = pathlib.Path(_WORKDIR.value)
  root.mkdir(parents=True, exist_ok=True)
  log = Log(root / "log.jsonl")
  fields = processes.FIELDS | {"distributed.timeout": _TIMEOUT.value}
  start = functools.partial(
    processes.Processes, fields=fields, cache=root / "compiled"
  )
  if not log.found:
    _finish(start(root / "compiles"))
    running = start(root / "unbroken")
    began = time.monotonic()
    while not (running.is_over() or running.records()):
      time.sleep(0.05)
    first = time.monotonic() - began
    _finish(running)
    log.note(start=round(first), unbroken=round(time.monotonic() - began))
  left = threading.Semaphore(max(0, _KILLS.value - len(log.of("signal"))))
  with concurrent.futures.ThreadPoolExecutor(_AT_ONCE.value) as pool:
    several = [
      pool.submit(_break, root, f"broken_{i}", start, left, log)
      for i in range(_AT_ONCE.value)
    ]
  for one in several:
    one.result()
  results = summary(log)
  if _SAVE.value:
    jax.config.update("jax_platforms", "cpu")
    command = " ".join(["python -m experiments.bench.kills", *sys.argv[1:]])
    timing.write(_SAVE.value, command, results)
  else:
    print(json.dumps(results, indent=2))


def summary(log: Log) -> dict[str, Any]:
  """What came of all kills."""
  kills, trainings = log.of("signal"), log.of("training")
  return {
    "kills": len(kills),
    "hung": sum(k["hung"] for k in kills),
    "SIGTERM after the last update, which ended with 0": sum(
      k["signal"] == "SIGTERM" and k["codes"] == [0, 0] for k in kills
    ),
    "trainings": len(trainings),
    "trainings with the numbers of an unbroken one": sum(
      x["same"] for x in trainings
    ),
    "longest end in seconds": max(k["seconds"] for k in kills),
    "least load average": min(k["load"] for k in kills),
    "seconds of an unbroken training": log.found[0]["unbroken"],
    "every kill": kills,
  }


def _break(root, name, start, left, log):
  """Trains again and again, and kills while there are kills left."""
  wanted = _numbers(root / "unbroken")
  done = sum(x["training"].startswith(f"{name}_") for x in log.of("training"))
  while True:
    workdir = root / f"{name}_{done}"
    kills = sum(k["workdir"] == workdir.name for k in log.of("signal"))
    chance = random.Random(f"{_SEED.value} {workdir.name} {kills}")
    is_chosen = left.acquire(blocking=False)
    running = start(workdir)
    if is_chosen:
      found = _kill(running, chance, log.found[0]["start"])
      if found:
        log.note(workdir=workdir.name, **found)
        continue
      left.release()  # It had ended before.
    _finish(running)
    log.note(training=workdir.name, same=_numbers(workdir) == wanted)
    done += 1
    if not is_chosen:
      return


def _kill(running, chance, start):
  """Sends a signal to one or to both at a random moment.

  One time in four that is in the first `start` seconds, else after a random
  record of those to come. Returns what came of it, once both have ended; None
  if one had ended before.
  """
  seconds = chance.uniform(0, start) if chance.random() < 0.25 else None
  # The last few are never written.
  wanted = chance.randint(len(running.records()) + 1, _RECORDS + 3)
  began = time.monotonic()
  while True:
    if running.is_over():
      return None
    if seconds is None and len(running.records()) >= wanted:
      time.sleep(chance.uniform(0, 1))
      break
    if seconds is not None and time.monotonic() - began > seconds:
      break
    time.sleep(0.05)
  victims = chance.choice([[0], [1], [0, 1]])
  number = chance.choice([signal.SIGKILL, signal.SIGTERM])
  records = running.records()
  for i in victims:
    running.processes[i].send_signal(number)
  began = time.monotonic()
  try:
    codes, said = running.wait(_LIMIT.value)
  except subprocess.TimeoutExpired:
    codes, said = [p.poll() for p in running.processes], []
    running.kill()
  lines = [line for text in said for line in text.splitlines()]
  return {
    "load": os.getloadavg()[0],
    "signal": number.name,
    "to": victims,
    "after update": records[-1]["update"] if records else 0,
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


if __name__ == "__main__":
  program.run(main)
