"""Generation: what is chosen, where answers end, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import settings
from experiments.serve import generate, model
from tests import paths

PROMPTS = [[5, 9, 17, 40, 8], [61], [7, 7, 30]]


@functools.cache
def served(name="llama"):
  return model.read(paths.FIXTURES / name)


def greedy(prompt, count, name="llama"):
  """The likeliest continuation, without a cache."""
  found = served(name)
  run = jax.jit(
    lambda tensors, *batch: found.forward(found.params(tensors), *batch)
  )
  size = len(prompt) + count
  tokens = np.zeros((1, size), np.int32)
  tokens[0, : len(prompt)] = prompt
  for i in range(len(prompt), size):
    mask = np.arange(size)[None] < i
    tokens[0, i] = np.argmax(run(found.tensors, tokens, mask)[0, i - 1])
  return tokens[0, len(prompt) :].tolist()


def answer(prompts=PROMPTS, name="llama", **options):
  options = {"max_tokens": 6} | options
  found = generate.generate(served(name), prompts, generate.Options(**options))
  return found.tokens


def test_a_batch_has_the_likeliest_answer_to_each_prompt():
  assert answer() == [greedy(prompt, 6) for prompt in PROMPTS]


@pytest.mark.parametrize(
  ("name", "wanted"),
  [
    (
      "stories260K",
      "403 407 261 378 432 383 286 261 376 298 315 421 395 317 426 338 401 396",
    ),
    pytest.param(
      "babyllama361",
      "259 290 265 278 260 259 274 276 263 265 259 261 259 262 266 272 260 281",
      marks=pytest.mark.slow,
    ),
  ],
)
def test_a_trained_model_continues_as_in_transformers(name, wanted):
  directory = paths.SHARED / "weights" / name
  if not directory.is_dir():
    pytest.skip(f"{directory} is not there")
  options = generate.Options(max_tokens=18)
  (found,) = generate.generate(model.read(directory), [[1]], options).tokens
  assert " ".join(map(str, found)) == wanted


def test_an_answer_ends_at_a_stop_and_the_others_go_on():
  whole = answer()
  stop = whole[0][2]
  cut = [
    tokens[: tokens.index(stop)] if stop in tokens else tokens
    for tokens in whole
  ]
  assert answer(stops=frozenset({stop})) == cut
  assert len(cut[0]) <= 2
  assert [len(t) for t in answer(is_stop=lambda t: len(t) == 2)] == [2, 2, 2]


def test_samples_follow_the_seed_and_the_row():
  hot = functools.partial(answer, [PROMPTS[0]] * 3, temperature=5.0)
  first = hot(seed=1)
  assert first == hot(seed=1)
  assert first != hot(seed=2)
  assert first[0] != first[1]
  # One of one likeliest.
  assert answer(temperature=5.0, top_k=1) == answer()


def test_samples_have_the_probabilities_of_the_softmax():
  logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
  keys = jax.random.split(jax.random.key(0), 4000)
  rows = jnp.broadcast_to(logits, (4000, 4))

  def shares(**options):
    tokens = generate.sample(keys, rows, **options)
    return np.bincount(tokens, minlength=4) / 4000

  np.testing.assert_allclose(
    shares(temperature=1.0), [0.5, 0.3, 0.15, 0.05], atol=0.03
  )
  wanted = np.array([0.25, 0.09, 0, 0]) / 0.34
  np.testing.assert_allclose(
    shares(temperature=0.5, top_k=2), wanted, atol=0.03
  )


def test_an_answer_ends_with_the_positions():
  longest = served().config.max_positions
  (found,) = answer([[5] * (longest - 2)])
  assert len(found) == 2


@pytest.mark.parametrize(
  ("name", "prompts", "options", "message"),
  [
    ("bert", [[5]], {}, "is a classifier, which generates nothing"),
    ("llama_classifier", [[5]], {}, "is a classifier"),
    ("llama", [[5], []], {}, "prompt 2 is empty"),
    ("llama", [[5], [5] * 64], {}, "prompt 2 has 64 tokens, and the model 64"),
    ("llama", [[5]], {"max_tokens": 0}, "--max-tokens=0: it must be positive"),
  ],
)
def test_what_cannot_be_is_named(name, prompts, options, message):
  with pytest.raises(settings.UserError, match=message):
    answer(prompts, name, **options)
