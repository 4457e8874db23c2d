"""The loss of a language model, without all of its logits at once."""

import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from experiments import data, learner, scoring, sharding
from experiments.models import losses
from tests import tiny

LENGTH = 24
TASK = data.Task("l", "lm", 64, LENGTH, None, (), 1)
SMALL = {"model__width": 16, "model__mlp": 32, "model__heads": 4}


@functools.cache
def _model(name):
  forward, shapes = learner.build_abstract(
    tiny.config(model__name=name, **SMALL), TASK
  )
  rng = np.random.default_rng(0)
  return forward, jax.tree.map(
    lambda x: (0.3 * rng.normal(size=x.shape)).astype(x.dtype), shapes
  )


def _batch(size=8):
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 64, (size, LENGTH)).astype(np.int32)
  mask = np.arange(LENGTH) < rng.integers(1, LENGTH + 1, (size, 1))
  weights = mask.astype(np.float32)
  return dict(
    tokens=tokens, mask=mask, targets=tokens[:, ::-1], weights=weights
  )


def _scores(name, axes=(1, 1, 1), part=0.0):
  """Loss, hits and gradient of a batch, and the compiled program.

  A part of the targets are predictions of the model with doubled parameters.
  """
  config = tiny.config(
    mesh__data=axes[0], mesh__fsdp=axes[1], mesh__tensor=axes[2]
  )
  mesh = sharding.make_mesh(config, jax.devices()[: np.prod(axes)])
  forward, params = _model(name)
  placed = sharding.parameters(params, mesh)

  def loss(params, batch):
    teacher = jax.tree.map(lambda x: 2 * x, params) if part else None
    with sharding.use(mesh):
      totals = scoring.totals(
        forward, params, batch, teacher=teacher, part=part
      )
    return totals["loss"] / totals["weight"], totals["accuracy"]

  function = jax.value_and_grad(loss, has_aux=True)
  batch = NamedSharding(mesh, sharding.BATCH)
  compiled = (
    jax.jit(function, in_shardings=(placed, batch))
    .lower(params, _batch())
    .compile()
  )
  arguments = jax.device_put((params, _batch()), compiled.input_shardings[0])
  (value, hits), gradient = compiled(*arguments)
  return jax.device_get((value, hits, gradient)), compiled.as_text()


@pytest.mark.parametrize(
  ("name", "axes"),
  [("decoder", (1, 1, 1)), ("gemma2", (1, 1, 1)), ("llama", (2, 2, 2))],
)
def test_in_chunks_the_loss_is_the_same(name, axes, monkeypatch):
  wanted, text = _scores(name)
  assert f"f32[8,{LENGTH},64]" in text
  monkeypatch.setattr(losses, "_MANY", 100)
  # 5 positions of all sequences, or of a quarter of them.
  monkeypatch.setattr(losses, "_CHUNK", 40 // (axes[0] * axes[1]))
  found, text = _scores(name, axes)
  assert f",{LENGTH},64]" not in text
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    found,
    wanted,
  )


@pytest.mark.parametrize(
  ("name", "axes"),
  [
    ("decoder", (1, 1, 1)),
    pytest.param("llama", (2, 2, 2), marks=pytest.mark.slow),
  ],
)
def test_with_a_teacher_there_are_never_all_logits(name, axes, monkeypatch):
  forward, params = _model(name)
  batch = _batch()
  tokens, mask, weights = (batch[k] for k in ("tokens", "mask", "weights"))
  doubled = jax.tree.map(lambda x: 2 * x, params)

  @jax.jit
  def loss(params):
    logits = forward(params, tokens, mask)
    wanted = jax.nn.softmax(forward(doubled, tokens, mask))
    right = jax.nn.one_hot(batch["targets"], 64)
    entropies = optax.softmax_cross_entropy(
      logits, 0.75 * right + 0.25 * wanted
    )
    return (entropies * weights).sum() / weights.sum()

  monkeypatch.setattr(losses, "_TAUGHT_CHUNK", 40 // (axes[0] * axes[1]))
  (value, _, gradient), text = _scores(name, axes, part=0.25)
  assert f",{LENGTH},64]" not in text
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    (value, gradient),
    jax.device_get(jax.value_and_grad(loss)(params)),
  )


def test_what_is_not_large_is_computed_at_once(monkeypatch):
  """The loss of the configs here stays what it was, to the bit."""
  monkeypatch.setattr(losses, "_in_chunks", None)
  forward, params = _model("decoder")
  batch = _batch()
  logits = forward(params, batch["tokens"], batch["mask"])
  entropies = optax.softmax_cross_entropy_with_integer_labels(
    logits, batch["targets"]
  )
  found = scoring.totals(forward, params, batch)["loss"]
  np.testing.assert_array_equal(found, (entropies * batch["weights"]).sum())
