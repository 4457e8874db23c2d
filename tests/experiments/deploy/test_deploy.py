"""From a finished training to a directory that a short script serves."""

import json
import re

import jax
import numpy as np
import pytest

import backslash_jax as bs
from experiments import evaluate, resume, settings
from experiments.deploy import export, release, simplify
from experiments.models import functional
from tests import paths, tiny
from tests.experiments.deploy.test_simplify import CONFIGS, params_of, zeroed

pytest.importorskip("onnx", reason="the extra `deploy` has onnx")
pytest.importorskip("onnxruntime", reason="the extra `deploy` has onnxruntime")

DOCS = paths.ROOT / "docs" / "deploy.md"
STEP = 2.0**-5.5  # Not a power of two: multiples are rounded.


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """What a training leaves behind; its model has units that are zero."""
  directory = tmp_path_factory.mktemp("run")
  config = tiny.config(data__max_eval=200, model__depth=2)
  resume.save_config(config, directory)
  (directory / evaluate.SHIPPED).write_bytes(b"")
  trained = release.read(directory)
  params = zeroed(
    params_of(trained.model_config),
    {
      "layer_0/mlp/down/kernel": (0, [0, 3, 7]),
      "layer_1/mlp/down/kernel": (0, slice(None)),
      "attention/value/kernel": (1, slice(8)),
      "embed/embedding": (0, [0, 1, 2]),
    },
  )
  bs.save(directory / evaluate.SHIPPED, params, step=STEP)
  return directory


@pytest.fixture(scope="module")
def deployed(workdir):
  out = workdir / "out" / "deployed"
  release.deploy(workdir, out)
  return out


def test_the_documented_script_predicts_what_the_model_does(
  workdir, deployed, capsys
):
  (script,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
  assert len(script.splitlines()) < 35
  scope = {}
  exec(script.replace('"deployed"', repr(str(deployed))), scope)
  trained = release.read(workdir)
  params = bs.load(trained.file)
  texts = ["x = 1", "import os\n" * 40, "é"]
  tokens, mask = np.zeros((3, 128), np.int32), np.zeros((3, 128), bool)
  for i, text in enumerate(texts):
    row = list(text.encode())[:128]
    tokens[i, : len(row)], mask[i, : len(row)] = row, True
  forward = jax.jit(functional.forward(trained.model_config))
  wanted = np.argmax(forward(params, tokens, mask), axis=-1)
  labels = [trained.task.class_names[i] for i in wanted]
  assert scope["predict"](texts) == labels
  assert scope["predict"](texts[:1]) == labels[:1]
  assert capsys.readouterr().out.startswith("['")


def test_the_directory_says_what_it_holds(workdir, deployed):
  described = json.loads((deployed / "model.json").read_text())
  names = {p.name for p in deployed.iterdir()}
  assert names == {*described["bytes"], "model.json"}
  lines = [
    (x["group"], x["before"], x["after"]) for x in described["simplified"]
  ]
  assert lines.count(("heads", 2, 1)) == 2
  assert {("mlp", 16, 13), ("mlp", 16, 0), ("rows", 256, 254)} < {*lines}
  assert set(described["largest_difference"]) == {
    "model.onnx",
    "model.stablehlo",
  }
  before = (workdir / evaluate.SHIPPED).stat().st_size
  assert described["bytes"]["model.backslash.safetensors"] < before


def test_the_coded_file_holds_the_smaller_model_exactly(workdir, deployed):
  trained = release.read(workdir)
  model = simplify.simplify(trained.model_config, bs.load(trained.file))
  loaded = bs.load(deployed / "model.backslash.safetensors")
  np.testing.assert_array_equal(loaded.pop("token_ids"), model.token_ids)
  jax.tree.map(np.testing.assert_array_equal, loaded, model.params)
  report = bs.inspect(deployed / "model.backslash.safetensors")
  exact = {t.name.rpartition("/")[2] for t in report.tensors if not t.step}
  assert exact == {"token_ids", "scale"}


@pytest.mark.slow
def test_stablehlo_computes_the_same_at_another_length(workdir, deployed):
  trained = release.read(workdir)
  data = (deployed / "model.stablehlo").read_bytes()
  exported = jax.export.deserialize(bytearray(data))
  tokens = np.arange(80, dtype=np.int32).reshape(2, 40)
  mask = np.ones((2, 40), bool)
  forward = jax.jit(functional.forward(trained.model_config))
  np.testing.assert_allclose(
    exported.call(tokens, mask),
    forward(bs.load(trained.file), tokens, mask),
    atol=1e-4,
  )


def test_an_export_that_does_not_match_is_never_written(tmp_path, monkeypatch):
  from experiments.deploy import onnx_models

  cfg = CONFIGS["encoder"]
  model = simplify.simplify(cfg, params_of(cfg))
  right = onnx_models.convert

  def wrong(config, params, token_ids):
    params = jax.tree.map(lambda x: 1.01 * x, params)
    return right(config, params, token_ids)

  monkeypatch.setattr(onnx_models, "convert", wrong)
  with pytest.raises(export.ExportError, match=r"model\.onnx is not written"):
    export.write_onnx(model, tmp_path / "model.onnx")
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_int8_is_measured_and_refused_where_it_costs_too_much(
  workdir, tmp_path, monkeypatch
):
  out = tmp_path / "out"
  described = release.deploy(workdir, out, int8=True)
  sizes = described["bytes"]
  assert sizes["model.int8.onnx"] < sizes["model.onnx"]
  assert 0 <= described["validation_accuracy"]["model.int8.onnx"] <= 1
  monkeypatch.setattr(release, "INT8_TOLERANCE", -101.0)
  with pytest.raises(export.ExportError, match="int8 costs"):
    release.deploy(workdir, tmp_path / "other", int8=True)
  assert {p.name for p in tmp_path.iterdir()} == {"out"}


def test_what_cannot_be_deployed_is_refused_by_name(workdir, tmp_path):
  with pytest.raises(settings.UserError, match="train it to its end"):
    release.deploy(tmp_path, tmp_path / "out")
  arm = tmp_path / "normal"
  arm.mkdir()
  (arm / evaluate.SHIPPED).write_bytes(b"x")
  with pytest.raises(settings.UserError, match="it holds normal: name one"):
    release.deploy(tmp_path, tmp_path / "out")
  with pytest.raises(settings.UserError, match="not empty"):
    release.deploy(workdir, arm)
  (arm / "config.json").write_text((workdir / "config.json").read_text())
  with pytest.raises(settings.UserError, match="safetensors"):
    release.deploy(arm, tmp_path / "out")
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("field", ["delta", "lora"])
def test_a_fine_tune_that_is_no_whole_model_is_refused(tmp_path, field):
  config = tiny.config(**{f"model__{field}": 1 if field == "lora" else True})
  resume.save_config(config, tmp_path)
  (tmp_path / evaluate.SHIPPED).write_bytes(b"")
  with pytest.raises(settings.UserError, match=f"with config.model.{field}"):
    release.deploy(tmp_path, tmp_path / "out")
  assert not (tmp_path / "out").exists()
