"""What the builders of the datasets that are not embedded have in common."""

import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from experiments.data import files, prepare

SPLITS = ("train", "validation", "test")
Splits = Mapping[str, Iterable[tuple]]


class Corpus(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Texts from the official archives or from a local directory.

  Both give the same records. What identifies a record in its source is never
  part of them.

  Args:
    source: the local directory, `data.source`; None downloads.
    **kwargs: of tfds.
  """

  VERSION = tfds.core.Version("1.0.0")
  CLASSES: ClassVar[tuple[str, ...]] = ()
  FIELDS: ClassVar[dict[str, type]] = {"text": str, "label": int}
  DIRECTORY: ClassVar[str]  # Below `source`.
  FILES: ClassVar[tuple[str, ...]] = ("train.jsonl.xz", "test.jsonl.xz")

  def __init__(self, *, source: str | None = None, **kwargs: Any):
    self.source = source
    super().__init__(**kwargs)

  def local(self, paths: list[pathlib.Path]) -> Splits:
    """The splits in `FILES` of a local directory, rows ordered as `FIELDS`."""
    raise NotImplementedError

  def official(self, manager: tfds.download.DownloadManager) -> Splits:
    """The splits in the official archives, rows ordered as `FIELDS`."""
    raise NotImplementedError

  def _info(self) -> tfds.core.DatasetInfo:
    dtypes = {str: np.object_, int: np.int64}
    features = {
      name: tfds.features.Scalar(dtypes[kind])
      for name, kind in self.FIELDS.items()
    }
    return prepare.LocalInfo(
      builder=self,
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    if self.source is None:
      splits = self.official(dl_manager)
    else:
      splits = self.local(local_files(type(self), self.source))
    return {s: self._generate_examples(s, splits[s]) for s in SPLITS}

  def _generate_examples(self, split: str, rows: Iterable[tuple]):
    key = -1
    for key, row in enumerate(rows):
      values = zip(self.FIELDS, row, strict=True)
      # Lone surrogates are no UTF-8.
      yield (
        key,
        {
          k: v.encode(errors="replace") if isinstance(v, str) else v
          for k, v in values
        },
      )
    if key < 0:
      raise files.SourceError(
        f"{self.name}: no examples for the {split} split in "
        f"{self.source or 'the official archives'}"
      )


def local_files(builder: type[Corpus], source: str) -> list[pathlib.Path]:
  """The files of a dataset in a local directory.

  Raises:
    SourceError: there is no directory for it.
  """
  directory = files.locate(source, builder.DIRECTORY)
  return [directory / name for name in builder.FILES]


def labelled(
  path: pathlib.Path, classes: tuple[str, ...], **fields: type
) -> Iterator[dict[str, Any]]:
  """The rows of a local file with "text", "label" and further fields.

  Raises:
    SourceError: a row without them, or with a label that is no class.
  """
  rows = files.rows(path, {"text": str, "label": int, **fields})
  for number, row in enumerate(rows, start=1):
    if not 0 <= row["label"] < len(classes):
      raise files.SourceError(
        f"{path}, row {number}: label {row['label']}, wanted one from 0 to "
        f"{len(classes) - 1}"
      )
    yield row
