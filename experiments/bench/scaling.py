"""The tables of docs/scaling.md, from the results of the other benchmarks.

python -m experiments.bench.scaling
"""

import json
import pathlib
from typing import Any

from experiments import include, program, report
from experiments.bench import aot_serve, timing, usage

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "scaling.md"

_OPTIMIZERS = {
  "adamw": "`adamw`",
  "coupled": "`chain(backslash, adamw)`",
  "every update": "the same, `update_every=1`",
  "decoupled": "`backslash` after Adam",
  "L1": "`chain(backslash(shape=1.0), adamw)`",
}
_EAGER = {
  "JAX": "`chain(backslash, adamw)`, compiled",
  "PyTorch, eager": "the same update in eager PyTorch",
}
_UPDATES = {
  "plain": "no rate",
  "rate measured": "lambda 0, the rate measured when it is logged",
  "rate paid": "the rate paid for",
  "rounded": "steps fitted, the loss of the rounded model",
}


def tables(results: pathlib.Path) -> dict[str, str]:
  """Name -> the table in Markdown, of the results files in a directory."""
  found = {
    path.stem.removesuffix("_cpu"): json.loads(path.read_text())
    for path in sorted(results.glob("*_cpu.json"))
  }
  result = {
    "optimizer": _ratios(found["optimizer"], _OPTIMIZERS),
    "eager": _ratios(found["eager"], _EAGER),
    "update": _ratios(found["update_encoder"], _UPDATES),
    "update of BERT-base": _ratios(found["update_bert"], _UPDATES),
    "growth": _growth(found["growth"]),
    "devices": _devices(found["growth"]),
    "moments": _moments(found["moments"]),
    "products": _products(found["products"]),
  }
  for name in ("encoder", "encoder_before"):
    if name in found:
      result[name.replace("_", " ")] = _examples(found[name])
  if "optimizer_minilm" in found:
    document = found["optimizer_minilm"]
    result["optimizer of MiniLM"] = _ratios(document, _OPTIMIZERS)
  if "compiling" in found:
    result["compiling"] = _compiling(found["compiling"])
  if "lag" in found:
    result["lag"] = _lag(found["lag"])
  if "decoding" in found:
    document = found["decoding"]
    table = aot_serve.table(document["results"]["models"])
    result["decoding"] = _origin(document) + "\n\n" + table
  for name, document in found.items():
    if name.startswith("aot_"):
      result[name.replace("_", " ")] = _compiled(document)
  return result


def _origin(document: dict[str, Any]) -> str:
  """What measured it, where and when."""
  machine = document["machine"]
  return (
    f"    {document['command']}\n\n{machine['host']}, jax {machine['jax']},"
    f" {document['date']}."
  )


def _table(document, header, rows) -> str:
  lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
  lines += ["| " + " | ".join(row) + " |" for row in rows]
  return _origin(document) + "\n\n" + "\n".join(lines)


def _ratios(document, names) -> str:
  """Candidates as multiples of the baseline, from `timing.compare`."""

  def cells(clock):
    ratio = clock["ratio"]
    low, middle, high = (
      f"{ratio[k]:.3g}" for k in ("quartile_1", "median", "quartile_3")
    )
    yield f"{clock['seconds']['median']:.3g}"
    yield f"{middle} ({low} to {high})"
    yield f"{clock['ratio_of_means']:.3g}"

  rows = []
  measured = [key for key in names if key in document["results"]]
  for key in measured:
    wall, processor = (
      list(cells(document["results"][key][c])) for c in ("wall", "processor")
    )
    rows.append([names[key], *wall, processor[1]])
  header = "", "seconds", "ratio", "of the means", "ratio, processor time"
  return _table(document, header, rows)


def _compiling(document) -> str:
  parts = ("trace", "lower", "compile")
  rows = [
    [
      row["model"],
      _UPDATES[row["candidate"]],
      *(f"{row[part]:.1f}" for part in parts),
    ]
    for row in document["results"]
  ]
  header = "model", "update", *(f"{part}, s" for part in parts)
  return _table(document, header, rows)


def _lag(document) -> str:
  fields = (
    ("exact_accuracy", 100, ".1f"),
    ("accuracy", 100, ".1f"),
    ("file_bits", 1, ".3f"),
  )
  found = document["results"]
  rows = []
  for every in found["means"]:
    runs = [r for r in found["runs"] if r["update_every"] == int(every)]
    cells = [
      report.spread([scale * run[field] for run in runs], form)
      for field, scale, form in fields
    ]
    rows.append([every, *cells])
  header = "`update_every`", "accuracy, %", "of the file, %", "bits"
  return _table(document, header, rows)


def _growth(document) -> str:
  rows = [
    [
      f"{int(size):,}",
      *(
        f"{clocks[clock]['ns per parameter']['median']:.2f}"
        for clock in ("wall", "processor")
      ),
    ]
    for size, clocks in document["results"]["parameters"].items()
  ]
  header = "parameters", "ns per parameter", "of processor time"
  return _table(document, header, rows)


def _devices(document) -> str:
  rows = [
    [
      devices,
      str(cost["bytes all-reduced"]),
      f"{cost['flops'] / 1e6:.1f}",
      f"{cost['bytes'] / 1e6:.1f}",
    ]
    for devices, cost in document["results"]["devices"].items()
  ]
  header = "devices", "bytes all-reduced", "MFLOP", "MB read and written"
  return _table(document, header, rows)


def _moments(document) -> str:
  names = {"copy": "copy", "xla": "`xla`", "xla_cpu": "`xla_cpu`"}
  rows = [
    [
      tensor,
      f"{entry['MiB']:.1f}",
      *(f"{entry[n]['processor']['GB/s']['median']:.1f}" for n in names),
    ]
    for tensor, entry in document["results"].items()
  ]
  header = "tensor", "MiB", *(f"{name}, GB/s" for name in names.values())
  return _table(document, header, rows)


def _products(document) -> str:
  measured = document["results"]["products, GFLOP/s"]
  ways = list(dict.fromkeys(key.partition(", ")[2] for key in measured))
  rows = [
    [name, *(_quartiles(measured[f"{name}, {way}"], ".0f") for way in ways)]
    for name in dict.fromkeys(key.partition(", ")[0] for key in measured)
  ]
  header = "GFLOP/s", *ways
  return _table(document, header, rows)


def _examples(document) -> str:
  measured = document["results"]["seconds per example"]
  base = next(iter(measured.values()))["median"]
  rows = [
    [name, _quartiles(found, ".3f"), f"{found['median'] / base:.2f}"]
    for name, found in measured.items()
  ]
  header = "", "processor seconds per example", "ratio"
  return _table(document, header, rows)


def _quartiles(found, digits) -> str:
  low, middle, high = (
    f"{found[k]:{digits}}" for k in ("quartile_1", "median", "quartile_3")
  )
  return f"{middle} ({low} to {high})"


def _compiled(document) -> str:
  results = document["results"]
  off, on = (usage.Usage(**results[k]) for k in ("off", "on"))
  table = usage.table(results["topology"], off, on)
  return _origin(document) + "\n\n" + table


def main():
  include.update(DOCS, tables(timing.RESULTS))


if __name__ == "__main__":
  program.end(main)
