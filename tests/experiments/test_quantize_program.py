"""A Hugging Face directory, quantized with error feedback to a size."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backslash_jax as bs
from backslash_jax import quantize as quantizers
from experiments import (
  cells,
  data,
  evaluate,
  learner,
  quantize,
  resume,
  settings,
  sources,
  stored,
)
from experiments.deploy import release
from experiments.huggingface import weights
from experiments.models import bert, from_config, gemma2, gpt2, llama, rotary
from tests import tiny

_SIZE = dict(
  vocab_size=260,
  width=32,
  depth=2,
  heads=4,
  mlp=64,
  max_positions=128,
  epsilon=1e-5,
)
_HEADS = dict(head_dim=8, positions=rotary.Rotary())
CONFIGS = {
  "bert": bert.ModelConfig(**_SIZE),
  "gpt2": gpt2.ModelConfig(**_SIZE),
  "llama": llama.ModelConfig(**_SIZE, **_HEADS, kv_heads=2, tied=True),
  "deepseek": llama.ModelConfig(**_SIZE, **_HEADS, kv_heads=4, tied=False),
  "gemma2": gemma2.ModelConfig(
    **_SIZE,
    **_HEADS,
    kv_heads=2,
    window=8,
    query_scale=8,
    attention_softcap=2.0,
    logit_softcap=3.0,
  ),
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
  """A Hugging Face directory of each model."""
  folder = tmp_path_factory.mktemp("models")
  for name, config in CONFIGS.items():
    weights.save(from_config(config), folder / name)
    (folder / name / "tokenizer.json").write_text("{}")
  return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
  """A file with texts of two classes, with and without their labels."""
  folder = tmp_path_factory.mktemp("texts")
  rows = [(f"{'ab'[i % 2]} text, number {i}", i % 2) for i in range(40)]
  for name, lines in {
    "plain.txt": [text for text, _ in rows],
    "labelled.txt": [f"{label}\t{text}" for text, label in rows],
  }.items():
    (folder / name).write_text("\n".join(lines) + "\n")
  return folder


def _config(directory, **fields):
  return tiny.config(
    **{
      "data__name": "python_stdlib/bytes",
      "data__max_eval": 8,
      "data__eval_batch_size": 8,
      "data__batch_size": 8,
      "model__name": "llama",
      "model__weights": str(directory),
      "evaluate__feedback_batches": 2,
      "evaluate__mu": 0.1,
    }
    | fields
  )


def _of_texts(directory, file, *, language):
  return _config(
    directory,
    data__name="texts",
    data__source=str(file),
    data__language=language,
    data__seq_len=24,
    evaluate__feedback_batches=5,
    model__name="llama" if language else "bert",
  )


@pytest.mark.parametrize(
  "name",
  [
    "llama",
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in CONFIGS
      if name != "llama"
    ),
  ],
)
def test_a_directory_gets_the_size_that_was_asked_for(
  tmp_path, directories, texts, name
):
  directory, said = directories / name, []
  out, language = tmp_path / "coded", name != "bert"
  file = texts / ("plain.txt" if language else "labelled.txt")
  result = quantize.quantize(
    _of_texts(directory, file, language=language),
    out,
    bits=6.0,
    progress=said.append,
  )
  assert list(tmp_path.iterdir()) == [out]  # The kept blocks are gone.
  assert result["minutes"] >= sum(result["feedback_minutes"]) > 0
  assert result["peak_bytes"] > 10**6
  file = out / "model.backslash.safetensors"
  assert result["bytes"] == file.stat().st_size
  assert 5.8 < result["bits"] <= 6.0
  assert np.isfinite(result["quantized"]["loss"])
  assert any("24 texts are 3 batches" in line for line in said)
  assert any("quantized block 1 of" in line for line in said)
  for other in ("config.json", "tokenizer.json"):
    assert (out / other).read_bytes() == (directory / other).read_bytes()
  tokens = jnp.arange(3, 11)[None]
  mask = jnp.ones(tokens.shape, bool)
  exact = weights.load(directory)(tokens, mask)
  found = weights.load(out)(tokens, mask)
  assert jnp.abs(found - exact).max() < 0.3 * jnp.abs(exact).max()


@pytest.mark.parametrize(
  ("fields", "goal", "message"),
  [
    ({"model__weights": None}, {"bits": 3.0}, "config.model.weights"),
    ({}, {"bits": -1.0}, "--bits -1"),
    ({}, {"size": "forty"}, "--size forty"),
    ({}, {"bits": 0.01}, "smallest size"),
    ({}, {}, "--bits or --size"),
    ({"model__weights": "/nowhere"}, {"bits": 3.0}, "/nowhere"),
  ],
)
def test_what_cannot_be_done_is_said(
  tmp_path, directories, fields, goal, message
):
  config = _config(directories / "llama").unlock()
  config.update_from_flattened_dict(
    {name.replace("__", "."): x for name, x in fields.items()}
  )
  with pytest.raises(settings.UserError, match=message):
    quantize.quantize(config.lock(), tmp_path / "out", **goal)
  assert not list(tmp_path.iterdir())


def test_without_batches_it_is_rounded(tmp_path, directories):
  out, said = tmp_path / "rounded", []
  config = _config(directories / "llama", evaluate__feedback_batches=0)
  result = quantize.quantize(config, out, bits=6.0, progress=said.append)
  assert result["feedback_minutes"] == []
  assert result["quantized"] == result["rounded"] != result["exact"]
  assert not any("block" in line for line in said)
  # It is what the price makes of each matrix, with the steps of the file.
  file = out / "model.backslash.safetensors"
  steps = {t.name: t.step for t in bs.inspect(file).tensors if t.step}
  source = sources.read(config)
  exact, found = source.tensors(source.params), bs.load(file)
  for name, step in steps.items():
    levels = quantizers.rate_distortion(exact[name].T, step, 0.1)
    wanted = quantizers.dequantize(levels.T, step, np.float32)
    np.testing.assert_array_equal(found[name], wanted)


def test_an_output_that_exists_is_kept(tmp_path, directories):
  with pytest.raises(settings.UserError, match="something already"):
    quantize.quantize(_config(directories / "llama"), tmp_path, bits=3.0)


def test_fewer_texts_than_a_batch_are_an_error(tmp_path, directories, texts):
  config = _of_texts(
    directories / "llama", texts / "plain.txt", language=True
  ).unlock()
  config.data.batch_size = 32
  with pytest.raises(settings.UserError, match=r"24 texts .* fewer than"):
    quantize.quantize(config, tmp_path / "out", bits=6.0)


def test_texts_that_do_not_fit_the_model_are_refused(
  tmp_path, directories, texts
):
  for name, file, message in (
    ("llama", "labelled.txt", "predicts tokens, but texts has 2 classes"),
    ("bert", "plain.txt", "predicts 2 classes, but texts has no classes"),
  ):
    config = _of_texts(
      directories / name, texts / file, language=name == "bert"
    )
    with pytest.raises(settings.UserError, match=message):
      quantize.quantize(config, tmp_path / "out", bits=6.0)
  config = _of_texts(directories / "llama", texts / "no", language=True)
  with pytest.raises(settings.UserError, match="cannot be read"):
    quantize.quantize(config, tmp_path / "out", bits=6.0)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """What a training of a small decoder leaves."""
  directory = tmp_path_factory.mktemp("workdir") / "trained"
  directory.mkdir()
  config = tiny.config(
    data__name="python_stdlib/bytes",
    data__max_eval=8,
    data__batch_size=8,
    data__eval_batch_size=8,
    model__name="decoder",
  )
  _, params = learner.build(config, data.load_task(config.data))
  resume.save_config(config, directory)
  stored.save(directory / cells.TRAINED, params, {})
  bs.save(directory / evaluate.SHIPPED, params, step=2.0**-6)
  return directory


@pytest.mark.slow
def test_a_workdir_is_quantized_with_steps_by_sensitivity(tmp_path, workdir):
  out = tmp_path / "coded"
  # The data is that of the training, and not of this config.
  config = _config(
    workdir, evaluate__sensitivity_batches=1, data__name="python_stdlib/modules"
  )
  result = quantize.quantize(config, out, bits=6.0)
  assert 5.8 < result["bits"] <= 6.0
  assert {path.name for path in out.iterdir()} == {
    "config.json",
    evaluate.SHIPPED,
  }
  assert release.read(out).file.stat().st_size == result["bytes"]
  exact = bs.load(workdir / cells.TRAINED)["params"]
  found = bs.load(out / evaluate.SHIPPED)
  for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(found), strict=True):
    assert np.abs(a - b).max() <= 0.3 * np.abs(a).max()
  steps = {t.name: t.step for t in bs.inspect(out / evaluate.SHIPPED).tensors}
  root = {
    name: steps[name] / np.sqrt(np.sqrt(np.mean(np.square(x))))
    for name, x in bs.tree.selected(exact).items()
  }
  assert max(root.values()) > 1.5 * min(root.values())


def test_steps_by_sensitivity_have_the_scale_as_their_mean(directories):
  source = sources.read(_config(directories / "gpt2"))
  rng = np.random.default_rng(0)
  squares = jax.tree.map(lambda _: rng.uniform(0.5, 2), source.params)
  layout = quantize._Layout(source, squares)
  plain = quantizers.sensitive_steps(source.params, 2.0**-6, squares)
  steps = layout.steps(2.0**-6)
  for paths in source.parts.values():
    own = [plain[path] for path in paths if path in plain]
    for path in paths if own else ():
      np.testing.assert_allclose(steps[path], np.exp(np.mean(np.log(own))))
  start, sizes = layout.start(4.0), bs.tree.selected(source.params)
  usual = quantize._Layout(source)
  usual = usual.steps(usual.start(4.0))
  logs = [np.log(usual[name]) for name in sizes]
  mean = np.average(logs, weights=[x.size for x in sizes.values()])
  np.testing.assert_allclose(np.log(start), mean, rtol=1e-3)


def test_a_workdir_that_does_not_serve_is_named(tmp_path, workdir):
  def fails(path, message):
    with pytest.raises(settings.UserError, match=message):
      quantize.quantize(_config(path), tmp_path / "out", bits=6.0)

  fails(workdir.parent, "it holds trained: name one")
  for change, message in (
    ({"model.delta": True}, r"config\.model\.delta: only whole"),
    ({"model.scan": True}, r"config\.model\.scan: only whole"),
    ({}, f"has no {cells.TRAINED}"),
  ):
    path = tmp_path / "other"
    shutil.copytree(workdir, path)
    config = release.read(path).config
    config.update_from_flattened_dict(change)
    resume.save_config(config, path)
    (path / cells.TRAINED).unlink()
    fails(path, message)
    shutil.rmtree(path)
