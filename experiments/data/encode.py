"""Texts -> the arrays of a split.

Classification: a text is cut at its end. Generation: a sequence is

    begin  context  question  answer  end

and only the tokens of the answer and `end` are predicted for a loss. A context
that does not fit is cut at its end; in training, what was cut off its answer is
left out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.data import vocabulary

Arrays = dict[str, np.ndarray]

_OPEN_ROWS = 64  # That packing looks at; more hardly fill better.


class Prompt(NamedTuple):
  """A text to generate from, and what to generate."""

  context: str  # What may be cut.
  question: str
  answer: str
  needed: int  # Characters of the context without which it makes no sense.


class _Sequence(NamedTuple):
  ids: np.ndarray
  answer: int  # Where the answer starts.


def classification(
  texts: Sequence[str],
  labels: Sequence[int],
  words: vocabulary.Vocabulary,
  length: int,
) -> Arrays:
  """Tokens, mask, targets and weights of texts with a label each.

  A text without any token is one token that ends a text, so that every mask
  has something real.

  Raises:
    ValueError: the length leaves no place for a text.
  """
  if length <= words.num_special:
    raise ValueError(
      f"data.seq_len is {length}, but the tokenizer puts {words.num_special} "
      "special tokens into every sequence: raise data.seq_len"
    )
  tokens, mask = words.batch(texts, length)
  is_empty = ~mask.any(axis=1)
  tokens[is_empty, 0] = words.end or 0
  mask[is_empty, 0] = True
  return {
    "tokens": tokens,
    "mask": mask,
    "targets": np.array(labels, np.int32),
    "weights": np.ones(len(tokens), np.float32),
  }


def language(
  texts: Sequence[str], words: vocabulary.Vocabulary, length: int
) -> Arrays:
  """Tokens, mask, targets and weights of the begins of texts.

  Every token but the first is predicted. Texts of fewer tokens than `length`
  are left out.

  Raises:
    ValueError: no text is as long.
  """
  begin = list(words.begin)
  rows = [
    [*begin, *piece.ids[: length - len(begin)]] for piece in words.pieces(texts)
  ]
  rows = [row for row in rows if len(row) == length]
  if not rows:
    raise ValueError(
      f"data.seq_len is {length}, but no text has so many tokens: lower it"
    )
  tokens = np.array(rows, np.int32)
  weights = np.ones(tokens.shape, np.float32)
  weights[:, -1] = 0
  return {
    "tokens": tokens,
    "mask": np.ones(tokens.shape, bool),
    "targets": np.roll(tokens, -1, axis=1),
    "weights": weights,
  }


def padded(
  texts: Sequence[str], words: vocabulary.Vocabulary, length: int
) -> Arrays:
  """Tokens, mask, targets and weights of texts of any length, cut to `length`.

  Every token but the first is predicted. The arrays are as wide as the longest
  text.
  """
  ids = [[*words.begin, *piece.ids][:length] for piece in words.pieces(texts)]
  width = max(2, max(map(len, ids)))
  tokens = np.zeros((len(ids), width), np.int32)
  mask = np.zeros(tokens.shape, bool)
  for i, row in enumerate(ids):
    tokens[i, : len(row)], mask[i, : len(row)] = row, True
  weights = np.zeros(tokens.shape, np.float32)
  weights[:, :-1] = mask[:, 1:]
  return {
    "tokens": tokens,
    "mask": mask,
    "targets": np.roll(tokens, -1, axis=1),
    "weights": weights,
  }


def generation(
  prompts: Sequence[Prompt],
  words: vocabulary.Vocabulary,
  length: int,
  *,
  train: bool,
  pack: bool,
) -> Arrays:
  """Tokens, mask, targets and weights of prompts with an answer each.

  Args:
    prompts: the examples.
    words: has an `end`.
    length: of a row, in tokens.
    train: leaves out examples that lack what they need.
    pack: puts several examples into a row, whole, as many as fit. They see
      each other: a model's mask knows only what is real.

  Raises:
    ValueError: no `end`, or no example fits.
  """
  if words.end is None:
    raise ValueError(
      "data.tokenizer has no token that ends a text, which an answer needs; "
      "use the tokenizer of a causal model, or bytes"
    )
  sequences = list(_sequences(prompts, words, length, train))
  if not sequences:
    raise ValueError(
      f"data.seq_len is {length}, too short for every training example: raise "
      "it, or use a tokenizer with longer tokens than data.tokenizer"
    )
  if pack:
    rows = _packed(sequences, length)
  else:
    rows = [[sequence] for sequence in sequences]
  shape = len(rows), length
  arrays = {
    "tokens": np.zeros(shape, np.int32),
    "mask": np.zeros(shape, bool),
    "targets": np.zeros(shape, np.int32),
    "weights": np.zeros(shape, np.float32),
  }
  for row, members in enumerate(rows):
    start = 0
    for ids, answer in members:
      end = start + len(ids)
      arrays["tokens"][row, start:end] = ids
      arrays["mask"][row, start:end] = True
      arrays["targets"][row, start : end - 1] = ids[1:]
      # The token before the answer predicts its first one.
      arrays["weights"][row, start + answer - 1 : end - 1] = 1.0
      start = end
  return arrays


def _sequences(
  prompts: Sequence[Prompt],
  words: vocabulary.Vocabulary,
  length: int,
  train: bool,
) -> Iterator[_Sequence]:
  """The examples as token ids, no longer than `length`."""
  contexts = _cached_pieces((p.context for p in prompts), words)
  questions = words.pieces(p.question for p in prompts)
  answers = words.pieces(p.answer for p in prompts)
  begin = np.array(words.begin, np.int32)
  end = np.array([words.end], np.int32)
  for prompt, question, answer in zip(prompts, questions, answers, strict=True):
    ids, ends = contexts[prompt.context]
    # In an evaluation, what is too long is cut; never by where the answer is.
    kept_answer = answer.ids[: length // 2]
    room = length - len(begin) - len(kept_answer) - 1
    kept_question = question.ids[-max(room, 1) :]
    room -= len(kept_question)
    kept = max(min(room, len(ids)), 0)
    is_whole = (
      len(kept_answer) == len(answer.ids)
      and len(kept_question) == len(question.ids)
      and (not prompt.needed or (kept > 0 and ends[kept - 1] >= prompt.needed))
    )
    if is_whole or not train:
      sequence = np.concatenate(
        [begin, ids[:kept], kept_question, kept_answer, end]
      )
      yield _Sequence(sequence, len(sequence) - len(kept_answer) - 1)


def _cached_pieces(
  texts: Iterable[str], words: vocabulary.Vocabulary
) -> Mapping[str, vocabulary.Piece]:
  """The ids of every distinct text; many questions share a paragraph."""
  distinct = list(dict.fromkeys(texts))
  return dict(zip(distinct, words.pieces(distinct), strict=True))


def _packed(
  sequences: Sequence[_Sequence], length: int
) -> list[list[_Sequence]]:
  """Rows of sequences, at most `length` together, in a fixed random order."""
  rows: list[list[_Sequence]] = []
  free: dict[int, int] = {}  # Row -> free places, of the rows still open.
  for i in np.random.default_rng(0).permutation(len(sequences)):
    sequence = sequences[i]
    size = len(sequence.ids)
    row = next((r for r, places in free.items() if places >= size), None)
    if row is None:
      row = len(rows)
      rows.append([])
      free[row] = length
      if len(free) > _OPEN_ROWS:
        del free[min(free, key=lambda r: free[r])]
    free[row] -= size
    rows[row].append(sequence)
  return rows
