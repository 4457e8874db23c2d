"""python -m experiments.deploy --workdir=RUN --out=DIR [--int8]

From a finished training to a directory that ONNX Runtime serves: the coded
model is read, what is zero in it is taken out, and the rest is written as
ONNX, StableHLO and a coded file, with the tokenizer and the labels. docs/
deploy.md has a script that serves it.
"""

import argparse
import dataclasses
import json
import pathlib
import shutil
import tempfile
from typing import Any

import ml_collections
import numpy as np
from flax import nnx

import backslash_jax as bs
from backslash_jax import quantize
from experiments import data, evaluate, models, resume, settings
from experiments.data import tokenizer
from experiments.deploy import export, simplify
from experiments.models import functional

INT8_TOLERANCE = 1.0  # Points of validation accuracy that int8 may cost.


@dataclasses.dataclass(frozen=True)
class Trained:
  """A finished training: its config, task, and the coded model it shipped."""

  config: ml_collections.ConfigDict
  task: data.Task
  model_config: Any
  file: pathlib.Path


def held(directory: pathlib.Path) -> str:
  """Which finished trainings a directory holds; "" if there is none."""
  found = sorted(p.parent for p in directory.glob(f"*/{evaluate.SHIPPED}"))
  names = ", ".join(path.name for path in found)
  return f"it holds {names}: name one, such as {found[0]}" if found else ""


def read(workdir: pathlib.Path) -> Trained:
  """The training in a directory.

  Raises:
    UserError: it is none, or has not finished.
  """
  path, file = workdir / "config.json", workdir / evaluate.SHIPPED
  if not path.exists() or not file.exists():
    advice = held(workdir)
    advice = advice or "train it to its end with experiments.main first"
    raise settings.UserError(
      f"{workdir} has no config.json with a {evaluate.SHIPPED}; {advice}"
    )
  config = resume.read_config(workdir)
  try:
    task = data.load_task(config.data)
    built: Any = nnx.eval_shape(
      lambda: models.build(config.model, task, seed=config.seed)
    )
  except (ValueError, OSError, AttributeError) as error:
    raise settings.UserError(f"{path}: {error}") from error
  chosen = dataclasses.replace(built.config, dtype="float32")
  return Trained(config, task, chosen, file)


def deploy(
  workdir: pathlib.Path, out: pathlib.Path, *, int8: bool = False
) -> dict[str, Any]:
  """Writes the directory `out`, whole or not at all.

  Args:
    workdir: of one finished training.
    out: must not exist, or be empty.
    int8: writes model.int8.onnx too.

  Returns:
    What model.json holds.

  Raises:
    UserError: there is nothing to deploy, or `out` is taken.
    export.ExportError: an export does not match, or int8 costs too much.
  """
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise settings.UserError(f"{out} is not empty: name another --out")
  trained = read(workdir)
  for field in ("delta", "lora"):
    if trained.config.model.get(field):
      raise settings.UserError(
        f"{workdir} was trained with config.model.{field}, so its file is not a"
        " whole model: only those are exported"
      )
  try:
    params = bs.load(trained.file)
  except bs.ArchiveError as error:
    raise settings.UserError(str(error)) from error
  model = simplify.simplify(trained.model_config, params)
  out.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=out.parent, prefix=".deploy_") as name:
    folder = pathlib.Path(name) / "files"
    folder.mkdir()
    described = _fill(folder, trained, model, int8)
    if out.exists():
      out.rmdir()
    shutil.move(folder, out)
  return described


def _fill(folder, trained, model, int8):
  """Writes all files; returns what model.json holds."""
  config, task = trained.config, trained.task
  differences = {
    "model.onnx": export.write_onnx(model, folder / "model.onnx"),
    "model.stablehlo": export.write_stablehlo(
      model, folder / "model.stablehlo"
    ),
  }
  accuracy = {"model.onnx": score(config, folder / "model.onnx", "validation")}
  if int8:
    path = folder / "model.int8.onnx"
    export.write_int8(folder / "model.onnx", path)
    accuracy[path.name] = score(config, path, "validation")
    lost = 100 * (accuracy["model.onnx"] - accuracy[path.name])
    if lost > INT8_TOLERANCE:
      raise export.ExportError(
        f"{path.name} is not written: int8 costs {lost:.2f} points of the"
        f" validation accuracy, wanted {INT8_TOLERANCE:g} at most"
      )
  save_archive(folder / "model.backslash.safetensors", trained.file, model)
  kind = _write_tokenizer(config.data.tokenizer, folder)
  multiple, longest = export.lengths(model.config)
  described = {
    "task": task.name,
    "labels": list(task.class_names),
    "tokenizer": kind,
    "length": task.seq_len,
    "multiple_of": multiple,
    "longest": longest,
    "model": type(model.config).__module__.rpartition(".")[2],
    "config": dataclasses.asdict(model.config),
    "simplified": [dataclasses.asdict(line) for line in model.report],
    "largest_difference": differences,
    "validation_accuracy": accuracy,
    "bytes": {p.name: p.stat().st_size for p in sorted(folder.iterdir())},
  }
  (folder / "model.json").write_text(json.dumps(described, indent=2) + "\n")
  return described


def save_archive(
  path: pathlib.Path, source: pathlib.Path, model: simplify.Simplified
) -> bs.Report:
  """Codes a simplified model with the steps of the file that it came from.

  What is no multiple of its step, a bias that took a constant in, is stored
  exactly, and so is the table of tokens, as "token_ids".
  """
  steps = {t.name: t.step for t in bs.inspect(source).tensors if t.step}
  leaves = functional.flatten(model.params)
  coded = {
    name: step
    for name, step in steps.items()
    if name in leaves and _is_multiple(leaves[name], step)
  }
  tree = dict(model.params)
  if model.token_ids is not None:
    kind = np.min_scalar_type(int(model.token_ids.max()))
    tree["token_ids"] = model.token_ids.astype(kind)
  return bs.save(path, tree, step=coded, mask=list(coded))


def _is_multiple(x, step):
  """Whether coding x with this step loses nothing."""
  levels = quantize.quantize(x, step)
  return np.array_equal(x, quantize.dequantize(levels, step, x.dtype))


def score(
  config: ml_collections.ConfigDict, path: pathlib.Path, split: str
) -> float:
  """Accuracy of an ONNX file on a split, in [0, 1]."""
  run = export.onnx_runner(path)
  hits = weight = 0.0
  size = config.data.eval_batch_size
  for batch in data.eval_batches(config.data, split, size):
    logits = run(batch["tokens"], batch["mask"])
    right = np.argmax(logits, axis=-1) == batch["targets"]
    hits += float(np.sum(right * batch["weights"]))
    weight += float(np.sum(batch["weights"]))
  return hits / weight


def _write_tokenizer(name, folder):
  """Writes tokenizer.json, if there is one; returns what model.json says."""
  if name == "bytes":
    return "bytes"
  try:
    tokenizer.load(name).backend.save(str(folder / "tokenizer.json"))
  except tokenizer.WeightsError as error:
    raise settings.UserError(str(error)) from error
  return "tokenizer.json"


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--int8", action="store_true")
  flags = parser.parse_args()
  try:
    described = deploy(flags.workdir, flags.out, int8=flags.int8)
  except (export.ExportError, ImportError) as error:
    raise settings.UserError(str(error)) from error
  for line in described["simplified"]:
    note = f"  ({line['note']})" if line["note"] else ""
    print(
      f"{line['group']} {line['layer']}: {line['before']} ->"
      f" {line['after']}{note}"
    )
  for name, size in described["bytes"].items():
    print(f"{flags.out / name}: {size:,} bytes")
