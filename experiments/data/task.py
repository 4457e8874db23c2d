"""What a task is to the rest of the experiments: its sizes and its arrays."""

import dataclasses
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Task:
  """The facts about a task that models, losses and reports depend on."""

  name: str  # As `config.data.name`.
  kind: str  # "classification" or "lm".
  vocab_size: int
  seq_len: int
  num_classes: int | None  # None for "lm".
  class_names: tuple[str, ...]  # Empty for "lm".
  num_train: int  # Training examples.


@dataclasses.dataclass(frozen=True)
class Options:
  """What decides a dataset's content, the fields of `config.data`.

  configs/default.py says what each is.
  """

  name: str
  seq_len: int
  source: str | None = None
  tokenizer: str = "bytes"
  strip: bool = True
  pack: bool = True
  language: bool = False
  max_train: int | None = None
  max_eval: int | None = None


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A task with its examples, in memory.

  `splits` maps "train", "validation" and "test" to equally long arrays:
  "tokens" int32 [N, L], "mask" bool [N, L] (True at real tokens), "targets"
  int32 and "weights" float32 (0 where a target does not count), both [N] for
  classification and [N, L] for language modelling.
  """

  task: Task
  splits: Mapping[str, Mapping[str, np.ndarray]]
