"""A model quantized with error feedback, block by block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backslash_jax as bs
from backslash_jax import feedback as layer_feedback
from backslash_jax import quantize as quantizers
from backslash_jax import tree
from experiments import (
  data,
  evaluate,
  feedback,
  models,
  scoring,
  settings,
  sharding,
)
from experiments.huggingface import weights
from experiments.models import functional
from tests import paths, tiny

STEP = 2.0**-5


def _model(name):
  return functional.split(weights.load(paths.FIXTURES / name))


def _batches(count=2, size=8, length=12):
  rng = np.random.default_rng(0)
  mask = (
    np.arange(length) < rng.integers(4, length + 1, (count, size))[..., None]
  )
  tokens = rng.integers(3, 60, (count, size, length)).astype(np.int32)
  return [
    {"tokens": np.where(m, t, 0), "mask": m}
    for t, m in zip(tokens, mask, strict=True)
  ]


def _kernels(params):
  return {n: x for n, x in tree.selected(params).items() if "kernel" in n}


@pytest.mark.parametrize(
  "name",
  [
    "bert",
    "llama",
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in ("gpt2", "llama_classifier", "gemma2", "deepseek")
    ),
  ],
)
def test_every_matrix_of_an_architecture_is_quantized(name):
  forward, params = _model(name)
  found = feedback.quantize(forward, params, STEP, _batches())
  assert jax.tree.structure(found) == jax.tree.structure(params)
  rounded = tree.selected(quantizers.apply(params, STEP))
  matrices = tree.selected(found)
  tied = "word/embedding" if name in ("gpt2", "gemma2") else None
  for key, x in matrices.items():
    levels = np.asarray(x) / STEP
    np.testing.assert_array_equal(levels, np.rint(levels))
    # Only what multiplies inputs can correct an error with other inputs.
    same = np.array_equal(x, rounded[key])
    assert same == ("embedding" in key and key != tied), key
  for key, x in tree.named_leaves(found):
    if key not in matrices:
      np.testing.assert_array_equal(x, dict(tree.named_leaves(params))[key])


def test_a_block_is_quantized_with_what_the_quantized_blocks_before_give():
  forward, params = _model("llama")
  batches = _batches()
  found = feedback.quantize(forward, params, STEP, batches)
  blocks = found["decoder"]
  mixed = params | {
    "decoder": params["decoder"] | {"layer_0": blocks["layer_0"]}
  }
  moments = 0.0
  for batch in batches:
    x = _seen_by(forward, mixed, 1, batch)
    moments += layer_feedback.second_moments(x, jnp.asarray(batch["mask"]))
  kernel = params["decoder"]["layer_1"]["attention"]["query"]["kernel"]
  wanted = layer_feedback.quantize(kernel, moments, STEP)
  np.testing.assert_array_equal(
    blocks["layer_1"]["attention"]["query"]["kernel"], wanted * STEP
  )


def test_a_call_that_was_stopped_goes_on_after_its_last_block(
  tmp_path, monkeypatch
):
  forward, params = _model("llama")
  batches, quantized = _batches(), []
  wanted = feedback.quantize(forward, params, STEP, batches)

  def run(stop=None, **options):
    quantized.clear()
    levels = layer_feedback.quantize

    def counted(weights, *arguments, **more):
      quantized.append(weights.shape)
      if len(quantized) == stop:
        raise KeyboardInterrupt
      return levels(weights, *arguments, **more)

    with monkeypatch.context() as patch:
      patch.setattr(layer_feedback, "quantize", counted)
      return feedback.quantize(
        forward, params, STEP, batches, kept=tmp_path, **options
      )

  with pytest.raises(KeyboardInterrupt):
    run(stop=9)  # A block has seven matrices.
  assert [p.name for p in tmp_path.glob("*/*")] == ["block_0.safetensors"]
  found = run()
  assert len(quantized) == 7 + 1  # And the head.
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
  jax.tree.map(np.testing.assert_array_equal, run(), wanted)
  assert not quantized
  run(mu=0.1)  # Other levels: nothing of them is kept.
  assert len(quantized) == 2 * 7 + 1


def _seen_by(forward, params, block, batch):
  """The inputs of the attention of a block of a Llama."""
  model = feedback._model(forward, params)
  layer, seen = getattr(model.decoder, f"layer_{block}"), []
  norm = layer.attention_norm
  x, masks = feedback._entry(forward, "decoder", params, batch)
  for i in range(block):
    x, _ = getattr(model.decoder, f"layer_{i}")(x, masks[i])
  seen.append(norm(x))
  return seen[0]


def test_padding_does_not_count():
  forward, params = _model("bert")
  batches = _batches()
  other = [b | {"tokens": np.where(b["mask"], b["tokens"], 7)} for b in batches]
  found = feedback.quantize(forward, params, STEP, batches)
  again = feedback.quantize(forward, params, STEP, other)
  jax.tree.map(np.testing.assert_array_equal, found, again)


def test_outputs_are_nearer_than_those_of_rounding():
  forward, params = _model("llama")
  batches = _batches(4)

  def error(quantized):
    return sum(
      float(
        jnp.sum(
          jnp.square(
            forward(quantized, b["tokens"], b["mask"])
            - forward(params, b["tokens"], b["mask"])
          )
          * b["mask"][..., None]
        )
      )
      for b in batches
    )

  found = feedback.quantize(forward, params, STEP, batches)
  assert error(found) < 0.9 * error(quantizers.apply(params, STEP))


@pytest.mark.slow
def test_a_mesh_gives_the_same_levels():
  forward, params = _model("llama")
  batches = _batches()
  wanted = _kernels(feedback.quantize(forward, params, STEP, batches))
  config = tiny.config(mesh__data=2, mesh__fsdp=4)
  mesh = sharding.make_mesh(config)
  placed = jax.device_put(params, sharding.parameters(params, mesh))
  split = jax.sharding.NamedSharding(mesh, sharding.BATCH)
  with sharding.use(mesh):
    found = _kernels(
      feedback.quantize(forward, placed, STEP, jax.device_put(batches, split))
    )
  different = sum(np.sum(found[n] != x) for n, x in wanted.items())
  assert different < 1e-3 * sum(x.size for x in wanted.values())


def test_odd_layers_are_named():
  forward, params = _model("llama")
  said = []
  few = [{k: v[:1, :3] for k, v in b.items()} for b in _batches(1)]
  feedback.quantize(forward, params, STEP, few, progress=said.append)
  assert any("tokens are fewer than its" in line for line in said)
  assert any("block 2 of 2" in line for line in said)
  none = [b | {"mask": np.zeros_like(b["mask"])} for b in _batches(1)]
  said.clear()
  found = feedback.quantize(forward, params, STEP, none, progress=said.append)
  assert any("no token reaches it" in line for line in said)
  jax.tree.map(
    np.testing.assert_array_equal, found, quantizers.apply(params, STEP)
  )
  bad = jax.tree.map(np.array, params)
  bad["decoder"]["layer_0"]["mlp_norm"]["scale"] *= np.inf
  with pytest.raises(
    ValueError, match=r"layer_0/mlp/\w+/kernel: the second moments are not fin"
  ):
    feedback.quantize(forward, bad, STEP, _batches(1))
  params["decoder"]["layer_0"]["mlp"]["down"]["kernel"] *= np.nan
  with pytest.raises(ValueError, match="mlp/down/kernel: a weight is NaN"):
    feedback.quantize(forward, params, STEP, _batches(1))


def test_scanned_blocks_are_refused():
  model = weights.load(paths.FIXTURES / "llama", scan=True)
  forward, params = functional.split(model)
  with pytest.raises(ValueError, match=r"model\.scan=False"):
    feedback.quantize(forward, params, STEP, _batches(1))


def test_an_evaluation_codes_what_it_gives(tmp_path):
  config = tiny.config(
    evaluate__feedback_batches=3,
    evaluate__steps=(STEP,),
    evaluate__pruning_rates=(),
    evaluate__mu=0.1,
    data__max_eval=32,
    data__eval_batch_size=32,
  )
  task = data.load_task(config.data)
  forward, params = functional.split(models.build(config.model, task, seed=0))
  score = scoring.make_score(config, forward, sharding.make_mesh(config))
  evaluate.evaluate(config, tmp_path, "run", params, score)
  found = bs.load(tmp_path / evaluate.SHIPPED)
  wanted = score.feedback(params, STEP, 3, mu=0.1)
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
  rounded = _kernels(quantizers.apply(params, STEP, mu=0.1))
  assert any(np.any(rounded[n] != x) for n, x in _kernels(found).items())


@pytest.mark.parametrize(
  "fields",
  [
    {"model__scan": True, "model__name": "llama"},
    {"evaluate__vectors": 0.25},
    {"model__delta": True, "model__weights": "x", "model__name": "bert"},
  ],
)
def test_what_it_does_not_go_with_is_refused(fields):
  config = tiny.config(evaluate__feedback_batches=2, **fields)
  with pytest.raises(settings.UserError, match="feedback_batches"):
    settings.check(config)
