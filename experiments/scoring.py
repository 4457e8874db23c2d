"""Loss and accuracy of a set of parameters on a split of the data."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import (
  data,
  distributed,
  feedback,
  finetune,
  models,
  sharding,
)
from experiments.models import functional, losses


def totals(
  forward, params, batch, *, teacher: Any = None, part: float = 0.0
) -> dict[str, jax.Array]:
  """Sums over the targets of a batch: cross entropy in nats, hits, weight.

  Args:
    forward: a `functional.Forward`, or any (params, tokens, mask) -> logits.
    params: of it.
    batch: see `data.Dataset`.
    teacher: parameters whose predictions are a part of the targets.
    part: see `losses.taught`; with more than 0, forward is a
      `functional.Forward`.
  """
  if part:
    arrays = [batch[name] for name in ("tokens", "mask", "targets")]
    models = forward.model(params), forward.model(teacher)
    entropies, hits = losses.taught(*models, part, *arrays)
    weights = batch["weights"]
  else:
    entropies, hits, weights = _losses(forward, params, batch)
  return {
    "loss": jnp.sum(entropies * weights),
    "accuracy": jnp.sum(hits * weights),
    "weight": jnp.sum(weights),
  }


def _losses(forward, params, batch):
  """Cross entropy, hit and weight of each target."""
  tokens, mask = batch["tokens"], batch["mask"]
  targets, weights = batch["targets"], batch["weights"]
  if isinstance(forward, functional.Forward):
    entropies, hits = forward.losses(params, tokens, mask, targets)
  else:
    logits = forward(params, tokens, mask)
    entropies, hits = losses.of_logits(logits, targets)
  return entropies, hits, weights


def scored(forward, params, batch):
  """`totals`, and the sums of products that `standard_error` needs."""
  entropies, hits, weights = _losses(forward, params, batch)
  rows = {"loss": entropies * weights, "accuracy": hits * weights}
  rows["weight"] = weights
  h, w = (
    jnp.sum(rows[k].reshape(len(weights), -1), axis=1)
    for k in ("accuracy", "weight")
  )
  products = {"hh": jnp.sum(h * h), "hw": jnp.sum(h * w), "ww": jnp.sum(w * w)}
  return {k: jnp.sum(x) for k, x in rows.items()} | products


def check_task(task: data.Task, model: Any, name: str) -> None:
  """Checks that a model has the tokens and the outputs that a task needs.

  Args:
    task: of the data.
    model: the config of the model.
    name: of the model, for errors.

  Raises:
    ValueError: it has not; the fields to change are named.
  """
  models.check_vocabulary(task, model, name)
  own = getattr(model, "num_labels", getattr(model, "num_classes", None)) or 0
  if (task.num_classes or 0) > own or (task.kind == "lm" and own):
    outputs = f"{own} classes" if own else "tokens"
    raise ValueError(
      f"{name} predicts {outputs}, but {task.name} has"
      f" {task.num_classes or 'no'} classes: config.data.language says whether"
      " the next tokens are predicted"
    )


def standard_error(total: Mapping[str, float]) -> float:
  """Of an accuracy: hits per weight, where an example may have many targets.

  Args:
    total: sums over the examples of "weight", the weight of an example's
      targets; "accuracy", that of its hits; and of the products "ww", "hw" and
      "hh" of the two.

  Source: Cochran, Sampling Techniques, 1977, chapter 6 (ratio estimates).
  """
  p = total["accuracy"] / total["weight"]
  squares = total["hh"] - 2 * p * total["hw"] + p * p * total["ww"]
  return math.sqrt(max(squares, 0.0)) / total["weight"]


@dataclasses.dataclass(frozen=True)
class Score:
  """(params, split) -> mean loss in nats, accuracy in [0, 1] and its error.

  One compiled function serves every set of parameters of the model.

  Attributes:
    function: (params, split) -> "loss", "accuracy" and "accuracy_error", the
      standard error of the accuracy.
    squares: (trained, count) -> every leaf's mean squared gradient, float32
      scalars: of the loss of each of the first `count` training batches. Of
      what is trained, see `finetune.split`; the params are the whole model.
    feedback: (params, steps, count, **options) -> the parameters that
      `feedback.quantize` makes with the first `count` training batches.
  """

  function: Callable[[Any, str], dict[str, float]]
  squares: Callable[[Any, int], Any]
  feedback: Callable[..., dict]

  def __call__(self, params: Any, split: str) -> dict[str, float]:
    return self.function(params, split)


def make_score(
  config: ml_collections.ConfigDict, forward, mesh: Mesh, base: Any = None
) -> Score:
  """The `Score` of the models of a config, with this base, on its data."""
  base = base or {}
  base = _put(base, sharding.parameters(base, mesh))
  replicated = NamedSharding(mesh, PartitionSpec())
  split_over_devices = NamedSharding(mesh, sharding.BATCH)

  def jit(function):
    return jax.jit(distributed.ordered(function), out_shardings=replicated)

  @jit
  def batch_totals(params, batch):
    with sharding.use(mesh):
      return scored(forward, params, batch)

  def mean_loss(trained, batch, base):
    params = finetune.merge(config.model, base, trained)
    sums = totals(forward, params, batch)
    return sums["loss"] / sums["weight"]

  @jit
  def mean_squares(trained, batch, base):
    with sharding.use(mesh):
      gradients = jax.grad(mean_loss)(trained, batch, base)
    return jax.tree.map(lambda g: jnp.mean(jnp.square(g)), gradients)

  def score(params, split):
    params = _put(params, sharding.parameters(params, mesh))
    total: collections.Counter[str] = collections.Counter()
    size = config.data.eval_batch_size
    for batch in data.eval_batches(config.data, split, size):
      sums = batch_totals(params, _put(batch, split_over_devices))
      with distributed.waiting(f"score the {split} split"):
        total.update({k: float(v) for k, v in sums.items()})
    found = {k: total[k] / total["weight"] for k in ("loss", "accuracy")}
    return found | {"accuracy_error": standard_error(total)}

  def training_batches(count):
    batches = data.train_dataset(
      config.data, seed=0, batch_size=config.data.batch_size
    )
    for batch in itertools.islice(batches, count):
      yield _put(batch, split_over_devices)

  def squares(trained, count):
    trained = _put(trained, sharding.parameters(trained, mesh))
    found = [
      mean_squares(trained, batch, base) for batch in training_batches(count)
    ]
    with distributed.waiting("measure the sensitivity"):
      found = jax.device_get(found)
    return jax.tree.map(lambda *x: np.mean(x), *found)

  def quantized(params, steps, count, **options):
    params = _put(params, sharding.parameters(params, mesh))
    with sharding.use(mesh):
      return feedback.quantize(
        forward, params, steps, training_batches(count), **options
      )

  return Score(score, squares, quantized)


def _put(values, shardings):
  """Arrays that every process has, on the devices; each sends its shards."""

  def put(x, s):
    if isinstance(x, jax.Array):
      return jax.device_put(x, s)
    return jax.make_array_from_callback(x.shape, s, x.__getitem__)

  if isinstance(shardings, NamedSharding):
    return jax.tree.map(lambda x: put(x, shardings), values)
  return jax.tree.map(put, values, shardings)
