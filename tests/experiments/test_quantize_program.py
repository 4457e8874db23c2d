"""A Hugging Face directory, quantized with error feedback to a size."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import quantize, settings
from experiments.huggingface import weights
from experiments.models import gpt2, llama, rotary
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
MODELS = {
  "gpt2": lambda: gpt2.Gpt2(gpt2.ModelConfig(**_SIZE), rngs=nnx.Rngs(0)),
  "llama": lambda: llama.Llama(
    llama.ModelConfig(
      **_SIZE, kv_heads=2, head_dim=8, positions=rotary.Rotary(), tied=True
    ),
    rngs=nnx.Rngs(0),
  ),
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
  """A Hugging Face directory of each model."""
  folder = tmp_path_factory.mktemp("models")
  for name, make in MODELS.items():
    weights.save(make(), folder / name)
    (folder / name / "tokenizer.json").write_text("{}")
  return folder


def _config(directory, **fields):
  return tiny.config(
    data__name="python_stdlib/bytes",
    data__max_eval=8,
    data__eval_batch_size=8,
    data__batch_size=8,
    model__name="llama",
    model__weights=str(directory),
    evaluate__feedback_batches=2,
    evaluate__mu=0.1,
    **fields,
  )


@pytest.mark.parametrize(
  "name", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)]
)
def test_a_directory_gets_the_size_that_was_asked_for(
  tmp_path, directories, name
):
  directory, said = directories / name, []
  out = tmp_path / "coded"
  result = quantize.quantize(
    _config(directory), out, bits=6.0, progress=said.append
  )
  file = out / "model.backslash.safetensors"
  assert result["bytes"] == file.stat().st_size
  assert 5.8 < result["bits"] <= 6.0
  assert np.isfinite(result["quantized"]["loss"])
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
    ({"evaluate__feedback_batches": 0}, {"bits": 3.0}, "feedback_batches"),
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


def test_an_output_that_exists_is_kept(tmp_path, directories):
  with pytest.raises(settings.UserError, match="something already"):
    quantize.quantize(_config(directories / "llama"), tmp_path, bits=3.0)
