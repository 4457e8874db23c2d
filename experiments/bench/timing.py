"""Timing in one process: candidates in turns, medians with spread, JSON.

The environment variable BENCH_RESULTS is another directory of the results.
"""

import datetime
import json
import os
import pathlib
import platform as host
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import flags

RESULTS = pathlib.Path(
  os.environ.get("BENCH_RESULTS") or pathlib.Path(__file__).parent / "results"
)

REPEATS = flags.DEFINE_integer("repeats", 16, "Timed calls of each candidate.")

Times = dict[str, dict[str, list[float]]]


def measure(candidates: dict[str, Callable[[], Any]], repeats: int) -> Times:
  """Seconds of every call, by candidate and clock.

  The candidates take turns, which spreads over all of them alike what else
  the machine does. "wall" is elapsed time; "processor" is what all threads of
  this process worked, which other processes on the machine disturb less; it
  tells nothing where an accelerator does the work. A first call of each, which
  may compile, is not counted.
  """
  times: Times = {name: {"wall": [], "processor": []} for name in candidates}
  for i in range(repeats + 1):
    for name, run in candidates.items():
      start = time.perf_counter(), time.process_time()
      jax.block_until_ready(run())
      if i:
        times[name]["wall"].append(time.perf_counter() - start[0])
        times[name]["processor"].append(time.process_time() - start[1])
  return times


def seconds(
  candidates: dict[str, Callable[[], Any]], repeats: int
) -> dict[str, list[float]]:
  """Elapsed seconds of every call, by candidate; see `measure`."""
  times = measure(candidates, repeats)
  return {name: clocks["wall"] for name, clocks in times.items()}


def summary(samples: list[float]) -> dict[str, float]:
  """Median, quartiles and mean of a list of numbers."""
  low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
  return {
    "median": middle,
    "quartile_1": low,
    "quartile_3": high,
    "mean": statistics.fmean(samples),
  }


def compare(times: Times, baseline: str) -> dict[str, Any]:
  """Per candidate and clock: the seconds, and the ratio to the baseline's.

  "ratio" summarizes the ratios of the calls of the same turn, and
  "ratio_of_means" counts also what a candidate does only now and then.
  """
  result: dict[str, Any] = {}
  for name, clocks in times.items():
    result[name] = {}
    for clock, samples in clocks.items():
      base = times[baseline][clock]
      turns = [a / b for a, b in zip(samples, base, strict=True)]
      result[name][clock] = {
        "seconds": summary(samples),
        "ratio": summary(turns),
        "ratio_of_means": statistics.fmean(samples) / statistics.fmean(base),
      }
  return result


def machine() -> dict[str, Any]:
  """Where something was measured."""
  device = jax.devices()[0]
  return {
    "platform": device.platform,
    "device": device.device_kind,
    "devices": jax.device_count(),
    "host": _processor(),
    "jax": jax.__version__,
  }


def write(name: str, command: str, results: Any) -> None:
  """Writes results/NAME_PLATFORM.json, with the machine, and prints it."""
  document = {
    "command": command,
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "machine": machine(),
    "results": results,
  }
  RESULTS.mkdir(parents=True, exist_ok=True)
  text = json.dumps(document, indent=2)
  platform = document["machine"]["platform"]
  (RESULTS / f"{name}_{platform}.json").write_text(text + "\n")
  print(text)


def _processor():
  """Number and model of the host's processors."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    models = [x.split(":")[1].strip() for x in lines if "model name" in x]
    return f"{len(models)} x {models[0]}"
  except (OSError, IndexError):
    return host.processor() or host.machine()
