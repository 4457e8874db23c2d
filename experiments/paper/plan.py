"""The cells of the paper: planned, run, and recorded in a file each.

The configs are those of configs/paper. A record is a JSON file with everything
that tables and figures show of a cell and one seed, so that they can be made
again without the trained models.
"""

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import backslash_jax as bs
from backslash_jax.coding import exp_golomb
from configs import default
from configs.paper import common, medium, ours, rows, sweep, table6
from experiments import atomic, cells, evaluate, metrics, resume, settings
from experiments.data import bpe

# The first parts of the cells' names, in the order in which they run.
CONFIGS = (
  "sweep",
  "table4_bert",
  "table5_newsgroups",
  "table5_enron",
  "table6",
  "ours",
  "table4_gpt2",
  "table4_llama3",
  "table4_gemma2",
  "table5_squad",
  "table5_wmt19",
)
STEP = 2.0**-8  # The paper's, of all of its tables.
ORDERS = range(5)
WORDS = common.SMALL_WORDS

# Fields that differ between machines and are not part of a record.
_PLACES = ("data.source", "data.dir", "data.tokenizer", "model.weights")
_POINTS = 100  # Of the training metrics, per record.
_BINS = 121  # Of a histogram.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell(cells.Cell):
  """A cell of the paper and one seed; equal cells of two tables share `record`.

  Attributes:
    name: of the config and its arm, "table4_bert/normal".
    seed: of the initial parameters and the order of the data.
    record: the JSON file with its results.
  """

  seed: int
  record: pathlib.Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
  """The paths of a machine.

  Attributes:
    workdir: of the trainings.
    results: of records, tables and figures.
    source: as data.source; None downloads.
    encoder: MiniLM's directory or hub id; None: that of the configs.
    llama: the same of SmolLM2, of the medium profile.
  """

  workdir: pathlib.Path
  results: pathlib.Path
  source: str | None = None
  encoder: str | None = None
  llama: str | None = None


def plan(profile: str, places: Places, seeds: Sequence[int]) -> list[Cell]:
  """Every cell of the paper, in the order in which they run.

  Args:
    profile: of `common.PROFILES`.
    places: only named in the cells; nothing is read.
    seeds: all cells of the first seed come before those of the next.

  Raises:
    UserError: a field of a config is not usable.
  """
  planned: list[Cell] = []
  first: dict[str, tuple[pathlib.Path, pathlib.Path]] = {}
  for seed in seeds:
    for name in CONFIGS:
      config = _config(name, profile, places)
      for arm, own in settings.arms(config).items():
        own = own.copy_and_resolve_references().unlock()
        own.seed, own.baseline = seed, "normal"
        label = f"{name}-{arm}-seed{seed}"
        key = json.dumps(
          [resume.decisive(own), own.evaluate.to_dict()], sort_keys=True
        )
        directory, record = first.setdefault(
          key,
          (
            places.workdir / "cells" / label,
            places.results / "cells" / f"{label}.json",
          ),
        )
        planned.append(
          Cell(
            name=f"{name}/{arm}",
            config=own.lock(),
            directory=directory,
            training=directory,
            seed=seed,
            record=record,
          )
        )
  return cells.share(planned)


def run(planned: Sequence[Cell], names: Collection[str]) -> None:
  """Runs, or resumes, those cells of these names that have no record yet.

  Raises:
    UserError: what the user can fix.
  """
  wanted: dict[pathlib.Path, Cell] = {}
  for cell in planned:
    if cell.name in names:
      wanted.setdefault(cell.record, cell)
  missing = [cell for cell in wanted.values() if read(cell) is None]
  scores: dict[str, Any] = {}
  with cells.take(missing) as taken:
    for number, cell in enumerate(taken, start=1):
      if read(cell) is not None:
        continue  # Another process was faster.
      print(
        f"{cell.name}, seed {cell.seed}: cell {number} of {len(missing)}",
        flush=True,
      )
      if cell.config.data.tokenizer.endswith("words"):
        _make_words(cell.config)
      began = time.monotonic()
      evaluation = cells.finish(cell, scores)
      seconds = time.monotonic() - began
      _write(cell, evaluation, seconds)


def read(cell: Cell) -> dict[str, Any] | None:
  """The record of a cell; None without one of the same configuration."""
  try:
    record = json.loads(cell.record.read_text())
    before = resume.with_new_fields(record["config"])
    before = {k: v for k, v in before.items() if k not in _PLACES}
    new = _described(default.get_config())["evaluate"]
    before["evaluate"] = new | record["config"].get("evaluate", {})
    return record if before == _described(cell.config) else None
  except FileNotFoundError:
    return None
  except (ValueError, KeyError, TypeError) as error:
    raise settings.UserError(
      f"{cell.record} is not a record of a cell ({error!r}); delete it to run"
      " the cell again"
    ) from error


def records(planned: Sequence[Cell], name: str) -> dict[int, dict[str, Any]]:
  """Seed -> record of the cells of this name that have one."""
  found = {c.seed: read(c) for c in planned if c.name == name}
  return {seed: record for seed, record in found.items() if record}


def quantized(record: Mapping[str, Any], step: float = STEP) -> dict[str, Any]:
  """The entry of the evaluation for one quantization step."""
  found = record["evaluation"]["quantized"]
  return next(q for q in found if q["step"] == step)


def _config(name, profile, places):
  """The config of a name of CONFIGS, with the places of this machine."""
  if name in rows.ROWS:
    config = rows.get_config(f"{name}/{profile}")
  else:
    modules = {"sweep": sweep, "table6": table6, "ours": ours}
    config = modules[name].get_config(profile)
  config.data.source = places.source
  if config.data.tokenizer == WORDS:
    config.data.tokenizer = str(places.workdir / "words")
  here = {medium.MINILM: places.encoder, medium.SMOLLM2: places.llama}
  if directory := here.get(config.model.weights):
    config.data.tokenizer = config.model.weights = directory
  return config.lock()


def _make_words(config):
  try:
    bpe.write(
      "imdb",
      pathlib.Path(config.data.tokenizer),
      size=4096,
      source=config.data.source,
    )
  except (ValueError, OSError, ModuleNotFoundError) as error:
    raise settings.UserError(str(error)) from error


def _described(config) -> dict[str, Any]:
  """The fields that decide the results, without the paths of a machine."""
  fields = resume.decisive(config)
  fields["evaluate"] = json.loads(json.dumps(config.evaluate.to_dict()))
  return {k: v for k, v in fields.items() if k not in _PLACES}


def _write(cell: Cell, evaluation: dict[str, Any], seconds: float) -> None:
  params, _ = cells.load(cell)
  matrices = np.concatenate([np.ravel(x) for x in evaluate.matrices(params)])
  history = metrics.read(cell.training / "metrics.jsonl")
  record = {
    "cell": cell.name,
    "seed": cell.seed,
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "cpus": os.cpu_count(),
    "seconds": round(seconds, 1),
    "config": _described(cell.config),
    "evaluation": evaluation,
    "exp_golomb_orders": _orders(matrices),
    "distribution": _distribution(matrices),
    "history": _thinned([r for r in history if r["split"] == "train"]),
  }
  atomic.write_text(cell.record, json.dumps(record, indent=1) + "\n")


def _orders(matrices: np.ndarray) -> list[float]:
  """Bits per parameter of exp-Golomb codes of each order, at STEP."""
  symbols = np.rint(matrices / STEP).astype(np.int32)
  model = exp_golomb.fit(symbols, ranked=True)
  return [
    exp_golomb.code_length(symbols, model._replace(order=k)) / symbols.size
    for k in ORDERS
  ]


def _distribution(matrices: np.ndarray) -> dict[str, Any]:
  """A histogram of the matrices, and the generalized Gaussian that fits."""
  moments = bs.moments.moments(jnp.asarray(matrices))
  nu = bs.moments.shape_parameter(moments)
  alpha = bs.ggd.scale(nu, moments.abs_sum / moments.count)
  limit = max(float(np.quantile(np.abs(matrices), 0.999)), 1e-6)
  density, _ = np.histogram(
    matrices, bins=_BINS, range=(-limit, limit), density=True
  )
  inside = float(np.mean(np.abs(matrices) <= limit))
  return {
    "nu": float(nu),
    "alpha": float(alpha),
    "deviation": float(np.sqrt(np.mean(np.square(matrices, dtype=float)))),
    "limit": limit,
    "density": [float(f"{d * inside:.4g}") for d in density],
  }


def _thinned(history: list[dict[str, Any]]) -> list[dict[str, float]]:
  """At most _POINTS records with the metrics of figures; the last one stays."""
  every = max(1, -(-len(history) // _POINTS))
  kept = history[::-1][::every][::-1]
  names = "update", "loss", "accuracy", "nu", "bits"
  return [{k: float(f"{r[k]:.5g}") for k in names} for r in kept]
