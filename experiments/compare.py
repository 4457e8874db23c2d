"""python -m experiments.compare --config=FILE --model=NAME=DIR --out=DIR

Losses and answers of several files of one model, side by side. --model is given
for each: a directory in the layout of Hugging Face, plain or coded, or the
workdir of a finished training. The first is what the others are compared with.

The losses are those of the test split of config.data, and of each data set
--other=NAME. --prompts=FILE has a prompt in every line. OUT gets records.json,
losses.md and answers.md. What is in records.json is not measured again, unless
a model, the texts or the prompts changed. Two processes need an OUT each.
"""

import copy
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import flags

from experiments import (
  atomic,
  data,
  evaluate,
  include,
  main,
  resume,
  scoring,
  settings,
)
from experiments.data import lines
from experiments.huggingface import reading
from experiments.serve import generate, model, score, serve

LOSSES, ANSWERS = "losses.md", "answers.md"
_LONG = 16  # Tokens of an answer.


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
  for i, prompt in enumerate(prompts, 1):
    if not prompt.strip():
      raise settings.UserError(f"prompt {i} is empty: give it some text")
  path, records = out / "records.json", []
  old = _read(path)
  texts = [
    _read_texts(config, n) for n in dict.fromkeys([config.data.name, *others])
  ]
  resume.prepare_directory(out)
  for name, directory in models:
    key = _key(directory, texts, prompts)
    record = next((r for r in [*records, *old] if r["key"] == key), None)
    if record is None:
      record = {"key": key} | _measured(directory, texts, prompts)
    records.append(record | {"name": name})
    # What an earlier call measured is kept until this one ends.
    rest = [r for r in old if r["key"] not in {x["key"] for x in records}]
    _write(path, [*records, *rest])
  _write(path, records)
  atomic.write_text(out / LOSSES, losses_table(records) + "\n")
  if any("answers" in record for record in records):
    atomic.write_text(out / ANSWERS, answers_table(records) + "\n")
  return records


class _Texts(NamedTuple):
  """The test texts of a data set."""

  task: data.Task
  batches: list[dict[str, np.ndarray]]


def _read_texts(config, name: str) -> _Texts:
  own = copy.deepcopy(config.data).unlock()
  if name != own.name and own.name == lines.NAME:
    own.source = None  # That is the file of the texts.
  own.name = name
  try:
    batches = data.eval_batches(own, "test", own.eval_batch_size)
    return _Texts(data.load_task(own), list(batches))
  except ValueError as error:
    raise settings.UserError(str(error)) from error


def _write(path, records) -> None:
  """Writes the records, one in each line."""
  written = ",\n".join(json.dumps(r, sort_keys=True) for r in records)
  atomic.write_text(path, f"[\n{written}\n]\n")


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
  """The records that were written before."""
  if not path.exists():
    return []
  try:
    found = json.loads(path.read_text())
    if not all(r["key"] and r["name"] and r["texts"] for r in found):
      raise ValueError("an empty field")
  except (ValueError, TypeError, KeyError) as error:
    raise settings.UserError(
      f"{path}: no records of models ({error!r}): remove it"
    ) from error
  return found


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
  """The files with the weights of a model; none if there is no model."""
  shipped = directory / evaluate.SHIPPED
  if shipped.exists():
    return [shipped]
  try:
    return sorted(reading.find(directory))
  except (ValueError, OSError):
    return []


def _key(directory, texts, prompts) -> str:
  """Names all that a record depends on."""
  found = hashlib.sha256(json.dumps(list(prompts)).encode())
  for pattern in ("*.json", "*.txt"):  # The config and the tokenizer.
    for path in sorted(directory.glob(pattern)):
      found.update(path.read_bytes())
  for path in _files(directory):
    with path.open("rb") as file:
      found.update(hashlib.file_digest(file, "sha256").digest())
  for task, batches in texts:
    found.update(task.name.encode())
    for batch in batches:
      for name in sorted(batch):
        found.update(np.ascontiguousarray(batch[name]).tobytes())
  return found.hexdigest()[:16]


def _measured(directory, texts, prompts) -> dict[str, Any]:
  """The record of a model, without its name."""
  served = model.read(directory)
  size = sum(path.stat().st_size for path in _files(directory))
  parameters = sum(x.size for x in jax.tree.leaves(served.tensors))
  record = {
    "bytes": size,
    "bits": 8 * size / parameters,
    "texts": {own.task.name: _sums(served, own) for own in texts},
  }
  if prompts and served.is_causal:
    record["answers"] = _answers(served, prompts)
  return record


def _sums(served: model.Served, texts: _Texts) -> dict[str, list[float]]:
  """Sums over the targets of each text: "loss" in nats, and "weight"."""
  try:
    scoring.check_task(texts.task, served.config, str(served.path))
  except ValueError as error:
    raise settings.UserError(str(error)) from error
  found = score.per_text(served, texts.batches)
  used = np.flatnonzero(found["weight"])
  return {
    "loss": [round(float(x), 4) for x in found["loss"][used]],
    "weight": [float(x) for x in found["weight"][used]],
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
  """
  weight = np.array(texts["weight"])
  more = np.array(texts["loss"]) - np.array(exact["loss"])
  total = weight.sum()
  products = {"hh": more @ more, "hw": more @ weight, "ww": weight @ weight}
  sums = {"accuracy": more.sum(), "weight": total} | products
  return {
    "loss": sum(texts["loss"]) / total,
    "above": more.sum() / total,
    "error": scoring.standard_error({k: float(x) for k, x in sums.items()}),
  }


def losses_table(records: Sequence[dict[str, Any]]) -> str:
  """A row for each model."""
  exact = records[0]["texts"]
  header = ["", "bits per parameter"]
  for name in exact:
    header += [f"{name}: loss", "above"]
  rows = []
  for i, record in enumerate(records):
    row = [_cell(record["name"]), f"{record['bits']:.2f}"]
    for name, texts in record["texts"].items():
      found = scored(texts, exact[name])
      above = f"{found['above']:.3f} ± {found['error']:.3f}" if i else "-"
      row += [f"{found['loss']:.3f}", above]
    rows.append(row)
  return include.table(header, rows)


def answers_table(records: Sequence[dict[str, Any]]) -> str:
  """A row for each model, a column for each prompt."""
  told = [record for record in records if "answers" in record]
  header = ["", *(_cell(prompt) for prompt, _ in told[0]["answers"])]
  rows = [
    [
      f"{_cell(record['name'])}, {record['bits']:.2f} bits",
      *(_cell(answer) for _, answer in record["answers"]),
    ]
    for record in told
  ]
  return include.table(header, rows, "---")


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
      prompts=serve.read_prompts(prompts.value) if prompts.value else (),
    )
    print((out / LOSSES).read_text(), end="")

  main.launch(run, output="out")


def _named(text: str) -> tuple[str, pathlib.Path]:
  name, _, directory = text.partition("=")
  if not name or not directory:
    raise settings.UserError(f"--model={text}: give NAME=DIR")
  return name, pathlib.Path(directory)


if __name__ == "__main__":
  _main()
