"""python -m experiments.compare --config=FILE --model=NAME=DIR --out=DIR

Losses and answers of several files of one model, side by side. --model is given
for each: a directory in the layout of Hugging Face, plain or coded, or the
workdir of a finished training. The first is what the others are compared with.

The losses are those of the test split of config.data, and of each data set
--other=NAME. --prompts=FILE has a prompt in every line. OUT gets records.json,
losses.md and answers.md. What is in records.json is not measured again, unless
a file changed.
"""

import copy
import hashlib
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import flags
from flax import nnx

from experiments import atomic, data, evaluate, include, main, settings
from experiments.models import sizes
from experiments.serve import generate, model, serve

LOSSES, ANSWERS = "losses.md", "answers.md"
_WEIGHTS = "*.safetensors"
_LONG = 16  # Tokens of an answer.
# Of config.data, what decides which texts are read, and how.
_FIELDS = ("tokenizer", "seq_len", "max_eval", "language")


def compare(
  config: ml_collections.ConfigDict,
  models: Sequence[tuple[str, pathlib.Path]],
  out: pathlib.Path,
  *,
  others: Sequence[str] = (),
  prompts: Sequence[str] = (),
) -> list[dict[str, Any]]:
  """Records of models, in their order.

  A record has the "name", the "bytes" and "bits" per parameter of the files
  with the weights, and by data set the "texts": sums over the targets of each,
  "loss" in nats and "weight". `scored` makes means of them. "answers" are
  [prompt, text].

  Args:
    config: its data, which all models read with the same tokenizer.
    models: names and directories.
    out: a directory; a call with the same arguments goes on after the last
      model that was measured.
    others: further data sets.
    prompts: texts that language models continue, greedily.

  Raises:
    UserError: a model or a data set cannot be read; it names it.
  """
  if not models:
    raise settings.UserError("give --model=NAME=DIR, the exact one first")
  path, records = out / "records.json", []
  old = _read(path)
  names = list(dict.fromkeys([config.data.name, *others]))
  for name, directory in models:
    key = _key(config, directory, names, prompts)
    record = next((r for r in old if r["key"] == key), None)
    if record is None:
      record = {"key": key} | _measured(config, directory, names, prompts)
    records.append(record | {"name": name})
    # What an earlier call measured is kept until this one ends.
    rest = [r for r in old if r["key"] not in {x["key"] for x in records}]
    _write(path, [*records, *rest])
  _write(path, records)
  atomic.write_text(out / LOSSES, losses_table(records) + "\n")
  if any("answers" in record for record in records):
    atomic.write_text(out / ANSWERS, answers_table(records) + "\n")
  return records


def _write(path, records) -> None:
  """Writes the records, one in each line."""
  lines = ",\n".join(json.dumps(record, sort_keys=True) for record in records)
  atomic.write_text(path, f"[\n{lines}\n]\n")


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
  """The records that were written before."""
  if not path.exists():
    return []
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise settings.UserError(f"{path}: {error}: remove it") from error


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
  """The files with the weights of a model that is served."""
  shipped = directory / evaluate.SHIPPED
  return [shipped] if shipped.exists() else sorted(directory.glob(_WEIGHTS))


def _key(config, directory, names, prompts) -> str:
  """Names all that a record depends on."""
  found = hashlib.sha256()
  for path in _files(directory):
    with path.open("rb") as file:
      found.update(hashlib.file_digest(file, "sha256").digest())
  found.update(json.dumps([names, list(prompts)]).encode())
  fields = {field: config.data[field] for field in _FIELDS}
  found.update(json.dumps(fields).encode())
  return found.hexdigest()[:16]


def _measured(config, directory, names, prompts) -> dict[str, Any]:
  """The record of a model, without its name."""
  served = model.read(directory)
  size = sum(path.stat().st_size for path in _files(directory))
  state = nnx.state(sizes.abstract(served.config), nnx.Param)
  parameters = sum(x.size for x in jax.tree.leaves(state))
  record = {
    "bytes": size,
    "bits": 8 * size / parameters,
    "texts": {name: _texts(config, served, name) for name in names},
  }
  if prompts and served.is_causal:
    record["answers"] = _answers(served, prompts)
  return record


def _texts(config, served: model.Served, name: str) -> dict[str, list[float]]:
  """Sums over the targets of each test text: "loss" in nats, and "weight"."""
  own = copy.deepcopy(config.data)
  with own.unlocked():
    own.name = name
  losses, weights = [], []
  try:
    task = data.load_task(own)
    if (task.kind == "lm") != served.is_causal:
      raise ValueError(
        f"{served.path} predicts {'tokens' if served.is_causal else 'classes'},"
        f" and {name} has other targets: see config.data.language"
      )
    for batch in data.eval_batches(own, "test", own.eval_batch_size):
      entropies, _ = served.losses(
        served.tensors, batch["tokens"], batch["mask"], batch["targets"]
      )
      rows = len(batch["weights"])
      weight = np.float64(batch["weights"]).reshape(rows, -1)
      losses += list((np.float64(entropies).reshape(rows, -1) * weight).sum(1))
      weights += list(weight.sum(1))
  except ValueError as error:
    raise settings.UserError(str(error)) from error
  used = [i for i, weight in enumerate(weights) if weight]
  return {
    "loss": [round(float(losses[i]), 4) for i in used],
    "weight": [float(weights[i]) for i in used],
  }


def _answers(served: model.Served, prompts) -> list[list[str]]:
  """[prompt, answer] of each prompt."""
  tokens = [serve.encoded(served, prompt) for prompt in prompts]
  options = generate.Options(_LONG, stops=serve.stops(served))
  found = generate.generate(served, tokens, options).tokens
  return [
    [prompt, serve.decoded(served, own)]
    for prompt, own in zip(prompts, found, strict=True)
  ]


def scored(
  texts: dict[str, list[float]], exact: dict[str, list[float]]
) -> dict[str, float]:
  """Mean loss of a target, and how far it is above that of another model.

  Args:
    texts: the sums of each text.
    exact: those of the other model, for the same texts.

  Returns:
    "loss", "above", and "error", the standard error of "above": the texts are
    drawn, and are the same for both models.

  Source: Cochran, Sampling Techniques, 1977, chapter 6 (ratio estimates).
  """
  weight = np.array(texts["weight"])
  more = np.array(texts["loss"]) - np.array(exact["loss"])
  total, count = weight.sum(), len(weight)
  above = more.sum() / total
  squares = np.square(more - above * weight).sum() * count / max(count - 1, 1)
  return {
    "loss": sum(texts["loss"]) / total,
    "above": above,
    "error": math.sqrt(squares) / total,
  }


def losses_table(records: Sequence[dict[str, Any]]) -> str:
  """A row for each model."""
  exact = records[0]["texts"]
  header = ["", "bits per parameter"]
  for name in exact:
    header += [f"{name}: loss", "above"]
  rows = []
  for i, record in enumerate(records):
    row = [record["name"], f"{record['bits']:.2f}"]
    for name, texts in record["texts"].items():
      found = scored(texts, exact[name])
      above = f"{found['above']:.3f} ± {found['error']:.3f}" if i else "-"
      row += [f"{found['loss']:.3f}", above]
    rows.append(row)
  return include.table(header, rows)


def answers_table(records: Sequence[dict[str, Any]]) -> str:
  """A row for each model, a column for each prompt."""
  told = [record for record in records if "answers" in record]
  header = ["", *(prompt for prompt, _ in told[0]["answers"])]
  rows = [
    [
      f"{record['name']}, {record['bits']:.2f} bits",
      *(_cell(answer) for _, answer in record["answers"]),
    ]
    for record in told
  ]
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
  """A text in a cell of a table: in one line, and nothing of it is Markdown."""
  text = " ".join(text.split())
  return "".join(f"\\{c}" if c in r"\|*_`<[" else c for c in text)


def _main() -> None:
  named = flags.DEFINE_multi_string(
    "model", [], "NAME=DIR of a model; the first is the exact one."
  )
  others = flags.DEFINE_multi_string("other", [], "A further data set.")
  prompts = flags.DEFINE_string("prompts", None, "A file, a prompt in a line.")

  def run(config, out):
    settings.check(config)
    compare(
      config,
      [_named(text) for text in named.value],
      out,
      others=others.value,
      prompts=_lines(prompts.value),
    )
    print((out / LOSSES).read_text(), end="")

  main.launch(run, output="out")


def _named(text: str) -> tuple[str, pathlib.Path]:
  name, _, directory = text.partition("=")
  if not name or not directory:
    raise settings.UserError(f"--model={text}: give NAME=DIR")
  return name, pathlib.Path(directory)


def _lines(path: str | None) -> list[str]:
  if path is None:
    return []
  try:
    return pathlib.Path(path).read_text(encoding="utf-8").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise settings.UserError(f"--prompts={path}: {error}") from error


if __name__ == "__main__":
  _main()
