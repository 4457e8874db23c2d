"""The evaluation of a trained model: accuracy after coding and after pruning.

Every quantized model goes through a real file: it is coded, written and read
back, and the accuracy is that of the parameters that came back.
"""

import functools
import hashlib
import itertools
import json
import pathlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

import backslash_jax as bs
from backslash_jax import quantize, tree
from backslash_jax.archive import host
from experiments import (
  atomic,
  digest,
  distributed,
  finetune,
  lengths,
  scoring,
  settings,
  sharding,
  stored,
  thresholds,
)

SHIPPED = "shipped.safetensors"
# The fields of config.evaluate that list quantizers, and the key that names
# one of them in a result.
_UNITS = {"steps": "step", "levels": "levels", "scales": "scale"}


def evaluate(
  config: ml_collections.ConfigDict,
  directory: pathlib.Path,
  name: str,
  params: Any,
  score: scoring.Score,
  fitted: Mapping[str, Any] | None = None,
  base: Any = None,
  source: Any = None,
) -> dict[str, Any]:
  """Evaluates params, or returns what evaluation.json holds about them.

  Args:
    config: its `evaluate` field says what is measured.
    directory: gets evaluation.json and the coded file that is shipped.
    name: of the training, for the line that is printed.
    params: the trained parameters, see `finetune.split`; those of several
      processes are split over their devices, see `stored.load`.
    score: from `scoring.make_score`.
    fitted: the steps that training chose, by name, for config.evaluate.scales.
    base: the weights that were not trained; a file has none of them.
    source: a tree of the same parameters, of which process 0 reads one at a
      time to code it, such as `stored.Tensor`; None: params.

  Returns:
    "parameters", "matrix_parameters": counts, of the whole model.
    "exact": scores of the unquantized model per split.
    "quantized": from fine to coarse, for each quantizer of config.evaluate its
      "step", "levels" or "scale", the scores, bytes and bits of its file (see
      `lengths.code_lengths`; None except in process 0).
    "pruned": for each rate the test scores.
    "shipped": the index in "quantized" of the file that is shipped.

  Raises:
    UserError: a file cannot be written, or a step is too fine for a tensor.
  """
  base, source = base or {}, params if source is None else source
  path = directory / "evaluation.json"
  fitted = {name: float(step) for name, step in (fitted or {}).items()}
  key, kept = None, None
  if distributed.is_main():
    key = _fingerprint(config, source, fitted, base)
    kept = _kept(directory, key)
  if distributed.agree(kept is not None):
    return kept or _read(path)["evaluation"]
  quantizers = _quantizers(config, params, score, fitted)
  mu, count = config.evaluate.mu, config.evaluate.feedback_batches
  rates = config.evaluate.pruning_rates
  tell = _progress(name, len(quantizers), len(rates))

  merge = jax.jit(functools.partial(finetune.merge, config.model))

  def whole(trained):
    return merge(base, trained) if base else trained

  # Of a difference the file needs the base, of adapters it is the adapters.
  of = bs.Base(base) if config.model.delta else None
  model = whole(params)
  if of is not None:
    source = stored.gathered(model)
  result: dict[str, Any] = {
    "parameters": sum(x.size for x in jax.tree.leaves(model)),
    "matrix_parameters": sum(x.size for x in tree.selected(model).values()),
    "exact": {s: score(model, s) for s in ("validation", "test")},
  }
  files = [directory / f"file_{i}.safetensors" for i in range(len(quantizers))]
  try:
    result["quantized"] = quantized = []
    for file, (label, steps) in zip(files, quantizers, strict=True):
      weights = source
      if count:
        weights = score.feedback(params, steps, count, mu=mu)
      own = _quantized(config, file, weights, score, steps, whole, of)
      quantized.append(label | own)
      (unit,) = label
      bits = 8 * own["bytes"] / result["parameters"]
      tell(f"{unit} {label[unit]:.4g}, {bits:.2f} bits", own["validation"])
    result["shipped"] = _choose(config, result)
    if distributed.is_main():
      files.pop(result["shipped"]).replace(directory / SHIPPED)
      for file in files:
        file.unlink()
  except ValueError as error:
    raise settings.UserError(
      f"a step of config.evaluate does not suit the model: {error}"
    ) from error
  except OSError as error:
    raise settings.UserError(
      f"cannot write {error.filename or directory}: {error.strerror or error}"
    ) from error
  result["pruned"] = pruned = []
  for rate, t in zip(rates, thresholds.find(params, rates), strict=True):
    own = result["exact"]["test"]
    if t >= 0:
      own = score(whole(thresholds.prune(params, t)), "test")
    pruned.append({"rate": rate, "test": own})
    tell(f"pruned {rate:.0%}", own)
  if distributed.is_main():
    text = json.dumps({"key": key, "evaluation": result}, indent=2) + "\n"
    atomic.write_text(path, text)
  return result


def _progress(name, files, prunings):
  """A function that prints what was measured, as number so of so many."""
  total = files + prunings
  numbers = itertools.count(1)
  if distributed.is_main():
    print(f"{name}: evaluating {files} files, {prunings} prunings", flush=True)

  def tell(what, scores):
    if distributed.is_main():
      accuracy = f"accuracy {scores['accuracy']:.1%}"
      print(f"{name} {next(numbers)}/{total}  {what}, {accuracy}", flush=True)

  return tell


def matrices(params: Any) -> Iterator[np.ndarray]:
  """The leaves that `bs.matrices` selects, read one at a time."""
  yield from map(np.asarray, tree.selected(params).values())


def _quantizers(config, params, score, fitted):
  """Each quantizer's key in the result, and the steps of its file.

  The steps are one for all matrices, or one for each by name.
  """
  fields = config.evaluate
  (unit,) = (field for field in _UNITS if fields[field])
  # From fine to coarse: with fewer levels the steps are larger.
  values = sorted(set(fields[unit]), reverse=unit == "levels")
  if unit == "levels":
    steps = [quantize.absmax_steps(params, levels) for levels in values]
  elif unit == "scales":
    steps = [{n: scale * s for n, s in fitted.items()} for scale in values]
  elif fields.sensitivity_batches:
    squares = score.squares(params, fields.sensitivity_batches)
    mask = bs.matrices if fields.vectors is None else None
    steps = [
      quantize.sensitive_steps(params, s, squares, mask=mask) for s in values
    ]
  elif fields.vectors is not None:
    steps = [_steps_of_all(params, step, fields.vectors) for step in values]
  else:
    steps = values
  return [({_UNITS[unit]: v}, s) for v, s in zip(values, steps, strict=True)]


def _steps_of_all(params, step, vectors):
  """The step of every floating leaf; that of vectors is `vectors` * step."""
  matrices = tree.selected(params)
  return {
    name: step if name in matrices else vectors * step
    for name in tree.selected(params, None)
  }


def _quantized(
  config, file, source, score, steps, whole, base=None
) -> dict[str, Any]:
  """Codes source with steps, reads the file back and measures it.

  With a base, source is the whole model, coded as the difference from that.
  """
  if distributed.is_main():
    with warnings.catch_warnings():
      # The coarse steps of a sweep are meant to show where a model breaks.
      warnings.filterwarnings("ignore", ".* became zero")
      bs.save(
        file,
        source,
        step=steps,
        base=base,
        coder=config.evaluate.coder,
        # Feedback has counted the bits already.
        mu=0.0 if config.evaluate.feedback_batches else config.evaluate.mu,
      )
  distributed.barrier(f"coded {file.name}")
  size, bits = file.stat().st_size, None
  if base is None:
    mesh = sharding.make_mesh(config)
    model = whole(stored.load(file, mesh))
    if distributed.is_main():
      bits = lengths.code_lengths(stored.tensors(file), steps)
  else:
    model = bs.load(file, base=base)
    if distributed.is_main():
      bits = lengths.code_lengths(bs.delta(model, base.tensors), steps)
  scores = {split: score(model, split) for split in ("validation", "test")}
  return {"bytes": size, "bits": bits, **scores}


def _choose(config, result):
  """Index of the file to ship; only the validation split decides."""
  wanted = result["exact"]["validation"]["accuracy"]
  wanted -= config.evaluate.tolerance / 100
  good = [
    i
    for i, q in enumerate(result["quantized"])
    if q["validation"]["accuracy"] >= wanted
  ]
  return max(good, default=0)  # If none is accurate enough, the finest.


def _read(path):
  return json.loads(path.read_text())


def _kept(directory, key):
  """The evaluation in a directory if it has this key; otherwise None."""
  path = directory / "evaluation.json"
  if path.exists() and (directory / SHIPPED).exists():
    try:
      found = _read(path)
      return found["evaluation"] if found["key"] == key else None
    except (ValueError, KeyError, TypeError):
      pass  # Damaged: it is measured again and replaced.
  return None


def _fingerprint(config, params, fitted, base):
  """A hash of everything that an evaluation depends on."""
  found = hashlib.sha256()
  fields = config.evaluate, config.model, config.data.name
  if fitted:
    fields += (fitted,)
  if base:
    fields += (digest.of(base),)
  found.update(
    json.dumps(
      [f.to_dict() if hasattr(f, "to_dict") else f for f in fields],
      sort_keys=True,
    ).encode()
  )
  for name, x in tree.named_leaves(params):
    found.update(np.ascontiguousarray(host.copied(name, x)).tobytes())
  return found.hexdigest()
