"""Simplification: a smaller model with the same outputs."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx, traverse_util

from backslash_jax.structure import groups as grouping
from experiments import models
from experiments.deploy import simplify
from experiments.huggingface import weights
from experiments.models import (
  bert,
  config,
  decoder,
  encoder,
  functional,
  gemma2,
  gpt2,
  llama,
  rotary,
  units,
)

COMMON = {
  "vocab_size": 24,
  "width": 16,
  "depth": 2,
  "heads": 4,
  "mlp": 10,
  "max_positions": 16,
}
GROUPED = {"kv_heads": 2, "head_dim": 4, "positions": rotary.Rotary()}
SMALL = {k: v for k, v in COMMON.items() if k != "max_positions"}
SMALL["dtype"] = "float32"
CONFIGS = {
  "encoder": encoder.ModelConfig(**SMALL, num_classes=3, byte_width=8),
  "decoder": decoder.ModelConfig(**SMALL),
  "bert": bert.ModelConfig(**COMMON, epsilon=1e-12),
  "gpt2": gpt2.ModelConfig(**COMMON, num_labels=3),
  "llama": llama.ModelConfig(**COMMON, **GROUPED, tied=True),
  "gemma2": gemma2.ModelConfig(
    **COMMON,
    **GROUPED,
    num_labels=3,
    window=4,
    query_scale=4,
    attention_softcap=50.0,
    logit_softcap=30.0,
  ),
}
SIZES = (config.LayerSize(1, 2),)
SMALLS = CONFIGS["encoder"], CONFIGS["decoder"]


def params_of(cfg, seed=0):
  """Random parameters of a model."""
  state = nnx.state(nnx.eval_shape(lambda: models.from_config(cfg)), nnx.Param)
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape, scale=0.3).astype(x.dtype),
    nnx.to_pure_dict(state),
  )


def zeroed(params, patterns):
  """Zeros entries of parameters: {path: (axis, entries)}."""
  flat = traverse_util.flatten_dict(jax.tree.map(np.array, params), sep="/")
  for path, (axis, entries) in patterns.items():
    found = [name for name in flat if path in name]
    assert found, path
    for name in found:
      np.moveaxis(flat[name], axis, 0)[entries] = 0
  return traverse_util.unflatten_dict(flat, sep="/")


def outputs(cfg, params, token_ids=None):
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, COMMON["vocab_size"], (3, 16)).astype(np.int32)
  mask = np.arange(16)[None] < np.array([[16], [9], [3]])
  tokens = tokens if token_ids is None else token_ids[tokens]
  logits = np.asarray(jax.jit(functional.forward(cfg))(params, tokens, mask))
  return logits[mask] if logits.ndim == 3 else logits


def count(params):
  return sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
  "name",
  [
    "bert",
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in ("encoder", "decoder", "gpt2", "llama", "gemma2")
    ),
  ],
)
def test_the_smaller_model_has_the_same_outputs(name):
  cfg = CONFIGS[name]
  gated = name in ("llama", "gemma2")
  heads = 2 if gated else 1
  params = zeroed(
    params_of(cfg),
    {
      # Ways out and ways in, of different units in different layers.
      "layer_0/mlp/down/kernel": (0, [0, 3]),
      f"layer_0/mlp/{'gate' if gated else 'up'}/kernel": (-1, [3, 4, 9]),
      "layer_1/mlp/up/kernel": (-1, [5]),
      "layer_0/attention/out/kernel": (0, slice(4 * heads)),
      "layer_1/attention/value/kernel": (-1, slice(4, 8)),
      f"{'embed' if cfg in SMALLS else 'word'}/embedding": (0, [2, 5, 7]),
    },
  )
  small = simplify.simplify(cfg, params)
  before = {(x.group, x.layer[-1:]): x for x in small.report}
  assert before["mlp", "0"].after == 6
  assert before["mlp", "1"].after == 9
  assert before["heads", "0"].after == before["heads", "0"].before - 1
  assert before["heads", "1"].after == before["heads", "1"].before - 1
  tied = name in ("decoder", "llama")
  assert before["rows", ""].after == (24 if tied else 22)
  assert ("scores the next token" in before["rows", ""].note) == tied
  assert count(small.params) < count(params)
  np.testing.assert_allclose(
    outputs(small.config, small.params, small.token_ids),
    outputs(cfg, params),
    rtol=1e-5,
    atol=2e-6,
  )
  # What is left has nothing more to lose.
  again = simplify.simplify(small.config, small.params)
  assert count(again.params) == count(small.params)


@pytest.mark.slow
@pytest.mark.parametrize("equal", [True, False])
def test_stacked_layers_shrink_to_one_size_and_say_so(equal):
  cfg = dataclasses.replace(CONFIGS["bert"], scan=True)
  params = params_of(cfg)
  layers = params["encoder"]["layers"]
  kernel = np.array(layers["mlp"]["up"]["kernel"])
  kernel[0][:, [0, 1]] = 0
  kernel[1][:, [4, 7] if equal else [4]] = 0
  layers["mlp"]["up"]["kernel"] = kernel
  out = np.array(layers["attention"]["out"]["kernel"])
  out[0][:4], out[1][8:12] = 0, 0
  layers["attention"]["out"]["kernel"] = out
  small = simplify.simplify(cfg, params)
  assert small.config.mlp == (8 if equal else 9)
  assert small.config.heads == 3
  assert small.config.layer_sizes is None
  notes = [x.note for x in small.report if x.group == "mlp"]
  assert notes == (["", ""] if equal else [notes[0], ""])
  assert equal or "8 would do, but stacked" in notes[0]
  np.testing.assert_allclose(
    outputs(small.config, small.params), outputs(cfg, params), atol=2e-6
  )


def test_no_layer_is_emptied():
  cfg = CONFIGS["bert"]
  params = jax.tree.map(np.zeros_like, params_of(cfg))
  small = simplify.simplify(cfg, params)
  assert {x.after for x in small.report} == {1}
  assert sum("keeps one" in x.note for x in small.report) == 4
  assert small.config.heads == small.config.mlp == small.config.vocab_size == 1


def test_layers_of_the_small_models_that_add_nothing_are_left_out():
  cfg = CONFIGS["encoder"]
  params = zeroed(
    params_of(cfg),
    {
      "attention/value/kernel": (0, slice(None)),
      "layer_1/mlp/down/kernel": (0, slice(None)),
      "embed/embedding": (1, [0, 5]),
      "stem/kernel": (1, [5, 6]),
    },
  )
  small = simplify.simplify(cfg, params)
  assert small.config.layer_sizes == (
    config.LayerSize(0, 10),
    config.LayerSize(0, 0),
  )
  assert small.config.byte_width == 5
  assert sum("left out" in x.note for x in small.report) == 3
  np.testing.assert_allclose(
    outputs(small.config, small.params), outputs(cfg, params), atol=2e-6
  )
  again = simplify.simplify(small.config, small.params)
  assert count(again.params) == count(small.params)


def test_a_constant_with_no_bias_to_go_to_is_kept_and_reported():
  units = grouping.Units(
    "mlp",
    ("a/",),
    (3,),
    (
      grouping.Part("a/mlp/up/kernel", (2, 3), -1, 1),
      grouping.Part("a/mlp/up/bias", (3,), -1, 1),
      grouping.Part("a/mlp/down/kernel", (3, 2), -2, 1),
    ),
    5,
  )
  leaves = {
    "a/mlp/up/kernel": np.zeros((2, 3), np.float32),
    "a/mlp/up/bias": np.array([1, 0, 2], np.float32),
    "a/mlp/down/kernel": np.ones((3, 2), np.float32),
  }
  (line,), kept = simplify._take_out(units, leaves, jax.nn.gelu, 1)
  assert kept == line.after == 2
  assert "no bias" in line.note


def test_parameters_of_another_model_are_refused_by_name():
  params = params_of(CONFIGS["bert"])
  del params["pooler"]
  params["classifier"]["bias"] = np.zeros(7)
  with pytest.raises(ValueError, match=r"classifier/bias: found \(7,\)") as e:
    simplify.simplify(CONFIGS["bert"], params)
  assert "pooler/kernel: found nothing" in str(e.value)


def test_sizes_that_transformers_has_no_fields_for_are_not_written(tmp_path):
  for changes in ({"heads": 2, "head_dim": 4}, {"layer_sizes": SIZES * 2}):
    small = dataclasses.replace(CONFIGS["bert"], **changes)
    model = nnx.eval_shape(lambda small=small: models.from_config(small))
    with pytest.raises(weights.WeightsError, match="cannot name"):
      weights.save(model, tmp_path)
  assert not list(tmp_path.iterdir())


def test_layer_sizes_must_fit_the_model():
  with pytest.raises(ValueError, match="one for each of 2"):
    dataclasses.replace(CONFIGS["bert"], layer_sizes=SIZES)
  with pytest.raises(ValueError, match="share one size"):
    dataclasses.replace(CONFIGS["bert"], layer_sizes=SIZES * 2, scan=True)
  with pytest.raises(ValueError, match="no groups are named depth"):
    units.declare(CONFIGS["bert"], ("mlp", "depth"))
