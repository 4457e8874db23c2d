"""The code lengths that encoders expect, against those of the tables."""

import numpy as np
import pytest

from backslash_jax.coding import coders, expected, fit, frequencies


@pytest.mark.parametrize("nu_index", range(-32, 33, 8))
def test_expected_code_lengths_are_those_of_the_integer_table(nu_index):
  for alpha_index in range(-320, 177, 31):
    table = frequencies.one_sided(nu_index, alpha_index, 0)
    wanted = frequencies.PRECISION - np.log2(table[:-1])
    found = expected.costs(nu_index, alpha_index)
    common = np.flatnonzero(table[:-1] >= 16)  # Others differ by a rounding.
    np.testing.assert_allclose(found[common], wanted[common], atol=0.2)


def test_few_large_values_among_zeros_do_not_mislead_the_fit():
  # With a small nu, most of the density may lie beyond the largest symbol.
  symbols = np.zeros((24, 10), np.int32)
  symbols.flat[::11] = np.tile([-3, 2, -14, 118, 24, -1, 104, -7], 3)[:22]
  model, bits = fit.quantized_ggd(symbols)
  _, (coded,) = coders.encode("rans", [(symbols, model)])
  assert coded < 1.1 * bits + 32
  assert coded < 3 * symbols.size
