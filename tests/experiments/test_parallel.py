"""Training steps on a mesh: what they communicate, hold and compute."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from backslash_jax import tree
from experiments import (
  data,
  learner,
  optimizer,
  scoring,
  settings,
  sharding,
)
from experiments.bench import aot, cost, hlo
from experiments.models import partition
from tests import tiny

LENGTH = 64
TASKS = {
  "lm": data.Task("l", "lm", 256, LENGTH, None, (), 1),
  "classification": data.Task(
    "c", "classification", 256, LENGTH, 3, ("a", "b", "c"), 1
  ),
}
DATA, FSDP, TENSOR = (8, 1, 1), (1, 8, 1), (1, 2, 4)


def _depth(name):
  """Two rounds of the loop over blocks: Gemma 2 has two blocks in each."""
  return 4 if name == "gemma2" else 2


def _config(name, mesh, batch, looped):
  axes = zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), mesh, strict=True)
  return tiny.config(
    **dict(axes),
    model__name=name,
    model__width=64,
    model__depth=_depth(name),
    model__heads=8,
    model__mlp=192,
    model__scan=looped,
    model__remat=looped,
    data__batch_size=batch,
    data__seq_len=LENGTH,
    rate__lmbda=0.0,
    optimizer__name="sgd",
  )


@functools.cache
def _model(name, kind, looped):
  """A model as a function, and values for its parameters."""
  config = _config(name, DATA, 32, looped)
  forward, shapes = learner.build_abstract(config, TASKS[kind])
  rng = np.random.default_rng(0)
  return forward, jax.tree.map(
    lambda x: (0.1 * rng.normal(size=x.shape)).astype(x.dtype), shapes
  )


@functools.cache
def _compiled(name, kind, mesh, batch, looped):
  """A training step: the program, its collectives, and its initial state."""
  config = _config(name, mesh, batch, looped)
  mesh = sharding.make_mesh(config)
  forward, params = _model(name, kind, looped)
  placed = sharding.parameters(params, mesh)
  tx = optimizer.create(config, placed)
  state = {"params": params, "opt_state": tx.init(params)}
  shardings = {
    "params": placed,
    "opt_state": sharding.like(state["opt_state"], params, placed, mesh),
  }
  replicated = NamedSharding(mesh, PartitionSpec())
  step = jax.jit(
    learner.make_update(config, forward, tx, mesh=mesh, measure_rate=False),
    in_shardings=(
      shardings,
      NamedSharding(mesh, sharding.BATCH),
      replicated,
    ),
    out_shardings=(shardings, replicated, replicated),
  )
  update = jax.ShapeDtypeStruct((), jnp.int32)
  shapes = jax.eval_shape(lambda: state)
  lowered = step.lower(shapes, aot.batch(config, TASKS[kind]), update)
  # Nothing of LLVM's is tested here.
  compiled = lowered.compile({"xla_backend_optimization_level": 0})
  return compiled, hlo.collectives(compiled.as_text()), state


def _batch(kind, size=32):
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 256, (size, LENGTH)).astype(np.int32)
  mask = np.arange(LENGTH) < rng.integers(1, LENGTH + 1, (size, 1))
  targets = (tokens + 1) % 256 if kind == "lm" else tokens[:, 0] % 3
  weights = mask if kind == "lm" else np.ones(size)
  weights = weights.astype(np.float32)
  return dict(tokens=tokens, mask=mask, targets=targets, weights=weights)


@functools.cache
def _wanted(name, kind, looped):
  """The loss on one device, and the norm of its gradient."""
  forward, params = _model(name, kind, looped)

  @jax.jit
  @jax.value_and_grad
  def loss(params):
    totals = scoring.totals(forward, params, _batch(kind))
    return totals["loss"] / totals["weight"]

  value, gradient = loss(params)
  return float(value), float(optax.tree.norm(gradient))


def _assert_same_loss(name, kind, mesh, looped):
  compiled, _, state = _compiled(name, kind, mesh, 32, looped)
  arguments = state, _batch(kind), jnp.int32(1)
  arguments = jax.device_put(arguments, compiled.input_shardings[0])
  values = compiled(*arguments)[1]
  found = [float(values[k]) for k in ("loss", "gradient_norm")]
  np.testing.assert_allclose(found, _wanted(name, kind, looped), 1e-5)


def _bytes(collectives):
  return sum(c.times * c.bytes for c in collectives)


def _assert_gathered_twice(collectives, params):
  """Each matrix of a block: forward, and backward instead of being stored."""
  gathered = _bytes(c for c in collectives if c.kind == "all-gather")
  named = zip(tree.names(params), jax.tree.leaves(params), strict=True)
  in_blocks = sum(x.size for n, x in named if re.search("layer.*kernel", n))
  assert gathered >= 2 * 4 * in_blocks


def _assert_fully_sharded(name, kind, looped):
  """What FSDP is, next to data parallelism with the same batch."""
  few = _compiled(name, kind, FSDP, 8, looped)[1]
  compiled, many, state = _compiled(name, kind, FSDP, 32, looped)
  copies = _compiled(name, kind, DATA, 32, looped)[0]
  # What is communicated is parameters and gradients, not activations.
  assert _bytes(many) < 1.05 * _bytes(few)
  # Gathered forward and backward, and reduced. The compiler for CPUs reduces
  # to all devices what each then takes its part of; here that counts once, as
  # for the others, which fuse the two.
  size = sum(4 * x.size for x in jax.tree.leaves(state["params"]))
  assert _bytes(many) < 3.3 * size
  # What was gathered is more than the copies hold, and the gradients of that.
  memory = [c.memory_analysis().temp_size_in_bytes for c in (compiled, copies)]
  assert memory[0] < memory[1] + 1.4 * size
  _assert_gathered_twice(many, state["params"])
  flops = [cost.flops(hlo.Program(c.as_text())) for c in (compiled, copies)]
  assert flops[0] == pytest.approx(flops[1], rel=0.02)
  _assert_same_loss(name, kind, FSDP, looped)


@pytest.mark.slow
def test_fsdp_gathers_layers_and_keeps_the_batch_where_it_is():
  _assert_fully_sharded("llama", "lm", True)


def test_what_is_counted_is_what_the_sizes_give():
  compiled, found, state = _compiled("llama", "lm", FSDP, 32, True)
  width, mlp, depth, vocabulary = 64, 192, _depth("llama"), 256
  blocks = depth * (4 * width**2 + 3 * width * mlp)
  table = vocabulary * width
  norms = (2 * depth + 1) * width
  assert sum(x.size for x in jax.tree.leaves(state["params"])) == (
    blocks + table + norms
  )
  # Forward 2 a parameter and token, backward 4; blocks 2 again, but for their
  # last product, which nothing in the backward pass needs.
  flops = 32 * LENGTH * (8 * blocks - 2 * depth * width * mlp + 6 * table)
  # The products of the scores: 2 forward, 2 again, and 4 backward.
  flops += 8 * 2 * depth * 32 * LENGTH**2 * width
  assert cost.flops(hlo.Program(compiled.as_text())) == flops / 8
  # Both uses of the tied embedding gather it, and reduce its gradient.
  gathered = [c for c in found if c.kind == "all-gather"]
  assert _bytes(gathered) == 4 * (2 * blocks + 2 * table)
  reduced = _bytes(found) - _bytes(gathered)
  assert reduced == pytest.approx(4 * (blocks + 2 * table + norms), rel=1e-3)


def test_what_is_gathered_is_not_stored_for_the_backward_pass():
  _, found, state = _compiled("encoder", "classification", FSDP, 8, False)
  _assert_gathered_twice(found, state["params"])


EVERY = [
  *((name, "classification") for name in ("encoder", "bert", "gemma2")),
  *((name, "lm") for name in ("decoder", "gpt2", "llama", "gemma2")),
]


@pytest.mark.slow
@pytest.mark.parametrize("looped", [False, True])
@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_every_architecture_is_fully_sharded(name, kind, looped):
  if looped and name in ("encoder", "decoder"):
    pytest.skip("the small models are never scanned")
  _assert_fully_sharded(name, kind, looped)


def _activation_sums(collectives):
  """Sums of activations [B, L, W] over tensor in the blocks, forward."""
  size = 4 * 32 // 2 * LENGTH * 64
  return sum(
    c.times * c.bytes / size
    for c in collectives
    if c.kind == "all-reduce"
    and "while/body" in c.name
    and "transpose" not in c.name
  )


def _assert_tensor_parallel(name, kind, looped):
  _, found, _ = _compiled(name, kind, TENSOR, 32, looped)
  assert {c.kind for c in found} <= {"all-reduce", "all-gather"}
  if looped:
    # Of attention and MLP. Backward, the compiler for CPUs sums
    # what queries, keys and values give one by one.
    assert _activation_sums(found) == pytest.approx(2 * _depth(name), abs=0.1)
  _assert_same_loss(name, kind, TENSOR, looped)


def test_tensor_parallel_blocks_sum_twice():
  _assert_tensor_parallel("llama", "lm", True)


@pytest.mark.slow
@pytest.mark.parametrize("looped", [False, True])
@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_every_architecture_is_tensor_parallel(name, kind, looped):
  if looped and name in ("encoder", "decoder"):
    pytest.skip("the small models are never scanned")
  _assert_tensor_parallel(name, kind, looped)


def test_heads_of_keys_and_values_bound_the_tensor_axis():
  mesh = sharding.make_mesh(_config("llama", (1, 1, 8), 8, False))
  placement = sharding.Placement(mesh)
  keys = jax.ShapeDtypeStruct((2, 4, 4, 8), "float32")
  names = ("batch", None, "kv_heads", None)
  with pytest.raises(
    settings.UserError, match=r"mesh.tensor is 8.*heads of keys and values, 4"
  ):
    jax.eval_shape(lambda x: placement.constrain(x, names), keys)


def test_on_one_device_models_are_computed_as_they_are():
  mesh = sharding.make_mesh(tiny.config(), jax.devices()[:1])
  with sharding.use(mesh):
    x = jnp.ones(3)
    assert partition.constrain(x, "batch") is x
    assert partition.gather(x, "bfloat16") is x
