"""Loss and accuracy of a model on texts, or on a split of its own task."""

import json
import lzma
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments import data, settings
from experiments.data import pipeline, vocabulary
from experiments.serve import model

BATCH = 8
_LENGTH = 512  # Tokens of a text, at most.
_SPLITS = ("train", "validation", "test")


def score(served: model.Served, source: str) -> dict[str, float]:
  """Mean loss in nats, accuracy in [0, 1], and of how many targets.

  The targets are the tokens after the first of each text, or the classes.

  Args:
    served: the model.
    source: a file, see `texts`; or the name of a split, of a model that was
      trained here.

  Raises:
    UserError: no such file or split, or it does not fit the model.
  """
  loss = hits = count = 0.0
  for batch in _batches(served, source):
    entropies, right = served.losses(
      served.tensors, batch["tokens"], batch["mask"], batch["targets"]
    )
    weights = batch["weights"]
    loss += float(np.sum(np.asarray(entropies, np.float64) * weights))
    hits += float(np.sum(np.asarray(right) * weights))
    count += float(np.sum(weights))
  if not count:
    raise settings.UserError(f"{source}: no text has two tokens to score")
  return {"loss": loss / count, "accuracy": hits / count, "targets": int(count)}


def texts(path: pathlib.Path, labelled: bool) -> list[tuple[str, int | None]]:
  """(text, label) of each line of a file, which may be xz.

  Args:
    path: of a .jsonl file, a line is an object with "text" and, for a
      classifier, "label", an integer. Of another, it is a text, after its
      label and a tab.
    labelled: whether the labels are wanted.

  Raises:
    UserError: the file cannot be read, or a line is not as it should be.
  """
  opened = lzma.open if path.suffix == ".xz" else open
  is_json = ".jsonl" in path.suffixes
  found: list[tuple[str, int | None]] = []
  try:
    with opened(path, "rt", encoding="utf-8") as file:
      lines = [line.rstrip("\n") for line in file]
  except (OSError, UnicodeDecodeError, lzma.LZMAError) as error:
    raise settings.UserError(f"{path}: cannot be read: {error}") from error
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
      found.append((text, int(label) if labelled else None))
    except (ValueError, TypeError, LookupError, AttributeError):
      wanted = '{"text": ..., "label": ...}' if is_json else "LABEL<tab>TEXT"
      raise settings.UserError(
        f"{path}, line {number}: wanted {wanted}, with an integer label for a"
        " classifier"
      ) from None
  if not found:
    raise settings.UserError(f"{path}: no texts in it")
  return found


def _batches(served: model.Served, source: str) -> Iterator[pipeline.Batch]:
  """The batches of a split or a file."""
  if served.training is not None and source in _SPLITS:
    options = served.training.config.data
    yield from data.eval_batches(options, source, options.eval_batch_size)
    return
  if served.words is None:
    raise settings.UserError(
      f"{served.path} has no tokenizer: put its tokenizer.json there"
    )
  rows = texts(pathlib.Path(source), not served.is_causal)
  length = _length(served)
  if served.is_causal:
    arrays = _language(rows, served.words, length)
  else:
    arrays = _classes(served, rows, served.words, length)
  yield from pipeline.evaluation(arrays, min(BATCH, len(rows)))


def _length(served: model.Served) -> int:
  """Tokens that a text is cut to."""
  if served.training is not None:
    return served.training.task.seq_len
  return min(_LENGTH, served.config.max_positions)


def _language(rows, words: vocabulary.Vocabulary, length: int) -> Any:
  """Every token of a text but the first is a target."""
  pieces = words.pieces(text for text, _ in rows)
  ids = [[*words.begin, *piece.ids][:length] for piece in pieces]
  length = max(2, max(map(len, ids)))
  tokens = np.zeros((len(ids), length), np.int32)
  mask = np.zeros(tokens.shape, bool)
  for i, row in enumerate(ids):
    tokens[i, : len(row)], mask[i, : len(row)] = row, True
  weights = np.zeros(tokens.shape, np.float32)
  weights[:, :-1] = mask[:, 1:]
  targets = np.roll(tokens, -1, axis=1)
  return {"tokens": tokens, "mask": mask, "targets": targets} | {
    "weights": weights
  }


def _classes(served, rows, words: vocabulary.Vocabulary, length: int) -> Any:
  """A target is a text's class."""
  config = served.config
  classes: Any = getattr(
    config, "num_classes", getattr(config, "num_labels", None)
  )
  labels = np.array([label for _, label in rows], np.int32)
  if (wrong := labels[(labels < 0) | (labels >= classes)]).size:
    raise settings.UserError(
      f"label {wrong[0]}: the model has {classes} classes, 0 to {classes - 1}"
    )
  tokens, mask = words.batch([text for text, _ in rows], length)
  mask[~mask.any(axis=1), 0] = True
  weights = np.ones(len(rows), np.float32)
  return {"tokens": tokens, "mask": mask, "targets": labels} | {
    "weights": weights
  }
