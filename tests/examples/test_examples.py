"""Every example runs, and its file is what it says."""

import importlib
import math

import jax
import numpy as np
import pytest

import backslash_jax as bs
from tests import paths

# The difference from a base does not load alone; it has its own test.
OWN = ("fine_tune_difference",)
FILES = (paths.ROOT / "examples").glob("*.py")
EXAMPLES = sorted(path.stem for path in FILES if path.stem not in OWN)
UNTRAINED = ("compress_weights", "coded_in_memory")
TRAINED = [name for name in EXAMPLES if name not in UNTRAINED]
# Trained in full by the slow tests alone.
SLOW = (
  "bfloat16_masters",
  "gradient_accumulation",
  "hugging_face",
  "linen_language_model",
  "several_devices",
)
# Largest accepted increase of the loss, relative.
MARGIN = {"hugging_face": 0.05, "linen_language_model": 0.05}


@pytest.fixture
def example(request):
  if request.param == "equinox_classifier":
    pytest.importorskip("equinox", reason="Equinox is not installed")
  return importlib.import_module(f"examples.{request.param}")


def _matrix_bits(report):
  """Bits per parameter of the quantized tensors, without the index."""
  coded = [t for t in report.tensors if t.step]
  return sum(t.bits for t in coded) / sum(math.prod(t.shape) for t in coded)


def _check_file(report):
  assert report.bytes == bs.inspect(report.path).bytes
  loaded = jax.tree.leaves(bs.load(report.path))
  assert sum(x.size for x in loaded) == report.parameters
  assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in loaded)


# After so few updates a matrix may round to zero.
@pytest.mark.filterwarnings("ignore:.*all values became zero")
@pytest.mark.parametrize(
  "example",
  [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
    for name in EXAMPLES
  ],
  indirect=True,
)
def test_it_trains_saves_and_loads(example, tmp_path, monkeypatch):
  for name, value in {"UPDATES": 24, "BEGIN": 12}.items():
    if hasattr(example, name):
      monkeypatch.setattr(example, name, value)
  result = example.main(tmp_path)
  if example.__name__.endswith(UNTRAINED):
    _check_file(result)
    return
  exact, coded, report = result
  assert math.isfinite(exact)
  assert math.isfinite(coded)
  _check_file(report)


@pytest.mark.slow
@pytest.mark.parametrize("example", TRAINED, indirect=True)
def test_it_reaches_the_size_and_loses_nothing(example, tmp_path):
  exact, coded, report = example.main(tmp_path)
  name = example.__name__.removeprefix("examples.")
  if name == "lora_adapters":
    assert coded < 0.01  # Of 0.17 without adapters.
  elif name in MARGIN:
    assert coded < (1 + MARGIN[name]) * exact
  else:
    assert coded > exact - 0.02
  if name != "frozen_parts":  # Its frozen part takes 7 bits.
    # The file may take less: its coder knows units that are all zero.
    assert 0.5 < _matrix_bits(report) / example.BITS < 1.15
