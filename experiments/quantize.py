"""python -m experiments.quantize --config=FILE --bits=3 --out=DIR

Post-training quantization of a Hugging Face directory with error feedback, to a
size. config.model.weights is quantized with the inputs that its layers have on
training batches of config.data. DIR is as `backslash-jax compress` writes it.
"""

import json
import math
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_collections
from absl import flags

import backslash_jax as bs
from backslash_jax import quantize as quantizers
from backslash_jax import tree
from backslash_jax.archive import naming
from backslash_jax.cli import goal, staging
from experiments import main, scoring, settings, sharding
from experiments.huggingface import convert, files, weights
from experiments.models import functional

_FILE = naming.coded("model.safetensors")
_PLAIN = ("*.safetensors*", "*.bin", "*.bin.index*", "*.gguf", "*.msgpack")


class _Found(NamedTuple):
  """A quantized model.

  Attributes:
    scale: of its steps.
    params: by the names of this project.
    tensors: by those of Hugging Face.
    steps: of the tensors.
    bytes: of their file.
  """

  scale: float
  params: Any
  tensors: dict[str, Any]
  steps: dict[str, float]
  bytes: int


def quantize(
  config: ml_collections.ConfigDict,
  out: pathlib.Path,
  *,
  bits: float | None = None,
  size: str | None = None,
  progress: Callable[[str], object] = print,
) -> dict[str, Any]:
  """Quantizes config.model.weights to a file of a size.

  The steps are those of `backslash-jax compress --bits` times one factor.

  Args:
    config: of configs/quantize.py. `evaluate.feedback_batches` training batches
      are used, and `evaluate.mu` is the price of a bit.
    out: the directory that is written; it must not exist.
    bits: per parameter, of the coded file; or give size.
    size: of the coded file, such as "40MB".
    progress: called with lines about what is done.

  Returns:
    "parameters", "bytes", "bits" per parameter, and loss and accuracy on the
    test split: "exact" of the model, "rounded" of the model rounded to a file
    of this size, "quantized" of the one that is written.

  Raises:
    UserError: what the user can fix, with the field or path that it is about.
  """
  settings.check(config)
  count, mu = config.evaluate.feedback_batches, config.evaluate.mu
  if not config.model.weights or not count:
    raise settings.UserError(
      "config.model.weights and config.evaluate.feedback_batches are needed:"
      " what is quantized, and with how many batches"
    )
  if out.exists():
    raise settings.UserError(f"--out={out}: there is something already")
  try:
    directory = files.locate(config.model.weights)
    model = weights.load(directory)
    forward, params = functional.split(model)
    total = sum(x.size for x in functional.flatten(params).values())
    wanted = goal.parse(bits, size, total)
    if wanted is None:
      raise settings.UserError("give --bits or --size")
    layout = _Layout(model.config, params)
    score = scoring.make_score(config, forward, sharding.make_mesh(config))
    result: dict[str, Any] = {
      "parameters": total,
      "exact": score(params, "test"),
    }
    rounded = _solve(
      lambda steps: quantizers.apply(params, steps, mu=mu),
      layout,
      wanted,
      goal.start([layout.free], wanted.bits),
      progress,
    )
    result["rounded"] = score(rounded.params, "test")
    found = _solve(
      lambda steps: score.feedback(
        params, steps, count, mu=mu, progress=progress
      ),
      layout,
      wanted,
      rounded.scale,
      progress,
    )
    result["quantized"] = score(found.params, "test")
    _write(directory, found, out)
  except ValueError as error:
    raise settings.UserError(str(error)) from error
  except OSError as error:
    raise settings.UserError(
      f"cannot write {error.filename or out}: {error.strerror or error}"
    ) from error
  return result | {"bytes": found.bytes, "bits": 8 * found.bytes / total}


class _Layout:
  """How parameters are tensors of a Hugging Face file, and their steps."""

  def __init__(self, config: Any, params: Any):
    self._table, self._config = weights.TABLES[type(config)], config
    leaves = functional.flatten(params)
    self._parts = convert.parts(self._table, config, leaves)
    self.free = goal.Steps(tree.selected(params), math.inf)

  def steps(self, scale: float) -> dict[str, float]:
    """The step of each matrix; the parts of a tensor have the same."""
    found = self.free(scale)
    for paths in self._parts.values():
      own = [found[path] for path in paths if path in found]
      if len(own) > 1:
        mean = math.exp(sum(map(math.log, own)) / len(own))
        found |= {path: mean for path in paths if path in found}
    return found

  def tensors(self, params: Any) -> dict[str, Any]:
    leaves = functional.flatten(params)
    return dict(convert.tensors(self._table, self._config, leaves))

  def of_tensors(self, steps: Mapping[str, float]) -> dict[str, float]:
    """The steps of the tensors, of those of the matrices."""
    parts = {tensor: paths[0] for tensor, paths in self._parts.items()}
    return {t: steps[path] for t, path in parts.items() if path in steps}


def _solve(
  make: Callable[[dict[str, float]], Any],
  layout: _Layout,
  wanted: goal.Goal,
  start: float,
  progress: Callable[[str], object],
) -> _Found:
  """What `make` gives for the steps with which the file has this size."""
  best = None

  def measure(scale: float) -> int:
    nonlocal best
    steps = layout.steps(scale)
    params = make(steps)
    tensors, own = layout.tensors(params), layout.of_tensors(steps)
    with tempfile.TemporaryDirectory() as scratch:
      size = _save(pathlib.Path(scratch), tensors, own)
    progress(f"a file of {8 * size / wanted.parameters:.3f} bits per parameter")
    if size <= wanted.bytes and (not best or size > best.bytes):
      best = _Found(scale, params, tensors, own, size)
    return size

  goal.solve(measure, wanted, start)
  assert best is not None  # Otherwise solve raises.
  return best


def _save(
  directory: pathlib.Path,
  tensors: Mapping[str, Any],
  steps: Mapping[str, float],
) -> int:
  """Writes the coded file of a directory; returns its size in bytes."""
  path = directory / _FILE
  return bs.save(path, tensors, step=steps, metadata={"format": "pt"}).bytes


def _write(directory: pathlib.Path, found: _Found, out: pathlib.Path) -> None:
  """Writes `directory` with other weights, coded, in place of its own."""
  with staging.replacing(out) as staged:
    shutil.copytree(
      directory,
      staged,
      ignore=shutil.ignore_patterns(*_PLAIN),
      dirs_exist_ok=True,
    )
    _save(staged, found.tensors, found.steps)


def _main() -> None:
  bits = flags.DEFINE_float("bits", None, "Bits per parameter of the file.")
  size = flags.DEFINE_string("size", None, "Size of the file, such as 40MB.")

  def run(config, out):
    if (bits.value is None) == (size.value is None):
      raise settings.UserError("give --bits or --size")
    result = quantize(config, out, bits=bits.value, size=size.value)
    print(json.dumps(result, indent=2))

  main.launch(run, output="out")


if __name__ == "__main__":
  _main()
