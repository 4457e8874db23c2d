"""Decoding steps compiled for TPU slices that are not there."""

import jax
import numpy as np
import pytest

from experiments.bench import aot, aot_serve
from experiments.models import llama, rotary

CONFIG = llama.ModelConfig(
  vocab_size=512,
  width=256,
  depth=3,
  heads=4,
  kv_heads=2,
  head_dim=64,
  mlp=512,
  max_positions=256,
  positions=rotary.Rotary(),
  scan=True,
  dtype="bfloat16",
  param_dtype="bfloat16",
)


def nbytes(kind):
  leaves = jax.tree.leaves(aot_serve.stored(CONFIG, kind))
  return sum(x.size * x.dtype.itemsize for x in leaves)


def test_weights_have_their_bits_in_memory():
  dense = nbytes("dense bfloat16")
  np.testing.assert_allclose(nbytes("packed, 4 bits") / dense, 1 / 4, rtol=0.05)
  # Beside its words a coded matrix has the states of its lanes.
  assert nbytes("packed, 4 bits") > nbytes("coded, 2 bits") > dense / 8


@pytest.mark.slow
def test_a_step_compiles_with_each_kind_of_weights():
  pytest.importorskip("libtpu", reason="libtpu is not installed")
  devices = aot.topology_devices("v5e:2x2")
  results = {}
  for kind in aot_serve.KINDS:
    step = aot_serve.compile_step(CONFIG, kind, devices[:1], 1, 256)
    assert step.fits
    assert step.peak >= step.weights + step.cache
    results[kind] = {"1": step._asdict()}
  split = aot_serve.compile_step(CONFIG, "dense bfloat16", devices[:2], 1, 256)
  assert split.weights < results["dense bfloat16"]["1"]["weights"]
  text = aot_serve.table({"a model": results})
  assert text.count("a model") == 3
