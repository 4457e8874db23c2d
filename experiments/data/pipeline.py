"""From arrays in memory to batches, with grain."""

from collections.abc import Iterator, Mapping

import grain
import numpy as np

Batch = dict[str, np.ndarray]


def train(
  split: Mapping[str, np.ndarray],
  *,
  seed: int,
  batch_size: int,
  process_index: int,
  process_count: int,
) -> grain.IterDataset:
  """Endless batches of `split`, reshuffled in every epoch.

  All processes draw from one shuffled stream, each every `process_count`-th
  example. So the processes' batches never overlap within an epoch, and
  together they are the batch that one process alone would have had.

  Args:
    split: arrays whose leading dimension counts the examples.
    seed: decides every epoch's order.
    batch_size: examples in a batch of this process.
    process_index: which process this is, from 0.
    process_count: how many processes share the stream.

  Returns:
    A dataset whose iterators have `get_state` and `set_state`; the state is
    a small dict that JSON can hold.
  """
  if not 0 <= process_index < process_count:
    raise ValueError(
      f"process_index is {process_index}; with process_count={process_count} "
      f"it must be from 0 to {process_count - 1}"
    )
  _check_batch_size("batch_size", batch_size)
  # Indices are shuffled and batched, and then whole batches gathered: no
  # Python runs per example.
  indices = grain.MapDataset.range(_size(split)).shuffle(seed=seed).repeat()
  batches = indices[process_index::process_count].batch(batch_size)
  gathered = batches.map(lambda rows: {k: a[rows] for k, a in split.items()})
  # A gather takes microseconds: threads that read ahead would only take the
  # cores from the training step.
  return gathered.to_iter_dataset(grain.ReadOptions(0, 0))


def evaluation(
  split: Mapping[str, np.ndarray], batch_size: int
) -> Iterator[Batch]:
  """One pass over `split` in order, in batches of one size.

  The last batch is filled up with its first example, masked as the original
  is, with weights of zero.
  """
  _check_batch_size("eval_batch_size", batch_size)
  size = _size(split)
  for start in range(0, size, batch_size):
    rows = np.arange(start, start + batch_size)
    is_real = rows < size
    batch = {k: a[np.where(is_real, rows, start)] for k, a in split.items()}
    batch["weights"][~is_real] = 0.0
    yield batch


def _size(split: Mapping[str, np.ndarray]) -> int:
  """The number of examples."""
  return len(split["tokens"])


def _check_batch_size(field: str, batch_size: int) -> None:
  if batch_size < 1:
    raise ValueError(f"data.{field} is {batch_size}; it must be at least 1")
