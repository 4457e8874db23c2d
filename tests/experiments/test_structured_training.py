"""The chain of configs/edge.py: units end at zero, and the log says so."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from backslash_jax import tree
from backslash_jax.structure import groups as grouping
from configs import edge
from experiments import models, optimizer, settings
from experiments.models import encoder, units


def _config(**structure):
  config = edge.get_config()
  config.total_updates = 6
  config.optimizer.warmup_updates = 1
  config.model.update({"depth": 1, "width": 8, "heads": 2, "mlp": 6})
  config.structure.update(structure)
  return config


def _params(config):
  model = config.model
  own = encoder.ModelConfig(
    vocab_size=20,
    num_classes=3,
    depth=model.depth,
    width=model.width,
    heads=model.heads,
    mlp=model.mlp,
    dtype="float32",
    byte_width=4,
  )
  state = nnx.eval_shape(lambda: nnx.state(models.from_config(own), nnx.Param))
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape, scale=0.1).astype(np.float32),
    nnx.to_pure_dict(state),
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  "structure",
  [
    {"lmbda": 1e5},
    {"pruned": {"mlp": 0.5}, "end_update": 4},
    {"pruned": {"heads": 0.5, "features": 0.3}, "end_update": 4},
  ],
)
def test_units_end_at_zero_and_their_moments_are_cleared(structure):
  config = _config(**structure)
  params = _params(config)
  tx = optimizer.create(config.lock())

  @jax.jit
  def step(params, state):
    updates, state = tx.update(params, state, params)
    metrics = optimizer.rate_metrics(config, state, params, 1)
    return optax.apply_updates(params, updates), state, metrics

  state = tx.init(params)
  for _ in range(6):
    params, state, metrics = step(params, state)
  leaves = dict(tree.named_leaves(params))
  momentum = dict(tree.named_leaves(optax.tree.get(state, "mu")))
  gone = 0
  declared = units.declare(config.model, config.structure.groups)
  for found in grouping.bind(declared, params):
    zero = np.asarray(grouping.magnitudes(found, leaves)) == 0
    held = np.asarray(grouping.magnitudes(found, momentum))
    np.testing.assert_array_equal(held[zero], 0)
    gone += zero.sum()
  assert gone > 0
  assert ("group_zeros" in metrics) == ("lmbda" in structure)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("lmbda", -1.0),
    ("shape", 2.0),
    ("groups", ("mlp", "depth")),
    ("pruned.heads", 1.0),
    ("begin_update", 900),
  ],
)
def test_bad_values_are_named(field, value):
  config = _config()
  config.update_from_flattened_dict({f"structure.{field}": value})
  with pytest.raises(settings.UserError, match=rf"config\.structure\.{field}"):
    settings.check(config)
