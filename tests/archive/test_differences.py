"""Coded files that hold the difference from a base."""

import json
import warnings

import hypothesis
import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import backslash_jax as bs
from backslash_jax import archive
from backslash_jax.archive import index, plain

STEP = 2.0**-8
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.float64)


def _base(seed=0, dtype=np.float32):
  rng = np.random.default_rng(seed)
  return {
    "embed": rng.normal(size=(200, 32)).astype(dtype),
    "kernel": rng.normal(size=(32, 16)).astype(dtype),
    "bias": rng.normal(size=32).astype(dtype),
    "ids": np.arange(20),
  }


def _tuned(base, seed=1):
  rng = np.random.default_rng(seed)
  tuned = dict(base)
  for name in ("kernel", "bias"):
    change = 0.01 * rng.normal(size=base[name].shape)
    tuned[name] = (base[name].astype(np.float64) + change).astype(
      base[name].dtype
    )
  return tuned


def _equal(found, wanted):
  for name, x in wanted.items():
    assert found[name].dtype == x.dtype
    assert np.asarray(found[name]).tobytes() == np.asarray(x).tobytes(), name


def _write(path, params):
  shapes = {name: (x.dtype.name, x.shape) for name, x in params.items()}
  plain.write(path, shapes, params.items())
  return path


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "file"
  bs.save(path, _tuned(_base()), base=_base(), step=STEP)
  return path


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
  dtype=st.sampled_from(DTYPES),
  of=st.sampled_from(DTYPES),
  octave=st.integers(-14, -2),
  factor=st.sampled_from([1.0, 0.7]),
  scale=st.sampled_from([1e-3, 0.05, 2.0]),
  seed=st.integers(0, 2**16),
)
def test_a_sum_on_the_grid_comes_back_bit_for_bit(
  tmp_path_factory, dtype, of, octave, factor, scale, seed
):
  rng = np.random.default_rng(seed)
  step = factor * 2.0**octave
  base = {"x": rng.normal(size=(7, 9)).astype(of)}
  levels = np.rint(scale * rng.normal(size=(7, 9)) / step)
  wide = np.float64 if np.dtype(dtype).itemsize > 4 else np.float32
  value = (levels * step).astype(wide)
  wanted = (base["x"].astype(wide) + value).astype(dtype)
  wanted = np.where(levels == 0, base["x"].astype(dtype), wanted)
  path = tmp_path_factory.mktemp("grid") / "file"
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # Fine steps for a coarse sum.
    bs.save(path, {"x": wanted}, base=base, step=step)
  found = bs.load(path, base=base)["x"]
  assert found.dtype == wanted.dtype
  # Where the dtype is coarser than the step, half-way cases may differ.
  coarse = np.spacing(np.abs(wanted)).astype(np.float64) >= 0.99 * step
  off = found.astype(np.float64) != wanted.astype(np.float64)
  assert not (off & ~coarse).any()
  error = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
  assert (error <= step).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_did_not_change_keeps_its_bits_and_costs_nothing(tmp_path, dtype):
  base = _base(dtype=dtype)
  base["embed"][3, :4] = -0.0, np.nan, np.inf, -np.inf
  tuned = _tuned(base)
  report = bs.save(tmp_path / "file", tuned, base=base, step=STEP)
  found = bs.load(tmp_path / "file", base=base)
  _equal({"embed": found["embed"]}, {"embed": base["embed"]})
  _equal({"ids": found["ids"]}, {"ids": base["ids"]})
  bytes_ = {t.name: t.bytes for t in report.tensors}
  assert bytes_["embed"] <= 4
  assert bytes_["ids"] <= 16
  assert report.is_difference
  # Vectors are coded too, with a step of their own.
  steps = {t.name: t.step for t in report.tensors}
  assert steps == {"embed": STEP, "kernel": STEP, "bias": STEP / 4, "ids": None}
  for name in ("kernel", "bias"):
    error = np.abs(found[name].astype(float) - tuned[name].astype(float))
    assert error.max() <= steps[name] / 2 + 0.02 * (dtype != np.float64)


def test_rows_that_nothing_touched_cost_nothing(tmp_path):
  base = {"embed": np.ones((4000, 32), np.float32)}
  rng = np.random.default_rng(0)
  few = {"embed": base["embed"].copy()}
  few["embed"][:10] += 0.05 * rng.normal(size=(10, 32)).astype(np.float32)
  report = bs.save(tmp_path / "few", few, base=base, step=STEP)
  own = bs.save(tmp_path / "own", {"x": few["embed"][:10] - 1}, step=STEP)
  assert report.bytes < own.bytes + 200


def test_steps_by_name_and_masks_say_what_is_quantized(tmp_path):
  base = _base()
  tuned = _tuned(base)
  by_name = bs.save(tmp_path / "a", tuned, base=base, step={"kernel": STEP})
  by_mask = bs.save(
    tmp_path / "b", tuned, base=base, step=STEP, mask=["kernel"]
  )
  for report in (by_name, by_mask):
    assert [t.name for t in report.tensors if t.step] == ["kernel"]
  _equal(
    {"bias": bs.load(tmp_path / "a", base=base)["bias"]},
    {"bias": tuned["bias"]},
  )


def test_without_a_step_the_difference_is_exact(tmp_path):
  base, tuned = _base(), _tuned(_base())
  report = bs.save(tmp_path / "file", tuned, base=base, step=None)
  _equal(bs.load(tmp_path / "file", base=base), tuned)
  whole = bs.save(tmp_path / "whole", tuned, step=None)
  assert report.bytes < 0.2 * whole.bytes


def test_a_base_may_be_a_tree_a_file_or_a_directory(tmp_path, file):
  base = _base()
  wanted = bs.load(file, base=base)
  nested = {"a": base}
  bs.save(tmp_path / "nested", {"a": _tuned(base)}, base=nested, step=STEP)
  whole = _write(tmp_path / "whole.safetensors", base)
  coded = tmp_path / "coded.safetensors"
  bs.save(coded, base, step=None)
  shards = tmp_path / "shards"
  shards.mkdir()
  weight_map = {}
  for i, name in enumerate(base):
    shard = f"model-{i + 1:05d}-of-00004.safetensors"
    _write(shards / shard, {name: base[name]})
    weight_map[name] = shard
  _write(shards / "other.safetensors", {"other": base["bias"]})
  text = json.dumps({"weight_map": weight_map})
  (shards / "model.safetensors.index.json").write_text(text)
  for source in (base, whole, str(coded), shards, bs.Base(shards)):
    _equal(bs.load(file, base=source), wanted)
    _equal(dict(archive.stream(file, base=source)), wanted)
  _equal(bs.load(tmp_path / "nested", base=nested)["a"], wanted)
  (shards / "model-00002-of-00004.safetensors").unlink()
  with pytest.raises(ValueError, match=r"00002-of-00004.*: this shard of"):
    bs.load(file, base=shards)


def test_names_may_have_a_prefix_in_one_of_the_two(tmp_path):
  base = _base()
  tuned = {f"bert.{name}": x for name, x in _tuned(base).items()}
  tuned["classifier"] = np.ones((4, 2), np.float32)
  report = bs.save(tmp_path / "file", tuned, base=base, step=STEP)
  assert [t.name for t in report.tensors if not t.base] == ["classifier"]
  found = bs.load(tmp_path / "file", base=base)
  _equal(found, {"bert.embed": base["embed"], "bert.ids": base["ids"]})
  back = {n.removeprefix("bert."): x for n, x in tuned.items() if "." in n}
  report = bs.save(tmp_path / "back", back, base=tuned, step=STEP)
  assert all(t.base for t in report.tensors)


def test_tied_weights_are_one_difference(tmp_path):
  base, tuned = _base(), _tuned(_base())
  tuned["embed"] = tuned["embed"] + np.float32(0.01)
  one = bs.save(tmp_path / "one", tuned, base=base, step=STEP)
  tuned["head"] = tuned["embed"]
  two = bs.save(tmp_path / "two", tuned, base=base, step=STEP)
  assert two.bytes < one.bytes + 100
  found = bs.load(tmp_path / "two", base=base)
  _equal({"head": found["head"]}, {"head": found["embed"]})


def test_another_base_is_refused_by_name(tmp_path, file):
  base = _base()
  other = base | {"kernel": base["kernel"] + np.float32(1e-6)}
  with pytest.raises(bs.ArchiveError, match=r"file: .*'kernel' of the base"):
    bs.load(file, base=other)
  written = _write(tmp_path / "other.safetensors", other)
  with pytest.raises(bs.ArchiveError, match=r"'kernel' of .*tensors differs"):
    bs.load(file, base=written)
  for wrong in (
    {n: x for n, x in base.items() if n != "kernel"},
    {n: x for n, x in base.items() if n != "kernel"} | {"k": other["kernel"]},
  ):
    with pytest.raises(bs.ArchiveError, match=r"has not .* 'kernel'"):
      bs.load(file, base=wrong)
  half = {n: x.astype(np.float16) for n, x in base.items()}
  with pytest.raises(bs.ArchiveError, match="'embed' of the base differs"):
    bs.load(file, base=half)
  # What is not asked for is not looked at.
  _equal(bs.load(file, names="embed", base=other), {"embed": base["embed"]})
  renamed = {f"x{n}": x for n, x in base.items()}
  _equal(bs.load(file, base=renamed), bs.load(file, base=base))


def test_a_difference_needs_its_base_and_a_model_none(tmp_path, file):
  with pytest.raises(bs.ArchiveError, match="file: a difference from another"):
    bs.load(file)
  with pytest.raises(bs.ArchiveError, match="file: a difference from another"):
    list(archive.stream(file))
  bs.save(tmp_path / "whole", _base(), step=STEP)
  with pytest.raises(bs.ArchiveError, match="whole: no difference"):
    bs.load(tmp_path / "whole", base=_base())


def test_a_chain_is_refused_but_its_result_is_a_base(tmp_path, file):
  second = _tuned(bs.load(file, base=_base()), seed=2)
  for call in (
    lambda: bs.save(tmp_path / "x", second, base=file, step=STEP),
    lambda: bs.load(file, base=file),
  ):
    with pytest.raises(bs.ArchiveError, match="file: a difference from anothe"):
      call()
  assert not (tmp_path / "x").exists()
  first = bs.load(file, base=_base())
  bs.save(tmp_path / "second", second, base=first, step=STEP)
  bs.load(tmp_path / "second", base=first)


def test_a_base_of_another_model_writes_nothing(tmp_path):
  for base in ({"x": np.ones(3)}, {"kernel": np.ones((3, 3))}):
    with pytest.raises(ValueError, match="the base has no tensor of the names"):
      bs.save(tmp_path / "file", {"kernel": np.ones(4)}, base=base, step=STEP)
  with pytest.raises(ValueError, match="the base has no tensors"):
    bs.save(tmp_path / "file", _base(), base={}, step=STEP)
  with pytest.raises(ValueError, match=r"no \*.safetensors file"):
    bs.save(tmp_path / "file", _base(), base=tmp_path, step=STEP)
  assert not list(tmp_path.iterdir())


def test_a_step_too_coarse_for_every_change_is_told(tmp_path):
  with pytest.warns(UserWarning, match="the whole difference became zero"):
    bs.save(tmp_path / "file", _tuned(_base()), base=_base(), step=2.0)


def test_a_sum_stays_finite(tmp_path):
  base = {"x": np.full((4, 4), 65000, np.float16)}
  tuned = {"x": np.full((4, 4), 65504, np.float16)}
  tuned["x"][0] = 64000
  bs.save(tmp_path / "file", tuned, base=base, step=900.0)
  wanted = {"x": np.where(tuned["x"] < 65000, np.float16(64100), base["x"])}
  _equal(bs.load(tmp_path / "file", base=base), wanted)
  tuned["x"][1, 1] = np.inf
  with pytest.raises(ValueError, match="tensor 'x': 1 of 16 values are NaN or"):
    bs.save(tmp_path / "file", tuned, base=base, step=700.0)


def test_the_relative_error_is_that_of_the_tensor(tmp_path):
  base, tuned = _base(), _tuned(_base())
  report = bs.save(
    tmp_path / "file", tuned, base=base, step=0.05, max_error=0.5
  )
  found = bs.load(tmp_path / "file", base=base)
  for t in report.tensors:
    x = tuned[t.name].astype(np.float64)
    error = np.sqrt(np.mean((found[t.name] - x) ** 2) / np.mean(x**2))
    assert t.relative_error == pytest.approx(error, rel=1e-3, abs=1e-9)
    assert t.kept is None


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_a_base_on_the_devices_gives_arrays_there_with_the_same_bits(
  tmp_path, dtype
):
  base = _base(dtype=dtype)
  del base["ids"]
  mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))
  split = NamedSharding(mesh, PartitionSpec("x"))
  there = jax.device_put(base, split)
  bs.save(tmp_path / "file", _tuned(base), base=there, step=STEP)
  wanted = bs.load(tmp_path / "file", base=base)
  known = bs.Base(there)
  found = bs.load(tmp_path / "file", base=known)
  _equal(found, wanted)
  assert found["embed"] is there["embed"]
  assert all(x.sharding.is_equivalent_to(split, x.ndim) for x in found.values())
  placed = bs.load(tmp_path / "file", base=base, sharding=split)
  _equal(placed, wanted)
  assert all(x.sharding == split for x in placed.values())


def test_differences_of_many_chunks(tmp_path, monkeypatch):
  monkeypatch.setattr(index, "CHUNK", 1000)
  rng = np.random.default_rng(0)
  base = _base()
  tuned = {
    n: x + (0.01 * rng.normal(size=x.shape)).astype(x.dtype)
    for n, x in base.items()
  }
  tuned["ids"] = base["ids"] + 1
  bs.save(tmp_path / "file", tuned, base=base, step=STEP)
  found = bs.load(tmp_path / "file", base=base)
  for name, x in tuned.items():
    assert np.abs(found[name] - x).max() <= STEP / 2 + 1e-6


def test_the_file_is_what_training_saw(tmp_path):
  base = {n: x for n, x in _base().items() if n != "ids"}
  delta = bs.delta(_tuned(base), base)
  steps = {"kernel": 0.003, "bias": 0.0007, "embed": 0.01}
  seen = bs.apply_delta(base, bs.round_through(delta, steps))
  report = bs.save(
    tmp_path / "file", bs.apply_delta(base, delta), base=base, step=steps
  )
  found = bs.load(tmp_path / "file", base=base)
  for name, x in found.items():
    np.testing.assert_allclose(x, seen[name], rtol=1e-6, atol=1e-7)
  assert report.parameters == sum(x.size for x in base.values())
