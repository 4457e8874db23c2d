"""The datasets of texts: prepared, tokenized, and both kept.

tfds keeps the texts, once per source. The tokens are kept beside them, once per
tokenizer, length and choice of text, in a file that is written whole or not at
all.
"""

import hashlib
import json
import os
import pathlib
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.data import (
  classification,
  corpus,
  encode,
  files,
  generation,
  newsgroups,
  prepare,
  vocabulary,
)
from experiments.data import task as task_lib

CORPORA: dict[str, type[corpus.Corpus]] = {
  "enron_spam": classification.EnronSpam,
  "imdb": classification.Imdb,
  "newsgroups20": classification.Newsgroups20,
  "squad": generation.Squad,
  "sst2": classification.Sst2,
  "wmt19": generation.Wmt19,
}
# Part of the name of the files with tokens. Raise it when the same texts give
# other tokens.
_VERSION = 1


def load(options: task_lib.Options, data_dir: pathlib.Path) -> task_lib.Dataset:
  """The dataset that `options` describe.

  Raises:
    ValueError: the source, the tokenizer or the length do not serve, or what
      was prepared cannot be read; `files.SourceError` is one.
    OSError: `data_dir` cannot be written.
  """
  builder = CORPORA[options.name]
  words = vocabulary.load(options.tokenizer)
  directory = data_dir / _origin(builder, options)
  fields = {
    "tokenizer": words.identity,
    "seq_len": options.seq_len,
    "strip": options.strip and options.name == "newsgroups20",
    "pack": options.pack and not builder.CLASSES,
    "data": str(builder.VERSION),
    "version": _VERSION,
  }
  classes = () if options.language else builder.CLASSES
  if options.language:
    if not builder.CLASSES:
      raise ValueError(
        f"data.language is True, but {options.name} has no classes to leave out"
      )
    fields["language"] = True
  key = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
  path = directory / "tokens" / f"{options.name}-{key[:16]}.npz"
  splits = _kept(path)
  if splits is None:
    splits = {}
    for split, records in _records(builder, options, directory).items():
      splits[split] = _arrays(split, records, options, words)
    _keep(path, splits)
  task = task_lib.Task(
    name=options.name,
    kind="classification" if classes else "lm",
    vocab_size=words.size,
    seq_len=options.seq_len,
    num_classes=len(classes) or None,
    class_names=classes,
    num_train=len(splits["train"]["tokens"]),
  )
  return task_lib.Dataset(task, splits)


def records(
  options: task_lib.Options, data_dir: pathlib.Path
) -> dict[str, list[dict]]:
  """Split -> records with strings and integers, prepared if need be."""
  builder = CORPORA[options.name]
  return _records(builder, options, data_dir / _origin(builder, options))


def _origin(builder: type[corpus.Corpus], options: task_lib.Options) -> str:
  """Names the source; another content is another one."""
  if options.source is None:
    return "official"
  paths = corpus.local_files(builder, options.source)
  return f"local-{files.digest(paths)[:16]}"


def _records(builder, options, directory) -> dict[str, list[dict]]:
  if options.source is None and not (directory / builder.name).exists():
    print(f"downloading {options.name} to {directory}", file=sys.stderr)
  made = prepare.prepared(builder, directory, source=options.source)
  return {
    split: [
      {k: v.decode() if isinstance(v, bytes) else int(v) for k, v in r.items()}
      for r in prepare.read(made, split)
    ]
    for split in corpus.SPLITS
  }


def _arrays(
  split: str,
  found: Sequence[dict],
  options: task_lib.Options,
  words: vocabulary.Vocabulary,
) -> encode.Arrays:
  """The arrays of a split."""
  if CORPORA[options.name].CLASSES:
    strip = options.strip and options.name == "newsgroups20"
    texts = [newsgroups.strip(r["text"]) if strip else r["text"] for r in found]
    if options.language:
      return encode.language(texts, words, options.seq_len)
    labels = [r["label"] for r in found]
    return encode.classification(texts, labels, words, options.seq_len)
  prompts = [_PROMPTS[options.name](record) for record in found]
  train = split == "train"
  return encode.generation(
    prompts, words, options.seq_len, train=train, pack=train and options.pack
  )


def _question(record: dict) -> encode.Prompt:
  end = record["answer_start"] + len(record["answer"])
  question = f"\nQuestion: {record['question']}\nAnswer:"
  return encode.Prompt(record["context"], question, f" {record['answer']}", end)


def _translation(record: dict) -> encode.Prompt:
  english = f"English: {record['en']}"
  return encode.Prompt(
    english, "\nGerman:", f" {record['de']}", len(english.rstrip())
  )


_PROMPTS = {"squad": _question, "wmt19": _translation}


def _kept(path: pathlib.Path) -> dict[str, encode.Arrays] | None:
  """What `_keep` wrote, None where it is not there or damaged."""
  splits: dict[str, encode.Arrays] = {}
  try:
    with path.open("rb") as file, np.load(file) as arrays:
      for name in arrays.files:
        split, _, field = name.partition(".")
        splits.setdefault(split, {})[field] = arrays[name]
  except (OSError, ValueError, EOFError, zipfile.BadZipFile):
    return None
  return splits


def _keep(path: pathlib.Path, splits: dict[str, encode.Arrays]) -> None:
  """Writes the arrays to a file of another name and then renames it."""
  named: dict[str, Any] = {
    f"{split}.{field}": array
    for split, arrays in splits.items()
    for field, array in arrays.items()
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
  try:
    with os.fdopen(descriptor, "wb") as file:
      np.savez(file, **named)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise
