"""What the fields of a config make of the chain and of the loss."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

import backslash_jax as bs
from configs import default
from experiments import (
  evaluate,
  fields,
  learner,
  metrics,
  optimizer,
  settings,
)
from tests import tiny

KEY = jax.random.key(0)
PARAMS = {
  "a": {"kernel": jax.random.normal(KEY, (24, 16)) * 0.2},
  "b": {"kernel": jax.random.normal(KEY, (16, 4)) * 0.5, "bias": jnp.zeros(4)},
}
BATCH = {
  "tokens": jax.random.normal(KEY, (32, 24)),
  "mask": jnp.ones((32, 24), bool),
  "targets": jnp.arange(32) % 4,
  "weights": jnp.ones(32),
}


def _forward(params, tokens, mask):
  del mask
  return (
    jnp.tanh(tokens @ params["a"]["kernel"]) @ params["b"]["kernel"]
    + params["b"]["bias"][None]
  )


def _config(**fields):
  return tiny.config(**{"rate__lmbda": 0.0} | fields)


def _train(config, steps=12):
  """Optimizer states and parameters, without the metrics of a real step."""
  tx = optimizer.create(config)

  @jax.jit
  def step(params, opt_state):
    updates, opt_state = tx.update(params, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  params, opt_state = PARAMS, tx.init(PARAMS)
  states, history = [], [params]
  for _ in range(steps):
    params, opt_state = step(params, opt_state)
    states.append(opt_state)
    history.append(params)
  return states, history


def _lmbdas(config):
  return [float(optax.tree.get(s, "lmbda")) for s in _train(config)[0]]


def _zeros(params):
  return params["a"]["kernel"] == 0


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_sgd_is_algorithm_1_as_it_is_written(momentum):
  config = _config(
    optimizer__name="sgd",
    optimizer__b1=momentum,
    optimizer__warmup_updates=0,
    optimizer__clip_norm=1e9,
    rate__lmbda=448.0,
    rate__shape=1.0,
    rate__epsilon=0.0,
  )
  _, history = _train(config, steps=2)
  heavy = 0.0
  for t, (before, after) in enumerate(itertools.pairwise(history)):
    x = np.asarray(before["a"]["kernel"])  # Its task's gradient is itself.
    heavy = momentum * heavy + x + np.sign(x)
    wanted = x - optimizer.schedule(config)(t) * heavy
    np.testing.assert_allclose(after["a"]["kernel"], wanted, rtol=1e-5)


def test_balance_is_a_fraction_of_the_clipped_gradient():
  config = _config(
    rate__balance=0.5, rate__shape=1.0, optimizer__clip_norm=0.25
  )
  # The gradient of L1 has the norm of a vector of 448 times 1 / 448.
  wanted = 0.5 * 0.25 * 448**0.5
  np.testing.assert_allclose(_lmbdas(config), wanted, rtol=1e-4)


def test_a_target_is_logged_with_whether_it_is_met(capsys):
  config = _config(rate__target=0.01, optimizer__learning_rate=1e-8)
  tx = optimizer.create(config)
  update_fn = jax.jit(learner.make_update(config, _forward, tx))
  state = {"params": PARAMS, "opt_state": tx.init(PARAMS)}
  progress = metrics.Progress("arm", 0, 600, 600)
  for update in range(1, 601):
    state, values, _ = update_fn(state, BATCH, update)
    values = {k: float(v) for k, v in values.items()}
    progress.show(update, values)
  assert values["unmet"] > 60
  assert capsys.readouterr().out.count("the target was missed") == 1


def test_the_rate_stops():
  config = _config(rate__lmbda=2.0, rate__stop_update=8)
  assert _lmbdas(config) == 8 * [2.0] + 4 * [0.0]


def test_zeros_of_the_rate_are_kept_in_the_plain_phase():
  config = _config(
    rate__lmbda=2.0, rate__stop_update=6, rate__keep_zeros=True, rate__step=0.25
  )
  _, history = _train(config)
  zeros = jnp.abs(history[6]["a"]["kernel"]) <= 0.125
  assert jnp.sum(zeros) > 0
  np.testing.assert_array_equal(_zeros(history[7]), zeros)
  np.testing.assert_array_equal(_zeros(history[12]), zeros)


def test_the_released_form_adds_what_the_learning_rate_does_not_scale():
  fields = {"rate__epsilon": 1.0, "rate__mask": "all", "rate__lmbda": 3.0}
  config = _config(rate__placement="unscaled", **fields)
  tx = optimizer.create(config)
  grads = jax.tree.map(jnp.zeros_like, PARAMS)
  updates, _ = jax.jit(tx.update)(grads, tx.init(PARAMS), PARAMS)
  rate = bs.backslash(3.0, epsilon=1.0, mask=None)
  wanted, _ = jax.jit(rate.update)(grads, rate.init(PARAMS), PARAMS)
  jax.tree.map(
    lambda u, w: np.testing.assert_allclose(u, -w, rtol=1e-6), updates, wanted
  )


def test_pruning_ends_with_its_sparsity():
  config = _config(
    prune__sparsity=0.5,
    prune__begin_update=1,
    prune__end_update=8,
    prune__every=2,
  )
  _, history = _train(config)
  assert jnp.mean(_zeros(history[-1])) == pytest.approx(0.5, abs=0.01)
  assert jnp.mean(_zeros(history[1])) == 0


def _seen(step=1, **fields):
  seen = learner._seen_by_loss(_config(**fields), PARAMS, (), step)
  return seen["a"]["kernel"]


def _quantized(config, directory, score):
  """What is measured of PARAMS, coded as config.evaluate says."""
  params = jax.device_get(PARAMS)
  ((label, steps),) = evaluate._quantizers(config, params, score, {})
  file = directory / "file"
  return label | evaluate._quantized(
    config, file, params, score, steps, lambda trained: trained
  )


def test_until_it_starts_the_loss_sees_the_exact_parameters():
  fields = {"round_step": 0.25, "round_begin_update": 3}
  np.testing.assert_array_equal(_seen(3, **fields), PARAMS["a"]["kernel"])
  np.testing.assert_array_equal(_seen(4, **fields), _seen(round_step=0.25))


def test_fitted_steps_are_those_of_the_loss_and_of_the_file(tmp_path):
  config = _config(
    round_bits=2.0,
    round_begin_update=4,
    evaluate__steps=(),
    evaluate__scales=(1.0,),
  )
  states, history = _train(config)
  opt_state = states[-1]
  steps = learner.fitted_steps(config, opt_state)
  assert list(steps) == ["a/kernel", "b/kernel"]
  shown = {}

  def score(params, split):
    shown[split] = params
    return {"accuracy": 0.0, "loss": 0.0}

  params = jax.device_get(history[-1])
  result = evaluate.evaluate(config, tmp_path, "run", params, score, steps)
  assert result["quantized"][0]["scale"] == 1.0
  assert 1.0 < result["quantized"][0]["bits"]["entropy"] < 3.0
  seen = learner._seen_by_loss(config, params, opt_state, 12)
  jax.tree.map(
    lambda x, q: np.testing.assert_allclose(x, q, rtol=1e-6),
    seen,
    bs.load(tmp_path / evaluate.SHIPPED),
  )


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_loss_sees_what_is_coded_after_quantization_aware_training(
  bits, tmp_path
):
  levels = 2 ** (bits - 1) - 1
  config = _config(
    evaluate__steps=(), evaluate__levels=(levels,), quantize_bits=bits
  )
  shown = {}

  def score(params, split):
    shown[split] = params
    return {"accuracy": 0.0, "loss": 0.0}

  params = jax.device_get(PARAMS)
  result = _quantized(config, tmp_path, score)
  coded = shown["test"]
  for name in ("a", "b"):
    x, q = params[name]["kernel"], coded[name]["kernel"]
    assert np.unique(np.abs(q)).size <= levels + 1
    assert np.abs(q).max() == pytest.approx(np.abs(x).max(), rel=1e-6)
  assert result["bits"]["entropy"] <= np.log2(2 * levels + 1)
  seen = learner._seen_by_loss(config, PARAMS, (), 1)
  jax.tree.map(
    lambda x, q: np.testing.assert_allclose(x, q, rtol=1e-6), seen, coded
  )


def test_the_gradient_passes_straight_through_quantization():
  def loss(params):
    seen = learner._seen_by_loss(_config(quantize_bits=2), params, (), 1)
    return sum(jnp.sum(3.0 * x) for x in jax.tree.leaves(seen))

  for x in jax.tree.leaves(jax.grad(loss)(PARAMS)):
    np.testing.assert_array_equal(x, 3.0)


def test_rate_distortion_optimized_quantization_makes_smaller_files(tmp_path):
  sizes = []
  for mu in (0.0, 0.3):
    config = _config(evaluate__mu=mu, evaluate__steps=(2.0**-5,))
    result = _quantized(config, tmp_path, lambda params, split: {})
    sizes.append(result["bits"]["entropy"])
  assert sizes[1] < sizes[0]


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      {"rate__lmbda": 1.0, "rate__balance": 2.0},
      r"rate\.lmbda is 1\.0, wanted it unset.*rate\.balance is 2\.0",
    ),
    ({"rate__lmbda": 1.0, "rate__target": 2.0}, r"rate\.lmbda is 1\.0"),
    ({"round_step": 0.1, "quantize_bits": 4}, r"round_step is 0\.1"),
    ({"round_begin_update": 4}, r"round_begin_update is 4"),
    ({"rate__limit": 0.3}, r"rate\.limit is 0\.3, wanted config\.rate\.target"),
    ({"rate__stop_update": 4}, r"rate\.stop_update is 4"),
    ({"round_bits": 2.0}, r"wanted config\.evaluate\.scales alone"),
    ({"evaluate__steps": ()}, r"evaluate\.steps is \(\)"),
    (
      {"evaluate__scales": (1.0,)},
      r"wanted config\.evaluate\.steps or config\.evaluate\.levels alone",
    ),
    ({"model__weights": "dir"}, r"model\.weights is 'dir'"),
    (
      {"round_bits": 2.0, "rate__balance": 1.0, "rate__placement": "decoupled"},
      r"rate\.placement is 'decoupled'",
    ),
    ({"quantize_bits": 1}, r"quantize_bits is 1"),
    ({"round_bits": 40.0}, r"round_bits is 40\.0"),
    ({"round_bits": 2.0, "quantize_bits": 4}, r"round_bits is 2\.0"),
    (
      {"round_bits": 2.0, "round_begin_update": 1000},
      r"round_begin_update is 1000",
    ),
    ({"rate__target": 40.0}, r"rate\.target is 40\.0"),
    ({"rate__keep_zeros": True}, r"rate\.stop_update"),
    ({"prune__sparsity": 1.0}, r"prune\.sparsity is 1\.0"),
    (
      {"prune__sparsity": 0.5, "prune__begin_update": 700},
      r"prune\.begin_update is 700",
    ),
    ({"rate__placement": "beside"}, r"rate\.placement is 'beside'"),
    ({"prune__sparsity": 0.5}, r"prune\.end_update is 700, wanted at most"),
    ({"prune__begin_update": 3}, r"begin_update is 3.*prune\.sparsity with"),
    ({"rate__lmbda": 1.0, "rate__stop_update": 12}, r"12, wanted less than"),
    ({"model__dtype": "float16"}, r"dtype is 'float16', wanted one of"),
    ({"model__dropout": 0.1}, r"dropout is 0\.1, wanted 0: the models"),
    ({"model__scan": True}, r"model\.scan is True, wanted.*'encoder'"),
    ({"model__remat": True}, r"model\.remat is True, wanted.*'encoder'"),
    ({"distributed__processes": 2}, r"processes is 2.*distributed\.enable"),
    ({"distributed__coordinator": "a:1"}, r"'a:1'.*distributed\.enable"),
  ],
)
def test_fields_that_do_not_go_together_are_named(fields, message):
  with pytest.raises(settings.UserError, match=message):
    settings.check(_config(**fields))


def test_baseline_without_arms_is_named():
  with pytest.raises(settings.UserError, match="baseline is 'foo'"):
    settings.arms(tiny.config(baseline="foo"))


def test_every_field_is_checked():
  known = traverse_util.flatten_dict(default.get_config().to_dict(), sep=".")
  assert known.keys() - {"arms"} == fields.FIELDS.keys()
