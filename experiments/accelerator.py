"""Everything that needs an accelerator, in order of value, in a given time.

python -m experiments.accelerator --minutes=10 --source=DATA

The stages are programs of their own: the kernels against float64, the
benchmarks of the moments and of the optimizer, the decision whether the Pallas
kernel for GPUs is worth it, the cells of the profile "medium" and the row of
the paper's BERT on IMDB. Each gets its share of the time that is left. One
that takes longer is interrupted: it keeps its checkpoint, and the same command
goes on with it. WORKDIR/accelerator.json has what is finished and how the
others ended; it is written after every stage. WORKDIR/bench gets the results of
the benchmarks. See docs/reproduction.md.
"""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments import atomic, program, settings

_MINUTES = flags.DEFINE_float("minutes", 10.0, "Of all stages together.")
_WORKDIR = flags.DEFINE_string(
  "workdir", "runs/accelerator", "Gets the trainings and accelerator.json."
)
_SOURCE = flags.DEFINE_string(
  "source", None, "Directory with the data sets; downloaded without it."
)
_ENCODER = flags.DEFINE_string(
  "encoder", None, "Directory of MiniLM; downloaded without it."
)
_TINY = flags.DEFINE_bool(
  "tiny", False, "A few updates and the smallest sizes: tries the program."
)

_GRACE = 30.0  # Seconds in which an interrupted stage keeps its checkpoint.
_WORTH = 1.05  # How much faster a kernel must be to be chosen by default.


@dataclasses.dataclass(frozen=True)
class Stage:
  """A program.

  Attributes:
    name: in accelerator.json.
    command: the arguments of Python.
    share: of the time, relative to those of the stages that follow.
  """

  name: str
  command: tuple[str, ...]
  share: float


def stages(
  workdir: pathlib.Path,
  *,
  source: str | None = None,
  encoder: str | None = None,
  tiny: bool = False,
) -> list[Stage]:
  """The stages in their order, the most valuable first."""
  places = [
    f"--{k}={v}" for k, v in (("source", source), ("encoder", encoder)) if v
  ]

  def bench(name, *arguments):
    return "-m", f"experiments.bench.{name}", *arguments

  def cells(profile, table, patterns, seeds):
    return (
      "-m",
      "experiments.paper.tables",
      f"--profile={profile}",
      f"--table={table}",
      f"--cells={patterns}",
      f"--seeds={seeds}",
      f"--workdir={workdir / profile}",
      *places,
    )

  if tiny:
    few = "--repeats=2"
    return [
      Stage("kernels", bench("kernels"), 1),
      Stage("moments", bench("moments", few, "--calls=1"), 1),
      Stage("optimizer", bench("optimizer", few, "--shapes=embeddings"), 1),
      Stage("medium", cells("small", "6", "table6/normal", "0"), 1),
    ]
  pair = "sweep/normal,sweep/lambda1000"
  return [
    Stage("kernels", bench("kernels"), 1),
    Stage("moments", bench("moments"), 1),
    Stage("optimizer", bench("optimizer"), 1),
    Stage("medium pair", cells("medium", "sweep", pair, "0,1"), 4),
    Stage("full pair", cells("full", "sweep", pair, "0"), 6),
    Stage("medium", cells("medium", "sweep", "sweep/*", "0,1"), 6),
    Stage("medium tasks", cells("medium", "5", "table5_[en]*", "0"), 4),
    Stage("medium rates", cells("medium", "6", "table6/*", "0"), 4),
    Stage("medium recipes", cells("medium", "ours", "ours/*", "0"), 4),
    Stage("full", cells("full", "sweep", "sweep/*", "0"), 8),
  ]


def run(todo: Sequence[Stage], path: pathlib.Path, seconds: float) -> bool:
  """Runs the stages that are not finished; returns whether all are.

  Args:
    todo: in their order.
    path: of accelerator.json.
    seconds: of all of them together.

  Raises:
    UserError: path is damaged.
  """
  found = _read(path)

  def is_finished(stage):
    return found.get(stage.name, {}).get("status") == "finished"

  end = time.monotonic() + seconds
  left_over = [stage for stage in todo if not is_finished(stage)]
  for i, stage in enumerate(left_over):
    left = end - time.monotonic()
    if left <= 0:
      break
    own = left * stage.share / sum(s.share for s in left_over[i:])
    print(f"{stage.name}: at most {own:.0f} s", flush=True)
    found[stage.name] = _run(stage, own, path.parent / f"{stage.name}.log")
    atomic.write_text(path, json.dumps(found, indent=1) + "\n")
    print(f"{stage.name}: {found[stage.name]['status']}", flush=True)
  return all(map(is_finished, todo))


def is_worth(moments: dict[str, Any]) -> dict[str, Any]:
  """Whether the Pallas kernel for GPUs is to be the default for them.

  Args:
    moments: the results of `bench.moments` on a GPU.

  Returns:
    "speedup": over XLA, by tensor; "worth": whether the least is `_WORTH`.
  """
  speedups = {}
  for name, tensor in moments.items():
    speeds = [
      tensor[key]["wall"]["GB/s"]["median"]
      for key in ("pallas_gpu", "xla")
      if key in tensor
    ]
    if len(speeds) == 2:
      speedups[name] = round(speeds[0] / speeds[1], 3)
  worth = bool(speedups) and min(speedups.values()) >= _WORTH
  return {"speedup": speedups, "worth": worth}


def _run(stage, seconds, log):
  """The stage's status, seconds, command and last lines."""
  began = time.monotonic()
  log.parent.mkdir(parents=True, exist_ok=True)
  with log.open("w") as file:
    process = subprocess.Popen(
      [sys.executable, *stage.command],
      stdout=file,
      stderr=subprocess.STDOUT,
      start_new_session=True,
      env=os.environ | {"BENCH_RESULTS": str(log.parent / "bench")},
    )
    try:
      code = process.wait(seconds)
      status = "finished" if code == 0 else "failed"
    except subprocess.TimeoutExpired:
      code, status = _stop(process), "interrupted"
    except BaseException:
      _stop(process)
      raise
  last = log.read_text(errors="replace").splitlines()[-20:]
  return {
    "status": status,
    "exit_code": code,
    "seconds": round(time.monotonic() - began, 1),
    "command": ["python", *stage.command],
    "last_lines": last,
  }


def _stop(process):
  """Interrupts a process and what it started; kills it after `_GRACE`."""
  for number in (signal.SIGTERM, signal.SIGKILL):
    try:
      os.killpg(process.pid, number)
      return process.wait(_GRACE)
    except ProcessLookupError:
      return process.wait()
    except subprocess.TimeoutExpired:
      continue
  return process.wait()


def _read(path):
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    return {}
  except ValueError as error:
    raise settings.UserError(
      f"{path} is damaged ({error}); delete it to run all stages again"
    ) from error


def _main(argv):
  del argv
  if not _MINUTES.value > 0:
    raise settings.UserError(
      f"--minutes is {_MINUTES.value}, wanted a number above 0"
    )
  # So that the stage that runs is stopped too.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  workdir = pathlib.Path(_WORKDIR.value)
  todo = stages(
    workdir,
    source=_SOURCE.value,
    encoder=_ENCODER.value,
    tiny=_TINY.value,
  )
  path = workdir / "accelerator.json"
  done = run(todo, path, 60 * _MINUTES.value)
  measured = workdir / "bench" / "moments_gpu.json"
  if measured.exists():
    decision = is_worth(_read(measured)["results"])
    text = json.dumps(decision, indent=1) + "\n"
    atomic.write_text(workdir / "pallas_gpu.json", text)
    print(f"pallas_gpu: {decision}")
  print(f"{'all is finished' if done else 'not all is finished'}, see {path}")


if __name__ == "__main__":
  program.run(_main)
