"""The published architectures: sizes, parity with transformers, structure."""

import dataclasses
import functools
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from experiments import data, models, sharding
from experiments.huggingface import weights
from experiments.models import bert, gemma2, gpt2, llama, rotary, sizes
from tests import paths

CHECKPOINTS = sorted(p.name for p in paths.FIXTURES.iterdir() if p.is_dir())
MODULES = {"bert": bert, "gpt2": gpt2, "llama": llama, "gemma2": gemma2}


@functools.partial(jax.jit, static_argnums=0)
def merged(graphdef, params, tokens, mask):
  return nnx.merge(graphdef, params)(tokens, mask)


def apply(model, tokens, mask):
  return merged(*nnx.split(model), tokens, mask)


@functools.cache
def load(name, **options):
  return weights.load(paths.FIXTURES / name, **options)


@functools.cache
def reference(name):
  with np.load(paths.FIXTURES / name / "reference.npz") as file:
    return types.SimpleNamespace(**{key: file[key] for key in file.files})


def real(values, mask):
  """What counts: all of a class's logits, those of real tokens otherwise."""
  return values[mask] if values.ndim == 3 else values


def params_of(model):
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  return traverse_util.flatten_dict(params, sep="/")


@pytest.mark.parametrize(
  ("module", "size", "count"),
  [
    (bert, "base", 109_482_240 + 2 * 769),
    (bert, "minilm-l6", 22_713_216 + 2 * 385),
    (gpt2, "small", 124_439_808),
    (gpt2, "medium", 354_823_168),
    (gpt2, "large", 774_030_080),
    (gpt2, "xl", 1_557_611_200),
    (llama, "3.2-1b", 1_235_814_400),
    (llama, "3-8b", 8_030_261_248),
    (llama, "deepseek-7b", 6_910_365_696),
    (gemma2, "2b", 2_614_341_888),
  ],
)
def test_named_sizes_have_the_published_number_of_parameters(
  module, size, count
):
  # Stacked, which is quicker to trace than dozens of blocks.
  config = dataclasses.replace(module.SIZES[size], scan=True)
  params = params_of(sizes.abstract(config))
  assert all(isinstance(p, jax.ShapeDtypeStruct) for p in params.values())
  assert sum(math.prod(p.shape) for p in params.values()) == count


@pytest.mark.parametrize(
  ("name", "scan"),
  [(name, False) for name in CHECKPOINTS]
  + [(name, True) for name in sorted(MODULES)],
)
def test_logits_are_those_of_transformers(name, scan):
  wanted = reference(name)
  logits = apply(load(name, scan=scan), wanted.tokens, wanted.mask)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(
    real(np.asarray(logits), wanted.mask),
    real(wanted.logits, wanted.mask),
    atol=1e-4,
  )


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "gemma2"])
def test_bfloat16_is_close_and_its_logits_are_float32(name):
  wanted = reference(name)
  model = load(name, dtype=jnp.bfloat16)
  assert {p.dtype for p in params_of(model).values()} == {
    jnp.dtype(jnp.bfloat16)
  }
  logits = apply(model, wanted.tokens, wanted.mask)
  assert logits.dtype == jnp.float32
  error = real(np.asarray(logits) - wanted.logits, wanted.mask)
  assert 1e-4 < np.abs(error).max() < 0.05 * np.abs(wanted.logits).max()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_what_stands_in_padding_does_not_matter(name):
  wanted = reference(name)
  other = np.where(wanted.mask, wanted.tokens, 50).astype(np.int32)
  model = load(name)
  np.testing.assert_array_equal(
    real(apply(model, wanted.tokens, wanted.mask), wanted.mask),
    real(apply(model, other, wanted.mask), wanted.mask),
  )


def test_scan_and_remat_change_neither_loss_nor_gradient():
  name = "llama"
  wanted = reference(name)

  def gradients(**options):
    graphdef, params = nnx.split(load(name, **options), nnx.Param)

    def loss(params):
      logits = nnx.merge(graphdef, params)(wanted.tokens, wanted.mask)
      return jnp.mean(logits**2)

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    grads = traverse_util.flatten_dict(nnx.to_pure_dict(grads), sep="/")
    stacked = {}
    for path, grad in sorted(grads.items()):
      stacked.setdefault(re.sub(r"layer_\d+", "layers", path), []).append(grad)
    return value, {
      path: np.stack(g) if len(g) > 1 else np.asarray(g[0])
      for path, g in stacked.items()
    }

  value, grads = gradients()
  assert all(np.abs(g).max() > 0 for g in grads.values())
  value_2, grads_2 = gradients(scan=True, remat=True)
  np.testing.assert_allclose(value_2, value, rtol=1e-5)
  assert grads_2.keys() == grads.keys()
  for path, grad in grads.items():
    np.testing.assert_allclose(grads_2[path], grad, atol=1e-5, err_msg=path)


def test_remat_computes_blocks_again_in_the_backward_pass():
  tokens = jnp.zeros((2, 8), jnp.int32)

  def residuals(**options):
    graphdef, params = nnx.split(load("bert", **options), nnx.Param)

    def backward(params):
      def forward(params):
        return nnx.merge(graphdef, params)(tokens, tokens == 0)

      return jax.vjp(forward, params)[1]

    kept = jax.tree.leaves(jax.eval_shape(backward, params))
    return sum(math.prod(x.shape) for x in kept)

  assert residuals(remat=True) < 0.8 * residuals()


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("scan", [False, True])
def test_every_matrix_has_dimensions_that_a_mesh_can_split(checkpoint, scan):
  for path, p in params_of(load(checkpoint, scan=scan)).items():
    stacked = "/layers/" in path
    if p.ndim - stacked < 2:
      continue
    names = next(
      names
      for pattern, names in sharding.DIMENSIONS
      if re.search(pattern, path)
    )
    assert p.ndim == len(names) + stacked, path
    assert "width" in names, path


def test_gemma2_sees_beyond_the_window_in_every_second_block():
  model = load("gemma2")
  assert model.decoder.kinds == (0, 1, 0)
  tokens, window = reference("gemma2").tokens[:1], model.config.window
  other = tokens.copy()
  other[0, 0] += 1
  mask = np.ones(tokens.shape, bool)
  moved = np.abs(apply(model, tokens, mask) - apply(model, other, mask))
  # Two local blocks alone reach 2 (window - 1) positions.
  assert moved[0, 2 * window :].max() > 1e-3


def test_scaled_rotary_positions_keep_short_wavelengths():
  plain = rotary.Rotary(5e5).frequencies(32)
  scaled = rotary.Rotary(
    5e5, rotary.RotaryScaling(32.0, 1.0, 4.0, 8192)
  ).frequencies(32)
  ratio, wavelength = scaled / plain, 2 * np.pi / plain
  np.testing.assert_allclose(ratio[wavelength < 8192 / 4], 1)
  np.testing.assert_allclose(ratio[wavelength > 8192], 1 / 32, rtol=1e-6)
  assert (jnp.diff(ratio) <= 1e-6).all()


def test_sequence_longer_than_the_positions_is_named():
  tokens = jnp.zeros((1, 65), jnp.int32)
  for name in ("bert", "gpt2", "llama", "gemma2"):
    with pytest.raises(ValueError, match=r"65 tokens is longer .* 64 pos"):
      load(name)(tokens, tokens == 0)


def task(kind, vocab_size=96, length=16):
  labels = ("a", "b", "c") if kind == "classification" else ()
  return data.Task(
    kind, kind, vocab_size, length, len(labels) or None, labels, 1
  )


def make_config(name, **changes):
  fields = dict(
    depth=2, width=16, heads=2, mlp=24, dtype="float32", dropout=0.0
  )
  fields |= dict(
    size=None, weights=None, attention=None, remat=False, scan=False
  )
  return types.SimpleNamespace(name=name, **{**fields, **changes})


@pytest.mark.parametrize(
  ("name", "kind"),
  [
    ("bert", "classification"),
    ("gpt2", "lm"),
    ("llama", "classification"),
    ("gemma2", "lm"),
  ],
)
def test_build_makes_a_model_of_its_own_size(name, kind):
  model = models.build(make_config(name), task(kind), seed=0)
  tokens = jnp.zeros((2, 16), jnp.int32)
  logits = jax.eval_shape(model, tokens, tokens == 0)
  assert logits.shape == ((2, 3) if kind == "classification" else (2, 16, 96))


def test_build_takes_named_sizes_and_weights():
  config = make_config("bert", size="minilm-l6", dtype="bfloat16", scan=True)
  chosen = sizes.model_config(config, task("classification", 30522))
  assert (chosen.width, chosen.depth, chosen.num_labels) == (384, 6, 3)
  assert (chosen.dtype, chosen.param_dtype) == ("bfloat16", "float32")
  assert chosen.scan
  path = str(paths.FIXTURES / "gpt2")
  config = make_config("gpt2", weights=path)
  model = models.build(config, task("classification"), seed=0)
  wanted, found = params_of(load("gpt2")), params_of(model)
  assert found.keys() - wanted.keys() == {"score/kernel"}
  for key, value in wanted.items():
    np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_pretrained_model_with_a_new_head_has_an_abstract_form(name):
  config = make_config(name, weights=str(paths.FIXTURES / name))
  abstract = nnx.eval_shape(
    lambda: models.build(config, task("classification"), seed=0)
  )
  model = models.build(config, task("classification"), seed=0)
  assert abstract.config == model.config
  shapes = {k: (v.shape, v.dtype) for k, v in params_of(model).items()}
  assert shapes == {
    k: (v.shape, v.dtype) for k, v in params_of(abstract).items()
  }


@pytest.mark.parametrize(
  ("name", "changes", "wanted_task", "message"),
  [
    (
      "gpt2",
      {"size": "huge"},
      task("lm"),
      "'huge'; of gpt2 there are small",
    ),
    ("bert", {}, task("lm"), "which is for classification"),
    ("bert", {"size": "base"}, task("classification", length=600), "600 tok"),
    ("llama", {"weights": "gpt2"}, task("lm"), "a Gpt2, but model.name is"),
    ("gpt2", {"weights": "gpt2"}, task("lm", 300), "use the tokenizer that"),
    (
      "gpt2",
      {"weights": "gpt2_classifier"},
      task("lm"),
      "is a classifier of 3 classes",
    ),
    ("gpt2", {"weights": "gpt2"}, task("lm", length=65), "65 tokens is longer"),
    ("gemma2", {"heads": 3}, task("lm"), "model.heads 3"),
  ],
)
def test_what_does_not_fit_is_named(name, changes, wanted_task, message):
  if "weights" in changes:
    changes = {"weights": str(paths.FIXTURES / changes["weights"])}
  with pytest.raises(ValueError, match=message):
    models.build(make_config(name, **changes), wanted_task, seed=0)
