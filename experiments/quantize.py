"""python -m experiments.quantize --config=FILE --bits=3 --out=DIR

Post-training quantization of a Hugging Face directory with error feedback, to a
size. config.model.weights is quantized with the inputs that its layers have on
training batches of config.data. DIR gets what `backslash-jax compress` writes.
"""

import contextlib
import io
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from flax import nnx

import backslash_jax as bs
from backslash_jax import quantize as quantizers
from backslash_jax import tree
from backslash_jax.cli import goal
from backslash_jax.cli import main as cli
from experiments import main, scoring, settings, sharding
from experiments.huggingface import files, weights
from experiments.models import functional


class _Found(NamedTuple):
  step: float
  bytes: int
  params: Any


def quantize(
  config: ml_collections.ConfigDict,
  out: pathlib.Path,
  *,
  bits: float | None = None,
  size: str | None = None,
  progress: Callable[[str], object] = print,
) -> dict[str, Any]:
  """Quantizes config.model.weights; all matrices get the same step.

  Args:
    config: of configs/quantize.py. `evaluate.feedback_batches` training batches
      are used, and `evaluate.mu` is the price of a bit.
    out: the directory that is written; it must not exist.
    bits: per parameter, of the coded file; or give size.
    size: of the coded file, such as "40MB".
    progress: called with lines about what is done.

  Returns:
    "parameters", "bytes", "bits" per parameter, "step", and loss and accuracy
    on the test split: "exact" of the model, "rounded" of the model rounded to
    a file of this size, "quantized" of the one that is written.

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
    score = scoring.make_score(config, forward, sharding.make_mesh(config))
    result: dict[str, Any] = {
      "parameters": total,
      "exact": score(params, "test"),
    }
    rounded = _solve(
      lambda step: quantizers.apply(params, step, mu=mu),
      wanted,
      _first_step(params, wanted),
      progress,
    )
    result["rounded"] = score(rounded.params, "test")
    found = _solve(
      lambda step: score.feedback(
        params, step, count, mu=mu, progress=progress
      ),
      wanted,
      rounded.step,
      progress,
    )
    result["quantized"] = score(found.params, "test")
    _write(model, directory, found, out)
  except ValueError as error:
    raise settings.UserError(str(error)) from error
  return result | {
    "bytes": found.bytes,
    "bits": 8 * found.bytes / total,
    "step": found.step,
  }


def _first_step(params: Any, wanted: goal.Goal) -> float:
  steps = goal.Steps(tree.selected(params), 1.0, goal.one)
  return goal.start([steps], wanted.bits)


def _solve(
  make: Callable[[float], Any],
  wanted: goal.Goal,
  start: float,
  progress: Callable[[str], object],
) -> _Found:
  """The parameters that `make` gives for the step of a file of this size."""
  best = None

  def measure(step: float) -> int:
    nonlocal best
    params = make(step)
    with tempfile.TemporaryDirectory() as scratch:
      report = bs.save(pathlib.Path(scratch) / "file", params, step=step)
    progress(
      f"step {step:.4g}: {8 * report.bytes / wanted.parameters:.3f} bits"
    )
    if report.bytes <= wanted.bytes and (not best or report.bytes > best.bytes):
      best = _Found(step, report.bytes, params)
    return report.bytes

  goal.solve(measure, wanted, start)
  assert best is not None  # Otherwise solve raises.
  return best


def _write(
  model: Any, directory: pathlib.Path, found: _Found, out: pathlib.Path
) -> None:
  """Writes the directory with the quantized parameters in place of its own."""
  structure, state, rest = nnx.split(model, nnx.Param, ...)
  nnx.replace_by_pure_dict(state, found.params)
  with tempfile.TemporaryDirectory() as scratch:
    plain = pathlib.Path(scratch) / directory.name
    shutil.copytree(
      directory,
      plain,
      ignore=shutil.ignore_patterns("*.safetensors*", "*.bin", "*.bin.index*"),
    )
    kept = (plain / "config.json").read_bytes()
    weights.save(nnx.merge(structure, state, rest), plain)
    (plain / "config.json").write_bytes(kept)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
      failed = cli.main(
        ["compress", str(plain), str(out), "--step", repr(found.step)]
      )
    if failed:
      raise settings.UserError(f"{out} cannot be written")


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
