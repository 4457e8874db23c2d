"""Attention: every implementation gives what the plain one gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import settings, sharding
from experiments.models import attention
from tests import tiny

LENGTH = 256
IMPLEMENTATIONS = {
  "chunked": attention.chunked,
  "splash": functools.partial(attention.splash, interpret=True),
  # The same arguments to JAX, which has a form of it for CPUs too.
  "cudnn": functools.partial(attention.cudnn, implementation="xla"),
}


def _arrays(heads, kv_heads, features, dtype="float32"):
  rng = np.random.default_rng(0)
  shapes = [(2, LENGTH, n, features) for n in (heads, kv_heads, kv_heads)]
  return [jnp.asarray(rng.normal(size=s), dtype) for s in shapes]


def _mask(causal, window):
  real = np.arange(LENGTH) < np.array([[LENGTH], [150]])
  real[1, 3] = False
  return attention.Mask(jnp.asarray(real), causal, window)


def _value_and_gradients(implementation, arrays, mask, **options):
  def loss(*arrays):
    y = implementation(*arrays, mask, **options)
    # What padding sees is nobody's business.
    seen = jnp.where(mask.real[:, :, None, None], y, 0)
    return jnp.sum(jnp.sin(3 * seen.astype(jnp.float32))), seen

  function = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
  (_, y), gradients = jax.jit(function)(*arrays)
  return y, *gradients


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize(
  ("kv_heads", "causal", "window", "cap"),
  [(4, False, None, None), (2, True, None, None), (2, True, 100, 50.0)],
)
def test_every_implementation_is_the_plain_one(
  name, kv_heads, causal, window, cap, monkeypatch
):
  if name == "cudnn" and cap is not None:
    pytest.skip("it has no bound")
  monkeypatch.setattr(attention, "_CHUNK", 128)
  arrays, mask = _arrays(4, kv_heads, 64), _mask(causal, window)
  options = dict(query_scale=48.0, cap=cap)
  wanted = _value_and_gradients(attention.plain, arrays, mask, **options)
  found = _value_and_gradients(IMPLEMENTATIONS[name], arrays, mask, **options)
  for a, b in zip(found, wanted, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_chunks_need_not_divide_the_length(monkeypatch):
  monkeypatch.setattr(attention, "_CHUNK", 96)
  arrays, mask = _arrays(2, 1, 8), _mask(True, None)
  options = dict(query_scale=8.0, cap=None)
  found, wanted = (
    f(*arrays, mask, **options) for f in (attention.chunked, attention.plain)
  )
  np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_long_sequences_hold_the_scores_of_some_queries():
  """Memory of the gradient, for four times the length."""

  def temporary(length):
    shape = jax.ShapeDtypeStruct((1, length, 2, 8), "float32")
    mask = attention.Mask(jax.ShapeDtypeStruct((1, length), "bool"), True)

    def loss(q, mask):
      return jnp.sum(attention.attend(q, q, q, mask, query_scale=8.0))

    compiled = jax.jit(jax.grad(loss)).lower(shape, mask).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary(8192) < 5 * temporary(2048)


def test_a_window_sees_that_many_positions():
  real = jnp.ones((1, 6), bool).at[0, 2].set(False)
  wanted = [
    [1, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0],
    [0, 1, 0, 1, 0, 0],
    [0, 0, 0, 1, 1, 0],
    [0, 0, 0, 1, 1, 1],
  ]
  mask = attention.Mask(real, True, 3)
  np.testing.assert_array_equal(mask.dense()[0, 0], np.array(wanted, bool))
  some = mask.dense(2, 3)[0, 0]
  np.testing.assert_array_equal(some, np.array(wanted[2:5], bool))


@pytest.mark.parametrize(
  ("name", "reason"),
  [
    ("splash", "needs a TPU, but this runs on CPU"),
    ("cudnn", "needs a GPU, but this runs on CPU"),
  ],
)
def test_a_kernel_that_the_platform_lacks_is_refused(name, reason):
  arrays, mask = _arrays(2, 2, 8), _mask(True, None)
  mesh = sharding.make_mesh(tiny.config())
  with (
    pytest.raises(settings.UserError, match=f"'{name}', which {reason}"),
    sharding.use(mesh),
  ):
    attention.attend(*arrays, mask, query_scale=8.0, implementation=name)


@pytest.mark.parametrize(
  ("name", "platform", "features", "cap", "reason"),
  [
    ("splash", "tpu", 64, 50.0, None),
    ("cudnn", "gpu", 64, None, None),
    ("cudnn", "gpu", 64, 50.0, "softcap"),
    ("cudnn", "gpu", 256, None, "128 features, not 256"),
  ],
)
def test_what_a_kernel_cannot_do_is_said(name, platform, features, cap, reason):
  q = jax.ShapeDtypeStruct((2, 2048, 8, features), "bfloat16")
  found = attention.unsupported(name, q, cap, platform)
  assert found is None if reason is None else reason in found


def test_a_kernel_needs_lengths_in_whole_blocks():
  q = jax.ShapeDtypeStruct((2, 2000, 8, 64), "bfloat16")
  assert "128 divides, not 2000" in attention.unsupported(
    "splash", q, None, "tpu"
  )
