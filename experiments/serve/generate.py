"""Text after prompts: a batch at a time, greedy or sampled.

The prompts fill a cache of keys and values, then every update gives all rows a
token. Shapes as in models/layers.py; P tokens of the longest prompt.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import settings
from experiments.serve import memory, model


@dataclasses.dataclass(frozen=True)
class Options:
  """How tokens are chosen, and how many.

  Attributes:
    max_tokens: of an answer.
    temperature: of the softmax that is sampled; 0 takes the likeliest token.
    top_k: samples one of so many likeliest tokens; None: of all.
    seed: of the samples. Every row has a sequence of its own.
    stops: tokens that end an answer, and are no part of it.
    is_stop: whether the text of an answer so far, as tokens, ends it.
  """

  max_tokens: int
  temperature: float = 0.0
  top_k: int | None = None
  seed: int = 0
  stops: frozenset[int] = frozenset()
  is_stop: Callable[[list[int]], bool] = lambda tokens: False


@dataclasses.dataclass(frozen=True)
class Answers:
  """What a batch of prompts gave.

  Attributes:
    tokens: of each answer.
    prompt_seconds: for all prompts, without compilation.
    token_seconds: for all tokens after the first ones, of all rows at once.
    processor_seconds: that all threads of the process worked for these.
    updates: how often all rows got a token in that time.
    temporary_bytes: what the computation of a token holds beside the weights
      and the cache, as the compiler counts it.
    prompt_temporary_bytes: likewise, the computation of the prompts.
    loading_peak_bytes: what the process held at most before the first token.
  """

  tokens: list[list[int]]
  prompt_seconds: float
  token_seconds: float
  processor_seconds: float
  updates: int
  temporary_bytes: int
  prompt_temporary_bytes: int
  loading_peak_bytes: int


def generate(
  served: model.Served, prompts: Sequence[Sequence[int]], options: Options
) -> Answers:
  """Answers to prompts of at least one token each.

  Raises:
    UserError: the model does not generate, a prompt is empty, or longer than
      the model's positions.
  """
  options = _checked(served, prompts, options)
  tokens_BxP, mask_BxP = pad(prompts)
  slots = tokens_BxP.shape[1] + options.max_tokens
  tensors = served.tensors
  lowered = served.prefill.lower(tensors, tokens_BxP, mask_BxP, slots)
  prefill = lowered.compile()
  logits, cache = lowered.out_info
  choose = _chooser(len(prompts), options)
  tokens = jax.eval_shape(choose, logits, 0)
  decode = served.decode.lower(tensors, tokens, cache).compile()
  loading_peak = memory.peak()
  memory.forget_peak()
  start = time.perf_counter()
  logits, cache = prefill(tensors, tokens_BxP, mask_BxP)
  tokens = choose(logits, 0)
  rows: list[list[int]] = [[] for _ in prompts]
  going = set(range(len(rows)))
  found = np.asarray(tokens)
  middle, worked = time.perf_counter(), time.process_time()
  updates = 0
  while True:
    for i in sorted(going):
      token = int(found[i])
      if token in options.stops:
        going.remove(i)
        continue
      rows[i].append(token)
      if options.is_stop(rows[i]):
        going.remove(i)
    if not going or updates + 1 == options.max_tokens:
      break
    logits, cache = decode(tensors, tokens, cache)
    updates += 1
    tokens = choose(logits, updates)
    found = np.asarray(tokens)
  stop = time.perf_counter()
  return Answers(
    tokens=rows,
    prompt_seconds=middle - start,
    token_seconds=stop - middle,
    processor_seconds=time.process_time() - worked,
    updates=updates,
    temporary_bytes=decode.memory_analysis().temp_size_in_bytes,
    prompt_temporary_bytes=prefill.memory_analysis().temp_size_in_bytes,
    loading_peak_bytes=loading_peak,
  )


def pad(
  prompts: Sequence[Sequence[int]],
) -> tuple[np.ndarray, np.ndarray]:
  """Tokens int32 [B, P], padded on the left, and their mask."""
  size = max(map(len, prompts))
  tokens = np.zeros((len(prompts), size), np.int32)
  mask = np.zeros(tokens.shape, bool)
  for i, prompt in enumerate(prompts):
    tokens[i, size - len(prompt) :] = prompt
    mask[i, size - len(prompt) :] = True
  return tokens, mask


def _checked(served, prompts, options: Options) -> Options:
  """The options, with no more tokens than there are positions."""
  if not served.is_causal:
    raise settings.UserError(
      f"{served.path} is a classifier, which generates nothing: --score=FILE"
      " measures it"
    )
  if options.max_tokens < 1:
    raise settings.UserError(
      f"--max-tokens={options.max_tokens}: it must be positive"
    )
  for i, prompt in enumerate(prompts, 1):
    if not len(prompt):
      raise settings.UserError(f"prompt {i} is empty: give it some text")
  longest = max(map(len, prompts))
  positions = getattr(served.config, "max_positions", None)
  if positions is None:
    return options
  if longest >= positions:
    raise settings.UserError(
      f"prompt {1 + max(range(len(prompts)), key=lambda i: len(prompts[i]))}"
      f" has {longest} tokens, and the model {positions} positions, one of them"
      " for an answer: shorten it"
    )
  fitting = min(options.max_tokens, positions - longest)
  return dataclasses.replace(options, max_tokens=fitting)


def _chooser(rows: int, options: Options) -> Callable[..., jax.Array]:
  """jit of (logits [B, V], update) -> tokens int32 [B]."""
  key = jax.random.key(options.seed)
  keys_B = jax.vmap(functools.partial(jax.random.fold_in, key))(
    jnp.arange(rows, dtype=jnp.uint32)
  )

  @jax.jit
  def choose(logits_BxV: jax.Array, update: Any) -> jax.Array:
    if not options.temperature:
      return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    own_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, update)
    return sample(own_B, logits_BxV, options.temperature, options.top_k)

  return choose


def sample(
  keys_B: jax.Array,
  logits_BxV: jax.Array,
  temperature: float,
  top_k: int | None = None,
) -> jax.Array:
  """A token of each row, int32 [B], with a key of its own."""
  logits_BxV = logits_BxV / temperature
  if top_k is not None and top_k < logits_BxV.shape[-1]:
    least_Bx1 = jax.lax.top_k(logits_BxV, top_k)[0][:, -1:]
    logits_BxV = jnp.where(logits_BxV < least_Bx1, -jnp.inf, logits_BxV)
  tokens_B = jax.vmap(jax.random.categorical)(keys_B, logits_BxV)
  return tokens_B.astype(jnp.int32)
