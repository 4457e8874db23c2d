"""Loss and accuracy of a model on texts, or on a split of its own task."""

import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from experiments import data, settings
from experiments.data import encode, lines, pipeline, vocabulary
from experiments.serve import model

BATCH = 8
_LENGTH = 512  # Tokens of a text, at most.
_SPLITS = ("train", "validation", "test")


def score(served: model.Served, source: str) -> dict[str, float]:
  """Mean loss in nats, accuracy in [0, 1], and of how many targets.

  The targets are the tokens after the first of each text, or the classes.

  Args:
    served: the model.
    source: a file, see `lines.read`; or the name of a split, of a model that
      was trained here.

  Raises:
    UserError: no such file or split, or it does not fit the model.
  """
  found = per_text(served, _batches(served, source))
  total = {name: float(x.sum()) for name, x in found.items()}
  count = total["weight"]
  if not count:
    raise settings.UserError(f"{source}: no text has two tokens to score")
  means = {name: total[name] / count for name in ("loss", "accuracy")}
  return means | {"targets": int(count)}


def per_text(
  served: model.Served, batches: Iterable[pipeline.Batch]
) -> dict[str, np.ndarray]:
  """Sums over the targets of each of N texts, float64 [N].

  Returns:
    "loss" in nats and "accuracy", the hits, both weighted; and "weight".
  """
  rows: dict[str, list[np.ndarray]] = {"loss": [], "accuracy": [], "weight": []}
  for batch in batches:
    losses, hits = served.losses(
      served.tensors, batch["tokens"], batch["mask"], batch["targets"]
    )
    weights = np.float64(batch["weights"]).reshape(len(batch["weights"]), -1)
    for name, x in (("loss", losses), ("accuracy", hits), ("weight", 1.0)):
      own = np.broadcast_to(np.float64(x), batch["weights"].shape)
      rows[name].append((own.reshape(weights.shape) * weights).sum(1))
  return {name: np.concatenate(x) for name, x in rows.items()}


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
  try:
    rows = lines.read(pathlib.Path(source), not served.is_causal)
  except ValueError as error:
    raise settings.UserError(str(error)) from error
  length = _length(served)
  if served.is_causal:
    arrays = encode.padded([text for text, _ in rows], served.words, length)
  else:
    arrays = _classes(served, rows, served.words, length)
  yield from pipeline.evaluation(arrays, min(BATCH, len(rows)))


def _length(served: model.Served) -> int:
  """Tokens that a text is cut to."""
  if served.training is not None:
    return served.training.task.seq_len
  return min(_LENGTH, served.config.max_positions)


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
