"""Exact chunks give back every bit, in fewer bytes where there is structure."""

import hypothesis
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

from backslash_jax.coding import exact

_FAST = hypothesis.settings(max_examples=60, deadline=None)
_DTYPES = (
  *("bool", "int8", "uint16", "int32", "uint64", "float16", "float32"),
  *("float64", "complex64", "complex128", "bfloat16", "float8_e4m3fn"),
)


def _dtype(name):
  return np.dtype(getattr(ml_dtypes, name, name))


def _coded(arrays):
  data, bits = exact.encode(arrays)
  pieces = [(x.size, x.dtype) for x in arrays]
  for found, x in zip(exact.decode(data, pieces), arrays, strict=True):
    assert found.dtype == x.dtype
    assert found.tobytes() == x.tobytes()
  assert len(bits) == len(arrays)
  assert 0 <= sum(bits) <= 8 * len(data) + 1e-6
  return len(data)


@hypothesis.given(
  parts=st.lists(
    st.tuples(
      st.sampled_from(_DTYPES),
      st.integers(0, 300),
      st.sampled_from([1, 2, 7, 256]),
      st.integers(0, 9),
    ),
    min_size=1,
    max_size=4,
  )
)
@_FAST
def test_every_bit_comes_back(parts):
  arrays = []
  for name, size, values, seed in parts:
    rng, dtype = np.random.default_rng(seed), _dtype(name)
    octets = rng.integers(0, values, size * dtype.itemsize).astype(np.uint8)
    arrays.append(octets.view(dtype) if name != "bool" else octets % 2 == 1)
  _coded(arrays)


@pytest.mark.parametrize(
  ("dtype", "saved"),
  [("float32", 5.2), ("float64", 6.5), ("bfloat16", 5.2), ("float16", 2.2)],
)
def test_the_exponents_of_weights_take_few_bits(dtype, saved):
  """A normal variable's exponent has 2.5 bits of entropy, of 5, 8 or 11."""
  x = np.random.default_rng(0).normal(size=1 << 17).astype(_dtype(dtype))
  assert 8 * _coded([x]) < 8 * x.nbytes - saved * x.size


def test_what_has_no_structure_grows_by_a_few_bytes():
  rng = np.random.default_rng(0)
  for size in (1, 10, 1000, 1 << 16):
    x = rng.integers(0, 256, 8 * size).astype(np.uint8).view(np.uint64)
    assert _coded([x]) < x.nbytes + 32


def test_sequences_that_repeat_are_deflated():
  mask = np.tril(np.ones((256, 256), bool)).ravel()
  assert _coded([mask]) < 1000
  x = np.tile(np.random.default_rng(0).normal(size=500), 40)
  assert _coded([x]) < 5 * 500 * 8


def test_constant_tensors_take_a_few_bytes():
  assert _coded([np.ones(10**5, np.float32), np.zeros(7)]) < 64


@hypothesis.given(data=st.data())
@_FAST
def test_damaged_chunks_are_refused_or_decoded_but_nothing_else(data):
  x = np.random.default_rng(0).normal(size=300).astype(np.float32)
  y = np.random.default_rng(1).integers(0, 9, 100)
  code = bytearray(exact.encode([x, y])[0])
  for place in data.draw(
    st.lists(st.integers(0, len(code) - 1), min_size=1, max_size=4)
  ):
    code[place] = data.draw(st.integers(0, 255))
  code = code[: data.draw(st.integers(0, len(code)))]
  try:
    found = exact.decode(bytes(code), [(x.size, x.dtype), (y.size, y.dtype)])
  except ValueError:
    return
  assert [a.shape for a in found] == [x.shape, y.shape]


@hypothesis.given(
  code=st.binary(max_size=64),
  size=st.integers(0, 99),
  dtype=st.sampled_from(_DTYPES),
)
@_FAST
def test_foreign_bytes_raise_value_error_at_most(code, size, dtype):
  try:
    (found,) = exact.decode(b"\2" + code, [(size, _dtype(dtype))])
  except ValueError:
    return
  assert found.size == size
