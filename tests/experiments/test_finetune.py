"""Training the difference from pretrained weights, or adapters beside them."""

import os
import signal

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util

import backslash_jax as bs
from configs import default
from experiments import (
  cells,
  data,
  evaluate,
  finetune,
  interrupt,
  learner,
  main,
  metrics,
  optimizer,
  resume,
  settings,
)
from experiments.huggingface import weights
from experiments.models import from_config, llama, rotary
from tests import tiny

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
  """A directory with a language model, which has no head for classes."""
  return _pretrained(tmp_path_factory.mktemp("pretrained"), seed=3)


def _pretrained(directory, *, seed):
  config = llama.ModelConfig(
    vocab_size=260,
    width=16,
    depth=1,
    heads=2,
    kv_heads=1,
    mlp=16,
    max_positions=128,
    head_dim=8,
    positions=rotary.Rotary(1e4),
    tied=True,
  )
  weights.save(from_config(config, seed=seed), directory)
  return directory


_SIZES = default.get_config().model


def _config(directory, **fields):
  return tiny.config(
    **{
      "model__name": "llama",
      "model__weights": str(directory),
      # The weights say them.
      **{f"model__{f}": _SIZES[f] for f in ("depth", "width", "heads", "mlp")},
      "rate__lmbda": 0.0,
      "evaluate__pruning_rates": (),
    }
    | fields
  )


def _delta(directory, **fields):
  return _config(
    directory,
    model__delta=True,
    mesh__fsdp=2,
    rate__mask="all",
    round_bits=3.0,
    round_begin_update=4,
    evaluate__steps=(),
    evaluate__scales=(1.0,),
    **fields,
  )


def _parts(config):
  return learner.build_parts(config, data.load_task(config.data))


def _equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def finished(pretrained, tmp_path_factory):
  directory = tmp_path_factory.mktemp("finished")
  report = main.train_and_evaluate(_delta(pretrained), directory)
  return directory, report["evaluations"]["run"]


def test_what_is_trained_is_zero_except_for_the_new_head(pretrained):
  config = _config(pretrained)
  _, whole, _ = _parts(config)
  _, trained, base = _parts(_config(pretrained, model__delta=True))
  assert "score" not in base
  _equal(trained["score"], whole["score"])
  assert not any(np.any(x) for x in jax.tree.leaves(trained | {"score": {}}))
  _equal(finetune.merge(_delta(pretrained).model, base, trained), whole)
  # Adam's two moments are all that the optimizer keeps of this size.
  state = jax.eval_shape(optimizer.create(config).init, trained)
  size = sum(x.size for x in jax.tree.leaves(trained))
  assert sum(x.size for x in jax.tree.leaves(state)) < 2.1 * size


def test_adapters_start_at_the_pretrained_model(pretrained):
  config = _config(pretrained, model__lora=2)
  _, whole, _ = _parts(_config(pretrained))
  _, trained, base = _parts(config)
  flat = traverse_util.flatten_dict(trained, sep="/")
  prefix = "decoder/layer_0"
  assert flat[f"{prefix}/mlp/up/kernel/a"].shape == (16, 2)
  assert flat[f"{prefix}/attention/key/kernel/b"].shape == (2, 8)
  assert len(flat) == 2 * 7 + 1
  _equal(finetune.merge(config.model, base, trained), whole)
  flat[f"{prefix}/mlp/up/kernel/b"] = np.ones((2, 16), np.float32)
  moved = finetune.merge(
    config.model, base, traverse_util.unflatten_dict(flat, sep="/")
  )
  product = flat[f"{prefix}/mlp/up/kernel/a"].sum(1, keepdims=True)
  np.testing.assert_allclose(
    moved["decoder"]["layer_0"]["mlp"]["up"]["kernel"],
    whole["decoder"]["layer_0"]["mlp"]["up"]["kernel"] + 2 * product,
    rtol=1e-5,
  )


def test_the_result_is_the_difference(finished, pretrained):
  directory, evaluation = finished
  kept = bs.load(directory / cells.TRAINED)
  _, trained, _ = _parts(_delta(pretrained))
  assert jax.tree.structure(kept["params"]) == jax.tree.structure(trained)
  # Every vector has a step of its own.
  assert set(kept["steps"]) == set(traverse_util.flatten_dict(trained, sep="/"))
  assert evaluation["parameters"] > 16 * 260
  coded = bs.inspect(directory / evaluate.SHIPPED)
  assert all(t.step or t.kept for t in coded.tensors)


def test_a_stopped_fine_tune_resumes_exactly_and_on_its_base_alone(
  finished, pretrained, tmp_path, monkeypatch
):
  show = metrics.Progress.show

  def show_and_signal(self, update, values):
    show(self, update, values)
    if update == 5:
      os.kill(os.getpid(), signal.SIGTERM)

  run = tmp_path / "run"
  with monkeypatch.context() as patch:
    patch.setattr(metrics.Progress, "show", show_and_signal)
    with pytest.raises(interrupt.StoppedError):
      main.train_and_evaluate(_delta(pretrained), run)
  content = {
    path: path.read_bytes() for path in pretrained.iterdir() if path.is_file()
  }
  _pretrained(pretrained, seed=4)
  with pytest.raises(settings.UserError, match="a fine-tune of other weights"):
    main.train_and_evaluate(_delta(pretrained), run)
  with pytest.raises(settings.UserError, match="a fine-tune of other weights"):
    main.train_and_evaluate(_delta(pretrained), finished[0])
  for path, old in content.items():
    path.write_bytes(old)
  main.train_and_evaluate(_delta(pretrained), run)
  for name in ("metrics.jsonl", cells.TRAINED, evaluate.SHIPPED):
    assert (run / name).read_bytes() == (finished[0] / name).read_bytes()


def _language(directory, **fields):
  return _config(directory, data__name="python_stdlib/bytes", **fields)


@pytest.mark.parametrize(
  "part", [1.0, pytest.param(0.25, marks=pytest.mark.slow)]
)
def test_distillation_is_a_part_of_the_loss(pretrained, part):
  config = _language(pretrained, model__distill=part)
  forward, trained, base = _parts(config)
  _equal(trained, base)
  batch = next(iter(data.train_dataset(config.data, seed=0, batch_size=4)))
  tx = optax.sgd(0.0)
  update = jax.jit(learner.make_update(config, forward, tx, measure_rate=False))

  def measured(params):
    state = {"params": params, "opt_state": tx.init(params)}
    return update(state, batch, 1, base)[1]

  moved = jax.tree.map(lambda x: 1.1 * x, base)
  wanted, found = (
    jax.nn.log_softmax(forward(params, batch["tokens"], batch["mask"]))
    for params in (base, moved)
  )
  weights = batch["weights"]
  taught = np.average(-np.sum(np.exp(wanted) * found, -1), weights=weights)
  right = np.take_along_axis(found, batch["targets"][..., None], -1)[..., 0]
  plain = np.average(-right, weights=weights)
  np.testing.assert_allclose(
    measured(moved)["loss"], (1 - part) * plain + part * taught, rtol=1e-4
  )
  if part == 1:  # The base itself cannot come nearer to its predictions.
    assert measured(base)["gradient_norm"] < 1e-3


@pytest.mark.slow
def test_a_training_with_distillation_leaves_its_base_as_it_was(
  pretrained, tmp_path
):
  config = _language(pretrained, model__distill=0.5, data__max_eval=32)
  main.train_and_evaluate(config, tmp_path)
  _, initial, _ = _parts(_language(pretrained))
  resume.check_base(config, initial, tmp_path)
  kept = bs.load(tmp_path / cells.TRAINED)["params"]
  assert any(
    map(np.any, jax.tree.leaves(jax.tree.map(np.subtract, kept, initial)))
  )


def test_distillation_needs_a_head(pretrained):
  with pytest.raises(ValueError, match=r"it lacks score/kernel"):
    _parts(_config(pretrained, model__distill=0.5))


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      {"model__distill": 0.5},
      "config.model.distill is 0.5, wanted config.model",
    ),
    ({"model__delta": True}, "config.model.delta is True, wanted config.model"),
    ({"model__lora": 4}, "config.model.lora is 4, wanted config.model.weights"),
    (
      {
        "model__name": "llama",
        "model__weights": "x",
        "model__delta": True,
        "model__lora": 4,
      },
      "config.model.delta is True, wanted it unset, because config.model.lora",
    ),
  ],
)
def test_fields_that_do_not_fit_are_named(fields, message):
  with pytest.raises(settings.UserError, match=message):
    settings.check(tiny.config(**fields))
