"""The models: what logits depend on, and what the parameters are called."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import data, models

LENGTH = 32
CLASSES = data.Task("c", "classification", 256, LENGTH, 3, ("a", "b", "c"), 1)
BYTES = data.Task("l", "lm", 256, LENGTH, None, (), 1)
TASKS = {"encoder": CLASSES, "decoder": BYTES}


def make_config(name="encoder", **changes):
  sizes = dict(depth=2, width=16, heads=2, mlp=24, dtype="float32", dropout=0.0)
  return types.SimpleNamespace(name=name, **{**sizes, **changes})


@functools.cache
def build(name="encoder", seed=0, **changes):
  return models.build(make_config(name, **changes), TASKS[name], seed=seed)


@nnx.jit
def apply(model, tokens, mask):
  return model(tokens, mask)


def params_of(model):
  return nnx.to_pure_dict(nnx.split(model, nnx.Param)[1])


def make_tokens(seed=0, batch=3):
  tokens = np.random.default_rng(seed).integers(0, 256, (batch, LENGTH))
  return jnp.asarray(tokens, jnp.int32)


@pytest.mark.parametrize("name", ["encoder", "decoder"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_float32_and_parameters_too(name, dtype):
  model = build(name, dtype=dtype)
  tokens = make_tokens()
  logits = apply(model, tokens, tokens >= 0)
  wanted = {"encoder": (3, 3), "decoder": (3, LENGTH, 256)}[name]
  assert logits.shape == wanted
  assert logits.dtype == jnp.float32
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params_of(model)))
  # The dtype is that of the computation, not a label.
  same = jnp.array_equal(logits, apply(build(name), tokens, tokens >= 0))
  assert same == (dtype == "float32")


@pytest.mark.parametrize("name", ["encoder", "decoder"])
@pytest.mark.parametrize("real", [0, 1, 13, 31])
def test_what_stands_in_padding_does_not_matter(name, real):
  model = build(name)
  mask = jnp.broadcast_to(jnp.arange(LENGTH) < real, (3, LENGTH))
  a = jnp.where(mask, make_tokens(0), make_tokens(1))
  b = jnp.where(mask, make_tokens(0), make_tokens(2))
  logits_a, logits_b = apply(model, a, mask), apply(model, b, mask)
  if name == "decoder":
    logits_a, logits_b = logits_a[:, :real], logits_b[:, :real]
  assert jnp.isfinite(logits_a).all()
  np.testing.assert_array_equal(logits_a, logits_b)


def test_padding_in_front_is_not_seen_by_the_decoder():
  model = build("decoder")
  mask = jnp.broadcast_to(jnp.arange(LENGTH) >= 5, (3, LENGTH))
  a = jnp.where(mask, make_tokens(0), make_tokens(1))
  b = jnp.where(mask, make_tokens(0), make_tokens(2))
  logits_a, logits_b = apply(model, a, mask), apply(model, b, mask)
  np.testing.assert_array_equal(logits_a[:, 5:], logits_b[:, 5:])


def test_encoder_takes_padding_for_the_end_of_the_text():
  model = build()
  tokens = make_tokens()[:, :16]
  padded = jnp.pad(tokens, ((0, 0), (0, LENGTH - 16)), constant_values=7)
  mask = jnp.broadcast_to(jnp.arange(LENGTH) < 16, padded.shape)
  np.testing.assert_allclose(
    apply(model, padded, mask), apply(model, tokens, mask[:, :16]), atol=1e-5
  )


def test_decoder_sees_no_later_token():
  model = build("decoder")
  mask = jnp.ones((3, LENGTH), bool)
  before = jnp.arange(LENGTH) <= 20
  a, b = make_tokens(0), jnp.where(before, make_tokens(0), make_tokens(1))
  logits_a, logits_b = apply(model, a, mask), apply(model, b, mask)
  np.testing.assert_array_equal(logits_a[:, :21], logits_b[:, :21])
  assert not jnp.allclose(logits_a[:, 21:], logits_b[:, 21:])


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_order_of_the_tokens_matters(name):
  model = build(name)
  mask = jnp.ones((3, LENGTH), bool)
  tokens = make_tokens()
  # Eight bytes together, so that the encoder's stem keeps what it pools.
  swapped = jnp.concatenate(
    [tokens[:, 8:16], tokens[:, :8], tokens[:, 16:]], axis=1
  )
  difference = apply(model, tokens, mask) - apply(model, swapped, mask)
  last = difference[:, -1] if name == "decoder" else difference
  assert jnp.abs(last).max() > 1e-4


def test_parameters_are_named_by_what_they_are():
  leaves = jax.tree_util.tree_leaves_with_path(params_of(build()))
  found = {
    "/".join(key.key for key in path): leaf.shape for path, leaf in leaves
  }
  layer = {
    "attention/key/kernel": (16, 16),
    "attention/out/kernel": (16, 16),
    "attention/query/kernel": (16, 16),
    "attention/value/kernel": (16, 16),
    "attention_norm/scale": (16,),
    "mlp/down/kernel": (24, 16),
    "mlp/up/kernel": (16, 24),
    "mlp_norm/scale": (16,),
  }
  wanted = {
    "embed/embedding": (256, 32),
    "encoder/norm/scale": (16,),
    "head/kernel": (16, 3),
    "stem/kernel": (8, 32, 16),
  }
  for i in range(2):
    wanted |= {f"encoder/layer_{i}/{k}": v for k, v in layer.items()}
  assert found == wanted


def test_decoder_embeds_and_scores_with_one_matrix():
  params = params_of(build("decoder"))
  assert sorted(params) == ["decoder", "embed"]
  assert params["embed"]["embedding"].shape == (256, 16)


def test_the_seed_decides_the_parameters():
  same, again, other = (params_of(build(seed=s)) for s in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, same, again)
  assert not jnp.array_equal(same["head"]["kernel"], other["head"]["kernel"])


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_gradient_reaches_every_parameter(name):
  model = build(name)
  graphdef, params = nnx.split(model, nnx.Param)
  tokens = make_tokens()

  def loss(params):
    logits = nnx.merge(graphdef, params)(tokens, tokens >= 0)
    return -jax.nn.log_softmax(logits)[..., 1].mean()

  grads = nnx.to_pure_dict(jax.jit(jax.grad(loss))(params))
  assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
  ("name", "task", "changes", "message"),
  [
    ("gru", CLASSES, {}, "model.name is 'gru'; there are decoder, encoder"),
    ("encoder", BYTES, {}, "for classification, but l is a task of kind lm"),
    ("decoder", CLASSES, {}, "for lm, but c is a task of kind classification"),
    ("encoder", CLASSES, {"dropout": 0.1}, "model.dropout is 0.1"),
    ("encoder", CLASSES, {"heads": 3}, "model.width is 16 and model.heads 3"),
    ("encoder", CLASSES, {"heads": 16}, "even number of features per head"),
    ("encoder", CLASSES, {"dtype": "int7"}, "model.dtype is 'int7'"),
  ],
)
def test_what_does_not_fit_is_named(name, task, changes, message):
  with pytest.raises(ValueError, match=message):
    models.build(make_config(name, **changes), task, seed=0)


def test_length_that_does_not_divide_is_named():
  odd = dataclasses.replace(CLASSES, seq_len=30)
  with pytest.raises(ValueError, match=r"data\.seq_len is 30.* multiple of 8"):
    models.build(make_config("encoder"), odd, seed=0)
  tokens = make_tokens()[:, :30]
  with pytest.raises(ValueError, match="30 tokens do not divide by the"):
    build()(tokens, tokens >= 0)
