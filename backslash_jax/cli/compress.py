"""The command compress."""

import contextlib
import statistics
import tempfile
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

from backslash_jax import archive
from backslash_jax.archive import bases, naming, plain
from backslash_jax.cli import beside, files, goal, metric, show, staging, steps

BASE = "backslash_jax.base"  # The key of the base's name in the metadata.


class _Job(NamedTuple):
  """A file to write.

  Attributes:
    source: the file, or a directory whose files become one.
    target: the coded file.
    params: the tensors by name.
    allocation: gives the steps.
    keywords: the arguments of `archive.save` but the steps.
  """

  source: Path
  target: Path
  params: dict
  allocation: steps.Allocation
  keywords: dict[str, Any]


def run(options, console) -> dict:
  """Codes a file or a directory; returns what it reports, as JSON."""
  steps.check(options)
  metric.check(options)
  evaluate = metric.load(options.evaluate) if options.evaluate else None
  files.check_base(options.base, options.output)
  plan = _plan(options)
  models = [_uncoded(source) for source, _ in plan.models]
  chosen = steps.chosen(models, options)
  parameters = sum(x.size for params in models for x in params.values())
  wanted = goal.parse(options.bits, options.size, parameters)
  base = archive.Base(options.base) if options.base else None
  reports, costs = [], dict.fromkeys(archive.CODERS, 0)
  with files.writing(plan) as staged:
    jobs = [
      _Job(
        source,
        target,
        params,
        steps.allocation(params, names, base, options),
        _keywords(source, base, options, console),
      )
      for (source, target), params, names in zip(
        staged.models, models, chosen, strict=True
      )
    ]
    scale = _scale(jobs, wanted, console) if wanted else None
    if evaluate:
      scale = _within(jobs, evaluate, options, console)
    for job in jobs:
      job.keywords["step"] = job.allocation(scale)
      with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        reports.append(_save(job, console))
      for warning in warned:
        text = str(warning.message)
        if staged.folder and plan.folder:
          text = staging.renamed(text, staged.folder, plan.folder)
        show.line(console, f"warning: {text}")
      for coder in archive.CODERS if options.report else ():
        own = options.quantizer if coder == "rans" else "scalar"
        costs[coder] += _cost(job, coder=coder, quantizer=own)
    copy(staged, console)
  result = _summary([s for s, _ in plan.models], reports)
  if options.mask is None:
    result["exact"]["scales"] = steps.scales_of_quantized(models)
  show.compressed(console, result, options.max_error)
  if options.report:
    result["coder_bytes"] = costs
    show.costs(console, costs, result["parameters"])
  return result


def _plan(options) -> files.Plan:
  if (
    options.base
    and options.input.is_dir()
    and files.is_model_file(options.output)
  ):
    return files.plan_file(options.input, options.output, force=options.force)
  return files.plan(
    options.input,
    options.output,
    naming.coded,
    force=options.force,
    redundant=False,
  )


def _save(job: _Job, console) -> archive.Report:
  job.target.parent.mkdir(parents=True, exist_ok=True)
  total = sum(x.size for x in job.params.values())
  with show.Bar(console, f"compress {job.source.name}", total) as advance:
    return archive.save(
      job.target, job.params, progress=advance, **job.keywords
    )


def _keywords(source: Path, base, options, console) -> dict[str, Any]:
  found: dict[str, Any] = dict(
    coder=options.coder,
    mu=options.mu,
    quantizer=options.quantizer,
    max_error=options.max_error,
    metadata=_metadata(source, console),
  )
  if base is not None:
    found["base"] = base
    found["metadata"] = found["metadata"] | _of_base(source, options)
  return found


def _scale(jobs: list[_Job], wanted: goal.Goal, console) -> float:
  """The scale of the steps at which all files together meet the goal."""

  def size(scale: float) -> int:
    return sum(_cost(job, step=job.allocation(scale)) for job in jobs)

  start = goal.start([job.allocation for job in jobs], wanted.bits)
  scale = goal.solve(size, wanted, start)
  _show_steps(jobs, scale, wanted.text, console)
  return scale


def _within(jobs: list[_Job], evaluate, options, console) -> float:
  """The coarsest scale at which the metric falls by no more than allowed."""

  def measure(models, what):
    merged = {name: x for own in models for name, x in own.items()}
    return metric.measure(evaluate, merged, options.evaluate, what)

  exact = measure([job.params for job in jobs], "the exact weights")
  show.line(console, f"exact: metric {exact:.6g}")
  parameters = sum(x.size for job in jobs for x in job.params.values())

  def good(scale: float) -> bool:
    coded = [_coded(job, scale) for job in jobs]
    own = measure([params for params, _ in coded], "quantized weights")
    bits = 8 * sum(size for _, size in coded) / max(parameters, 1)
    show.line(console, f"{bits:.3f} bits per parameter: metric {own:.6g}")
    return own >= exact - options.tolerance

  allocations = [job.allocation for job in jobs]
  text = f"--tolerance {options.tolerance:g}"
  scale = metric.search(good, goal.start(allocations, metric.FINEST), text)
  _show_steps(jobs, scale, text, console)
  return scale


def _show_steps(jobs: list[_Job], scale: float, text: str, console) -> None:
  found = [own for job in jobs for own in job.allocation(scale).values()]
  low, high = min(found, default=0), max(found, default=0)
  show.line(console, f"{text}: steps from {low:.4g} to {high:.4g}")


def _of_base(source: Path, options) -> dict[str, str]:
  """What a difference keeps of its base, and of the files beside the model."""
  kept = {BASE: options.base.resolve().name}
  if source.is_dir():
    kept |= beside.pack(source, files.beside(source), options.base)
  return kept


def copy(plan: files.Plan, console) -> None:
  """Copies what is not coded, and says what is left out."""
  for source, target in plan.copies:
    files.copy(source, target)
  for file in plan.skipped:
    show.line(console, f"not copied, as its weights are coded: {file}")


def _metadata(source: Path, console) -> dict[str, str]:
  """The metadata of a file, but what decompress writes anyway."""
  if source.is_dir():
    source = bases.files(source)[0]
  found = plain.metadata(source)
  if sum(map(len, [*found, *found.values()])) > archive.MAX_METADATA:
    show.line(
      console,
      f"metadata not kept, of {source}: more than {archive.MAX_METADATA:,}"
      " characters",
    )
    return {}
  return {} if found == plain.METADATA else found


def _cost(job: _Job, **keywords) -> int:
  """Bytes of a file with another coder, or other steps."""
  with _trial(job, **keywords) as (_, report):
    return report.bytes


def _coded(job: _Job, scale: float) -> tuple[dict, int]:
  """What a file with the steps at a scale holds, and its bytes."""
  with _trial(job, step=job.allocation(scale)) as (path, report):
    return archive.load(path, base=job.keywords.get("base")), report.bytes


@contextlib.contextmanager
def _trial(job: _Job, **keywords) -> Generator[tuple[Path, archive.Report]]:
  """A coded file that is removed again."""
  job.target.parent.mkdir(parents=True, exist_ok=True)
  with (
    tempfile.TemporaryDirectory(dir=job.target.parent) as scratch,
    warnings.catch_warnings(),
  ):
    warnings.simplefilter("ignore")
    path = Path(scratch) / "file"
    yield path, archive.save(path, job.params, **job.keywords | keywords)


def _uncoded(source: Path) -> dict:
  """The tensors of a file, or of all files of a model, that can be coded."""
  if source.is_dir():
    found: dict = {}
    for file in bases.files(source):
      for name, x in _uncoded(file).items():
        if name in found:
          raise ValueError(f"{file}: tensor {name!r} is in two files")
        found[name] = x
    return found
  if plain.is_coded(source):
    raise ValueError(f"{source}: already a coded file")
  params = plain.read(source)
  if not params:
    raise ValueError(f"{source}: the file contains no tensors")
  return params


def _summary(sources: list[Path], reports: list[archive.Report]) -> dict:
  """What `compress` reports, as JSON."""
  tensors = [t for report in reports for t in report.tensors]
  after = sum(report.bytes for report in reports)
  parameters = sum(report.parameters for report in reports)
  errors = [(t.relative_error or 0.0, t.name) for t in tensors if t.step]
  worst, name = max(errors, default=(None, None))
  return {
    "input_bytes": sum(
      file.stat().st_size for source in sources for file in bases.files(source)
    ),
    "output_bytes": after,
    "parameters": parameters,
    "bits_per_parameter": 8 * after / max(parameters, 1),
    "relative_error": {
      "median": statistics.median(e for e, _ in errors) if errors else None,
      "largest": worst,
      "tensor": name,
    },
    "exact": {
      "error": [t.name for t in tensors if t.kept == "error"],
      "size": [t.name for t in tensors if t.kept == "size"],
      "dtype": [t.name for t in tensors if steps.is_narrow(t.dtype)],
      "scales": [],
    },
  }
