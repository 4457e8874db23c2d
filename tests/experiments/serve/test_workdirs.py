"""What `experiments.main` leaves behind is served, too."""

import functools
import json

import jax
import numpy as np
import pytest

import backslash_jax as bs
from experiments import evaluate, models, resume, settings
from experiments.deploy import release
from experiments.models import functional
from experiments.serve import generate, model, score, weights
from tests import tiny


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """The directory of a training that has finished, by what it trained."""

  @functools.cache
  def make(**fields):
    directory = tmp_path_factory.mktemp("run")
    config = tiny.config(data__max_eval=20, data__eval_batch_size=20, **fields)
    resume.save_config(config, directory)
    (directory / evaluate.SHIPPED).write_bytes(b"")
    built = models.from_config(release.read(directory).model_config)
    params = functional.split(built)[1]
    bs.save(directory / evaluate.SHIPPED, params, step=2.0**-6)
    return directory

  return make


LANGUAGE = {"data__name": "python_stdlib/bytes", "model__depth": 2}


def test_an_encoder_is_scored_on_its_own_split_and_on_a_file(workdir):
  directory = workdir()
  found = [
    score.score(model.read(directory, kind), "validation")
    for kind in weights.KINDS
  ]
  assert found[0] == found[1] == found[2]
  assert found[0]["targets"] == 20
  file = directory / "texts.tsv"
  file.write_text("3\timport os\n0\tdef f(): pass\n")
  assert score.score(model.read(directory), str(file))["targets"] == 2
  with pytest.raises(settings.UserError, match="nothing: cannot be read"):
    score.score(model.read(directory), "nothing")


def test_a_decoder_of_bytes_answers(workdir):
  directory = workdir(model__name="decoder", **LANGUAGE)
  options = generate.Options(max_tokens=3)
  answers = [
    generate.generate(model.read(directory, kind), [[100, 101]], options).tokens
    for kind in ("dense", "coded")
  ]
  assert answers[0] == answers[1]


@pytest.mark.parametrize(
  "scan", [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_stacked_layers_are_decoded_in_the_scan(workdir, scan):
  directory = workdir(
    model__name="llama",
    model__scan=scan,
    model__width=64,
    model__mlp=256,
    **LANGUAGE,
  )
  tokens = np.array([[5, 6, 7, 8]], np.int32)
  outputs = []
  for kind in weights.KINDS:
    served = model.read(directory, kind)
    prefill = served.prefill(served.tensors, tokens, tokens > 0, 6)
    outputs.append(prefill)
    if kind == "coded":
      leaf = served.tensors["decoder/layers/mlp/up/kernel"]
      assert isinstance(leaf, bs.Coded)
      assert leaf.grid == (2,)
  jax.tree.map(np.testing.assert_array_equal, outputs[1], outputs[0])
  jax.tree.map(np.testing.assert_array_equal, outputs[2], outputs[0])


def test_what_is_not_whole_is_named(workdir, tmp_path):
  directory = workdir()
  (tmp_path / "config.json").write_text((directory / "config.json").read_text())
  with pytest.raises(settings.UserError, match="train it to its end"):
    model.read(tmp_path)
  (tmp_path / evaluate.SHIPPED).write_bytes(b"damaged")
  with pytest.raises(settings.UserError, match=evaluate.SHIPPED):
    model.read(tmp_path)
  values = json.loads((directory / "config.json").read_text())
  values["model"]["lora"] = 1
  (tmp_path / "config.json").write_text(json.dumps(values))
  with pytest.raises(settings.UserError, match=r"with config\.model\.lora"):
    model.read(tmp_path)
