"""Samples that nothing periodic can mislead."""

import numpy as np
import pytest

from backslash_jax import archive, sampling


@pytest.mark.parametrize(("size", "count"), [(10, 3), (4096, 256), (999, 998)])
def test_each_part_of_a_range_gives_one_index(size, count):
  found = sampling.strata(size, count)
  part = np.arange(count)
  assert np.all(found >= part * size // count)
  assert np.all(found < (part + 1) * size // count)


def test_a_sample_of_more_than_there_is_is_all():
  np.testing.assert_array_equal(sampling.strata(5, 9), np.arange(5))
  assert sampling.strata(0, 4).size == 0


@pytest.mark.parametrize("period", [2, 3, 16, 37])
def test_no_residue_is_preferred(period):
  found = sampling.strata(2**20, 2**14) % period
  share = np.bincount(found, minlength=period) / found.size
  np.testing.assert_allclose(share, 1 / period, rtol=0.2)


def test_interleaved_rows_cost_what_their_entropy_says(tmp_path):
  """A model fitted to every second row alone took half as much again."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((4096, 1024), np.float32)
  x *= np.where(np.arange(4096) % 2 == 0, 0.01, 0.04)[:, None]
  even, odd = (
    archive.save(tmp_path / "x", {"x": part}, step=2**-8).tensors[0].bits
    for part in (x[::2], x[1::2])
  )
  both = archive.save(tmp_path / "x", {"x": x}, step=2**-8).tensors[0].bits
  assert both < 1.01 * (even + odd)
