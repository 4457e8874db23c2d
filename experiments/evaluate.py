"""The evaluation of a trained model: accuracy after coding and after pruning.

Every quantized model goes through a real file: it is coded, written and read
back, and the accuracy is that of the parameters that came back.
"""

import hashlib
import json
import math
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import traverse_util

import backslash_jax as bs
from backslash_jax import quantize, structure, tree
from backslash_jax.coding import exp_golomb, huffman
from experiments import (
  atomic,
  digest,
  distributed,
  finetune,
  scoring,
  settings,
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
) -> dict[str, Any]:
  """Evaluates params, or returns what evaluation.json holds about them.

  Args:
    config: its `evaluate` field says what is measured.
    directory: gets evaluation.json and the coded file that is shipped.
    name: of the training, for the line that is printed.
    params: the trained parameters, see `finetune.split`.
    score: from `scoring.make_score`.
    fitted: the steps that training chose, by name, for config.evaluate.scales.
    base: the weights that were not trained; a file has none of them.

  Returns:
    "parameters", "matrix_parameters": counts, of the whole model.
    "exact": scores of the unquantized model per split.
    "quantized": from fine to coarse, for each quantizer of config.evaluate its
      "step", "levels" or "scale", the scores, bytes and bits of its file (see
      `code_lengths`).
    "pruned": for each rate the test scores.
    "shipped": the index in "quantized" of the file that is shipped.

  Raises:
    UserError: a file cannot be written.
  """
  params, base = jax.device_get(params), base or {}
  path = directory / "evaluation.json"
  fitted = {name: float(step) for name, step in (fitted or {}).items()}
  key = _fingerprint(config, params, fitted, base)
  if path.exists() and (directory / SHIPPED).exists():
    try:
      cached = json.loads(path.read_text())
      if cached["key"] == key:
        return cached["evaluation"]
    except (ValueError, KeyError, TypeError):
      pass  # Damaged: it is measured again and replaced.
  quantizers = _quantizers(config, params, score, fitted)
  rates = config.evaluate.pruning_rates
  if distributed.is_main():
    print(f"{name}: evaluating {len(quantizers)} files, {len(rates)} prunings")

  def whole(trained):
    return jax.device_get(finetune.merge(config.model, base, trained))

  # Of a difference the file needs the base, of adapters it is the adapters.
  of = bs.Base(base) if config.model.delta else None
  model = whole(params)
  result: dict[str, Any] = {
    "parameters": sum(x.size for x in jax.tree.leaves(model)),
    "matrix_parameters": sum(x.size for x in matrices(model)),
    "exact": {s: score(model, s) for s in ("validation", "test")},
  }
  files = [directory / f"file_{i}.safetensors" for i in range(len(quantizers))]
  try:
    result["quantized"] = [
      label | _quantized(config, file, params, score, steps, whole, of)
      for file, (label, steps) in zip(files, quantizers, strict=True)
    ]
    result["shipped"] = _choose(config, result)
    if distributed.is_main():
      files.pop(result["shipped"]).replace(directory / SHIPPED)
      for file in files:
        file.unlink()
  except OSError as error:
    raise settings.UserError(
      f"cannot write {error.filename or directory}: {error.strerror or error}"
    ) from error
  result["pruned"] = [
    {"rate": rate, "test": score(whole(_pruned(params, rate)), "test")}
    for rate in rates
  ]
  if distributed.is_main():
    text = json.dumps({"key": key, "evaluation": result}, indent=2) + "\n"
    atomic.write_text(path, text)
  return result


def code_lengths(
  params: Any, step: float | Mapping[str, float]
) -> dict[str, float]:
  """Bits per parameter of the matrices of quantized parameters.

  "fixed", "exp_golomb" (order 0, of the values ranked by frequency) and
  "huffman" use one table for the whole model, as the paper does; "entropy"
  is the sum of every tensor's own empirical entropy.

  Args:
    params: nested dicts whose matrices hold multiples of step.
    step: the quantization step, or one for each matrix's path.
  """
  selected = traverse_util.flatten_dict(bs.matrices(params), sep="/")
  symbols = []
  for name, x in traverse_util.flatten_dict(params, sep="/").items():
    if selected[name]:
      own = step[name] if isinstance(step, Mapping) else step
      levels = np.rint(np.asarray(x, np.float64) / own)
      symbols.append(levels.astype(np.int32).ravel())
  pooled = np.concatenate(symbols)
  ranked = exp_golomb.fit(pooled, ranked=True)._replace(order=0)
  distinct = np.unique(pooled).size
  return {
    "fixed": math.ceil(math.log2(distinct)),
    "exp_golomb": exp_golomb.code_length(pooled, ranked) / pooled.size,
    "huffman": huffman.code_length(pooled, huffman.fit(pooled)) / pooled.size,
    "entropy": sum(_entropy(s) * s.size for s in symbols) / pooled.size,
  }


def matrices(params: Any) -> list[np.ndarray]:
  """The leaves that `bs.matrices` selects."""
  selected = jax.tree.leaves(bs.matrices(params))
  leaves = jax.tree.leaves(params)
  return [np.asarray(x) for x, m in zip(leaves, selected, strict=True) if m]


def _pruned(params, rate):
  return jax.device_get(structure.prune(params, rate, scope="model"))


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


def _quantized(config, file, params, score, steps, whole, base=None):
  """Codes params with steps, reads the file back and measures it.

  With a base the file is of the whole model, as the difference from that.
  """
  if base is not None:
    params = whole(params)
  if distributed.is_main():
    with warnings.catch_warnings():
      # The coarse steps of a sweep are meant to show where a model breaks.
      warnings.filterwarnings("ignore", ".* became zero")
      bs.save(
        file,
        params,
        step=steps,
        base=base,
        coder=config.evaluate.coder,
        mu=config.evaluate.mu,
      )
  distributed.barrier(f"coded {file.name}")
  size = file.stat().st_size
  params = bs.load(file, base=base)
  if base is None:
    model = whole(params)
  else:
    model, params = params, bs.delta(params, base.tensors)
  return {
    "bytes": size,
    "bits": code_lengths(params, steps),
    "validation": score(model, "validation"),
    "test": score(model, "test"),
  }


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


def _entropy(symbols):
  """Empirical entropy in bits per symbol."""
  _, counts = np.unique(symbols, return_counts=True)
  p = counts / symbols.size
  return float(-np.sum(p * np.log2(p)))


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
  for x in jax.tree.leaves(params):
    found.update(np.ascontiguousarray(x).tobytes())
  return found.hexdigest()
