"""Training: the loop, its exact resumption, and the report at its end."""

import contextlib
import functools
import pathlib
import signal
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import (
  checkpoint,
  data,
  distributed,
  evaluate,
  finite,
  interrupt,
  learner,
  metrics,
  optimizer,
  report,
  resume,
  scoring,
  settings,
  sharding,
)


def train_and_evaluate(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> dict[str, Any]:
  """Trains and evaluates every arm of config, then compares them.

  Goes on where an earlier call in the same workdir ended; what is finished
  is not done again.

  Args:
    config: as configs/default.py describes it.
    workdir: gets the checkpoints, metrics, coded files and the report.

  Returns:
    What report.json holds.

  Raises:
    UserError: what the user can mend, with the field or path it is about.
  """
  distributed.initialize(config)
  arms = settings.arms(config, workdir)
  resume.prepare_directory(workdir)
  mesh = sharding.make_mesh(config)
  runs, tasks = {}, []
  for name, (arm, directory) in arms.items():
    resume.prepare_directory(directory)
    task, forward, params = _load(arm)
    score = scoring.make_score(arm, forward, mesh)
    params, steps = train(arm, directory, name, forward, params, score, mesh)
    params = distributed.gather(params)
    result = evaluate.evaluate(arm, directory, name, params, score, steps)
    history = metrics.read(directory / "metrics.jsonl")
    runs[name] = report.Run(result, history, params)
    tasks.append(task.name)
  result = {}
  if distributed.is_main():
    result = report.write(runs, tasks[0], workdir)
  distributed.barrier("reported")  # Who leaves early ends the others.
  return result


def train(
  config: ml_collections.ConfigDict,
  directory: pathlib.Path,
  name: str,
  forward: learner.Forward,
  params: learner.Params,
  score: scoring.Score,
  mesh: Mesh,
) -> tuple[learner.Params, learner.Steps]:
  """Trains to config.total_steps; the parameters and `learner.fitted_steps`.

  Args:
    config: of this training.
    directory: of this training; it is resumed from its latest checkpoint.
    name: for the progress bar.
    forward: the model, from `learner.build`.
    params: the initial values.
    score: from `scoring.make_score`.
    mesh: from `sharding.make_mesh`.
  """
  total = config.total_steps
  names = finite.names(params)
  state, step_fn = _compile(config, forward, params, mesh)
  batches, shard = _batches(config, mesh)
  with contextlib.ExitStack() as stack:
    enter = stack.enter_context
    checkpoints = enter(
      checkpoint.Checkpoints(directory / "checkpoints", config.keep_checkpoints)
    )
    start = _start(config, directory, checkpoints)
    if start:
      state = checkpoints.restore(start, state, batches)
    writer = progress = metrics.Nowhere()
    if distributed.is_main():
      resume.save_config(config, directory)
      writer = enter(metrics.Writer(directory, start))
      progress = enter(metrics.Progress(name, start, total, config.log_every))
    signals = enter(interrupt.received())

    def record(step, values, flags):
      values, flags = jax.device_get((values, flags))
      values = {k: float(v) for k, v in values.items()}
      problem = finite.problem(step, values, flags, names)
      if problem:
        raise settings.UserError(f"{problem}\n{_last_good(checkpoints)}")
      progress.update(step, values)
      if step % config.log_every == 0 or step == total:
        writer.write(step, "train", values)

    pending = None
    for step in range(start + 1, total + 1):
      batch = jax.tree.map(shard, next(batches))
      state, values, flags = step_fn(state, batch, step)
      # While this step runs, look at the one before it.
      if pending:
        record(*pending)
      pending = step, values, flags
      last = step == total
      stop = signals or checkpoints.reached_preemption(step)
      evaluates = last or step % config.eval_every == 0
      saves = last or stop or step % config.checkpoint_every == 0
      if evaluates or saves:
        record(*pending)
        pending = None
      if evaluates:
        scores = score(state["params"], "validation")
        writer.write(step, "validation", scores)
      if saves:
        # First the records, so that a checkpoint never lacks its own.
        writer.flush()
        checkpoints.save(step, state, batches)
      if stop and not last:
        checkpoints.wait()
        raise interrupt.StoppedError(
          f"stopped by a signal after step {step} of {total}; the same command"
          f" goes on from the checkpoint in {checkpoints.directory}",
          *(signals or [signal.SIGTERM]),  # Which may be another process's.
        )
  steps = jax.device_get(learner.fitted_steps(config, state["opt_state"]))
  return state["params"], steps


def _load(config):
  """The task, and from `learner.build` its model."""
  try:
    task = data.load_task(config.data)
    return task, *learner.build(config, task)
  except (ValueError, OSError) as error:
    raise settings.UserError(str(error)) from error


def _compile(config, forward, params, mesh):
  """The initial state, where it lies on the mesh, and the jitted step."""
  placed = sharding.parameters(params, mesh)
  tx = optimizer.create(config, placed)
  shapes = jax.eval_shape(tx.init, params)
  placed_state = sharding.like(shapes, params, placed, mesh)
  params = jax.device_put(params, placed)
  opt_state = jax.jit(tx.init, out_shardings=placed_state)(params)
  replicated = NamedSharding(mesh, PartitionSpec())
  step_fn = jax.jit(
    learner.make_step(config, forward, tx),
    donate_argnums=0,
    out_shardings=(
      {"params": placed, "opt_state": placed_state},
      replicated,
      replicated,
    ),
  )
  return {"params": params, "opt_state": opt_state}, step_fn


def _batches(config, mesh):
  """This process's batches, and what places their arrays on the mesh."""
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


def _start(config, directory, checkpoints):
  """The step to resume after; 0 is the beginning."""
  step = checkpoints.latest_step
  if step is not None:
    resume.check_same(config, directory)
    return step
  records = metrics.read(directory / "metrics.jsonl")
  # The first may have been under way; before the second it was complete.
  if records and records[-1]["step"] > 2 * config.checkpoint_every:
    raise settings.UserError(
      f"{directory / 'metrics.jsonl'} goes to step {records[-1]['step']}, but"
      f" {checkpoints.directory} holds no checkpoint. Put the checkpoints"
      f" back, or delete {directory} to start over"
    )
  return 0


def _last_good(checkpoints):
  """What to do after divergence."""
  checkpoints.wait()
  step = checkpoints.latest_step
  kept = f"of step {step} is kept" if step else "was not reached"
  return (
    f"the last good checkpoint, in {checkpoints.directory}, {kept}; lower"
    " config.optimizer.learning_rate or config.rate.lmbda and train in a new"
    " --workdir"
  )
