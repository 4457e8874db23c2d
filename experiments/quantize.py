"""python -m experiments.quantize --config=FILE --bits=3 --out=DIR

Post-training quantization with error feedback, to a size. config.model.weights
is a Hugging Face directory or the workdir of a finished training. It is
quantized with the inputs that its layers have on training batches of
config.data, which is that of the training, or on a part of the texts of
--texts=FILE. With config.evaluate.feedback_batches=0 it is rounded. DIR is as
`backslash-jax compress` writes it, or has config.json and the file that a
training ships. DIR.kept has the blocks that are finished; the same command goes
on after them.
"""

import json
import math
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_collections
from absl import flags

from backslash_jax import quantize as quantizers
from backslash_jax import tree
from backslash_jax.cli import goal
from experiments import data, main, scoring, settings, sharding, sources
from experiments.data import lines
from experiments.serve import memory


class _Found(NamedTuple):
  """A quantized model.

  Attributes:
    scale: of its steps.
    params: its parameters.
    bytes: of its file.
  """

  scale: float
  params: Any
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

  The steps are those of `backslash-jax compress --bits` times one factor, or,
  with `evaluate.sensitivity_batches`, of `quantize.sensitive_steps`.

  Args:
    config: of configs/quantize.py. `evaluate.feedback_batches` training batches
      are used; 0 rounds. `evaluate.mu` is the price of a bit.
    out: the directory that is written; it must not exist.
    bits: per parameter, of the coded file; or give size.
    size: of the coded file, such as "40MB".
    progress: called with lines about what is done.

  Returns:
    "parameters", "bytes", "bits" per parameter, and loss and accuracy on the
    test split: "exact" of the model, "rounded" of the model rounded to a file
    of this size, "quantized" of the one that is written. "minutes" in all, and
    "feedback_minutes" of each choice of levels; "peak_bytes" of memory.

  Raises:
    UserError: what the user can fix, with the field or path that it is about.
  """
  settings.check(config)
  begin, mu = time.monotonic(), config.evaluate.mu
  if not config.model.weights:
    raise settings.UserError("config.model.weights says what is quantized")
  if out.exists():
    raise settings.UserError(f"--out={out}: there is something already")
  kept, minutes = out.with_name(f"{out.name}.kept"), []
  try:
    source = sources.read(config)
    config, params = source.config, source.params
    count = _batches(config, source.model, progress)
    total = sum(x.size for x in tree.selected(params, None).values())
    wanted = goal.parse(bits, size, total)
    if wanted is None:
      raise settings.UserError("give --bits or --size")
    mesh = sharding.make_mesh(config)
    score = scoring.make_score(config, source.forward, mesh)
    squares = None
    if config.evaluate.sensitivity_batches:
      squares = score.squares(params, config.evaluate.sensitivity_batches)
    layout = _Layout(source, squares)
    result: dict[str, Any] = {
      "parameters": total,
      "exact": score(params, "test"),
    }
    found = _solve(
      lambda steps: quantizers.apply(params, steps, mu=mu),
      layout,
      wanted,
      layout.start(wanted.bits),
      progress,
    )
    result["rounded"] = result["quantized"] = score(found.params, "test")

    def with_feedback(steps):
      before = time.monotonic()
      found = score.feedback(
        params, steps, count, mu=mu, kept=kept, progress=progress
      )
      minutes.append((time.monotonic() - before) / 60)
      return found

    if count:
      start = found.scale
      del found  # A whole model.
      found = _solve(with_feedback, layout, wanted, start, progress)
      result["quantized"] = score(found.params, "test")
    steps = layout.of_tensors(layout.steps(found.scale))
    source.write(out, source.tensors(found.params), steps)
    if count:
      shutil.rmtree(kept)
  except ValueError as error:
    raise settings.UserError(str(error)) from error
  except OSError as error:
    raise settings.UserError(
      f"cannot write {error.filename or out}: {error.strerror or error}"
    ) from error
  return result | {
    "bytes": found.bytes,
    "bits": 8 * found.bytes / total,
    "minutes": round((time.monotonic() - begin) / 60, 2),
    "feedback_minutes": [round(m, 2) for m in minutes],
    "peak_bytes": memory.peak(),
  }


def _batches(config, model: Any, progress) -> int:
  """How many batches the moments are of: as many as there are texts for.

  Raises:
    ValueError: there are not enough for one, or the model cannot read them.
  """
  task = data.load_task(config.data)
  scoring.check_task(task, model, config.model.weights)
  wanted, size = config.evaluate.feedback_batches, config.data.batch_size
  texts = task.num_train
  if wanted and texts < size:
    raise ValueError(
      f"{config.data.name} has {texts} texts for the moments, fewer than"
      f" config.data.batch_size, {size}: lower it, or give more texts"
    )
  if texts < wanted * size:
    progress(
      f"{texts} texts are {texts // size} batches for the moments, not the"
      f" {wanted} of config.evaluate.feedback_batches"
    )
  return min(wanted, texts // size)


class _Layout:
  """The steps of a source's matrices at a scale, and of its tensors.

  Args:
    source: the model.
    squares: the mean squared gradient of each leaf; None: steps in proportion
      to the square root of the root mean square.
  """

  def __init__(self, source: sources.Source, squares: Any = None):
    self.source, self._squares = source, squares
    self._free = goal.Steps(tree.selected(source.params), math.inf)

  def start(self, bits: float) -> float:
    """A first guess of the scale for so many bits per parameter."""
    scale = goal.start([self._free], bits)
    if self._squares is None:
      return scale
    # Here the scale is the mean of the steps' logarithms.
    sizes = {n: x.size for n, x in tree.selected(self.source.params).items()}
    steps = self._free(scale)
    total = sum(sizes[name] * math.log(step) for name, step in steps.items())
    return math.exp(total / sum(sizes.values()))

  def steps(self, scale: float) -> dict[str, float]:
    """The step of each matrix; the parts of a tensor have the same."""
    if self._squares is None:
      found = self._free(scale)
    else:
      params = self.source.params
      found = quantizers.sensitive_steps(params, scale, self._squares)
    for paths in self.source.parts.values():
      own = [found[path] for path in paths if path in found]
      if len(own) > 1:
        mean = math.exp(sum(map(math.log, own)) / len(own))
        found |= {path: mean for path in paths if path in found}
    return found

  def of_tensors(self, steps: Mapping[str, float]) -> dict[str, float]:
    """The steps of the tensors, of those of the matrices."""
    parts = {tensor: paths[0] for tensor, paths in self.source.parts.items()}
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
    own, source = layout.of_tensors(steps), layout.source
    with tempfile.TemporaryDirectory() as scratch:
      size = source.save(pathlib.Path(scratch), source.tensors(params), own)
    progress(f"a file of {8 * size / wanted.parameters:.3f} bits per parameter")
    if size <= wanted.bytes and (not best or size > best.bytes):
      best = _Found(scale, params, size)
    return size

  goal.solve(measure, wanted, start)
  assert best is not None  # Otherwise solve raises.
  return best


def _main() -> None:
  bits = flags.DEFINE_float("bits", None, "Bits per parameter of the file.")
  size = flags.DEFINE_string("size", None, "Size of the file, such as 40MB.")
  texts = flags.DEFINE_string(
    "texts", None, "A file with a text in every line, in place of config.data."
  )

  def run(config, out):
    if (bits.value is None) == (size.value is None):
      raise settings.UserError("give --bits or --size")
    if texts.value is not None:
      with config.unlocked():
        config.data.name, config.data.source = lines.NAME, texts.value
    result = quantize(config, out, bits=bits.value, size=size.value)
    print(json.dumps(result, indent=2))

  main.launch(run, output="out")


if __name__ == "__main__":
  _main()
