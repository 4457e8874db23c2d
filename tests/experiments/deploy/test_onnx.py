"""Export: what ONNX Runtime computes is what the model computes."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.deploy import simplify
from experiments.models import functional
from tests.experiments.deploy.test_simplify import CONFIGS, params_of, zeroed

onnx = pytest.importorskip("onnx", reason="the extra `deploy` has onnx")
onnxruntime = pytest.importorskip(
  "onnxruntime", reason="the extra `deploy` has onnxruntime"
)

from experiments.deploy import onnx_models  # noqa: E402


def run(model, tokens, mask):
  session = onnxruntime.InferenceSession(model.SerializeToString())
  return session.run(None, {"tokens": tokens, "mask": mask})[0]


def batch(size, length):
  rng = np.random.default_rng(length)
  tokens = rng.integers(0, 24, (size, length)).astype(np.int32)
  lengths = rng.integers(1, length + 1, (size, 1))
  return tokens, np.arange(length)[None] < lengths


@pytest.mark.parametrize(
  "name",
  [
    "encoder",
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in ("bert", "decoder", "gpt2", "llama", "gemma2", "scan")
    ),
  ],
)
def test_outputs_are_the_models_for_any_batch_and_length(name):
  cfg = CONFIGS.get(name, dataclasses.replace(CONFIGS["gemma2"], scan=True))
  params = params_of(cfg)
  token_ids = None
  zeros = {  # Layers of different sizes or left out, and rows merged.
    "bert": {
      "layer_0/mlp/down/kernel": (0, [0, 3]),
      "layer_1/attention/out/kernel": (0, slice(4, 8)),
      "word/embedding": (0, [2, 5, 7]),
    },
    "encoder": {
      "layer_0/mlp/down/kernel": (0, slice(None)),
      "layer_0/attention/out/kernel": (0, slice(None)),
      "layer_1/attention/out/kernel": (0, slice(None)),
      "embed/embedding": (0, [2, 5, 7]),
    },
  }
  if name in zeros:
    small = simplify.simplify(cfg, zeroed(params, zeros[name]))
    cfg, params, token_ids = small.config, small.params, small.token_ids
  model = onnx_models.convert(cfg, params, token_ids)
  onnx.checker.check_model(model, full_check=True)
  forward = jax.jit(functional.forward(cfg))
  for size, length in ((1, 16), (3, 8)):
    tokens, mask = batch(size, length)
    ids = tokens if token_ids is None else token_ids[tokens]
    found, wanted = run(model, tokens, mask), forward(params, ids, mask)
    assert found.shape == wanted.shape
    if wanted.ndim == 3:
      found, wanted = found[mask], wanted[mask]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
