"""Tasks and their batches.

A batch is a dict of NumPy arrays: "tokens" int32 [B, L], "mask" bool [B, L]
(True at real tokens), "targets" int32 and "weights" float32 (0 where a target
does not count), both [B] for classification and [B, L] for language modelling.

To add a task, write a module with a tfds builder and a function from the data
directory to a `Dataset`, as in `python_stdlib.py`, and name it in `_LOADERS`.
"""

import functools
import os
from collections.abc import Iterator
from typing import Any

import grain

from experiments.data import pipeline, prepare, python_stdlib
from experiments.data.task import Dataset, Task

__all__ = ["Dataset", "Task", "eval_batches", "load_task", "train_dataset"]

_LOADERS = {
  "python_stdlib/bytes": python_stdlib.load_bytes,
  "python_stdlib/modules": python_stdlib.load_modules,
}


def load_task(config: Any) -> Task:
  """The task that `config` names; its data are prepared at the first use.

  Args:
    config: `config.data` of an experiment: `name`, `dir` (None: see
      `prepare.default_dir`) and `seq_len`.

  Raises:
    ValueError: an unknown name, a `seq_len` that the task does not have, or
      prepared data that cannot be read.
    OSError: the directory cannot be written, or the data's source is missing.
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
  """The dataset that `config` names, read once in a process."""
  if config.name not in _LOADERS:
    raise ValueError(
      f"data.name is {config.name!r}; there are {', '.join(sorted(_LOADERS))}"
    )
  dataset = _read(config.name, os.fspath(config.dir or prepare.default_dir()))
  if config.seq_len != dataset.task.seq_len:
    raise ValueError(
      f"data.seq_len is {config.seq_len}, but {config.name} has sequences of "
      f"{dataset.task.seq_len}: set data.seq_len={dataset.task.seq_len}"
    )
  return dataset


@functools.cache
def _read(name: str, data_dir: str) -> Dataset:
  return _LOADERS[name](data_dir)
