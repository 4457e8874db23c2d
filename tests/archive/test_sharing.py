"""Equal tensors and rows are stored once, and views take the fewest bits."""

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from backslash_jax import archive, quantize
from backslash_jax.archive import index, plain
from tests import paths

_STORIES = paths.SHARED / "weights" / "stories260K" / "model.safetensors"


def _table(dtype=np.float32, rows=200, columns=24):
  """A matrix with many rows equal to a few."""
  rng = np.random.default_rng(0)
  table = rng.normal(size=(rows, columns)).astype(dtype)
  for place in rng.permutation(rows)[: rows // 2]:
    table[place] = table[place % 3]
  return table


def _same_bytes(found, wanted):
  assert found.keys() == wanted.keys()
  for name, x in wanted.items():
    assert found[name].tobytes() == np.asarray(x).tobytes(), name


def _by_name(report):
  return {t.name: t for t in report.tensors}


@pytest.mark.parametrize("coder", archive.CODERS)
@pytest.mark.parametrize("mu", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1 << 10, 1 << 21])
def test_repeated_rows_are_coded_once(tmp_path, monkeypatch, coder, mu, chunk):
  monkeypatch.setattr(index, "CHUNK", chunk)
  table, path = _table(), tmp_path / "file"
  report = archive.save(path, {"x": table}, step=2**-5, coder=coder, mu=mu)
  (tensor,) = report.tensors
  large = chunk < table.size
  assert (tensor.repeated_rows > 90) == (not (mu and large))
  wanted = quantize.apply({"x": table}, 2**-5, mu=mu)
  if not (mu and large):
    _same_bytes(archive.load(path), wanted)
    bits = tensor.bits / table.size
    assert bits < 0.6 * np.log2(2**5 * 4.13)
  found = archive.load(path)["x"]
  error = np.linalg.norm(found - table) / np.linalg.norm(table)
  assert tensor.relative_error == pytest.approx(error, rel=1e-6)


def test_rows_with_equal_integers_are_equal(tmp_path):
  """They may differ in their values; the error is that of all rows."""
  table = _table() + np.random.default_rng(1).uniform(-1, 1, (200, 24)) * 1e-4
  table = np.rint(table * 32) / 32 + np.clip(
    table - np.rint(table), -0.01, 0.01
  )
  report = archive.save(tmp_path / "file", {"x": table}, step=2**-5)
  assert report.tensors[0].repeated_rows > 90
  found = archive.load(tmp_path / "file")["x"]
  error = np.linalg.norm(found - table) / np.linalg.norm(table)
  assert report.tensors[0].relative_error == pytest.approx(error, rel=1e-6)


@pytest.mark.parametrize(
  "dtype", ["float32", "float16", "bfloat16", "int8", "int64", "complex64"]
)
@pytest.mark.parametrize("chunk", [1 << 12, 1 << 21])
def test_repeated_rows_of_exact_tensors(tmp_path, monkeypatch, dtype, chunk):
  monkeypatch.setattr(index, "CHUNK", chunk)
  table = _table(np.float32) * 20
  if dtype == "complex64":
    table = table.view(dtype)
  table = table.astype(getattr(ml_dtypes, dtype, dtype))
  report = archive.save(tmp_path / "file", {"x": table}, step=None)
  assert report.tensors[0].repeated_rows > 90
  assert report.tensors[0].bytes < 0.6 * table.nbytes
  _same_bytes(archive.load(tmp_path / "file"), {"x": table})


def test_what_does_not_pay_is_not_done(tmp_path):
  """Constant tensors, narrow rows and single repeated rows of few bits."""
  rng = np.random.default_rng(0)
  params = {
    "zeros": np.zeros((3000, 30), np.float32),
    "also_zeros": np.zeros((3000, 30), np.float32),
    "narrow": rng.integers(0, 2, (500, 2)).astype(np.float32),
    "sparse": (rng.random((500, 40)) < 1e-3).astype(np.float32),
    "small": np.ones(4, np.float32),
    "also_small": np.ones(4, np.float32),
  }
  report = archive.save(tmp_path / "file", params, step=2**-3)
  assert {t.repeated_rows for t in report.tensors} == {0}
  assert {t.same for t in report.tensors} == {None}
  _same_bytes(archive.load(tmp_path / "file"), params)


def test_equal_tensors_are_stored_once(tmp_path, monkeypatch):
  monkeypatch.setattr(index, "CHUNK", 1 << 10)
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 60, 40)).astype(np.float32)
  params = {
    **{"a": a, "b": b, "tied": a.copy(), "reshaped": a.reshape(40, 60)},
    **{"other_dtype": a.astype(np.float64), "bias": a[0], "bias2": a[0].copy()},
    "near": np.where(np.arange(40) == 7, a + 2**-4, a),
    "equal_integers": quantize.apply({"x": a}, 2**-5)["x"],
  }
  path = tmp_path / "file"
  report = archive.save(path, params, step=2**-5)
  assert {t.name: t.same for t in report.tensors if t.same} == {
    "tied": "a",
    "bias2": "bias",
    "equal_integers": "a",
  }
  wanted = quantize.apply(params, 2**-5)
  _same_bytes(archive.load(path), wanted)
  found = dict(archive.stream(path))
  _same_bytes(found, wanted)
  found["a"][:] = 0  # Each is an array of its own.
  assert found["tied"].any()
  for names in (["tied"], ["tied", "bias2"], ["a", "equal_integers"]):
    _same_bytes(
      archive.load(path, names=names), {name: wanted[name] for name in names}
    )
  errors = {t.name: t.relative_error for t in report.tensors}
  assert errors["tied"] == pytest.approx(errors["a"], rel=1e-9)
  assert errors["equal_integers"] == 0
  assert sum(t.bytes for t in report.tensors if t.same) == 0


def test_all_parameters_are_counted_once(tmp_path):
  table = _table()
  seen = []
  params = {"a": table, "b": table, "c": table[0], "d": table[0]}
  path = tmp_path / "file"
  report = archive.save(path, params, step=2**-5, progress=seen.append)
  assert sum(seen) == report.parameters
  seen.clear()
  archive.load(path, progress=seen.append)
  assert sum(seen) == report.parameters


def test_shards_of_equal_tensors_and_rows(tmp_path, monkeypatch):
  monkeypatch.setattr(index, "CHUNK", 1 << 9)
  mesh = jax.make_mesh((4, 2), ("x", "y"))
  table = _table(rows=64, columns=16)
  w = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
  params = {"table": table, "w": w, "tied": w}
  path = tmp_path / "file"
  archive.save(path, params, step=2**-5)

  def sharding(name, shape):
    spec = {"table": ("x",), "w": ("x", "y"), "tied": (None, "x")}[name]
    return NamedSharding(mesh, PartitionSpec(*spec))

  found = archive.load(path, sharding=sharding)
  assert found["tied"].sharding == sharding("tied", w.shape)
  wanted = quantize.apply(params, 2**-5)
  _same_bytes({k: np.asarray(x) for k, x in found.items()}, wanted)


def test_what_was_kept_exactly_is_shared_too(tmp_path):
  small = np.random.default_rng(0).normal(size=(50, 50)).astype("f4") * 1e-4
  params = {"a": small, "b": small, "c": _table() * np.float32(1e-4)}
  path = tmp_path / "file"
  report = archive.save(path, params, step=2**-6, max_error=0.5)
  found = _by_name(report)
  assert {t.kept for t in report.tensors} == {"error"}
  assert found["b"].same == "a"
  assert found["c"].repeated_rows > 90
  _same_bytes(archive.load(path), params)


def test_a_value_that_cannot_be_coded_is_named(tmp_path):
  table = _table()
  table[5, :] = np.nan
  for params in ({"a": table}, {"a": table, "b": table}):
    with pytest.raises(ValueError, match=r"tensor 'a': .* NaN"):
      archive.save(tmp_path / "file", params, step=2**-5)
  kernel = np.full((4, 4, 3), np.nan)
  with pytest.raises(ValueError, match=r"tensor 'k': .* NaN"):
    archive.save(tmp_path / "file", {"k": kernel}, step=2**-5)


@pytest.mark.parametrize("chunk", [1 << 12, 1 << 21])
@pytest.mark.parametrize("mu", [0.0, 0.1])
def test_the_view_with_the_fewest_bits_is_taken(
  tmp_path, monkeypatch, chunk, mu
):
  """Kernels of the layouts [O, I, k], [O, I, h, w] and [k, I, O]."""
  monkeypatch.setattr(index, "CHUNK", chunk)
  rng = np.random.default_rng(0)
  scale = np.exp(rng.normal(size=64))
  oik = rng.normal(size=(64, 48, 5)) * scale[:, None, None] * 0.1
  params = {
    "oik": oik,
    "oihw": oik.reshape(64, 60, 2, 2),
    "kio": np.ascontiguousarray(oik.T),
  }
  params = {name: x.astype(np.float32) for name, x in params.items()}
  path = tmp_path / "file"
  report = _by_name(archive.save(path, params, step=2**-6, mu=mu))
  wanted = quantize.apply(params, 2**-6, mu=mu)
  if not mu or chunk > 1 << 20:
    _same_bytes(archive.load(path), wanted)
  for name in ("oik", "oihw"):
    x = params[name].reshape(64, -1)
    flat = archive.save(tmp_path / "flat", {name: x}, step=2**-6, mu=mu)
    if not mu:
      assert report[name].bytes <= 1.01 * flat.tensors[0].bytes
  flat = params["kio"].reshape(-1, 64)
  flat = archive.save(tmp_path / "flat", {"x": flat}, step=2**-6)
  if not mu:
    assert report["kio"].bytes <= 1.01 * flat.tensors[0].bytes


def test_the_repeated_rows_of_a_real_embedding(tmp_path):
  """165 of 512 rows are equal at this step; they took 10 kB of 25."""
  if not _STORIES.exists():
    pytest.skip(f"needs {_STORIES}")
  name = "model.embed_tokens.weight"
  table = {name: np.asarray(plain.read(_STORIES)[name])}
  report = archive.save(tmp_path / "file", table, step=2**-6)
  assert report.tensors[0].repeated_rows == 165
  assert report.bytes < 18_000
  _same_bytes(archive.load(tmp_path / "file"), quantize.apply(table, 2**-6))
