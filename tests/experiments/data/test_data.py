"""The embedded data: what is in the splits, and how it is read and prepared."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from configs import default
from experiments import data
from experiments.data import pipeline, prepare, python_stdlib
from tests import paths

MODULES = "python_stdlib/modules"
BYTES = "python_stdlib/bytes"
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
  """One directory in which every dataset is prepared at most once."""
  return tmp_path_factory.mktemp("datasets")


@pytest.fixture
def make_config(data_dir):
  def make(name=MODULES, **changes):
    fields = {"name": name, "dir": str(data_dir), **changes}
    config = default.get_config().data
    config.update(fields)
    return config

  return make


def small_split(size):
  """A split whose example i holds the number i."""
  rows = np.arange(size, dtype=np.int32)
  return {
    "tokens": np.tile(rows[:, None], (1, 4)),
    "mask": np.ones((size, 4), bool),
    "targets": rows,
    "weights": np.ones(size, np.float32),
  }


def small_train(size=10, seed=0, batch_size=3, process_index=0, count=1):
  return pipeline.train(
    small_split(size),
    seed=seed,
    batch_size=batch_size,
    process_index=process_index,
    process_count=count,
  )


def take(dataset, count):
  return [b["targets"].tolist() for b in itertools.islice(dataset, count)]


def run_python(code, *arguments, **changes):
  """Runs code in a Python of its own; returns the process, started."""
  environment = {**os.environ, "PYTHONPATH": str(paths.ROOT), **changes}
  return subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def whole_split(config, split):
  batches = list(data.eval_batches(config, split, 500))
  merged = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
  first = merged["weights"].reshape(len(merged["weights"]), -1)[:, 0]
  return {k: a[first > 0] for k, a in merged.items()}


def test_modules_task(make_config):
  config = make_config()
  task = data.load_task(config)
  assert task.kind == "classification"
  assert task.num_classes == len(task.class_names) == 20
  assert (task.vocab_size, task.seq_len) == (256, 128)
  sizes = {}
  for split in SPLITS:
    arrays = whole_split(config, split)
    sizes[split] = len(arrays["targets"])
    counts = np.bincount(arrays["targets"], minlength=20)
    assert (counts == counts[0]).all()
    assert arrays["tokens"].dtype == arrays["targets"].dtype == np.int32
    assert arrays["tokens"].shape == (sizes[split], 128)
    assert arrays["mask"].all()
  assert sizes == {"train": 40_000, "validation": 2_000, "test": 4_000}
  assert task.num_train == sizes["train"]


def test_labels_name_the_module_of_the_snippet(make_config):
  config = make_config()
  names = data.load_task(config).class_names
  arrays = whole_split(config, "test")
  for i in range(0, 4000, 97):
    snippet = bytes(arrays["tokens"][i].astype(np.uint8))
    sources = python_stdlib._sources(names[arrays["targets"][i]])
    assert any(snippet in text for _, text in sources)


def test_bytes_task_predicts_the_next_byte(make_config):
  config = make_config(BYTES)
  task = data.load_task(config)
  assert (task.kind, task.num_classes, task.class_names) == ("lm", None, ())
  for split in SPLITS:
    arrays = whole_split(config, split)
    assert arrays["tokens"].shape == arrays["targets"].shape
    np.testing.assert_array_equal(
      arrays["tokens"][:, 1:], arrays["targets"][:, :-1]
    )
  assert task.num_train > 15_000


def test_no_byte_of_the_sources_is_in_two_splits(monkeypatch):
  # In a source without repetitions a window tells its place.
  text = np.arange(200_000, dtype=">u4").tobytes()
  monkeypatch.setattr(python_stdlib, "_sources", lambda _: (("a.py", text),))
  places = {}
  for split, count in python_stdlib.SNIPPETS_PER_MODULE.items():
    blocks = python_stdlib._blocks("a", split)
    windows = set(python_stdlib._spread(blocks, count))
    assert len(windows) == count
    found = set()
    for window in windows:
      start = text.index(window)
      found.update(range(start, start + len(window)))
    places[split] = found
    # The other task's windows are from the same blocks.
    owned = set()
    for block in blocks:
      start = text.index(block)
      owned.update(range(start, start + len(block)))
    assert found <= owned
  for a, b in itertools.combinations(places.values(), 2):
    assert not a & b


def test_all_source_bytes_are_reached_by_the_training_windows():
  block = bytes(range(256)) * 4
  windows = list(python_stdlib._spread([block, block], 40))
  assert len(windows) == 40
  assert {len(w) for w in windows} == {128}
  assert set(b"".join(windows)) == set(range(256))


def test_every_epoch_has_every_example_once_in_another_order():
  batches = take(small_train(size=12), 12)
  flat = list(itertools.chain.from_iterable(batches))
  epochs = [flat[:12], flat[12:24], flat[24:]]
  assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
  assert epochs[0] != epochs[1] != epochs[2]


def test_the_seed_decides_the_order():
  assert take(small_train(seed=7), 9) == take(small_train(seed=7), 9)
  assert take(small_train(seed=7), 9) != take(small_train(seed=8), 9)


@pytest.mark.parametrize("steps", [0, 1, 5, 40])
def test_resumed_iterator_continues_the_same_stream(steps):
  unbroken = iter(small_train())
  for _ in range(steps):
    next(unbroken)
  state = unbroken.get_state()
  resumed = iter(small_train())
  next(resumed)
  resumed.set_state(state)
  assert take(resumed, 20) == take(unbroken, 20)


def test_resumed_iterator_of_the_task(make_config):
  dataset = data.train_dataset(make_config(), seed=3, batch_size=8)
  unbroken, resumed = iter(dataset), iter(dataset)
  for _ in range(5):
    next(unbroken)
  resumed.set_state(unbroken.get_state())
  for a, b in zip(range(3), range(3), strict=True):
    a, b = next(unbroken), next(resumed)
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_out_each_batch_of_the_single_process(count):
  alone = take(small_train(size=25, batch_size=12), 10)
  shares = [
    take(small_train(25, 0, 12 // count, index, count), 10)
    for index in range(count)
  ]
  for step, batch in enumerate(alone):
    together = itertools.chain.from_iterable(share[step] for share in shares)
    assert sorted(together) == sorted(batch)


def test_last_eval_batch_is_filled_with_weights_of_zero():
  batches = list(pipeline.evaluation(small_split(10), 4))
  assert [len(b["targets"]) for b in batches] == [4, 4, 4]
  weights = np.concatenate([b["weights"] for b in batches])
  targets = np.concatenate([b["targets"] for b in batches])
  np.testing.assert_array_equal(weights, [1] * 10 + [0] * 2)
  np.testing.assert_array_equal(targets[weights > 0], np.arange(10))


def test_evaluation_leaves_the_data_as_they_are():
  split = small_split(5)
  for _ in range(2):
    total = sum(b["weights"].sum() for b in pipeline.evaluation(split, 4))
    assert total == 5


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"name": "mnist"}, "'mnist'; there are enron_spam, imdb, newsgroups20"),
    ({"source": "."}, "data.source is '.', but python_stdlib/modules comes"),
    ({"tokenizer": "gpt2"}, "data.tokenizer is 'gpt2', but python_stdlib/mod"),
    ({"seq_len": 64}, "data.seq_len is 64, but python_stdlib/modules comes"),
  ],
)
def test_wrong_fields_are_named(make_config, changes, message):
  with pytest.raises(ValueError, match=message):
    data.load_task(make_config(**changes))


def test_wrong_arguments_are_named(make_config):
  with pytest.raises(ValueError, match="no split 'dev', only"):
    data.eval_batches(make_config(), "dev", 4)
  with pytest.raises(ValueError, match="batch_size is 0"):
    small_train(batch_size=0)
  with pytest.raises(ValueError, match="process_index is 2; with process_c"):
    small_train(process_index=2, count=2)


def test_module_without_source_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(
    python_stdlib.sysconfig, "get_path", lambda _: str(tmp_path)
  )
  python_stdlib._sources.cache_clear()
  with pytest.raises(FileNotFoundError, match="module '_pydecimal' has 0 byt"):
    python_stdlib.load_modules(tmp_path)
  python_stdlib._sources.cache_clear()


def test_other_sources_are_another_dataset(tmp_path, monkeypatch):
  small = {s: 3 for s in SPLITS}
  monkeypatch.setattr(python_stdlib, "SNIPPETS_PER_MODULE", small)
  first = python_stdlib.load_modules(tmp_path)
  sources = python_stdlib._sources
  monkeypatch.setattr(
    python_stdlib,
    "_sources",
    lambda module: tuple((n, b"#" + text) for n, text in sources(module)),
  )
  second = python_stdlib.load_modules(tmp_path)
  a, b = (d.splits["train"]["tokens"] for d in (first, second))
  assert not np.array_equal(a, b)
  assert len(list(tmp_path.iterdir())) == 2


def test_default_directory(monkeypatch):
  monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
  monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
  assert prepare.default_dir() == pathlib.Path("/cache/backslash_jax/datasets")
  monkeypatch.setenv("TFDS_DATA_DIR", "/elsewhere")
  assert prepare.default_dir() == pathlib.Path("/elsewhere")


LOAD = """
  import sys
  from configs import default
  from experiments import data
  from experiments.data import python_stdlib
  splits = "train", "validation", "test"
  python_stdlib.SNIPPETS_PER_MODULE = dict.fromkeys(splits, 50)
  config = default.get_config().data
  config.dir = sys.argv[1]
  task = data.load_task(config)
  assert task.num_train == 1000, task
  assert "tensorflow" not in sys.modules
"""


def test_two_preparations_at_once_are_quiet_and_write_nowhere_else(tmp_path):
  places = {name: tmp_path / name for name in ("data", "home", "tmp")}
  for place in places.values():
    place.mkdir()
  changes = {"HOME": str(places["home"]), "TMPDIR": str(places["tmp"])}
  runs = [run_python(LOAD, places["data"], **changes) for _ in range(2)]
  for run in runs:
    out, err = run.communicate()
    assert (run.returncode, out, err) == (0, "", "")
  assert not list(places["home"].iterdir())
  assert not list(places["tmp"].iterdir())
  assert not list(places["data"].rglob("incomplete*"))


def test_killed_preparation_is_not_taken_for_whole(tmp_path, monkeypatch):
  # Killed halfway through the training split.
  killed = run_python(
    """
    import itertools, os, signal, sys
    from experiments.data import python_stdlib
    spread = python_stdlib._spread
    calls = itertools.count()

    def dies(blocks, count):
      if next(calls) == 10:
        os.kill(os.getpid(), signal.SIGKILL)
      return spread(blocks, count)

    python_stdlib._spread = dies
    python_stdlib.load_modules(sys.argv[1])
    """,
    tmp_path,
  )
  killed.communicate()
  assert killed.returncode == -signal.SIGKILL
  assert list(tmp_path.rglob("incomplete*"))
  monkeypatch.setattr(
    python_stdlib, "SNIPPETS_PER_MODULE", {s: 50 for s in SPLITS}
  )
  dataset = python_stdlib.load_modules(tmp_path)
  assert [len(d["tokens"]) for d in dataset.splits.values()] == [1000] * 3


@pytest.mark.parametrize("damage", ["truncated", "missing", "emptied"])
def test_damaged_data_are_named(tmp_path, monkeypatch, damage):
  monkeypatch.setattr(
    python_stdlib, "SNIPPETS_PER_MODULE", {s: 50 for s in SPLITS}
  )
  python_stdlib.load_modules(tmp_path)
  (path,) = tmp_path.rglob("*-train.array_record-*")
  if damage == "truncated":
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  elif damage == "missing":
    path.unlink()
  else:
    for file in path.parent.iterdir():
      file.unlink()
  with pytest.raises(ValueError, match=f"{path.parent}.*delete that dir"):
    python_stdlib.load_modules(tmp_path)


def test_directory_that_is_a_file_is_named(tmp_path):
  path = tmp_path / "file"
  path.write_text("")
  with pytest.raises(OSError, match=f"{path}.*set data.dir"):
    python_stdlib.load_modules(path)
