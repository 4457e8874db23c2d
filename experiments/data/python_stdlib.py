"""Python's own standard library, as data that are present wherever Python is.

Two tasks on the source of twenty modules:

  python_stdlib/modules  which module does this snippet of 128 bytes come from
  python_stdlib/bytes    next-byte prediction

Every file is cut into blocks, and every block belongs to one split, in a fixed
pattern of ten: seven train, one validation, two test. No window crosses the
edge of a block, so what is tested was never seen in training, while both come
from the same files.
"""

import bisect
import functools
import hashlib
import itertools
import os
import pathlib
import platform
import sys
import sysconfig
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from experiments.data import prepare
from experiments.data import task as task_lib

# Shipped as source by every CPython from 3.11 on, at least 85 kB each, and not
# among the parts that distributions put into packages of their own.
MODULES = (
  "_pydecimal",
  "_pyio",
  "argparse",
  "asyncio",
  "doctest",
  "email",
  "http",
  "importlib",
  "inspect",
  "logging",
  "multiprocessing",
  "pickletools",
  "pydoc",
  "subprocess",
  "tarfile",
  "typing",
  "unittest",
  "urllib",
  "xml",
  "zipfile",
)
SEQ_LEN = 128
WINDOW = SEQ_LEN + 1  # Next-byte prediction needs one byte more.
BLOCK = 8 * WINDOW
SPLIT_OF_BLOCK = ("train",) * 3 + (
  "test",
  "train",
  "validation",
  "train",
  "train",
  "test",
  "train",
)
# Every module gives as many bytes (its first files) and as many snippets, so
# that chance is 5% and all are equally hard to know. Training snippets overlap.
BYTES_PER_MODULE = 85_000
SNIPPETS_PER_MODULE = {"train": 2000, "validation": 100, "test": 200}


class PythonStdlib(tfds.core.GeneratorBasedBuilder):
  """The standard library of the running Python, cut into windows.

  An example holds all windows of a module, one after the other: there are so
  many that reading one example for each would take seconds.
  """

  VERSION = tfds.core.Version("2.0.0")
  BUILDER_CONFIGS = (
    tfds.core.BuilderConfig(name="modules", description="Classification."),
    tfds.core.BuilderConfig(name="bytes", description="Language modelling."),
  )

  def _info(self) -> tfds.core.DatasetInfo:
    features: dict = {"text": tfds.features.Scalar(np.object_)}
    if self.builder_config.name == "modules":
      features["label"] = tfds.features.ClassLabel(names=MODULES)
    return prepare.LocalInfo(
      builder=self,
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # Nothing is downloaded.
    return {s: self._generate_examples(s) for s in SNIPPETS_PER_MODULE}

  def _generate_examples(self, split: str):
    for label, module in enumerate(MODULES):
      if self.builder_config.name == "modules":
        blocks = _blocks(module, split, BYTES_PER_MODULE)
        text = b"".join(_spread(blocks, SNIPPETS_PER_MODULE[split]))
        yield label, {"text": text, "label": label}
      else:
        text = b"".join(
          block[start : start + WINDOW]
          for block in _blocks(module, split)
          for start in range(0, len(block) - SEQ_LEN, WINDOW)
        )
        yield label, {"text": text}


def load_modules(data_dir: str | os.PathLike[str]) -> task_lib.Dataset:
  """The classification task, prepared under `data_dir`."""
  builder = _prepared("modules", data_dir)
  splits = {}
  for split in builder.info.splits:
    records = prepare.read(builder, split)
    tokens = _tokens(records, SEQ_LEN)
    labels = np.array([r["label"] for r in records], np.int32)
    splits[split] = {
      "tokens": tokens,
      "mask": np.ones(tokens.shape, bool),
      "targets": np.repeat(labels, SNIPPETS_PER_MODULE[split]),
      "weights": np.ones(len(tokens), np.float32),
    }
  return _dataset("modules", splits)


def load_bytes(data_dir: str | os.PathLike[str]) -> task_lib.Dataset:
  """The next-byte task, prepared under `data_dir`."""
  builder = _prepared("bytes", data_dir)
  splits = {}
  for split in builder.info.splits:
    tokens = _tokens(prepare.read(builder, split), WINDOW)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    splits[split] = {
      "tokens": inputs,
      "mask": np.ones(inputs.shape, bool),
      "targets": targets,
      "weights": np.ones(targets.shape, np.float32),
    }
  return _dataset("bytes", splits)


def _prepared(config_name: str, data_dir: str | os.PathLike[str]):
  """The builder, below a directory that names Python and its sources."""
  digest = hashlib.sha256()
  for module in MODULES:
    for name, text in _sources(module):
      digest.update(f"{name} {len(text)}\n".encode() + text)
  origin = (
    f"{sys.implementation.name}-{platform.python_version()}"
    f"-{digest.hexdigest()[:12]}"
  )
  # Another Python, or the same with patched sources, prepares its own data.
  return prepare.prepared(
    PythonStdlib, pathlib.Path(data_dir) / origin, config=config_name
  )


def _dataset(config_name: str, splits: dict) -> task_lib.Dataset:
  is_modules = config_name == "modules"
  task = task_lib.Task(
    name=f"python_stdlib/{config_name}",
    kind="classification" if is_modules else "lm",
    vocab_size=256,
    seq_len=SEQ_LEN,
    num_classes=len(MODULES) if is_modules else None,
    class_names=MODULES if is_modules else (),
    num_train=len(splits["train"]["tokens"]),
  )
  return task_lib.Dataset(task, splits)


def _tokens(records: list[dict], length: int) -> np.ndarray:
  """The records' bytes, [N, length] int32."""
  text = b"".join(r["text"] for r in records)
  return np.frombuffer(text, np.uint8).reshape(-1, length).astype("int32")


@functools.cache
def _sources(module: str) -> tuple[tuple[str, bytes], ...]:
  """(path below the standard library, content) of a module's source files."""
  root = pathlib.Path(sysconfig.get_path("stdlib"))
  single = root / f"{module}.py"
  # Tests are not shipped everywhere.
  paths = (
    [single]
    if single.is_file()
    else [
      path
      for path in (root / module).rglob("*.py")
      if not {"test", "tests"} & set(path.relative_to(root).parts)
    ]
  )
  named = sorted((path.relative_to(root).as_posix(), path) for path in paths)
  found = tuple((name, path.read_bytes()) for name, path in named)
  size = sum(len(text) for _, text in found)
  if size < BYTES_PER_MODULE:
    raise FileNotFoundError(
      f"the standard library's module {module!r} has {size} bytes of source "
      f"under {root}, wanted {BYTES_PER_MODULE}: this Python seems to be "
      "shipped without its .py files; use a complete CPython"
    )
  return found


def _blocks(
  module: str, split: str, num_bytes: int | None = None
) -> list[bytes]:
  """The blocks of a split, among the first `num_bytes` of a module."""
  blocks = [
    text[start : start + BLOCK]
    for _, text in _sources(module)
    for start in range(0, len(text), BLOCK)
  ]
  # The last block of a file can be too short for a window.
  blocks = [block for block in blocks if len(block) >= WINDOW]
  ends = itertools.accumulate(len(block) for block in blocks)
  return [
    block
    for block, end, owner in zip(blocks, ends, itertools.cycle(SPLIT_OF_BLOCK))
    if owner == split and (num_bytes is None or end <= num_bytes)
  ]


def _spread(blocks: list[bytes], count: int) -> Iterator[bytes]:
  """`count` snippets, evenly spread over all places where one can start."""
  places = [len(block) - SEQ_LEN + 1 for block in blocks]
  ends = list(itertools.accumulate(places))
  for i in range(count):
    place = i * ends[-1] // count
    which = bisect.bisect_right(ends, place)
    start = place - (ends[which] - places[which])
    yield blocks[which][start : start + SEQ_LEN]
