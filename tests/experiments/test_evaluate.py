"""Scores, code lengths, pruning, and the evaluation of a trained model."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backslash_jax as bs
from experiments import data, evaluate, lengths, scoring, settings, sharding
from tests import tiny

STEP = 2.0**-4
VOCABULARY = 256
CLASSES = 20


def _forward(params, tokens_BxL, mask_BxL):
  """Logits from counts of bytes: a model that compiles at once."""
  onehot_BxLxV = jax.nn.one_hot(tokens_BxL, VOCABULARY)
  counts_BxV = jnp.sum(onehot_BxLxV * mask_BxL[..., None], axis=1)
  logits_BxC = counts_BxV @ params["kernel"]
  return logits_BxC + jnp.broadcast_to(params["bias"], logits_BxC.shape)


@pytest.fixture(scope="module")
def params():
  rng = np.random.default_rng(0)
  kernel = rng.laplace(0.0, 0.2, (VOCABULARY, CLASSES))
  bias = rng.normal(0.0, 0.3, CLASSES)
  return {"kernel": np.float32(kernel), "bias": np.float32(bias)}


def _score(config):
  return scoring.make_score(config, _forward, sharding.make_mesh(config))


@pytest.fixture(scope="module")
def score():
  return _score(tiny.config())


def test_score_is_the_mean_over_the_split(params):
  config = tiny.config(data__eval_batch_size=96)  # Does not divide the split.
  (whole,) = data.eval_batches(
    config.data, "validation", _size(config, "validation")
  )
  logits = np.float64(_forward(params, whole["tokens"], whole["mask"]))
  targets = whole["targets"]
  hits = np.argmax(logits, axis=-1) == targets
  rows = np.arange(targets.size)
  losses = jax.nn.logsumexp(logits, axis=-1) - logits[rows, targets]
  found = _score(config)(params, "validation")
  assert found["accuracy"] == pytest.approx(hits.mean(), abs=1e-6)
  assert found["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
  error = hits.std() / math.sqrt(hits.size)
  assert found["accuracy_error"] == pytest.approx(error, rel=1e-4)


def test_targets_of_one_example_are_not_independent():
  """The error of an accuracy is that of its examples, not of its targets."""
  rng = np.random.default_rng(0)
  hits = np.repeat(rng.random((50, 1)) < 0.7, 8, axis=1)
  logits = jnp.stack([~hits, hits], axis=-1).astype(jnp.float32)
  batch = {
    "tokens": jnp.zeros((50, 8), jnp.int32),
    "mask": jnp.ones((50, 8), bool),
    "targets": jnp.ones((50, 8), jnp.int32),
    "weights": jnp.ones((50, 8)),
  }
  scored = scoring.scored(lambda *_: logits, {}, batch)
  error = scoring.standard_error({k: float(v) for k, v in scored.items()})
  assert error == pytest.approx(hits[:, 0].std() / math.sqrt(50), rel=1e-5)


def test_squares_are_the_mean_over_the_first_batches(params, score):
  config = tiny.config()
  batches = data.train_dataset(
    config.data, seed=0, batch_size=config.data.batch_size
  )
  expected = []
  for batch in itertools.islice(batches, 2):

    def loss(params, batch=batch):
      sums = scoring.totals(_forward, params, batch)
      return sums["loss"] / sums["weight"]

    gradient = jax.grad(loss)(params)["kernel"]
    expected.append(np.mean(np.square(gradient)))
  found = score.squares(params, 2)
  assert found.keys() == params.keys()
  np.testing.assert_allclose(found["kernel"], np.mean(expected), rtol=1e-4)


def test_a_file_may_have_steps_by_sensitivity(tmp_path, params):
  config = tiny.config(
    evaluate__sensitivity_batches=1,
    evaluate__steps=(0.25,),
    evaluate__pruning_rates=(),
  )
  two = {**params, "unused": np.full((8, 8), 0.5, np.float32)}
  evaluate.evaluate(config, tmp_path, "run", two, _score(config))
  tensors = bs.inspect(tmp_path / evaluate.SHIPPED).tensors
  steps = {t.name: t.step for t in tensors}
  assert steps["unused"] == pytest.approx(1.0)  # Twice its root mean square.
  assert 0 < steps["kernel"] <= 0.25


def _size(config, split):
  batches = data.eval_batches(config.data, split, 1000)
  return sum(int(np.sum(b["weights"])) for b in batches)


def test_totals_count_every_position_of_a_language_model():
  logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]]]))
  batch = {
    "tokens": jnp.zeros((1, 3), jnp.int32),
    "mask": jnp.ones((1, 3), bool),
    "targets": jnp.array([[1, 1, 1]]),
    "weights": jnp.array([[0.0, 1.0, 1.0]]),
  }
  totals = scoring.totals(lambda *_: logits, {}, batch)
  assert float(totals["weight"]) == 2.0
  assert float(totals["accuracy"]) == 1.0
  assert float(totals["loss"]) == pytest.approx(-math.log(0.75 * 0.1), 1e-6)


def _entropy(symbols):
  p = np.unique(symbols, return_counts=True)[1] / symbols.size
  return float(-(p * np.log2(p)).sum())


def test_code_lengths_bound_one_another():
  rng = np.random.default_rng(1)
  wide = rng.laplace(0.0, 0.5, (64, 80))
  narrow = rng.laplace(0.0, 0.02, (64, 16))
  symbols = [np.rint(x / STEP) for x in (wide, narrow)]
  params = {
    "wide": np.float32(symbols[0] * STEP),
    "narrow": np.float32(symbols[1] * STEP),
    "vector": np.float32(rng.normal(size=100)),  # Not quantized.
  }
  bits = lengths.code_lengths(params, STEP)
  pooled = np.concatenate([s.ravel() for s in symbols])
  assert bits["fixed"] == math.ceil(math.log2(np.unique(pooled).size))
  mean = sum(_entropy(s) * s.size for s in symbols) / pooled.size
  assert bits["entropy"] == pytest.approx(mean, rel=1e-9)
  assert mean < _entropy(pooled) <= bits["huffman"] < _entropy(pooled) + 1
  assert bits["huffman"] <= bits["exp_golomb"]
  assert bits["huffman"] <= bits["fixed"]


def test_exp_golomb_counts_frequency_ranks():
  # Ranks 0, 1, 2, 3 cost 1, 3, 3, 5 bits, whatever the values are.
  symbols = np.repeat([7.0, -3.0, 0.0, 9.0], [8, 4, 3, 1]).reshape(4, 4)
  bits = lengths.code_lengths({"w": np.float32(symbols * STEP)}, STEP)
  assert bits["exp_golomb"] == (8 * 1 + 4 * 3 + 3 * 3 + 1 * 5) / 16


def test_all_zeros_have_a_code_length():
  bits = lengths.code_lengths({"w": np.zeros((8, 8), np.float32)}, STEP)
  assert bits["fixed"] == bits["entropy"] == 0
  assert bits["exp_golomb"] == 1


def test_quantized_scores_are_of_the_file_that_is_shipped(
  params, score, tmp_path
):
  config = tiny.config(evaluate__tolerance=5.0)
  result = evaluate.evaluate(config, tmp_path, "run", params, score)
  assert result["parameters"] == (VOCABULARY + 1) * CLASSES
  assert result["matrix_parameters"] == VOCABULARY * CLASSES
  shipped = result["quantized"][result["shipped"]]
  file = tmp_path / evaluate.SHIPPED
  assert shipped["bytes"] == file.stat().st_size
  loaded = bs.load(file)
  assert shipped["test"] == score(loaded, "test")
  rounded = bs.round_through(params, shipped["step"], mask=bs.matrices)
  for name in params:
    np.testing.assert_array_equal(loaded[name], rounded[name])
  # No other coded file is left behind.
  assert [p.name for p in tmp_path.glob("*.safetensors")] == [file.name]
  exact = result["exact"]["test"]
  assert exact == score(params, "test") == result["pruned"][0]["test"]


def test_evaluation_is_kept_until_what_it_depends_on_changes(
  params, score, tmp_path
):
  config = tiny.config()
  first = evaluate.evaluate(config, tmp_path, "run", params, score)

  def forbidden(params, split):
    raise AssertionError("evaluated again")

  assert evaluate.evaluate(config, tmp_path, "", params, forbidden) == first
  finer = tiny.config(evaluate__steps=(2.0**-9,))
  other = params | {"bias": params["bias"] + 1}
  for new_config, new_params in ((finer, params), (config, other)):
    with pytest.raises(AssertionError, match="again"):
      evaluate.evaluate(new_config, tmp_path, "", new_params, forbidden)


def test_damaged_evaluation_is_measured_again(params, score, tmp_path):
  config = tiny.config(evaluate__steps=(STEP,), evaluate__pruning_rates=())
  first = evaluate.evaluate(config, tmp_path, "run", params, score)
  path = tmp_path / "evaluation.json"
  text = path.read_text()
  path.write_text(text[: len(text) // 2])
  assert evaluate.evaluate(config, tmp_path, "run", params, score) == first
  assert json.loads(path.read_text()) == json.loads(text)


@pytest.mark.parametrize(
  ("accuracies", "tolerance", "expected"),
  [
    ((0.70, 0.70, 0.698, 0.30), 0.5, 2),
    ((0.70, 0.70, 0.698, 0.30), 0.1, 1),
    ((0.60, 0.50, 0.40, 0.30), 0.5, 0),  # None is good enough: the finest.
    ((0.60, 0.70, 0.40, 0.72), 0.5, 3),
  ],
)
def test_coarsest_step_within_the_tolerance_is_shipped(
  accuracies, tolerance, expected
):
  config = tiny.config(evaluate__tolerance=tolerance)
  result = {
    "exact": {"validation": {"accuracy": 0.70}},
    # The test split must have no say.
    "quantized": [
      {"step": 2.0**k, "validation": {"accuracy": a}, "test": None}
      for k, a in enumerate(accuracies)
    ],
  }
  assert evaluate._choose(config, result) == expected


def test_pruning_zeros_the_smallest_of_all_matrices(params, score, tmp_path):
  config = tiny.config(evaluate__pruning_rates=(0.0, 0.8))
  result = evaluate.evaluate(config, tmp_path, "run", params, score)
  kernel = params["kernel"]
  smallest = np.quantile(np.abs(kernel), 0.8)
  kept = np.where(np.abs(kernel) > smallest, kernel, 0)
  wanted = [score(params | {"kernel": k}, "test") for k in (kernel, kept)]
  assert [p["test"] for p in result["pruned"]] == wanted


def test_directory_that_is_gone_is_named(params, score, tmp_path):
  directory = tmp_path / "gone"
  with pytest.raises(settings.UserError, match=str(directory)):
    evaluate.evaluate(tiny.config(), directory, "run", params, score)


def test_a_step_that_is_too_fine_for_a_tensor_is_named(params, score, tmp_path):
  large = jax.tree.map(lambda x: 1e4 * x, params)
  config = tiny.config(evaluate__steps=(2.0**-26,))
  with pytest.raises(settings.UserError, match=r"config\.evaluate .*kernel"):
    evaluate.evaluate(config, tmp_path, "run", large, score)
