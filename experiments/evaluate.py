"""What a trained model is worth: accuracy under quantization and pruning.

Every quantized model here went through a real file: it is coded, written,
read back, and the accuracy is that of the parameters that came back.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import traverse_util

import backslash_jax as bs
from backslash_jax import quantize
from backslash_jax.coding import exp_golomb, huffman
from experiments import distributed, scoring, settings

SHIPPED = "shipped.safetensors"


def evaluate(
  config: ml_collections.ConfigDict,
  directory: pathlib.Path,
  name: str,
  params: Any,
  score: scoring.Score,
  fitted: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Evaluates params, or returns what evaluation.json holds about them.

  Args:
    config: its `evaluate` field says what is measured.
    directory: gets evaluation.json and the coded file that is shipped.
    name: of the training, for the line that is printed.
    params: what was trained.
    score: from `scoring.make_score`.
    fitted: the steps that training chose, by name; where there are some, those
      of config are multiples of them.

  Returns:
    "parameters", "matrix_parameters": counts; "exact": scores of the
    unquantized model per split; "quantized": per step its scores, bytes and
    bits (see `code_lengths`); "pruned": per rate the test scores; "shipped":
    the index in "quantized" of the step that the file was coded with.
  """
  params = jax.device_get(params)
  path = directory / "evaluation.json"
  fitted = {name: float(step) for name, step in (fitted or {}).items()}
  key = _fingerprint(config, params, fitted)
  if path.exists() and (directory / SHIPPED).exists():
    try:
      cached = json.loads(path.read_text())
      if cached["key"] == key:
        return cached["evaluation"]
    except (ValueError, KeyError, TypeError):
      pass  # Damaged: it is measured again and replaced.
  steps = sorted({*config.evaluate.steps} | ({config.evaluate.step} - {None}))
  rates = config.evaluate.pruning_rates
  if distributed.is_main():
    print(f"{name}: evaluating {len(steps)} steps, {len(rates)} pruning rates")
  matrices = _matrices(params)
  result: dict[str, Any] = {
    "parameters": sum(x.size for x in jax.tree.leaves(params)),
    "matrix_parameters": sum(x.size for x in matrices),
    "exact": {s: score(params, s) for s in ("validation", "test")},
  }
  find_steps = _find_steps(config, params, score, fitted)
  try:
    result["quantized"] = [
      _quantized(config, directory, params, step, score, find_steps(step))
      for step in steps
    ]
    result["shipped"] = _choose(config, result)
    if distributed.is_main():
      for i in range(len(steps)):
        file = _coded_file(directory, steps[i])
        if i == result["shipped"]:
          file.replace(directory / SHIPPED)
        else:
          file.unlink()
    result["pruned"] = [
      {"rate": rate, "test": score(prune(params, rate), "test")}
      for rate in rates
    ]
    text = json.dumps({"key": key, "evaluation": result}, indent=2)
    if distributed.is_main():
      path.write_text(text + "\n")
  except OSError as error:
    raise settings.UserError(
      f"cannot write {error.filename or directory}: {error.strerror or error}"
    ) from error
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
  matrices = traverse_util.flatten_dict(bs.matrices(params), sep="/")
  symbols = []
  for name, x in traverse_util.flatten_dict(params, sep="/").items():
    if matrices[name]:
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


def prune(params: Any, rate: float) -> Any:
  """Zeros the fraction `rate` of the matrices' elements, smallest first."""
  sizes = np.concatenate([np.abs(x).ravel() for x in _matrices(params)])
  count = round(rate * sizes.size)
  if count == 0:
    return params
  threshold = np.partition(sizes, count - 1)[count - 1]
  return jax.tree.map(
    lambda x, m: (
      np.where(np.abs(x) <= threshold, 0, x).astype(x.dtype) if m else x
    ),
    params,
    bs.matrices(params),
  )


def _find_steps(config, params, score, fitted):
  """Step of the config -> the steps of the file, one or by name."""
  if fitted:
    return lambda step: {name: step * own for name, own in fitted.items()}
  if config.evaluate.absmax:
    return lambda step: quantize.absmax_steps(params, 1 / step)
  count = config.evaluate.sensitivity_batches
  if not count:
    return lambda step: step
  squares = score.squares(params, count)
  return lambda step: quantize.sensitive_steps(params, step, squares)


def _quantized(config, directory, params, step, score, steps):
  """Codes params with steps, reads the file back and measures it."""
  file = _coded_file(directory, step)
  if distributed.is_main():
    bs.save(
      file,
      params,
      step=steps,
      coder=config.evaluate.coder,
      mu=config.evaluate.mu,
    )
  distributed.barrier(f"coded with step {step}")
  size = file.stat().st_size
  params = bs.load(file)
  return {
    "step": step,
    "bytes": size,
    "bits": code_lengths(params, steps),
    "validation": score(params, "validation"),
    "test": score(params, "test"),
  }


def _coded_file(directory, step):
  return directory / f"step_{step:.10g}.safetensors"


def _choose(config, result):
  """Index of the step to ship; it sees the validation split alone."""
  quantized = result["quantized"]
  if config.evaluate.step is not None:
    return [q["step"] for q in quantized].index(config.evaluate.step)
  wanted = result["exact"]["validation"]["accuracy"]
  wanted -= config.evaluate.tolerance / 100
  good = [
    i for i, q in enumerate(quantized) if q["validation"]["accuracy"] >= wanted
  ]
  return max(good, default=0)  # The finest, if none is good enough.


def _matrices(params):
  selected = jax.tree.leaves(bs.matrices(params))
  leaves = jax.tree.leaves(params)
  return [np.asarray(x) for x, m in zip(leaves, selected, strict=True) if m]


def _entropy(symbols):
  """Empirical entropy in bits per symbol."""
  _, counts = np.unique(symbols, return_counts=True)
  p = counts / symbols.size
  return float(-np.sum(p * np.log2(p)))


def _fingerprint(config, params, fitted):
  """Identifies what an evaluation depends on."""
  digest = hashlib.sha256()
  fields = config.evaluate, config.model, config.data.name
  if fitted:
    fields += (fitted,)
  digest.update(
    json.dumps(
      [f.to_dict() if hasattr(f, "to_dict") else f for f in fields],
      sort_keys=True,
    ).encode()
  )
  for x in jax.tree.leaves(params):
    digest.update(np.ascontiguousarray(x).tobytes())
  return digest.hexdigest()
