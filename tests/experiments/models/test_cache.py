"""The cache of keys and values: the same logits as without it."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from experiments import models
from experiments.huggingface import weights
from experiments.models import cache, decoder, functional
from tests import paths

PROMPT, MORE = 9, 6
LENGTHS = np.array([9, 4, 1, 7])


@functools.cache
def causal(name, **options):
  """A causal model with random parameters, as a function of them."""
  if name == "decoder":
    config = decoder.ModelConfig(
      vocab_size=96, depth=2, width=16, heads=2, mlp=24, dtype="float32"
    )
    return functional.split(models.from_config(config))
  return functional.split(weights.load(paths.FIXTURES / name, **options))


CASES = [
  ("decoder", {}),
  ("gemma2", {}),
  ("gemma2", {"scan": True}),
  ("gpt2", {}),
  ("llama", {}),
  *(
    pytest.param(name, options, marks=pytest.mark.slow)
    for name, options in [
      ("deepseek", {}),
      ("gpt2", {"scan": True}),
      ("llama", {"scan": True}),
    ]
  ),
]


@functools.cache
def tokens_of():
  rng = np.random.default_rng(0)
  return rng.integers(4, 96, (len(LENGTHS), PROMPT + MORE)).astype(np.int32)


def padded(side):
  """The prompts of LENGTHS tokens, padded on a side, and their mask."""
  tokens = np.full((len(LENGTHS), PROMPT), 3, np.int32)
  mask = np.zeros(tokens.shape, bool)
  for i, n in enumerate(LENGTHS):
    place = slice(PROMPT - n, None) if side == "left" else slice(n)
    tokens[i, place], mask[i, place] = tokens_of()[i, :n], True
  return tokens, mask


@functools.cache
def without(name, **options):
  """Logits [B, MORE + 1, V] that the whole sequences give, one by one."""
  forward, params = causal(name, **options)
  run = jax.jit(forward)
  rows = []
  for i, n in enumerate(LENGTHS):
    # One length for all, so that one program is compiled.
    tokens = tokens_of()[i : i + 1]
    mask = np.arange(PROMPT + MORE)[None] < n + MORE
    rows.append(run(params, tokens, mask)[0, n - 1 : n + MORE])
  return np.stack(rows)


def with_cache(forward, params, tokens, mask, lengths):
  """The same logits from a prompt and its continuation."""
  prefill = jax.jit(forward.prefill, static_argnums=3)
  decode = jax.jit(forward.decode, donate_argnums=2)
  logits, known = prefill(params, tokens, mask, PROMPT + MORE)
  found = [logits]
  for i in range(MORE):
    rows = np.arange(len(lengths))
    logits, known = decode(params, tokens_of()[rows, lengths + i], known)
    found.append(logits)
  return np.stack(found, axis=1)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_logits_are_those_without_a_cache(name, options):
  # Of rows of different lengths, so a batch is as good as its rows alone.
  forward, params = causal(name, **options)
  wanted = without(name, **options)
  for side in ("left", "right"):
    tokens, mask = padded(side)
    found = with_cache(forward, params, tokens, mask, LENGTHS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=2e-5, err_msg=side)


def test_what_stands_in_padding_does_not_matter():
  forward, params = causal("gemma2")
  tokens, mask = padded("left")
  other = np.where(mask, tokens, 50).astype(np.int32)
  np.testing.assert_array_equal(
    with_cache(forward, params, tokens, mask, LENGTHS),
    with_cache(forward, params, other, mask, LENGTHS),
  )


def test_bfloat16_has_a_cache_of_bfloat16():
  forward, params = causal("llama", dtype="bfloat16")
  tokens, mask = padded("right")
  known = jax.eval_shape(
    lambda: forward.prefill(params, tokens, mask, PROMPT + MORE)
  )[1]
  dtypes = {str(k.dtype) for k in (*known.keys, *known.values)}
  assert dtypes == {"bfloat16"}
  found = with_cache(forward, params, tokens, mask, LENGTHS)
  wanted = without("llama", dtype="bfloat16")
  np.testing.assert_allclose(found, wanted, atol=0.1)


def test_padding_on_the_right_is_wider_than_the_window():
  # So that a window of slots, not of positions, would show above.
  forward, params = causal("gemma2")
  assert forward.model(params).config.window < PROMPT - LENGTHS.min()


def test_blocks_of_different_sizes_have_caches_of_theirs():
  config = decoder.ModelConfig(
    vocab_size=96,
    depth=3,
    width=16,
    heads=4,
    mlp=24,
    dtype="float32",
    head_dim=4,
    layer_sizes=tuple(models.config.LayerSize(heads, 8) for heads in (3, 0, 1)),
  )
  known = cache.empty(config, 2, 5)
  assert [k.shape for k in known.keys] == [
    (1, 2, 5, heads, 4) for heads in (3, 0, 1)
  ]
  forward, params = functional.split(models.from_config(config))
  tokens, mask = padded("left")
  found = with_cache(forward, params, tokens, mask, LENGTHS)
  whole = jax.jit(forward)(params, tokens, mask)
  np.testing.assert_allclose(found[:, 0], whole[:, -1], atol=2e-5)
  assert dataclasses.is_dataclass(known)
