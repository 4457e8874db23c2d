"""Files of a trellis: what is quantized by one, and what comes back."""

import numpy as np
import pytest

from backslash_jax import archive
from backslash_jax.archive import index


def _params(dtype=np.float32):
  rng = np.random.default_rng(0)
  table = rng.normal(size=(120, 20))
  for place in rng.permutation(120)[:50]:
    table[place] = table[place % 3]
  return {
    "w": rng.laplace(size=(90, 60)).astype(dtype),
    "table": table.astype(dtype),
    "tied": table.astype(dtype),
    "kernel": rng.normal(size=(30, 10, 5)).astype(dtype),
    "bias": rng.normal(size=30).astype(dtype),
  }


@pytest.mark.parametrize(
  ("dtype", "chunk", "mu"),
  [
    (np.float16, 1 << 21, 0.1),
    (np.float32, 1 << 12, 0.1),
    (np.float64, 1 << 21, 0.0),
  ],
)
def test_values_are_multiples_of_half_a_step(
  tmp_path, monkeypatch, dtype, chunk, mu
):
  monkeypatch.setattr(index, "CHUNK", chunk)
  params, path = _params(dtype), tmp_path / "file"
  report = archive.save(path, params, step=0.5, quantizer="trellis", mu=mu)
  found = archive.load(path)
  for tensor in report.tensors:
    x, y = params[tensor.name], found[tensor.name]
    assert y.dtype == dtype
    if tensor.name == "bias":
      assert tensor.quantizer is None
      np.testing.assert_array_equal(y, x)
      continue
    assert tensor.quantizer == "trellis"
    assert not (y % 0.25).any()
    assert (y % 0.5).any()
    assert np.abs(y - x).max() <= 0.501
    wanted = np.linalg.norm(np.subtract(y, x, dtype=np.float64))
    wanted /= np.linalg.norm(x.astype(np.float64))
    assert tensor.relative_error == pytest.approx(wanted, rel=1e-6)
  by_name = {t.name: t for t in report.tensors}
  assert by_name["tied"].same == "table"
  assert by_name["table"].repeated_rows > 40
  inspected = archive.inspect(path)
  assert [t.quantizer for t in inspected.tensors] == [
    t.quantizer for t in report.tensors
  ]


def test_the_error_is_smaller_than_that_of_rounding(tmp_path):
  params = {"w": _params()["w"]}
  reports = [
    archive.save(tmp_path / "file", params, step=0.5, quantizer=quantizer)
    for quantizer in archive.QUANTIZERS
  ]
  scalar, trellis = (r.tensors[0] for r in reports)
  assert trellis.relative_error < 0.87 * scalar.relative_error
  assert trellis.bits < 1.04 * scalar.bits


def test_tensors_and_rows_are_equal_if_their_values_are(tmp_path):
  """A trellis may turn equal values into different ones."""
  rng = np.random.default_rng(0)
  w = rng.normal(size=(60, 40)).astype(np.float32)
  near = w + rng.uniform(-1e-6, 1e-6, w.shape).astype(np.float32)
  table = _params()["table"]
  table += rng.uniform(-1e-6, 1e-6, table.shape).astype(np.float32)
  params = {"w": w, "near": near, "equal": w.copy(), "table": table}
  report = archive.save(
    tmp_path / "file", params, step=0.5, quantizer="trellis"
  )
  assert [t.same for t in report.tensors] == [None, None, "w", None]
  assert report.tensors[3].repeated_rows == 0
  found = archive.load(tmp_path / "file")
  np.testing.assert_array_equal(found["equal"], found["w"])


def test_differences_and_what_does_not_suit_are_scalar(tmp_path):
  params, path = _params(), tmp_path / "file"
  base = {"w": params["w"] + np.float32(0.01)}
  params |= {
    "few": params["w"][:3, :3],
    "ones": np.ones((60, 60), np.float32),
    "fine": params["w"] * 1e6,
  }
  with pytest.warns(UserWarning, match="whole difference"):
    report = archive.save(
      path, params, step=0.5, base=base, quantizer="trellis"
    )
  found = {t.name: t.quantizer for t in report.tensors}
  assert [n for n, q in found.items() if q == "scalar"] == [
    *("w", "few", "ones", "fine")
  ]
  np.testing.assert_array_equal(archive.load(path, base=base)["w"], base["w"])


def test_bad_quantizers_are_named(tmp_path):
  for keywords, message in (
    (dict(quantizer="vector"), "quantizer 'vector': it must be one of scalar"),
    (dict(quantizer="trellis", coder="huffman"), "coder 'huffman': .* 'rans'"),
    (dict(quantizer="trellis", mu=-1.0), "'w': mu is -1"),
  ):
    with pytest.raises(ValueError, match=message):
      archive.save(tmp_path / "file", _params(), step=0.5, **keywords)
  params = _params()
  params["w"][3, 3] = np.nan
  with pytest.raises(ValueError, match="'w': 1 of 5400 values are NaN"):
    archive.save(tmp_path / "file", params, step=0.5, quantizer="trellis")
  assert not list(tmp_path.iterdir())


def test_values_that_become_zero_take_no_bits(tmp_path):
  params = {"w": _params()["w"] * np.float32(1e-4)}
  with pytest.warns(UserWarning, match="became zero"):
    report = archive.save(
      tmp_path / "file", params, step=0.5, quantizer="trellis"
    )
  assert report.tensors[0].quantizer == "scalar"
  assert report.tensors[0].bits == 0
  assert not archive.load(tmp_path / "file")["w"].any()
