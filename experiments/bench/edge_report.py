"""Tables and a figure of what experiments.bench.edge measured.

python -m experiments.bench.edge_report experiments/results/edge
python -m experiments.include docs/edge.md experiments/results

writes them beside the results, and puts the tables into the document.
"""

import argparse
import json
import pathlib
import statistics

from experiments import palette, program, report
from experiments.bench import edge

palette.use()

from matplotlib import pyplot  # noqa: E402

KINDS = {"weights": "single weights", "units": "whole units"}


def size_table(rows: list[dict]) -> report.Table:
  """Accuracy and bytes of every model, over the seeds."""
  body = []
  for name, own in _by_name(rows).items():
    cells = [name, report.spread([100 * r["accuracy"] for r in own], ".1f")]
    for field in ("parameters", "flops", "archive", "onnx", "onnx_xz"):
      cells.append(report.spread([r.get(field) for r in own], ",.0f"))
    ratios = [r["fp16"] / r["archive"] for r in own if "fp16" in r]
    cells.append(report.spread(ratios, ".1f"))
    body.append(cells)
  header = ["model", "accuracy, %", "parameters", "operations"]
  header += ["coded, bytes", "ONNX, bytes", "ONNX, xz", "fp16 / coded"]
  return report.Table("size", header, body)


def speed_table(rows: list[dict]) -> report.Table:
  """Milliseconds per call and throughput, over the seeds."""
  keys = list(rows[0]["latency"])
  body = []
  for name, own in _by_name(rows).items():
    cells = [name]
    for key in keys:
      medians = [1000 * r["latency"][key]["median"] for r in own]
      cells.append(report.spread(medians, ".3f"))
    for key in keys:
      if key.startswith("batch 32"):
        rate = [32 / r["latency"][key]["median"] for r in own]
        cells.append(report.spread(rate, ",.0f"))
    memory = [r["peak_memory"] / 2**20 for r in own]
    cells.append(report.spread(memory, ".1f"))
    body.append(cells)
  header = ["model", *(f"{key}, ms" for key in keys)]
  header += [
    f"examples / s, {key.partition(', ')[2]}"
    for key in keys
    if key.startswith("batch 32")
  ]
  return report.Table("speed", [*header, "peak memory, MiB"], body)


def ratio_table(rows: list[dict]) -> report.Table:
  """What a structured rate changes, seed by seed, against the others."""
  body = []
  by_name = _by_name(rows)
  structured = by_name["structured"]
  for other in ("normal", edge.PRUNED):
    pairs = list(zip(structured, by_name[other], strict=True))
    cells = [f"structured against {other}"]
    gains = [100 * (a["accuracy"] - b["accuracy"]) for a, b in pairs]
    cells.append(report.spread(gains, ".1f"))
    for key in rows[0]["latency"]:
      ratios = [
        b["latency"][key]["median"] / a["latency"][key]["median"]
        for a, b in pairs
      ]
      cells.append(report.spread(ratios, ".2f"))
    body.append(cells)
  keys = [f"times faster, {key}" for key in rows[0]["latency"]]
  return report.Table("ratios", ["", "points of accuracy", *keys], body)


def units_table(rows: list[dict]) -> report.Table:
  """How many units every layer of the structured model has left, by seed."""
  own = _by_name(rows)["structured"]
  body = []
  for i, line in enumerate(own[0]["units"]):
    left = [str(r["units"][i]["after"]) for r in own]
    name = f"{line['group']} {line['layer']}".strip()
    body.append([name, str(line["before"]), ", ".join(left)])
  return report.Table("units", ["units", "before", "left, by seed"], body)


def pruning_tables(rows: list[dict]) -> list[report.Table]:
  """Test accuracy at every rate, for single weights and for whole units."""
  tables = []
  for kind, title in KINDS.items():
    rates = sorted({r["rate"] for r in rows})
    body = []
    for arm in dict.fromkeys(r["arm"] for r in rows):
      cells = [arm]
      for rate in rates:
        found = [
          100 * r["accuracy"]
          for r in rows
          if (r["arm"], r["kind"], r["rate"]) == (arm, kind, rate)
        ]
        cells.append(report.spread(found, ".1f"))
      body.append(cells)
    header = ["training", *(f"{rate:.0%}" for rate in rates)]
    tables.append(report.Table(f"{title} removed", header, body))
  return tables


def draw_pruning(rows: list[dict], path: pathlib.Path) -> None:
  """Test accuracy against the pruning rate, with bars over the seeds."""
  figure, axes = pyplot.subplots(
    1, 2, figsize=(10, 4), sharey=True, layout="constrained"
  )
  for axis, (kind, title) in zip(axes, KINDS.items(), strict=True):
    for i, arm in enumerate(dict.fromkeys(r["arm"] for r in rows)):
      own = [r for r in rows if r["arm"] == arm and r["kind"] == kind]
      rates = sorted({r["rate"] for r in own})
      by_rate = [[r["accuracy"] for r in own if r["rate"] == x] for x in rates]
      axis.errorbar(
        [100 * x for x in rates],
        [100 * statistics.fmean(v) for v in by_rate],
        yerr=[100 * statistics.stdev(v) if v[1:] else 0 for v in by_rate],
        capsize=2,
        markersize=4,
        **palette.style(i),
        label=arm,
      )
    axis.set_xlabel(f"{title} removed, %")
  axes[0].set_ylabel("test accuracy, %")
  axes[0].legend()
  figure.savefig(path, dpi=120)
  pyplot.close(figure)


def _by_name(rows):
  """Rows of one model together, in the order of the seeds."""
  names = dict.fromkeys(r["name"] for r in rows)
  return {
    name: sorted(
      (r for r in rows if r["name"] == name), key=lambda r: r["seed"]
    )
    for name in names
  }


def write(results: pathlib.Path) -> None:
  """Writes the tables and the figure of the results beside them."""
  models = _read(results / "models.json")
  pruning = _read(results / "pruning.json")
  tables = {
    "size": size_table(models),
    "speed": speed_table(models),
    "ratios": ratio_table(models),
    "units": units_table(models),
  }
  weights, units = pruning_tables(pruning)
  tables |= {"weights": weights, "pruned_units": units}
  for name, table in tables.items():
    (results / f"{name}.md").write_text(report.markdown(table))
  draw_pruning(pruning, results / "pruning.png")


def _read(path):
  return json.loads(path.read_text())["results"]["rows"]


def _main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("results", type=pathlib.Path)
  write(parser.parse_args().results)


if __name__ == "__main__":
  program.end(_main)
