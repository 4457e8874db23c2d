"""Text -> token ids, by UTF-8 bytes or by a pretrained tokenizer."""

import dataclasses
import hashlib
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from experiments.data import tokenizer

_CHUNK = 1000  # Texts that are tokenized at once.


class Piece(NamedTuple):
  """A text's ids, without special tokens, and where each ends in the text."""

  ids: np.ndarray  # int32 [N].
  ends: np.ndarray  # int32 [N], in characters.


@dataclasses.dataclass(frozen=True)
class Bytes:
  """The bytes of UTF-8, and 256, the end of a text."""

  identity: str = "bytes"
  size: int = 257
  begin: tuple[int, ...] = ()
  end: int | None = 256
  num_special: int = 0

  def batch(
    self, texts: Sequence[str], length: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Ids int32 [B, L], cut to `length`, and mask bool [B, L]."""
    tokens = np.zeros((len(texts), length), np.int32)
    mask = np.zeros((len(texts), length), bool)
    for i, text in enumerate(texts):
      ids = np.frombuffer(text.encode()[:length], np.uint8)
      tokens[i, : len(ids)] = ids
      mask[i, : len(ids)] = True
    return tokens, mask

  def pieces(self, texts: Iterable[str]) -> Iterator[Piece]:
    """The ids of every text."""
    for text in texts:
      ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
      # Bytes that begin with 10 go on with a character.
      yield Piece(ids, np.cumsum(ids & 0xC0 != 0x80, dtype=np.int32))


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A tokenizer of `experiments.data.tokenizer`."""

  tokenizer: tokenizer.Tokenizer

  @property
  def identity(self) -> str:
    """A digest of all that the tokenizer does."""
    text = self.tokenizer.backend.to_str()
    return hashlib.sha256(text.encode()).hexdigest()

  @property
  def size(self) -> int:
    """The largest id, plus 1."""
    return self.tokenizer.vocab_size

  @property
  def begin(self) -> tuple[int, ...]:
    """What the model expects in front of a text."""
    first = self.tokenizer.encode("")[:1]
    return tuple(first) if first == [self.tokenizer.bos_id] else ()

  @property
  def end(self) -> int | None:
    """The id that ends a text, None if there is none."""
    return self.tokenizer.eos_id

  @property
  def num_special(self) -> int:
    """How many special tokens stand around a text."""
    return self.tokenizer.backend.num_special_tokens_to_add(False)

  def batch(
    self, texts: Sequence[str], length: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Ids int32 [B, L] with special tokens, cut to `length`, and mask."""
    chunks = [
      self.tokenizer.batch(texts[i : i + _CHUNK], length)
      for i in range(0, len(texts), _CHUNK)
    ]
    tokens, masks = zip(*chunks, strict=True)
    return np.concatenate(tokens), np.concatenate(masks)

  def pieces(self, texts: Iterable[str]) -> Iterator[Piece]:
    """The ids of every text, without special tokens."""
    texts = iter(texts)
    while chunk := list(itertools.islice(texts, _CHUNK)):
      for found in self.tokenizer.backend.encode_batch(
        chunk, add_special_tokens=False
      ):
        ends = [end for _, end in found.offsets]
        yield Piece(np.array(found.ids, np.int32), np.array(ends, np.int32))


Vocabulary = Bytes | Pretrained


def load(name: str) -> Vocabulary:
  """The vocabulary that `data.tokenizer` names.

  Args:
    name: "bytes"; or a directory or Hugging Face id, see `tokenizer.load`.

  Raises:
    ValueError: there is no such tokenizer, or its files are damaged.
    ModuleNotFoundError: `tokenizers` is not installed.
  """
  if name == "bytes":
    return Bytes()
  try:
    return Pretrained(tokenizer.load(pathlib.Path(name).expanduser()))
  except ValueError as error:
    raise ValueError(f"data.tokenizer is {name!r}: {error}") from error
