"""Preparing and reading tfds builders, without TensorFlow and without noise."""

import contextlib
import io
import os
import pathlib
from typing import Any

import tensorflow_datasets as tfds


class LocalInfo(tfds.core.DatasetInfo):
  """Dataset info that is never looked up in tfds's public bucket.

  The lookup would leave an empty directory in the system's temporary one.
  """

  def initialize_from_bucket(self) -> None:
    pass


def default_dir() -> pathlib.Path:
  """Where datasets are prepared: $TFDS_DATA_DIR, else the user's cache."""
  if named := os.environ.get("TFDS_DATA_DIR"):
    return pathlib.Path(named)
  cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(cache) / "backslash_jax" / "datasets"


def prepared(
  builder_class: type[tfds.core.GeneratorBasedBuilder],
  data_dir: os.PathLike[str],
  **fields: Any,
) -> tfds.core.GeneratorBasedBuilder:
  """A builder whose data stand whole in `data_dir`, prepared if need be.

  tfds writes to a directory of its own name and renames that at the end. A
  preparation that is killed leaves no more than such a directory behind, and
  of several processes that prepare at once the first to finish wins.

  Args:
    builder_class: what to prepare.
    data_dir: the directory of all datasets, for tfds.
    **fields: further arguments of the builder, such as `config`.

  Raises:
    OSError: `data_dir` cannot be written.
    ValueError: the place of the data is taken by something else.
  """

  def make() -> tfds.core.GeneratorBasedBuilder:
    return builder_class(
      data_dir=data_dir, file_format="array_record", **fields
    )

  builder = make()
  if not builder.data_path.exists():
    try:
      with _quiet():
        builder.download_and_prepare(
          download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    except OSError as error:
      # The rename fails where another process has just put its own result.
      if not builder.data_path.exists():
        raise OSError(
          f"cannot prepare {builder_class.name} in {data_dir}: {error}; set "
          "data.dir or TFDS_DATA_DIR to a writable directory"
        ) from error
    # Only a builder that finds the data reads what they consist of.
    builder = make()
  if not builder.is_prepared():
    raise ValueError(
      f"{builder.data_dir} exists, but holds no prepared dataset; delete that "
      "directory, it will be prepared again"
    )
  return builder


def read(
  builder: tfds.core.GeneratorBasedBuilder, split: str
) -> list[dict[str, Any]]:
  """All examples of a split, decoded, in the order they were written.

  Raises:
    ValueError: the records cannot be read, or are not those announced.
  """
  try:
    source = builder.as_data_source(split)
    examples = list(source.__getitems__(range(len(source))))
    # So are the records that a file which was cut off does not have.
    if any(value is None for e in examples for value in e.values()):
      raise ValueError("records without content")
    return examples
  except Exception as error:
    raise ValueError(
      f"cannot read split {split!r} of {builder.name} in {builder.data_dir}: "
      f"{error}; delete that directory, it will be prepared again"
    ) from error


@contextlib.contextmanager
def _quiet():
  """Keeps tfds from printing; the run has a progress bar of its own."""
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    tfds.enable_progress_bar()
