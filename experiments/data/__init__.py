"""Tasks and their batches.

A batch is a dict of NumPy arrays: "tokens" int32 [B, L], "mask" bool [B, L]
(True at real tokens), "targets" int32 and "weights" float32 (0 where a target
does not count), both [B] for classification and [B, L] for language modelling.

Two tasks come with Python (`python_stdlib`). The others (`text`) are downloaded
or read from the directory `data.source`, and tokenized as `data.tokenizer`
says. "texts" reads one file (`lines`).
To add a task of texts, write a builder as in `classification.py` or
`generation.py` and name it in `text.CORPORA`.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import numpy as np

from experiments.data import lines, pipeline, prepare, python_stdlib, text
from experiments.data.task import Dataset, Options, Task

__all__ = [
  "NAMES",
  "Dataset",
  "Options",
  "Task",
  "eval_batches",
  "load_task",
  "train_dataset",
]

_EMBEDDED = {
  "python_stdlib/bytes": python_stdlib.load_bytes,
  "python_stdlib/modules": python_stdlib.load_modules,
}
NAMES = tuple(sorted({lines.NAME, *_EMBEDDED, *text.CORPORA}))


def load_task(config: Any) -> Task:
  """The task that `config` names; its data are prepared at the first use.

  Args:
    config: `config.data` of an experiment: `dir` (None: see
      `prepare.default_dir`) and the fields of `Options`.

  Raises:
    ValueError: an unknown name, a field that does not fit the task, a source
      that is missing or damaged, or prepared data that cannot be read.
    OSError: the directory cannot be written.
  """
  return _load(config).task


def train_dataset(
  config: Any,
  *,
  seed: int,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.IterDataset:
  """Endless shuffled batches of the training split; see `pipeline.train`."""
  return pipeline.train(
    _load(config).splits["train"],
    seed=seed,
    batch_size=batch_size,
    process_index=process_index,
    process_count=process_count,
  )


def eval_batches(
  config: Any, split: str, batch_size: int
) -> Iterator[pipeline.Batch]:
  """One pass over a split; see `pipeline.evaluation`."""
  splits = _load(config).splits
  if split not in splits:
    raise ValueError(
      f"{config.name} has no split {split!r}, only {sorted(splits)}"
    )
  return pipeline.evaluation(splits[split], batch_size)


def _load(config: Any) -> Dataset:
  """The dataset that `config` describes, read once in a process."""
  fields = {
    f.name: getattr(config, f.name) for f in dataclasses.fields(Options)
  }
  directory = pathlib.Path(config.dir or prepare.default_dir()).expanduser()
  return _read(Options(**fields), directory)


@functools.lru_cache(maxsize=4)
def _read(options: Options, directory: pathlib.Path) -> Dataset:
  """The dataset, or as much of it as `max_train` and `max_eval` want."""
  if options.name in text.CORPORA:
    dataset = text.load(options, directory)
  elif options.name == lines.NAME:
    dataset = lines.load(options)
  elif options.name in _EMBEDDED:
    dataset = _EMBEDDED[options.name](directory)
    _check_embedded(options, dataset.task)
  else:
    raise ValueError(
      f"data.name is {options.name!r}; there are {', '.join(NAMES)}"
    )
  splits = {}
  for split, arrays in dataset.splits.items():
    limit = options.max_train if split == "train" else options.max_eval
    splits[split] = _part(arrays, limit)
  num_train = len(splits["train"]["tokens"])
  return Dataset(dataclasses.replace(dataset.task, num_train=num_train), splits)


def _check_embedded(options: Options, task: Task) -> None:
  """Raises ValueError for fields that such a task does not have."""
  wanted = {
    "seq_len": task.seq_len,
    "source": None,
    "tokenizer": "bytes",
    "language": False,
  }
  for field, value in wanted.items():
    found = getattr(options, field)
    if found != value:
      raise ValueError(
        f"data.{field} is {found!r}, but {task.name} comes with Python, in "
        f"bytes and in sequences of {task.seq_len}: set data.{field}={value}"
      )


def _part(arrays: Mapping[str, np.ndarray], limit: int | None):
  """`limit` rows, drawn without regard to their order; None takes all."""
  size = len(arrays["tokens"])
  if limit is None or limit >= size:
    return arrays
  rows = np.sort(np.random.default_rng(0).permutation(size)[:limit])
  return {k: a[rows] for k, a in arrays.items()}
