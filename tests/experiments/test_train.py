"""The training step, the chain of its optimizer, and what stops a run."""

import functools
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import backslash_jax as bs
from backslash_jax import tree
from experiments import (
  cells,
  data,
  finite,
  learner,
  main,
  metrics,
  optimizer,
  scoring,
  settings,
  sharding,
  train,
)
from tests import tiny

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def problem():
  """Forward function, parameters and a batch of the tiny experiment."""
  config = tiny.config()
  forward, params = learner.build(config, data.load_task(config.data))
  params = jax.device_get(params)  # Steps give device arrays away.
  batch = next(iter(data.train_dataset(config.data, seed=0, batch_size=16)))
  return forward, params, batch


@functools.cache
def _compiled(devices, round_step):
  """The step on so many devices; compiling it takes seconds."""
  config = tiny.config(round_step=round_step)
  forward, params = learner.build(config, data.load_task(config.data))
  mesh = sharding.make_mesh(config, jax.devices()[:devices])
  state, step_fn = train._compile(config, forward, params, mesh)
  _, shard = train._batches(config, mesh)
  return jax.device_get(state), step_fn, shard


def _first_step(params, batch, *, devices=1, round_step=None):
  state, step_fn, shard = _compiled(devices, round_step)
  return step_fn(state | {"params": params}, jax.tree.map(shard, batch), 1)


@pytest.mark.slow
def test_step_does_not_depend_on_the_number_of_devices(problem):
  _, params, batch = problem
  one = _first_step(params, batch, devices=1)
  eight = _first_step(params, batch, devices=8)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)


def test_batches_are_split_over_devices_and_parameters_replicated(problem):
  _, params, batch = problem
  _, _, shard = _compiled(8, None)
  assert shard(batch["tokens"]).sharding.shard_shape((16, 128)) == (2, 128)
  state, _, _ = _first_step(params, batch, devices=8)
  assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(state))


@pytest.mark.slow
def test_round_step_shows_the_loss_the_quantized_model(problem):
  forward, params, batch = problem
  _, values, _ = _first_step(params, batch, round_step=2.0**-4)
  rounded = bs.round_through(params, 2.0**-4, mask=bs.matrices)
  totals = scoring.totals(forward, rounded, batch)
  np.testing.assert_allclose(
    values["loss"], totals["loss"] / totals["weight"], rtol=1e-5
  )


def _first_update(config, params, grads):
  tx = optimizer.create(config)
  return jax.jit(tx.update)(grads, tx.init(params), params)


def test_placement_decides_whether_adam_sees_the_rate(problem):
  _, params, _ = problem
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(0), len(leaves))
  grads = structure.unflatten(
    jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
  )
  fields = {"optimizer__warmup_updates": 0, "optimizer__clip_norm": 1e9}
  tx = bs.backslash(5.0, step=tiny.config().rate.step)
  zeros = jax.tree.map(jnp.zeros_like, params)
  rate, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
  normal, _ = _first_update(
    tiny.config(rate__lmbda=0.0, **fields), params, grads
  )

  config = tiny.config(rate__lmbda=5.0, rate__placement="decoupled", **fields)
  decoupled, _ = _first_update(config, params, grads)
  scale = -config.optimizer.learning_rate
  expected = jax.tree.map(lambda u, r: u + scale * r, normal, rate)
  for a, b in zip(
    jax.tree.leaves(decoupled), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-9)

  config = tiny.config(rate__lmbda=5.0, **fields)
  coupled, _ = _first_update(config, params, grads)
  both = jax.tree.map(jnp.add, grads, rate)
  expected, _ = _first_update(
    tiny.config(rate__lmbda=0.0, **fields), params, both
  )
  for a, b in zip(
    jax.tree.leaves(coupled), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-9)


def test_rate_is_measured_alike_with_and_without_the_rate_term(problem):
  _, params, _ = problem
  zeros = jax.tree.map(jnp.zeros_like, params)
  read = []
  for lmbda in (0.0, 5.0):
    config = tiny.config(rate__lmbda=lmbda)
    _, opt_state = _first_update(config, params, zeros)
    read.append(optimizer.rate_metrics(config, opt_state, params, 1))
    assert float(read[-1]["lmbda"]) == lmbda
  assert optax.tree.get(opt_state, "bits") == read[1]["bits"]
  np.testing.assert_allclose(read[0]["nu"], read[1]["nu"], rtol=1e-5)
  np.testing.assert_allclose(read[0]["bits"], read[1]["bits"], rtol=1e-5)


def test_divergence_names_the_tensor_that_is_not_finite(problem):
  _, params, batch = problem
  names = tree.names(params)
  leaves, structure = jax.tree.flatten(params)
  leaves[3] = np.full_like(leaves[3], np.nan)
  _, values, flags = _first_step(structure.unflatten(leaves), batch)
  message = finite.problem(7, values, flags, names)
  assert "update 7" in message
  assert f"parameters: {names[3]}\n" in message
  _, values, flags = _first_step(params, batch)
  assert finite.problem(1, values, flags, names) is None


@pytest.mark.slow
def test_divergence_stops_the_run_and_keeps_a_good_checkpoint(
  tmp_path, monkeypatch
):
  make_update = learner.make_update

  def make_breaking(*args, **kwargs):
    update_fn = make_update(*args, **kwargs)

    def breaking(state, batch, update, base):
      weights = jnp.where(update == 10, jnp.inf, batch["weights"])
      return update_fn(state, batch | {"weights": weights}, update, base)

    return breaking

  monkeypatch.setattr(learner, "make_update", make_breaking)
  with pytest.raises(
    settings.UserError, match="diverged at update 10"
  ) as caught:
    main.train_and_evaluate(tiny.config(), tmp_path)
  assert "gradients: " in str(caught.value)
  assert "the last good checkpoint, of update 8, is in" in str(caught.value)
  assert (tmp_path / "checkpoints" / "8").is_dir()
  updates = [r["update"] for r in metrics.read(tmp_path / "metrics.jsonl")]
  assert max(updates) == 8


def test_finished_run_is_not_repeated(tmp_path, monkeypatch, capsys):
  config = tiny.config()
  first = main.train_and_evaluate(config, tmp_path)
  records = (tmp_path / "metrics.jsonl").read_text()

  def forbidden(*args, **kwargs):
    raise AssertionError("trained or evaluated again")

  monkeypatch.setattr(metrics.Writer, "write", forbidden)
  monkeypatch.setattr(bs, "save", forbidden)
  second = main.train_and_evaluate(config, tmp_path)
  assert first == second == json.loads((tmp_path / "report.json").read_text())
  assert (tmp_path / "metrics.jsonl").read_text() == records
  # Off a terminal there is one line per log interval.
  lines = capsys.readouterr().out.splitlines()
  assert sum("left" in line for line in lines) == 6


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("total_updates", 0),
    ("data.batch_size", 12),
    ("data.batch_size", 8_000_000),
    ("data.eval_batch_size", 201),
    ("data.name", "no_such_task"),
    ("data.seq_len", 7),
    ("model.name", "no_such_model"),
    ("model.heads", 3),
    ("model.heads", 0),
    ("model.size", "base"),
    ("data.max_train", 8),
    ("optimizer.warmup_updates", 12),
    ("optimizer.learning_rate", float("nan")),
    ("rate.lmbda", -1.0),
    ("rate.rate", "no_such_rate"),
    ("rate.shape", 0.0),
    ("round_step", 0.0),
    ("evaluate.steps", (0.0,)),
    ("evaluate.levels", (7,)),
    ("evaluate.pruning_rates", (1.5,)),
    ("evaluate.coder", "zip"),
    ("baseline", "no_such_arm"),
  ],
)
def test_bad_value_is_named(tmp_path, field, value):
  config = tiny.config()
  with config.unlocked():
    config.arms.normal = {"rate": {"lmbda": 0.0}}
    config.update_from_flattened_dict({field: value})
  with pytest.raises(settings.UserError) as caught:
    main.train_and_evaluate(config, tmp_path)
  assert field in str(caught.value)
  assert str(value) in str(caught.value)


def test_arms_override_fields_and_the_baseline_comes_first(tmp_path):
  config = tiny.config(baseline="b")
  with config.unlocked():
    config.arms.a = {"rate": {"lmbda": 3}}
    config.arms.b = {"rate": {"lmbda": 0.0}}
  arms = cells.of_arms(config, tmp_path)
  assert list(arms) == ["b", "a"]
  assert [cell.config.rate.lmbda for cell in arms.values()] == [0.0, 3.0]
  assert [c.directory for c in arms.values()] == [
    tmp_path / "b",
    tmp_path / "a",
  ]
  with config.unlocked():
    config.arms.a = {"rate": {"lambda": 3}}
  with pytest.raises(settings.UserError, match=r"arms\.a.*lmbda"):
    settings.arms(config)


def test_workdir_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  workdir = tmp_path / "file" / "run"
  with pytest.raises(settings.UserError, match=str(workdir)):
    main.train_and_evaluate(tiny.config(), workdir)


def _main(*arguments):
  command = [sys.executable, "-m", "experiments.main", *arguments]
  return subprocess.run(command, capture_output=True, text=True, check=False)


def test_unknown_field_is_one_line(tmp_path):
  done = _main(
    "--config=configs/default.py",
    f"--workdir={tmp_path}",
    "--config.rate.lambda=1",
  )
  assert done.returncode == 1
  assert done.stderr.splitlines() == [
    "error: config.rate.lambda: configs/default.py has no such field;"
    " did you mean rate.lmbda?"
  ]


@pytest.mark.slow
def test_missing_config_is_one_line(tmp_path):
  done = _main("--config=no_such_file.py", f"--workdir={tmp_path}")
  assert done.returncode == 1
  line = "error: --config=no_such_file.py: there is no such file"
  assert done.stderr.splitlines()[-1] == line
  assert "Traceback (most recent call last)" not in done.stderr


@pytest.mark.parametrize(
  ("argument", "expected"),
  [
    ("--config.total_updatez=1", "config.total_updatez.*mean total_updates"),
    ("--config.total_updates=many", "the cause"),
    ("--config=no_such_file.py", "no_such_file.py"),
    ("--config=pyproject.toml", "pyproject.toml does not load"),
  ],
)
def test_bad_arguments_are_explained(argument, expected):
  argv = ["main", "--config=configs/default.py", "--workdir=x", argument]
  explained = main.explain_flags(argv, ValueError("the cause"))
  assert re.search(expected, explained)
