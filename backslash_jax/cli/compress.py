"""The command compress."""

import fnmatch
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

from backslash_jax import archive, tree
from backslash_jax.archive import bases, differences, naming, plain
from backslash_jax.cli import beside, files, show, staging, steps

BASE = "backslash_jax.base"  # The key of the base's name in the metadata.


def run(options, console) -> dict:
  """Codes a file or a directory; returns what it reports, as JSON."""
  base = None
  if steps.parse(options.step) is None and options.base:
    raise ValueError(
      f"--step {options.step}: with --base, give a number such as 2^-8"
    )
  files.check_base(options.base, options.output)
  if (
    options.base
    and options.input.is_dir()
    and (files.is_model_file(options.output))
  ):
    plan = files.plan_file(options.input, options.output, force=options.force)
  else:
    plan = files.plan(
      options.input,
      options.output,
      naming.coded,
      force=options.force,
      redundant=False,
    )
  models = [_uncoded(source) for source, _ in plan.models]
  chosen = _chosen(models, options)
  if options.base:
    base = archive.Base(options.base)
  reports, costs = [], dict.fromkeys(archive.CODERS, 0)
  with files.writing(plan) as staged:
    for (source, target), params, names in zip(
      staged.models, models, chosen, strict=True
    ):
      keywords: dict[str, Any] = dict(
        step=steps.of_tensors(options.step, {n: params[n] for n in names}),
        mu=options.mu,
        max_error=options.max_error,
        metadata=_metadata(source, console),
      )
      if base is not None:
        keywords |= _of_difference(source, params, names, base, options)
        keywords["metadata"] = keywords["metadata"] | _of_base(source, options)
      target.parent.mkdir(parents=True, exist_ok=True)
      total = sum(x.size for x in params.values())
      with (
        show.Bar(console, f"compress {source.name}", total) as advance,
        warnings.catch_warnings(record=True) as warned,
      ):
        warnings.simplefilter("always")
        reports.append(
          archive.save(
            target, params, coder=options.coder, progress=advance, **keywords
          )
        )
      for warning in warned:
        text = str(warning.message)
        if staged.folder and plan.folder:
          text = staging.renamed(text, staged.folder, plan.folder)
        show.line(console, f"warning: {text}")
      if options.report:
        for coder in archive.CODERS:
          costs[coder] += _cost(target.parent, params, coder, keywords)
    copy(staged, console)
  result = _summary([s for s, _ in plan.models], reports)
  show.compressed(console, result, options.max_error)
  if options.report:
    result["coder_bytes"] = costs
    show.costs(console, costs, result["parameters"])
  return result


def _of_difference(source, params, names, base, options) -> dict:
  """The arguments of `archive.save` for a difference."""
  step = steps.parse(options.step)
  taken = differences.taken_from(base, params)
  found = dict.fromkeys(names, step)
  if options.mask is None:
    (excluded,) = _matching("--exclude", options.exclude, [params])
    found = {
      name: own
      for name, own in differences.steps(
        params, step, tree.matrices, taken
      ).items()
      if name not in excluded and not _is_narrow(params[name].dtype.name)
    }
  return {"base": base, "step": found}


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


def _cost(folder: Path, params: dict, coder: str, keywords: dict) -> int:
  """Bytes of a model with another coder."""
  with (
    tempfile.TemporaryDirectory(dir=folder) as scratch,
    warnings.catch_warnings(),
  ):
    warnings.simplefilter("ignore")
    path = Path(scratch) / "file"
    return archive.save(path, params, coder=coder, **keywords).bytes


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
      "dtype": [t.name for t in tensors if _is_narrow(t.dtype)],
    },
  }


def _chosen(models: list[dict], options) -> list[list[str]]:
  """The names of the tensors to quantize, of each file.

  A pattern has to match a tensor of one of the files, not of each.
  """
  floating = [{n: x for n, x in m.items() if tree.is_float(x)} for m in models]
  if options.mask is None:
    flags = [tree.select(params, tree.matrices) for params in models]
    chosen = [{n for n, flag in own.items() if flag} for own in flags]
  else:
    chosen = _matching("--mask", options.mask, floating)
  excluded = _matching("--exclude", options.exclude, models)
  return [
    [
      name
      for name in params
      if name in own - other and not _is_narrow(params[name].dtype.name)
    ]
    for params, own, other in zip(models, chosen, excluded, strict=True)
  ]


def _matching(option: str, patterns, models: list[dict]) -> list[set[str]]:
  """The names that match a pattern, of each file; ValueError if none does."""
  found: list[set[str]] = [set() for _ in models]
  for pattern in patterns:
    own = [
      {pattern} & params.keys() or set(fnmatch.filter(params, pattern))
      for params in models
    ]
    if not any(own):
      raise ValueError(
        f"{option}: no tensor that can be chosen matches {pattern!r}"
      )
    found = [a | b for a, b in zip(found, own, strict=True)]
  return found


def _is_narrow(dtype: str) -> bool:
  """Whether values are quantized already: a float of 8 bits or fewer."""
  # The underscore tells float6_e2m3fn from float64.
  return dtype.startswith(("float8_", "float6_", "float4_"))
