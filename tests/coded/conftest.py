"""The file that these tests share."""

import numpy as np
import pytest

from tests.coded_leaves import saved


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
  """A file with a stack of layers, and its tree."""
  path = tmp_path_factory.mktemp("coded") / "x"
  rng = np.random.default_rng(0)
  layers = rng.laplace(size=[3, 96, 64]).astype(np.float32)
  layers *= np.array([0.5, 1, 2], np.float32)[:, None, None]
  params = {
    "layers": {"kernel": layers},
    "head": [rng.normal(size=[128, 64]).astype(np.float32)],
    "classes": np.exp(rng.normal(scale=2, size=[32, 1])).astype(np.float32)
    * rng.laplace(size=[32, 192]).astype(np.float32),
    "zero": np.zeros([64, 64], np.float32),
    "steps": np.arange(3, dtype=np.int32),
  }
  return path, saved(path, params, 0.8)
