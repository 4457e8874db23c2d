"""The sizes of the text datasets, as a table in Markdown.

python -m experiments.data.summary --source=DIR --words=DIR --causal=DIR
"""

import pathlib
from collections.abc import Iterable

import ml_collections
from absl import flags, logging

from configs import default
from experiments import data, program
from experiments.data import corpus, newsgroups, prepare, text

_SOURCE = flags.DEFINE_string("source", None, "As data.source.")
_WORDS = flags.DEFINE_string("words", "bytes", "Tokenizer of classifiers.")
_CAUSAL = flags.DEFINE_string("causal", "bytes", "Tokenizer of causal models.")
_SEQ_LEN = flags.DEFINE_integer("seq_len", 256, "As data.seq_len.")

_COLUMNS = (
  "task",
  "examples: train, validation, test",
  "sequences: train, validation, test",
  "tokens per training sequence",
  "full training sequences",
  "test examples also in train",
)


def row(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """The cells of a dataset, as in `_COLUMNS`."""
  directory = pathlib.Path(config.dir or prepare.default_dir()).expanduser()
  options = data.Options(config.name, config.seq_len, config.source)
  examples = text.records(options, directory)
  if config.name == "newsgroups20" and config.strip:
    for record in (r for records in examples.values() for r in records):
      record["text"] = newsgroups.strip(record["text"])
  data.load_task(config)
  masks = {
    split: [b["mask"] for b in data.eval_batches(config, split, 1)]
    for split in corpus.SPLITS
  }
  lengths = [mask.sum() for mask in masks["train"]]
  known = {_identity(record) for record in examples["train"]}
  both = sum(_identity(record) in known for record in examples["test"])
  return (
    config.name,
    _numbers(len(examples[split]) for split in corpus.SPLITS),
    _numbers(len(masks[split]) for split in corpus.SPLITS),
    f"{sum(lengths) / len(lengths):.0f}",
    f"{sum(n == config.seq_len for n in lengths) / len(lengths):.0%}",
    f"{both:,}",
  )


def _identity(record: dict) -> tuple[str, ...]:
  """All that a model sees of an example, except the answer."""
  seen = ("text", "context", "question", "en")
  return tuple(record[field] for field in seen if field in record)


def _numbers(values: Iterable[int]) -> str:
  return " / ".join(f"{value:,}" for value in values)


def _main(_):
  logging.set_verbosity(logging.ERROR)
  print("| " + " | ".join(_COLUMNS) + " |")
  print("|---" * len(_COLUMNS) + "|", flush=True)
  for name, builder in text.CORPORA.items():
    config = default.get_config().data
    config.name, config.source = name, _SOURCE.value
    config.tokenizer = _WORDS.value if builder.CLASSES else _CAUSAL.value
    config.seq_len = _SEQ_LEN.value
    print("| " + " | ".join(row(config)) + " |", flush=True)


if __name__ == "__main__":
  program.run(_main)
