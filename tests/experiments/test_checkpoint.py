"""A checkpoint is restored exactly as it was written, or refused by name."""

import asyncio
import gc
import itertools
import random
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from experiments import checkpoint, digest, settings
from experiments.data import pipeline

UPDATE = 3


def _placed(x, *spec):
  mesh = jax.make_mesh((4, 2), ("a", "b"), (jax.sharding.AxisType.Auto,) * 2)
  return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))


def _state(*spec):
  """Words of random bits, which no compression changes, and small arrays."""
  random_bits = np.random.default_rng(0).integers(
    0, 2**32, size=(128, 256), dtype=np.uint32
  )
  return {
    "params": {"w": _placed(random_bits, *spec), "b": jnp.arange(7.0)},
    "opt_state": [_placed(np.ones((8, 16), np.float32), *spec), jnp.int32(3)],
  }


def _batches(position=0):
  split = {"tokens": np.zeros((40, 4), np.int32)}
  batches = iter(
    pipeline.train(
      split, seed=0, batch_size=4, process_index=0, process_count=1
    )
  )
  for _ in range(position):
    next(batches)
  return batches


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """Checkpoints of updates 2 and 3."""
  directory = tmp_path_factory.mktemp("written") / "checkpoints"
  with checkpoint.Checkpoints(directory, 2) as checkpoints:
    for update in (UPDATE - 1, UPDATE):
      checkpoints.save(update, _state("a", "b"), _batches(update))
  return directory


@pytest.fixture
def copied(written, tmp_path):
  return shutil.copytree(written, tmp_path / "checkpoints")


def _restore(directory, like=None):
  """The state on the host, and the position in the data."""
  batches = _batches()
  with checkpoint.Checkpoints(directory, 2) as checkpoints:
    like = _state("a", "b") if like is None else like
    state = checkpoints.restore(UPDATE, like, batches)
  return jax.device_get(state), batches.get_state()


def _assert_as_written(restored):
  state, position = restored
  for found, wanted in zip(
    jax.tree.leaves(state), jax.tree.leaves(_state()), strict=True
  ):
    np.testing.assert_array_equal(found, wanted, strict=True)
  assert position == _batches(UPDATE).get_state()


def _files(directory):
  """Every file of a checkpoint, the largest last."""
  files = [path for path in directory.rglob("*") if path.is_file()]
  return sorted(files, key=lambda path: (path.stat().st_size, path))


@pytest.mark.parametrize(
  ("dtype", "spec"),
  [
    ("float32", ()),
    ("float32", (("a", "b"),)),
    ("bfloat16", ("b", "a")),
    ("float8_e4m3fn", ("a",)),
    ("int32", (None, None, "b")),
    ("bool", ("a", None, "b")),
  ],
)
def test_digest_does_not_depend_on_how_an_array_is_split(dtype, spec):
  x = np.random.default_rng(1).integers(0, 100, (8, 4, 2)).astype(dtype)
  assert digest.of([_placed(x, *spec)]) == digest.of([jnp.asarray(x)])


def test_digest_gathers_nothing():
  x = _placed(np.ones((8, 16), np.float32), "a", "b")
  program = digest._sums.lower(x).compile().as_text()
  assert "all-reduce" in program
  assert "all-gather" not in program
  assert "all-to-all" not in program


def test_digest_is_of_every_bit_and_its_place():
  rng = np.random.default_rng(2)
  x = rng.standard_normal((6, 5)).astype(np.float32)
  x[0, :2] = 0.0, 1.0
  (before,) = digest.of([x]).values()
  seen = {before}
  for place, bit in itertools.product(range(x.size), (0, 13, 31)):
    other = x.copy()
    other.view(np.uint32).flat[place] ^= 1 << bit
    seen |= set(digest.of([other]).values())
  assert len(seen) == 1 + 3 * x.size
  moved = (x[::-1], np.roll(x, 1), x.reshape(5, 6), x.T, np.zeros_like(x))
  seen |= {d for other in moved for d in digest.of([other]).values()}
  assert len(seen) == 1 + 3 * x.size + len(moved) - 1  # reshape keeps places.


@pytest.mark.parametrize("spec", [("a", "b"), ("b",), (None, ("a", "b")), ()])
def test_checkpoint_is_restored_on_any_split(written, spec):
  like = _state(*spec)
  _assert_as_written(_restore(written, like))


def test_checkpoint_is_restored_on_one_device(written):
  like = jax.device_put(_state(), jax.devices()[0])
  _assert_as_written(_restore(written, like))


def test_a_flipped_bit_is_refused_or_changes_nothing(written, tmp_path):
  rng = random.Random(0)
  directory = tmp_path / "damaged"
  reasons = []
  for path in _files(written / str(UPDATE)):
    content = path.read_bytes()
    if content:
      shutil.rmtree(directory, ignore_errors=True)
      shutil.copytree(written, directory)
      damaged = bytearray(content)
      # Arrays stand in the middle of their file.
      place = len(content) // 4 + rng.randrange((len(content) + 1) // 2)
      damaged[place] ^= 1 << rng.randrange(8)
      (directory / path.relative_to(written)).write_bytes(damaged)
      try:
        restored = _restore(directory)
      except settings.UserError as error:
        reasons.append(str(error))
        assert str(directory / str(UPDATE)) in reasons[-1]
        assert "delete that folder to resume from update 2" in reasons[-1]
        assert "\n" not in reasons[-1]
      else:
        _assert_as_written(restored)
  # Some of it nobody but the digest sees.
  assert any("the array params/w differs from its dig" in r for r in reasons)


@pytest.mark.parametrize("damage", ["truncated", "deleted", "overwritten"])
def test_damaged_checkpoint_is_one_line_and_leaves_no_reader(copied, damage):
  newest = copied / str(UPDATE)
  file = _files(newest / "state")[-1]
  content = file.read_bytes()
  if damage == "truncated":
    file.write_bytes(content[: len(content) // 2])
  elif damage == "deleted":
    shutil.rmtree(newest / "state")
  else:
    for path in newest.rglob("d/*"):
      path.write_bytes(bytes(path.stat().st_size))
  noticed = []
  hook, sys.unraisablehook = sys.unraisablehook, noticed.append
  try:
    with pytest.raises(settings.UserError) as caught:
      _restore(copied)
    tasks = [x for x in gc.get_objects() if isinstance(x, asyncio.Task)]
    assert not any(t.get_loop().is_closed() and not t.done() for t in tasks)
    gc.collect()
  finally:
    sys.unraisablehook = hook
  assert not noticed
  message = str(caught.value)
  assert message.startswith(f"cannot read the checkpoint {newest}: ")
  assert "\n" not in message
  assert "Traceback" in caught.value.details


def test_other_position_in_the_data_is_refused(copied):
  (path,) = (copied / str(UPDATE) / "batches").glob("process_*")
  path.write_text(re.sub(r"\d+", "7", path.read_text()))
  with pytest.raises(settings.UserError, match="position in the data"):
    _restore(copied)


def test_missing_digests_are_refused(copied):
  shutil.rmtree(copied / str(UPDATE) / "written")
  with pytest.raises(settings.UserError, match="cannot read the checkpoint"):
    _restore(copied)


def test_the_processes_agree_on_a_question_and_not_on_an_update(
  tmp_path, monkeypatch
):
  # They agree on the one after the last that was asked: 1 before the first.
  asked = []

  def ask(manager, number):
    asked.append(number)
    return False

  monkeypatch.setattr(
    checkpoint.ocp.CheckpointManager, "reached_preemption", ask
  )
  for name in ("one", "another"):
    with checkpoint.Checkpoints(tmp_path / name, 1) as checkpoints:
      checkpoints.reached_preemption()
      checkpoints.reached_preemption()
  assert asked == list(range(asked[0], asked[0] + 4))
