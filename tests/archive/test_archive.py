"""The coded model file gives back the quantized tree, and nothing is lost."""

import dataclasses
import json
import math
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from backslash_jax import archive, quantize
from backslash_jax.archive import file, index

_RNG = np.random.default_rng(0)


def _weights(*shape, scale=0.05, dtype=np.float32):
  return _RNG.laplace(scale=scale, size=shape).astype(dtype)


def _params():
  return {
    "embedding": {"kernel": _weights(50, 16)},
    "layers": [
      {"kernel": _weights(16, 24), "bias": _weights(24)},
      ({"kernel": _weights(24, 16)}, None),
    ],
    "head": {0: _weights(3, 4, 5), 1: np.int32(7)},
  }


def _save(tmp_path, params, step=2**-8, **keywords):
  path = tmp_path / "file.safetensors"
  return path, archive.save(path, params, step=step, **keywords)


def _without_errors(report):
  tensors = [
    dataclasses.replace(t, relative_error=None, kept=None)
    for t in report.tensors
  ]
  return dataclasses.replace(report, tensors=tuple(tensors))


def _equal(found, wanted):
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("coder", archive.CODERS)
def test_the_same_tree_comes_back_quantized(tmp_path, coder):
  params = _params()
  path, report = _save(tmp_path, params, step=2**-6, coder=coder)
  _equal(archive.load(path), quantize.apply(params, 2**-6))
  assert _without_errors(report) == archive.inspect(path)
  assert report.bytes == path.stat().st_size


def test_saving_what_was_loaded_loses_nothing_more(tmp_path):
  path, _ = _save(tmp_path, _params(), step=0.013)
  once = archive.load(path)
  archive.save(path, once, step=0.013)
  _equal(archive.load(path), once)


@pytest.mark.parametrize(
  "dtype",
  [
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32"),
    *("int64", "uint64", "float16", "float32", "float64"),
    *("complex64", "complex128", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
    "int4",
  ],
)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (7,), (5, 9)])
def test_what_is_not_quantized_is_exact(tmp_path, dtype, shape):
  dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
  octets = _RNG.integers(0, 256, math.prod(shape) * dtype.itemsize, np.uint8)
  if dtype.name in ("bool", "int4"):
    octets &= 1
  array = octets.view(dtype).reshape(shape)
  path, _ = _save(tmp_path, {"x": array}, step=None)
  _equal(archive.load(path), {"x": array})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (7, 1), (1, 300), (4, 5, 6)])
def test_floating_dtypes_and_shapes_are_quantized(tmp_path, dtype, shape):
  dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
  array = _weights(*shape).astype(dtype)
  path, _ = _save(tmp_path, {"x": array}, step=2**-7)
  _equal(archive.load(path), quantize.apply({"x": array}, 2**-7))


@pytest.mark.filterwarnings("ignore:.*became zero")
@pytest.mark.parametrize("step", [1e-12, 2**-20, 2**-16, 0.1, 1.0, 1e6])
def test_extreme_steps(tmp_path, step):
  array = _weights(40, 50, scale=1e-4, dtype=np.float64)
  path, _ = _save(tmp_path, {"x": array}, step=step)
  found = archive.load(path)["x"]
  assert np.abs(found - array).max() <= step / 2 * (1 + 1e-9)


@pytest.mark.parametrize(
  "array",
  [
    np.full((30, 40), 0.25, np.float32),
    np.zeros((30, 40), np.float32),
    np.full((30, 40), 1e-42, np.float32),
    np.float32(2**-8) * np.array([[2**31 - 129, -(2**31)]], np.float32),
  ],
  ids=["equal", "zeros", "denormals", "largest"],
)
@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.filterwarnings("ignore:.*became zero")
def test_corner_cases(tmp_path, array):
  if array.size == 2:
    array = np.float32(2**-8) * np.array([[2**31 - 128, 128 - 2**31]], "f4")
  path, _ = _save(tmp_path, {"x": array})
  np.testing.assert_array_equal(
    archive.load(path)["x"], np.rint(array * 256) / 256
  )


def test_a_constant_tensor_costs_its_header_only(tmp_path):
  _, small = _save(tmp_path, {"x": np.zeros((2, 2), np.float32)})
  path, large = _save(tmp_path, {"x": np.zeros((4000, 3000), np.float32)})
  assert large.bytes < small.bytes + 40
  assert not archive.load(path)["x"].any()


@pytest.mark.parametrize(
  ("value", "message"),
  [
    (np.nan, r"'a/x': 1 of 6 values are NaN or infinite"),
    (np.inf, r"'a/x': 1 of 6 values are NaN or infinite"),
    (1e30, r"'a/x': the value 1e\+30 is more than .* steps of 0.00390625"),
  ],
)
def test_values_without_a_level_are_named(tmp_path, value, message):
  array = np.ones((2, 3), np.float32)
  array[1, 1] = value
  with pytest.raises(ValueError, match=message):
    _save(tmp_path, {"a": {"x": array}})
  assert not list(tmp_path.iterdir())


def test_bad_arguments_are_named(tmp_path):
  params = _params()
  cases = [
    (dict(step=0.0), ValueError, "the step is 0.0: it must be"),
    (
      dict(step={"nothing": 0.1}),
      ValueError,
      "'nothing', which is not in",
    ),
    (dict(coder="zip"), ValueError, "coder 'zip'"),
    (dict(mask={"x": True}), ValueError, "another structure"),
    (dict(mu=-1.0), ValueError, "mu is -1"),
  ]
  for keywords, kind, message in cases:
    with pytest.raises(kind, match=message):
      _save(tmp_path, params, **keywords)
  with pytest.raises(TypeError, match="'a' is a str"):
    _save(tmp_path, {"a": "text"})
  with pytest.raises(TypeError, match="dtype object"):
    _save(tmp_path, {"a": np.array([None])})
  with pytest.raises(ValueError, match="two tensors are named 'a/b'"):
    _save(tmp_path, {"a": {"b": np.ones(1)}, "a/b": np.ones(1)})
  with pytest.raises(ValueError, match="'n' of dtype int64"):
    _save(tmp_path, {"n": np.arange(3)}, mask={"n": True})


def test_what_is_not_a_number_is_refused_by_name(tmp_path):
  model = nnx.Dropout(0.1, rngs=nnx.Rngs(0))
  with pytest.raises(TypeError, match=r"'rngs/key' has dtype key<fry>"):
    _save(tmp_path, nnx.state(model))


def test_nothing_is_quantized_without_a_step(tmp_path):
  params = _params()
  path, report = _save(tmp_path, params, step=None)
  assert {t.coder for t in report.tensors} == {"exact"}
  _equal(archive.load(path), params)


def test_a_mask_by_pattern_tree_and_callable(tmp_path):
  params = {"a": {"kernel": _weights(8, 8), "bias": _weights(8)}}
  flags = {"a": {"kernel": False, "bias": True}}
  for mask in ("*/bias", ["*/bias"], flags, lambda p: flags):
    _, report = _save(tmp_path, params, mask=mask)
    steps = {t.name: t.step for t in report.tensors}
    assert steps == {"a/kernel": None, "a/bias": 2**-8}


def test_a_step_per_tensor(tmp_path):
  params = {"a": _weights(8, 8), "b": _weights(8, 8)}
  path, report = _save(tmp_path, params, step={"a": 0.05, "b": 0.025})
  assert [t.step for t in report.tensors] == [0.05, 0.025]
  _equal(archive.load(path), quantize.apply(params, {"a": 0.05, "b": 0.025}))


def test_a_bare_array_is_a_tree(tmp_path):
  array = _weights(4, 4)
  path, _ = _save(tmp_path, array)
  _equal(archive.load(path), quantize.apply({"": array}, 2**-8)[""])


def test_tensors_by_name(tmp_path, monkeypatch):
  monkeypatch.setattr(index, "CHUNK", 500)
  params = _params()
  path, _ = _save(tmp_path, params)
  whole = quantize.apply(params, 2**-8)
  found = archive.load(path, names=["embedding/*", "layers/0/bias"])
  assert sorted(found) == ["embedding/kernel", "layers/0/bias"]
  _equal(found["embedding/kernel"], whole["embedding"]["kernel"])
  _equal(found["layers/0/bias"], whole["layers"][0]["bias"])
  with pytest.raises(KeyError, match="no tensor named 'nothing'"):
    archive.load(path, names=["nothing"])
  # Damage elsewhere does not matter to those who do not read it.
  data = bytearray(path.read_bytes())
  report = archive.inspect(path)
  data[256 + sum(t.bytes for t in report.tensors) - 1] ^= 1
  path.write_bytes(data)
  archive.load(path, names=["embedding/kernel"])
  with pytest.raises(archive.ArchiveError, match="damaged"):
    archive.load(path)


@pytest.mark.parametrize("coder", archive.CODERS)
def test_tensors_of_many_chunks(tmp_path, monkeypatch, coder):
  monkeypatch.setattr(index, "CHUNK", 1 << 10)
  params = {
    "large": _weights(100, 37),
    "wide": _weights(1, 5000),
    "small": [_weights(10, 10) for _ in range(30)],
    "exact": _RNG.normal(size=3000),
  }
  path, _ = _save(tmp_path, params, coder=coder, step=2**-6)
  _equal(archive.load(path), quantize.apply(params, 2**-6))
  assert dict(archive.stream(path)).keys() == {
    t.name for t in archive.inspect(path).tensors
  }


def test_a_large_tensor_whose_sample_is_constant(tmp_path, monkeypatch):
  monkeypatch.setattr(index, "CHUNK", 1 << 10)
  array = np.zeros((999, 40), np.float32)
  array[501, 3] = 1.5
  path, _ = _save(tmp_path, {"x": array})
  _equal(archive.load(path), {"x": array})


@pytest.mark.parametrize("spec", [("x",), (None, "x"), ("x", "y"), ()])
def test_shards_are_placed_on_a_mesh(tmp_path, monkeypatch, spec):
  monkeypatch.setattr(index, "CHUNK", 1 << 9)
  mesh = jax.make_mesh((4, 2), ("x", "y"))
  params = {"w": _weights(64, 16), "b": _weights(64)}
  path, _ = _save(tmp_path, params)

  def sharding(name, shape):
    return NamedSharding(mesh, PartitionSpec(*spec[: len(shape)]))

  found = archive.load(path, sharding=sharding)
  assert found["w"].sharding == sharding("w", (64, 16))
  _equal(found, quantize.apply(params, 2**-8))


def test_only_the_rows_of_local_shards_are_decoded(tmp_path, monkeypatch):
  monkeypatch.setattr(index, "CHUNK", 1 << 9)
  path, _ = _save(tmp_path, {"w": _weights(64, 16)})

  class Local:
    """One process's part of a sharding over several."""

    def addressable_devices_indices_map(self, shape):
      return {0: (slice(16, 32), slice(None))}

  read = []
  monkeypatch.setattr(file, "_placed", lambda array, sharding: array)
  archive.load(path, sharding=Local(), progress=read.append)
  assert sum(read) == 512


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path, monkeypatch):
  monkeypatch.setattr(index, "CHUNK", 1 << 15)
  params = {str(i): _weights(600, 1000) for i in range(3)}
  path, report = _save(tmp_path, params)  # Compiles, and warms the caches.
  largest = params["0"].nbytes
  code = report.tensors[0].bytes
  tracemalloc.start()
  try:
    archive.save(path, params, step=2**-8)
    saving = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    for name, tensor in archive.stream(path):
      assert tensor.nbytes == largest, name
      del tensor  # Else it is held while the next is decoded.
    streaming = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert saving < largest + code
  # No second tensor, only the chunks that are decoded.
  assert streaming < largest + code + 32 * index.CHUNK


def test_the_file_is_a_safetensors_file(tmp_path):
  path, report = _save(tmp_path, _params())
  tensors = load_file(path)
  assert sorted(tensors) == ["index", "payload"]
  assert tensors["payload"].size == sum(t.bytes for t in report.tensors)


def test_the_report_says_what_each_tensor_weighs(tmp_path):
  params = {"w": _weights(300, 200, scale=0.1), "b": _weights(200)}
  _, report = _save(tmp_path, params, step=2**-5)
  w, b = report.tensors
  assert (w.name, w.shape, w.dtype, w.coder) == (
    "w",
    (300, 200),
    "float32",
    "rans",
  )
  assert abs(w.nu - 1) < 0.05
  assert abs(w.alpha - 0.1) < 0.005
  assert abs(8 * w.bytes - w.bits) < 0.01 * w.bits
  assert (b.step, b.nu, b.coder) == (None, None, "exact")
  assert 0.6 * 6400 < b.bits <= 6400
  assert report.parameters == 60_200
  assert report.bits_per_parameter == 8 * report.bytes / 60_200
  # The header, the index and its checksums are small.
  assert report.bytes - w.bytes - b.bytes < 500
  json.dumps(report.bits_per_parameter)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_relative_error_is_that_of_what_is_loaded(
  tmp_path, monkeypatch, dtype
):
  monkeypatch.setattr(index, "CHUNK", 1 << 10)
  dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
  params = {"w": _weights(90, 40).astype(dtype), "b": _weights(9)}
  params |= {"zero": np.zeros((3, 3)), "none": np.ones((0, 3)), "n": np.ones(1)}
  path, report = _save(tmp_path, params, step=2**-5, mu=0.1)
  x, y = (p["w"].astype(np.float64) for p in (params, archive.load(path)))
  errors = {t.name: t.relative_error for t in report.tensors}
  wanted = np.sqrt(np.square(x - y).sum() / np.square(x).sum())
  assert math.isclose(errors.pop("w"), wanted, rel_tol=1e-9)
  assert set(errors.values()) == {0.0}
  assert {t.relative_error for t in archive.inspect(path).tensors} == {None}


def test_a_code_larger_than_the_tensor_is_not_used(tmp_path):
  params = {"w": _weights(100, 100), "eight": _weights(100, 100, scale=20.0)}
  params["eight"] = params["eight"].astype(ml_dtypes.float8_e4m3fn)
  path, report = _save(tmp_path, params, step=2**-8)
  w, eight = report.tensors
  assert (w.step, w.kept) == (2**-8, None)
  assert (eight.step, eight.kept, eight.coder) == (None, "size", "exact")
  _equal(archive.load(path)["eight"], params["eight"])
  _, finer = _save(tmp_path, {"w": params["w"].astype("f2")}, step=2**-24)
  assert finer.tensors[0].kept == "size"


def test_a_bound_on_the_error_and_a_warning_without(tmp_path):
  params = {"large": _weights(50, 50), "small": _weights(50, 50, scale=1e-4)}
  with pytest.warns(UserWarning, match=r"became zero.*of 'small'$"):
    _, report = _save(tmp_path, params, step=2**-6)
  assert [t.relative_error == 1 for t in report.tensors] == [False, True]
  seen = []
  path, report = _save(
    tmp_path, params, step=2**-6, max_error=0.5, progress=seen.append
  )
  assert [t.kept for t in report.tensors] == [None, "error"]
  assert report.tensors[1].relative_error == 0
  assert sum(seen) == report.parameters == 5000
  _equal(archive.load(path)["small"], params["small"])
  # What was quantized is coded as if the rest had been exact from the start.
  again = tmp_path / "again"
  archive.save(again, params, step={"large": 2**-6})
  assert again.read_bytes() == path.read_bytes()


def test_the_price_of_a_bit_saves_bits(tmp_path):
  params = {"w": _weights(200, 200)}
  _, plain = _save(tmp_path, params, step=2**-3)
  path, priced = _save(tmp_path, params, step=2**-3, mu=0.1)
  assert priced.bytes < 0.95 * plain.bytes
  _equal(archive.load(path), quantize.apply(params, 2**-3, mu=0.1))


def test_an_existing_file_survives_a_failure(tmp_path):
  path, _ = _save(tmp_path, {"x": _weights(4, 4)})
  before = path.read_bytes()
  bad = {"a": _weights(4, 4), "x": np.full((2, 2), np.nan, np.float32)}
  with pytest.raises(ValueError, match="NaN"):
    archive.save(path, bad, step=2**-8)
  assert path.read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.slow
def test_a_hundred_million_parameters_come_back(tmp_path):
  w = np.random.default_rng(1).standard_normal((10_000, 10_000), np.float32)
  path, _ = _save(tmp_path, {"w": w}, step=2**-3)
  loaded = archive.load(path)["w"]
  assert np.array_equal(loaded, np.rint(w * 8) / 8)
