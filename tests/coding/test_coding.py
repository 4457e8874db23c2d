"""Every coder gives back what it was given, in the bits that it says."""

import importlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from backslash_jax.coding import (
  bits,
  coders,
  exp_golomb,
  fit,
  huffman,
  lanes,
  loops,
  loops_numpy,
  models,
  piece,
  rans,
)

_INT32 = st.one_of(
  st.integers(-3, 3), st.integers(-300, 300), st.integers(-(2**31), 2**31 - 1)
)
_SYMBOLS = st.lists(_INT32, max_size=200).map(lambda x: np.array(x, np.int32))
_FAST = hypothesis.settings(max_examples=40, deadline=None)


def _laplace(size, scale, seed=0):
  rng = np.random.default_rng(seed)
  return np.rint(rng.laplace(scale=scale, size=size)).astype(np.int32)


def _entropy(symbols):
  counts = np.unique(symbols, return_counts=True)[1]
  return float(counts @ np.log2(symbols.size / counts))


def _module(coder):
  return {"rans": rans, "huffman": huffman}.get(coder, exp_golomb)


@pytest.mark.parametrize("coder", coders.NAMES)
@hypothesis.given(symbols=_SYMBOLS)
@_FAST
def test_round_trip(coder, symbols):
  model = coders.fit(coder, symbols)
  model = coders.from_json(coder, coders.to_json(coder, model))
  data = _module(coder).encode(symbols, model)
  found = _module(coder).decode(data, model, symbols.size)
  assert found.dtype == np.int32
  np.testing.assert_array_equal(found, symbols)


@pytest.mark.parametrize("coder", coders.NAMES)
@pytest.mark.parametrize("scale", [0.02, 0.3, 2.0, 30.0, 4000.0])
def test_the_code_length_is_what_the_code_takes(coder, scale):
  symbols = _laplace(50_000, scale)
  model = coders.fit(coder, symbols)
  length = _module(coder).code_length(symbols, model)
  taken = 8 * len(_module(coder).encode(symbols, model))
  # Beyond it: padding, the runs of Huffman, the lanes and header of rANS.
  margin = {"rans": 250 + length * 0.0015, "huffman": 400 + 8}.get(coder, 16)
  assert length - 1e-6 <= taken <= length + margin


@pytest.mark.parametrize("coder", coders.NAMES)
def test_pieces_share_a_chunk(coder):
  symbols = [_laplace((n, 3), 2.0, n)[:, :] for n in (0, 1, 40, 1000)]
  fitted = [coders.fit(coder, s) for s in symbols]
  data, lengths = coders.encode(coder, list(zip(symbols, fitted, strict=True)))
  pieces = [
    piece.Piece(s.shape, m) for s, m in zip(symbols, fitted, strict=True)
  ]
  for found, wanted in zip(
    coders.decode(coder, data, pieces), symbols, strict=True
  ):
    np.testing.assert_array_equal(found, wanted.ravel())
  assert sum(lengths) <= 8 * len(data)


@pytest.mark.parametrize("coder", coders.NAMES)
@hypothesis.given(data=st.data())
@_FAST
def test_damaged_code_is_refused_or_decoded_but_nothing_else(coder, data):
  symbols = _laplace(300, 3.0)
  symbols[::50] = 100_000
  model = coders.fit(coder, symbols)
  code = bytearray(_module(coder).encode(symbols, model))
  for place in data.draw(
    st.lists(st.integers(0, len(code) - 1), min_size=1, max_size=4)
  ):
    code[place] = data.draw(st.integers(0, 255))
  code = code[: data.draw(st.integers(0, len(code)))]
  try:
    found = _module(coder).decode(bytes(code), model, symbols.size)
  except ValueError:
    return
  assert found.shape == symbols.shape


@pytest.mark.parametrize("coder", coders.NAMES)
@hypothesis.given(
  code=st.binary(max_size=64), size=st.integers(0, 2000), seed=st.integers(0, 3)
)
@_FAST
def test_foreign_bytes_raise_value_error_at_most(coder, code, size, seed):
  model = coders.fit(coder, _laplace(100, 4.0**seed, seed))
  try:
    assert _module(coder).decode(code, model, size).size == size
  except ValueError:
    pass


_JSON = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats()
  | st.text(max_size=2)
  | st.integers(-40, 40)
  | st.just(models.TOTAL),
  lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner),
)


@pytest.mark.parametrize("coder", coders.NAMES)
@hypothesis.given(fields=_JSON)
@_FAST
def test_a_forged_model_raises_value_error_at_most(coder, fields):
  try:
    model = coders.from_json(coder, fields)
  except ValueError:
    return
  assert coders.to_json(coder, model) == fields


def test_fields_are_packed_from_the_lowest_bit():
  values = np.array([1, 0, 5, 2**33 - 1, 3], np.uint64)
  widths = np.array([1, 0, 3, 33, 2])
  data = bits.pack(values, widths)
  assert (
    int.from_bytes(data, "little") == 1 | 5 << 1 | (2**33 - 1) << 4 | 3 << 37
  )
  np.testing.assert_array_equal(bits.unpack(data, widths), values)
  with pytest.raises(ValueError, match="bits wanted"):
    bits.unpack(data + b"\0", widths)


def test_exp_golomb_has_the_usual_lengths():
  # Orders 0 and 2 of 0..9, as in every table of these codes.
  zero = exp_golomb.Model(0, np.arange(10, dtype=np.int32))
  two = exp_golomb.Model(2, np.arange(10, dtype=np.int32))
  for model, wanted in (
    (zero, [1, 3, 3, 5, 5, 5, 5, 7, 7, 7]),
    (two, [3, 3, 3, 3, 5, 5, 5, 5, 5, 5]),
  ):
    lengths = [
      exp_golomb.code_length(np.array([v], np.int32), model) for v in range(10)
    ]
    assert lengths == wanted


def test_the_best_order_of_exp_golomb_is_taken():
  symbols = _laplace(2000, 40.0)
  lengths = [
    exp_golomb.code_length(symbols, exp_golomb.Model(k)) for k in range(16)
  ]
  assert exp_golomb.fit(symbols).order == np.argmin(lengths)


def test_ranking_gives_frequent_symbols_short_words():
  symbols = np.repeat(np.array([7, 3, -9], np.int32), [5, 10, 2])
  model = exp_golomb.fit(symbols, ranked=True)
  assert model.ranks.tolist() == [3, 7, -9]
  with pytest.raises(ValueError, match="lacks"):
    exp_golomb.encode(np.array([8], np.int32), model)


def test_huffman_is_within_a_bit_and_never_worse_than_a_shorter_limit():
  symbols = _laplace(20_000, 3.0)
  length = huffman.code_length(symbols, huffman.fit(symbols))
  entropy = _entropy(symbols)
  assert entropy <= length < entropy + symbols.size
  # Fibonacci counts would ask for words of 30 bits.
  counts = [1, 1]
  while len(counts) < 30:
    counts.append(counts[-1] + counts[-2])
  lengths = huffman._lengths(np.array(counts))
  assert lengths.max() == huffman.LIMIT
  assert (0.5**lengths).sum() == 1


def test_huffman_refuses_lengths_that_are_no_code():
  with pytest.raises(ValueError, match="prefix code"):
    huffman.check(huffman.Model(0, (1, 1, 1)))
  with pytest.raises(ValueError, match="prefix code"):
    huffman.check(huffman.Model(0, (16,)))


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0, 5.0, 20.0])
def test_rans_is_close_to_the_entropy(scale):
  symbols = _laplace(400_000, scale)
  data = rans.encode(symbols, fit.fit(symbols))
  assert 8 * len(data) < 1.003 * _entropy(symbols) + 300


def test_rans_goes_below_a_bit():
  rng = np.random.default_rng(0)
  symbols = (rng.random(400_000) < 0.05) * rng.choice([-1, 1], 400_000)
  symbols = symbols.astype(np.int32)
  data = rans.encode(symbols, fit.fit(symbols))
  assert 8 * len(data) < 0.35 * symbols.size
  assert 8 * len(data) < 1.01 * _entropy(symbols)


def test_scales_of_rows_and_columns_go_below_the_zero_order_entropy():
  rng = np.random.default_rng(0)
  scale = 4 * np.exp(rng.normal(size=(400, 1)) + rng.normal(size=300) / 2)
  symbols = np.rint(rng.normal(size=(400, 300)) * scale).astype(np.int32)
  model = fit.fit(symbols)
  assert model.row_alpha_index is not None
  assert model.column_alpha_index is not None
  data = rans.encode(symbols, model)
  assert 8 * len(data) < 0.95 * _entropy(symbols)
  found = rans.decode(data, model, symbols.shape)
  np.testing.assert_array_equal(found, symbols.ravel())


def test_a_table_is_taken_where_no_gaussian_fits():
  rng = np.random.default_rng(0)
  symbols = rng.choice([-8, 0, 1, 8], 100_000).astype(np.int32)
  model = fit.fit(symbols)
  assert isinstance(model, models.Table)
  assert 8 * len(rans.encode(symbols, model)) < 2.01 * symbols.size
  with pytest.raises(ValueError, match="lacks"):
    rans.encode(np.array([5], np.int32), model)


def test_constant_and_empty_tensors_take_no_bytes():
  for symbols in (np.full(1000, -7, np.int32), np.zeros(0, np.int32)):
    model = fit.fit(symbols)
    assert rans.encode(symbols, model) == b""
    found = rans.decode(b"", model, symbols.size)
    np.testing.assert_array_equal(found, symbols)


def test_outliers_do_not_spoil_the_rest():
  symbols = _laplace(100_000, 3.0)
  plain = len(rans.encode(symbols, fit.fit(symbols)))
  symbols[::5000] = 2**31 - 1
  assert len(rans.encode(symbols, fit.fit(symbols))) < plain + 20 * 16


def test_compiled_rows_make_the_same_bytes(monkeypatch):
  pytest.importorskip("numba")
  symbols = _laplace((600, 200), 3.0)
  symbols[::7] *= 20
  symbols[3, 3] = 10**6
  model = fit.fit(symbols)
  found = []
  compiled = importlib.import_module("backslash_jax.coding.loops_numba")
  for module in (loops_numpy, compiled):
    monkeypatch.setattr(loops, "choose", lambda size, module=module: module)
    data = rans.encode(symbols, model)
    np.testing.assert_array_equal(
      rans.decode(data, model, symbols.shape), symbols.ravel()
    )
    with pytest.raises(ValueError, match=r"\w"):
      rans.decode(data[:-2], model, symbols.shape)
    found.append((data, round(rans.code_length(symbols, model))))
  assert found[0] == found[1]


@hypothesis.given(
  lanes_=st.integers(1, 64), size=st.integers(1, 3000), seed=st.integers(0, 99)
)
@_FAST
def test_any_number_of_lanes_round_trips(lanes_, size, seed):
  symbols = _laplace(size, 3.0, seed)
  model, _ = fit.quantized_ggd(symbols)
  table = models.tabulate(model.nu_index, model.alpha_index, model.tail)
  reach = -table.lowest
  symbols = np.clip(symbols, -reach, reach)
  entries = models.encoding(table, reach)[symbols + reach + 1]
  tail = rans._tail([entries], lanes_)
  if tail == size:  # Too few bits for so many lanes.
    return
  states, words = lanes.encode([entries], lanes_, tail)
  decoder = lanes.Decoder(states, words, tail, size)
  found = decoder.segment(models.decoding([table], 1), None, size)
  decoder.finish()
  np.testing.assert_array_equal(found, symbols)


@pytest.mark.parametrize(
  "model",
  [
    models.QuantizedGGD(99, 0),
    models.QuantizedGGD(0, 999),
    models.QuantizedGGD(0, 0, 9),
    models.QuantizedGGD(0, 0, 0, 25),
    models.QuantizedGGD(0, 0, 0, 0, 9999),
    models.Table(0, ()),
    models.Table(0, (models.TOTAL - 1,)),
    models.Table(0, (models.TOTAL, 0)),
    models.Table(2**31, (models.TOTAL,)),
    models.Table(40_000, (1, models.TOTAL - 1)),
    models.Table(0, (-1, models.TOTAL + 1)),
  ],
)
def test_models_outside_the_format_are_refused(model):
  with pytest.raises(ValueError, match="limits"):
    models.check(model)
