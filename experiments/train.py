"""The training loop and its exact resumption."""

import contextlib
import functools
import pathlib
import signal

import jax
import ml_collections
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from backslash_jax import tree
from experiments import (
  checkpoint,
  data,
  distributed,
  finetune,
  finite,
  interrupt,
  learner,
  metrics,
  optimizer,
  resume,
  scoring,
  settings,
  sharding,
)


def train(
  config: ml_collections.ConfigDict,
  directory: pathlib.Path,
  name: str,
  forward: learner.Forward,
  params: learner.Params,
  score: scoring.Score,
  mesh: Mesh,
  base: learner.Params | None = None,
) -> tuple[learner.Params, learner.Steps]:
  """Trains to config.total_updates.

  Args:
    config: of this training.
    directory: of this training, which is resumed from its latest checkpoint.
    name: for the progress bar.
    forward: the model, from `learner.build`.
    params: the initial values.
    score: from `scoring.make_score`.
    mesh: from `sharding.make_mesh`.
    base: the weights that are not trained, see `finetune.split`.

  Returns:
    The trained parameters, and the quantization steps that training chose, by
    name; see `learner.fitted_steps`.

  Raises:
    UserError: training diverged, or cannot read or write in the directory.
    StoppedError: a signal stopped it, after a checkpoint.
  """
  total = config.total_updates
  names = tree.names(params)
  state, update_fn = _compile(config, forward, params, mesh)
  base = base or {}
  placed = jax.device_put(base, sharding.parameters(base, mesh))
  merge = jax.jit(functools.partial(finetune.merge, config.model))
  batches, shard = _batches(config, mesh)
  with contextlib.ExitStack() as stack:
    enter = stack.enter_context
    checkpoints = enter(
      checkpoint.Checkpoints(directory / "checkpoints", config.keep_checkpoints)
    )
    start = _start(config, directory, checkpoints, base)
    if start:
      state = checkpoints.restore(start, state, batches)
    writer = progress = metrics.Nowhere()
    if distributed.is_main():
      resume.save_config(config, directory)
      resume.save_base(base, directory)
      writer = enter(metrics.Writer(directory, start))
      progress = enter(metrics.Progress(name, start, total, config.log_every))
    signals = enter(interrupt.received())

    def record(update, values, flags):
      with distributed.waiting(f"finish update {update}"):
        values, flags = jax.device_get((values, flags))
      values = {k: float(v) for k, v in values.items()}
      problem = finite.problem(update, values, flags, names)
      if problem:
        raise settings.UserError(f"{problem}\n{_last_good(checkpoints)}")
      progress.show(update, values)
      if update % config.log_every == 0 or update == total:
        writer.write(update, "train", values)

    pending = None
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    for update in range(start + 1, total + 1):
      batch = jax.tree.map(shard, next(batches))
      if pending and on_cpu:
        # An update that waits for another would have its memory already.
        record(*pending)
        pending = None
      state, values, flags = update_fn(state, batch, update, placed)
      # While this update runs, look at the one before it.
      if pending:
        record(*pending)
      pending = update, values, flags
      last = update == total
      stop = signals or checkpoints.reached_preemption()
      evaluates = last or update % config.eval_every == 0
      saves = last or stop or update % config.checkpoint_every == 0
      if evaluates or saves:
        record(*pending)
        pending = None
      if evaluates:
        scores = score(merge(placed, state["params"]), "validation")
        writer.write(update, "validation", scores)
      if saves:
        # The records come first: a checkpoint never lacks its own.
        writer.flush()
        checkpoints.save(update, state, batches)
      if stop and not last:
        checkpoints.wait()
        raise interrupt.StoppedError(
          f"stopped by a signal after update {update} of {total}; the same"
          f" command resumes from the checkpoint in {checkpoints.directory}",
          # Another process may have got the signal.
          *(signals or [signal.SIGTERM]),
        )
  steps = jax.device_get(learner.fitted_steps(config, state["opt_state"]))
  return state["params"], steps


def _compile(config, forward, params, mesh):
  """The initial state, placed on the mesh, and the jitted update."""
  placed = sharding.parameters(params, mesh)
  tx = optimizer.create(config, placed)
  shapes = jax.eval_shape(tx.init, params)
  placed_state = sharding.like(shapes, params, placed, mesh)
  params = jax.device_put(params, placed)
  opt_state = jax.jit(tx.init, out_shardings=placed_state)(params)
  replicated = NamedSharding(mesh, PartitionSpec())
  update_fn = jax.jit(
    distributed.ordered(learner.make_update(config, forward, tx, mesh=mesh)),
    donate_argnums=0,
    out_shardings=(
      {"params": placed, "opt_state": placed_state},
      replicated,
      replicated,
    ),
  )
  return {"params": params, "opt_state": opt_state}, update_fn


def _batches(config, mesh):
  """The batches of this process, and a function that places their arrays."""
  processes = jax.process_count()
  dataset = data.train_dataset(
    config.data,
    seed=config.seed,
    batch_size=config.data.batch_size // processes,
    process_index=jax.process_index(),
    process_count=processes,
  )
  shard = functools.partial(
    jax.make_array_from_process_local_data,
    NamedSharding(mesh, sharding.BATCH),
  )
  return iter(dataset), shard


def _start(config, directory, checkpoints, base):
  """The update to resume after; 0 starts from the beginning."""
  update = checkpoints.latest_update
  if update is not None:
    resume.check_same(config, directory)
    resume.check_base(config, base, directory)
    return update
  records = metrics.read(directory / "metrics.jsonl")
  # A run may be killed while it writes its first checkpoint. Once it has begun
  # the second, the first is complete.
  if records and records[-1]["update"] > 2 * config.checkpoint_every:
    raise settings.UserError(
      f"{directory / 'metrics.jsonl'} goes to update {records[-1]['update']},"
      f" but {checkpoints.directory} holds no checkpoint. Put the checkpoints"
      f" back, or delete {directory} to start over"
    )
  return 0


def _last_good(checkpoints):
  """Advice after divergence."""
  checkpoints.wait()
  update = checkpoints.latest_update
  kept = (
    f"the last good checkpoint, of update {update}, is in"
    if update
    else "no checkpoint was reached in"
  )
  return (
    f"{kept} {checkpoints.directory}; lower config.optimizer.learning_rate or"
    " config.rate.lmbda, and train in a new --workdir"
  )
