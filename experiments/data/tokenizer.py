"""Text <-> the token ids of a pretrained model, from the model's directory.

  text = tokenizer.load("gpt2")
  tokens, mask = text.batch(["once upon a time"], length=128)

The work is done by the `tokenizers` library, an optional dependency.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.huggingface import files
from experiments.huggingface.files import WeightsError

# A vocabulary is padded to a round number for the hardware; one that is not
# round is the tokenizer's own.
_ROUND = 8
_LEAST_USED = 0.9

# Special tokens of BERT and GPT-2, where no tokenizer_config.json names any.
_USUAL = {"pad": "[PAD]", "bos": "<|endoftext|>", "eos": "<|endoftext|>"}


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A tokenizer and the ids of its special tokens, None where it has none."""

  backend: Any  # tokenizers.Tokenizer.
  vocab_size: int  # The largest id, plus 1.
  pad_id: int | None
  bos_id: int | None
  eos_id: int | None

  def encode(self, text: str, *, special: bool = True) -> list[int]:
    """The ids of a text; `special` adds what the model expects around it."""
    return self.backend.encode(text, add_special_tokens=special).ids

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids, without special tokens."""
    return self.backend.decode([int(i) for i in ids])

  def batch(
    self, texts: Sequence[str], length: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int32 [B, L] and mask bool [B, L], True at real tokens.

    Texts are cut to `length` tokens, special ones included, and padded on the
    right with the padding token, or 0 if there is none.
    """
    self.backend.enable_truncation(length)
    try:
      rows = [e.ids for e in self.backend.encode_batch(list(texts))]
    finally:
      self.backend.no_truncation()
    tokens = np.full((len(rows), length), self.pad_id or 0, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, ids in enumerate(rows):
      tokens[i, : len(ids)] = ids
      mask[i, : len(ids)] = True
    return tokens, mask


def load(path_or_id: str | os.PathLike, *, check: bool = True) -> Tokenizer:
  """The tokenizer in the directory of a model, or of a Hugging Face id.

  Args:
    path_or_id: holds tokenizer.json, or vocab.txt (BERT), or vocab.json and
      merges.txt (GPT-2).
    check: whether the vocabulary must be that of the config.json beside it:
      as large, or smaller by no more than padding to a round number adds, and
      with the same id for the first token.

  Raises:
    WeightsError: no or damaged files, or the tokenizer of another model.
    ModuleNotFoundError: `tokenizers` is not installed.
  """
  directory = files.locate(path_or_id, tensors=False)
  described = _json(directory / "tokenizer_config.json")
  backend = _backend(directory, described)
  backend.no_padding()
  backend.no_truncation()
  vocabulary = backend.get_vocab()
  ids = {
    name: vocabulary.get(content(described.get(f"{name}_token", usual)))
    for name, usual in _USUAL.items()
  }
  tokenizer = Tokenizer(
    backend,
    max(vocabulary.values(), default=-1) + 1,
    ids["pad"],
    ids["bos"],
    ids["eos"],
  )
  if check:
    _check(directory, tokenizer, _json(directory / "config.json"))
  return tokenizer


def _check(
  directory: pathlib.Path, tokenizer: Tokenizer, config: dict[str, Any]
) -> None:
  """Raises WeightsError unless the model of a config.json has this one."""
  found, wanted = tokenizer.vocab_size, config.get("vocab_size")
  if not isinstance(wanted, int):
    return
  padded = wanted % _ROUND == 0 and found >= _LEAST_USED * wanted
  if found > wanted or (found < wanted and not padded):
    raise WeightsError(
      f"{directory}: the tokenizer has {found} tokens, the model's vocabulary "
      f"{wanted}: it belongs to another model; put this model's tokenizer "
      "files there"
    )
  first = config.get("bos_token_id")
  if None not in (first, tokenizer.bos_id) and first != tokenizer.bos_id:
    raise WeightsError(
      f"{directory}: the tokenizer begins a text with token "
      f"{tokenizer.bos_id}, config.json says {first}: it belongs to another "
      "model; put this model's tokenizer files there"
    )


def _backend(directory: pathlib.Path, described: dict[str, Any]) -> Any:
  """A tokenizers.Tokenizer from whichever files there are."""
  try:
    import tokenizers
    from tokenizers import implementations
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f"{directory}: reading a tokenizer needs `pip install tokenizers`"
    ) from error
  whole, words = directory / "tokenizer.json", directory / "vocab.txt"
  vocabulary, merges = directory / "vocab.json", directory / "merges.txt"
  try:
    if whole.exists():
      return tokenizers.Tokenizer.from_file(str(whole))
    if words.exists():
      return implementations.BertWordPieceTokenizer(
        str(words), lowercase=described.get("do_lower_case", True)
      )
    if vocabulary.exists() and merges.exists():
      return implementations.ByteLevelBPETokenizer(str(vocabulary), str(merges))
  except Exception as error:  # The library raises plain Exception.
    raise WeightsError(
      f"{directory}: the tokenizer files are damaged ({error}); fetch them "
      "again"
    ) from error
  raise WeightsError(
    f"{directory}: no tokenizer.json, vocab.txt, or vocab.json and merges.txt; "
    "fetch the model's tokenizer files"
  )


def _json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a file, empty if there is no such file."""
  return files.read_json(path) if path.exists() else {}


def content(token: Any) -> Any:
  """A special token's text; some files wrap it in an object."""
  return token.get("content") if isinstance(token, dict) else token
