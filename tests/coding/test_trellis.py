"""Dependent quantization: the machine, the search for a path, and the code."""

import importlib
import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from backslash_jax import quantize
from backslash_jax.coding import (
  coders,
  fit,
  fit_trellis,
  loops,
  loops_numpy,
  models,
  piece,
  rans,
  trellis,
)
from backslash_jax.quantize import viterbi

_SYMBOLS = st.lists(
  st.one_of(st.integers(-3, 3), st.integers(1 - 2**30, 2**30 - 1)),
  max_size=300,
).map(lambda x: np.array(x, np.int32))
_FAST = hypothesis.settings(max_examples=25, deadline=None)


def _laplace(shape, scale, seed=0):
  return np.random.default_rng(seed).laplace(scale=scale, size=shape)


def _coded(symbols, model):
  data, (bits,) = rans.encode_pieces([(rans.matrix(symbols), model)])
  shape = rans.matrix(symbols).shape
  return data, bits, rans.decode_pieces(data, [piece.Piece(shape, model)])[0]


def test_every_state_has_two_ways_in_and_two_out():
  pairs = trellis.NEXT.reshape(-1, 2)
  assert (pairs[:, 0] != pairs[:, 1]).all()
  assert np.bincount(trellis.NEXT).tolist() == [2] * trellis.STATES


@pytest.mark.parametrize("size", [0, 1, 255, 256, 1000, 5000])
def test_the_quantizers_are_those_of_machines_in_turn(size):
  symbols = np.rint(_laplace(size, 2.0)).astype(np.int32)
  count = max(size // 256, 1)
  wanted = np.zeros(size, np.int64)
  for machine in range(count):
    state = 0
    for i in range(machine, size, count):
      wanted[i] = state % 2
      state = state >> 1 ^ 33 * (state % 2) ^ 10 * (int(symbols[i]) % 2)
  np.testing.assert_array_equal(trellis.is_odd(symbols), wanted)
  values = symbols - np.sign(symbols) * wanted / 2
  np.testing.assert_array_equal(trellis.levels(symbols) / 2, values)


@hypothesis.given(symbols=_SYMBOLS)
@hypothesis.example(symbols=np.array([1, 0, 972], np.int32))
@_FAST
def test_any_symbols_round_trip(symbols):
  model = fit_trellis.fit_trellis(symbols)
  model = coders.from_json("rans", list(coders.to_json("rans", model)))
  found = _coded(symbols, model)[2]
  np.testing.assert_array_equal(found, trellis.levels(symbols))


def test_compiled_rows_decode_the_same(monkeypatch):
  pytest.importorskip("numba")
  compiled = importlib.import_module("backslash_jax.coding.loops_numba")
  x = _laplace((300, 90), 2.0) * np.exp(_laplace(90, 0.5, 1))
  x[3, 3], x[200, 80] = 5000.0, -4001.0
  symbols = viterbi.symbols(x, 1.0, 0.05)
  model = fit_trellis.fit_trellis(symbols)
  assert model.column_alpha_index is not None
  plain = np.rint(x).astype(np.int32)
  pieces = [(symbols, model), (plain, fit.fit(plain)), (symbols, model)]
  data, bits = rans.encode_pieces(pieces)
  assert sum(bits) <= 8 * len(data) <= 1.004 * sum(bits) + 500
  for module in (loops_numpy, compiled):
    monkeypatch.setattr(loops, "choose", lambda size, module=module: module)
    found = rans.decode_pieces(
      data, [piece.Piece(x.shape, m) for _, m in pieces]
    )
    for levels in (found[0], found[2]):
      np.testing.assert_array_equal(levels, trellis.levels(symbols).ravel())
    np.testing.assert_array_equal(found[1], plain.ravel())
    with pytest.raises(ValueError, match=r"\w"):
      rans.decode_pieces(
        data[:-2], [piece.Piece(x.shape, m) for _, m in pieces]
      )


@hypothesis.given(data=st.data())
@_FAST
def test_damaged_code_is_refused_or_decoded_but_nothing_else(data):
  symbols = np.rint(_laplace(400, 3.0)).astype(np.int32)
  symbols[::50] = 100_001
  model = fit_trellis.fit_trellis(symbols)
  code = bytearray(_coded(symbols, model)[0])
  for place in data.draw(
    st.lists(st.integers(0, len(code) - 1), min_size=1, max_size=4)
  ):
    code[place] = data.draw(st.integers(0, 255))
  code = code[: data.draw(st.integers(0, len(code)))]
  try:
    (found,) = rans.decode_pieces(bytes(code), [piece.Piece((400, 1), model)])
  except ValueError:
    return
  assert found.shape == symbols.shape


def test_an_escape_has_the_parity_of_its_symbol(monkeypatch):
  symbols = np.rint(_laplace(400, 3.0)).astype(np.int32)
  symbols[50] = 100_001
  model = fit_trellis.fit_trellis(symbols)
  prepare = piece.prepare

  def forged(*args):
    coded = prepare(*args)
    return coded._replace(escapes=coded.escapes + np.sign(coded.escapes))

  monkeypatch.setattr(piece, "prepare", forged)
  with pytest.raises(ValueError, match="parity"):
    _coded(symbols, model)


@pytest.mark.parametrize("mu", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_the_path_is_the_best_of_all(mu, seed):
  x = _laplace((1, 6), 1.0, seed).clip(-1.7, 1.7).astype(np.float32)
  model = models.Trellis(0, 8, 1, None, None, 2, 12, 1)
  paths = np.array(list(itertools.product(range(-2, 3), repeat=6)), np.int32)
  bits = fit_trellis.code_lengths(model, range(1))[:, 0]

  def costs(paths):
    state, total = np.zeros(len(paths), np.intp), 0.0
    for value, q in zip(x[0], paths.T, strict=True):
      odd = state % 2
      error = q - np.sign(q) * odd / 2 - value
      total += error**2 + mu * bits[odd, np.abs(q)]
      state = trellis.NEXT[2 * state + q % 2].astype(np.intp)
    return total

  found = viterbi._search(x, model, mu)
  assert costs(found)[0] == pytest.approx(costs(paths).min(), rel=1e-5)


def test_the_error_is_a_decibel_and_a_quarter_below_that_of_rounding():
  """And more, of a fine quantizer that takes about the same bits."""
  x = np.random.default_rng(0).normal(size=(300, 200)) * 10
  symbols = viterbi.symbols(x, 1.0)
  error = np.mean((trellis.levels(symbols) / 2 - x) ** 2)
  assert 10 * np.log10(1 / 12 / error) > 1.25
  plain = np.rint(x).astype(np.int32)
  bits = _coded(symbols, fit_trellis.fit_trellis(symbols))[1]
  assert bits < 1.006 * rans.code_length(plain, fit.fit(plain))


@pytest.mark.parametrize("step", [0.8, 1.6])
def test_at_equal_error_a_trellis_takes_fewer_bits(step):
  """Than rate-distortion optimized rounding; at about 3 and 2 bits."""
  x = _laplace((300, 200), 1.0)
  symbols = viterbi.symbols(x, step, 0.05)
  error = np.mean((trellis.levels(symbols) * step / 2 - x) ** 2)
  low, high = 0.5 * step, step
  for _ in range(12):  # The step at which rounding has this error.
    middle = (low + high) / 2
    plain = quantize.rate_distortion(x, middle, 0.05)
    below = np.mean((plain * middle - x) ** 2) < error
    low, high = (middle, high) if below else (low, middle)
  bits = _coded(symbols, fit_trellis.fit_trellis(symbols))[1]
  assert bits < 0.96 * rans.code_length(plain, fit.fit(plain))


@pytest.mark.parametrize(
  "model",
  [
    models.Trellis(99, 0, 1, None, None, 0, 0, 1),
    models.Trellis(0, 0, 0, None, None, 0, 0, 1),
    models.Trellis(0, 0, 1, None, None, 0, 0, 0),
    models.Trellis(0, 0, 1, 999, None, 0, 0, 1),
    models.Trellis(0, 0, 1, None, None, 0, 999, 1),
    models.Trellis(0, 0, 1, None, None, 0, 0, 9),
  ],
)
def test_models_outside_the_format_are_refused(model):
  with pytest.raises(ValueError, match="limits"):
    models.check(model)
  with pytest.raises(ValueError, match="limits"):
    coders.from_json("rans", list(model))


def test_what_does_not_suit_a_trellis():
  x = _laplace((40, 50), 1.0).astype(np.float32)
  assert viterbi.suits(x, 0.5)
  assert not viterbi.suits(x[:10], 0.5)  # Few values.
  assert not viterbi.suits(x, 0.01)  # A fine step.
  assert not viterbi.suits(np.ones_like(x), 0.5)
  assert not viterbi.suits(np.append(x, np.float32(1e6)), 0.5)
  for bad in (np.nan, np.inf):
    assert not viterbi.suits(np.append(x, np.float32(bad)), 0.5)
  largest = np.append(x * 1000, 65504).astype(np.float16)
  assert not viterbi.suits(largest, 100.0)  # Might become infinite.
  assert viterbi.suits(np.append(largest[:-1], np.float16(6000)), 100.0)
