"""The dataset "texts": one file, with a text or an object in every line."""

import json
import lzma
import pathlib
from typing import Any

import numpy as np

from experiments.data import encode, files, vocabulary
from experiments.data import task as task_lib

NAME = "texts"
_HELD_OUT = 5  # One text of so many is validation, and one is test.


def load(options: task_lib.Options) -> task_lib.Dataset:
  """The dataset of the file `options.source`.

  Its texts are put in a fixed random order and split: three fifths are for
  training. With `options.language` every token of a text but the first is a
  target; otherwise the lines have labels.

  Raises:
    ValueError: the file, the tokenizer or the length do not serve;
      `files.SourceError` is one.
  """
  if options.source is None:
    raise files.SourceError(f"data.name is {NAME!r}: set data.source to a file")
  path = pathlib.Path(options.source).expanduser()
  rows = read(path, not options.language)
  if len(rows) < _HELD_OUT:
    raise files.SourceError(
      f"{path} has {len(rows)} texts, one in each line: give at least"
      f" {_HELD_OUT}, of which a part is for the measurements"
    )
  words = vocabulary.load(options.tokenizer)
  order = np.random.default_rng(0).permutation(len(rows))
  splits = {}
  for split, numbers in {
    "validation": order[::_HELD_OUT],
    "test": order[1::_HELD_OUT],
    "train": [n for i, n in enumerate(order) if i % _HELD_OUT > 1],
  }.items():
    texts, labels = zip(*(rows[n] for n in numbers), strict=True)
    if options.language:
      splits[split] = encode.padded(texts, words, options.seq_len)
      if not splits[split]["weights"].any():
        raise files.SourceError(
          f"{path}: no text of its {split} split has two tokens"
        )
    else:
      splits[split] = encode.classification(
        texts, labels, words, options.seq_len
      )
  classes = 0 if options.language else 1 + max(label or 0 for _, label in rows)
  task = task_lib.Task(
    name=NAME,
    kind="classification" if classes else "lm",
    vocab_size=words.size,
    seq_len=options.seq_len,
    num_classes=classes or None,
    class_names=tuple(map(str, range(classes))),
    num_train=len(splits["train"]["tokens"]),
  )
  return task_lib.Dataset(task, splits)


def read(path: pathlib.Path, labelled: bool) -> list[tuple[str, int | None]]:
  """(text, label) of each line of a file, which may be xz.

  Args:
    path: of a .jsonl file, a line is an object with "text" and, for a
      classifier, "label", an integer. Of another, it is a text, after its
      label and a tab.
    labelled: whether the labels are wanted.

  Raises:
    SourceError: the file cannot be read, or a line is not as it should be.
  """
  opened = lzma.open if path.suffix == ".xz" else open
  is_json = ".jsonl" in path.suffixes
  found: list[tuple[str, int | None]] = []
  try:
    with opened(path, "rt", encoding="utf-8") as file:
      lines = [line.rstrip("\n") for line in file]
  except (OSError, UnicodeDecodeError, lzma.LZMAError) as error:
    raise files.SourceError(f"{path}: cannot be read: {error}") from error
  label: Any
  for number, line in enumerate(lines, 1):
    if not line:
      continue
    try:
      if is_json:
        row = json.loads(line)
        text, label = str(row["text"]), row.get("label")
      elif labelled:
        label, _, text = line.partition("\t")
      else:
        text, label = line, None
      found.append((text, _natural(label) if labelled else None))
    except (ValueError, TypeError, LookupError, AttributeError):
      wanted = '{"text": ..., "label": ...}' if is_json else "LABEL<tab>TEXT"
      raise files.SourceError(
        f"{path}, line {number}: wanted {wanted}; for a classifier with a"
        " label, an integer that is not negative"
      ) from None
  if not found:
    raise files.SourceError(f"{path}: no texts in it")
  return found


def _natural(label: Any) -> int:
  number = int(label)
  if number < 0:
    raise ValueError(label)
  return number
