"""Hugging Face directories: read, written back, and every way to be bad."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx, traverse_util

from backslash_jax.cli import main as cli
from experiments.huggingface import weights
from experiments.models import bert
from tests import paths

CHECKPOINTS = sorted(p.name for p in paths.FIXTURES.iterdir() if p.is_dir())


def tensors_of(directory):
  tensors = {}
  for path in directory.glob("*.safetensors"):
    tensors |= safetensors.numpy.load_file(path)
  return tensors


def params_of(model):
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  return traverse_util.flatten_dict(params, sep="/")


@pytest.fixture
def copy(tmp_path):
  """Copies a fixture, and changes fields of its config.json."""

  def make(name, **fields):
    target = tmp_path / name
    shutil.copytree(paths.FIXTURES / name, target)
    path = target / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps(config))
    return target

  return make


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("scan", [False, True])
def test_what_is_loaded_is_written_back(name, scan, tmp_path):
  model = weights.load(paths.FIXTURES / name, scan=scan)
  weights.save(model, tmp_path)
  wanted, found = tensors_of(paths.FIXTURES / name), tensors_of(tmp_path)
  assert found.keys() == wanted.keys()
  for key, value in wanted.items():
    np.testing.assert_array_equal(found[key], value, err_msg=key)
  assert weights.load(tmp_path, scan=scan).config == model.config
  # What transformers reads, but for fields that do not touch the logits.
  before = json.loads((paths.FIXTURES / name / "config.json").read_text())
  after = json.loads((tmp_path / "config.json").read_text())
  for key in before.keys() & after.keys():
    assert before[key] is None or after[key] == before[key], key


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "gemma2_classifier"])
def test_transformers_computes_the_same_from_what_is_written(name, tmp_path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  weights.save(weights.load(paths.FIXTURES / name), tmp_path)
  kind = json.loads((tmp_path / "config.json").read_text())["architectures"][0]
  model = getattr(transformers, kind).from_pretrained(
    tmp_path, attn_implementation="eager"
  )
  with np.load(paths.FIXTURES / name / "reference.npz") as file:
    tokens, mask, logits = file["tokens"], file["mask"], file["logits"]
  with torch.no_grad():
    found = model(
      torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy(mask)
    ).logits.numpy()
  error = np.abs(found - logits)
  assert (error[mask] if error.ndim == 3 else error).max() < 1e-4


def test_large_models_are_written_in_shards(tmp_path):
  model = weights.load(paths.FIXTURES / "llama", dtype=jnp.bfloat16)
  weights.save(model, tmp_path)
  weights.save(model, tmp_path, shard_bytes=10_000)
  assert not (tmp_path / "model.safetensors").exists()
  shards = list(tmp_path.glob("*.safetensors"))
  index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
  assert set(index["weight_map"].values()) == {s.name for s in shards}
  for shard in shards:
    tensors = safetensors.numpy.load_file(shard)
    assert (
      len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 10_000
    )
  again = weights.load(tmp_path, dtype=jnp.bfloat16)
  jax.tree.map(
    np.testing.assert_array_equal, params_of(model), params_of(again)
  )


def test_stacked_and_separate_blocks_hold_the_same_values():
  separate = params_of(weights.load(paths.FIXTURES / "gpt2"))
  stacked = params_of(weights.load(paths.FIXTURES / "gpt2", scan=True))
  for path, value in stacked.items():
    if "/layers/" in path:
      parts = [separate[path.replace("layers", f"layer_{i}")] for i in range(2)]
      np.testing.assert_array_equal(value, np.stack(parts))
    else:
      np.testing.assert_array_equal(value, separate[path])


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "gemma2"])
def test_names_without_the_prefix_of_the_bare_model(name, copy):
  target = copy(name)
  tensors = tensors_of(target)
  prefix = {"bert": "bert.", "gpt2": "transformer."}.get(name, "model.")
  safetensors.numpy.save_file(
    {k.removeprefix(prefix): v for k, v in tensors.items()},
    target / "model.safetensors",
  )
  wanted = params_of(weights.load(paths.FIXTURES / name))
  jax.tree.map(
    np.testing.assert_array_equal, params_of(weights.load(target)), wanted
  )


def test_buffers_and_old_spellings_of_published_files(copy):
  target = copy("bert")
  tensors = {
    k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
      "LayerNorm.bias", "LayerNorm.beta"
    ): v
    for k, v in tensors_of(target).items()
  }
  tensors["bert.embeddings.position_ids"] = np.arange(64)
  tensors["cls.predictions.bias"] = np.zeros(96, np.float32)
  safetensors.numpy.save_file(tensors, target / "model.safetensors")
  wanted = params_of(weights.load(paths.FIXTURES / "bert"))
  jax.tree.map(
    np.testing.assert_array_equal, params_of(weights.load(target)), wanted
  )


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_a_language_model_becomes_a_classifier(name):
  plain = params_of(weights.load(paths.FIXTURES / name))
  model = weights.load(paths.FIXTURES / name, num_labels=5)
  params = params_of(model)
  assert params["score/kernel"].shape == (32, 5)
  assert "lm_head/kernel" not in params
  for path in params.keys() & plain.keys():
    np.testing.assert_array_equal(params[path], plain[path])
  other = weights.load(paths.FIXTURES / name, num_labels=5, seed=1)
  assert (params_of(other)["score/kernel"] != params["score/kernel"]).any()


def test_new_heads_only_where_all_of_a_head_is_missing(copy):
  target = copy("bert")
  tensors = tensors_of(target)
  for name in ("classifier.weight", "classifier.bias"):
    del tensors[name]
  safetensors.numpy.save_file(tensors, target / "model.safetensors")
  params = params_of(weights.load(target, num_labels=4))
  assert params["classifier/kernel"].shape == (32, 4)
  assert (params["classifier/bias"] == 0).all()
  del tensors["bert.pooler.dense.bias"]
  safetensors.numpy.save_file(tensors, target / "model.safetensors")
  with pytest.raises(
    weights.WeightsError, match=r"pooler\.dense\.bias \[32\]: missing"
  ):
    weights.load(target, num_labels=4)


def test_put_places_every_parameter_by_its_path():
  seen = {}

  def put(path, array):
    seen[path] = array.shape
    return jnp.asarray(array)

  params = params_of(
    weights.load(paths.FIXTURES / "gemma2", scan=True, put=put)
  )
  assert seen == {path: p.shape for path, p in params.items()}


def test_all_mismatches_are_reported_together(copy):
  target = copy("llama")
  tensors = tensors_of(target)
  layer = "model.layers.0."
  tensors["model.extra.weight"] = np.zeros((2, 3), np.float32)
  tensors[layer + "mlp.up_proj.weight"] = np.zeros((32, 56), np.float32)
  del tensors[layer + "self_attn.q_proj.weight"]
  tensors["lm_head.weight"] = np.zeros((96, 32), np.int32)
  tensors["embed_tokens.weight"] = tensors["model.embed_tokens.weight"]
  safetensors.numpy.save_file(tensors, target / "model.safetensors")
  with pytest.raises(weights.WeightsError) as error:
    weights.load(target)
  text = str(error.value)
  assert "5 tensors" in text
  assert "model.extra.weight [2, 3]: not in the model" in text
  assert (
    "up_proj.weight: found float32 [32, 56], wanted floating [56, 32]" in text
  )
  assert f"{layer}self_attn.q_proj.weight [32, 32]: missing" in text
  assert "lm_head.weight: found int32 [96, 32]" in text
  assert "embed_tokens.weight [96, 32]: stands there twice" in text


def test_another_number_of_classes_is_a_mismatch():
  with pytest.raises(
    weights.WeightsError, match=r"score\.weight: found float32 \[3, 32\]"
  ):
    weights.load(paths.FIXTURES / "llama_classifier", num_labels=2)


@pytest.mark.parametrize(
  ("name", "fields", "message"),
  [
    (
      "bert",
      {"model_type": "t5"},
      "model_type is 't5'; there are bert, gemma2",
    ),
    ("bert", {"hidden_size": None}, "has no field 'hidden_size'"),
    ("bert", {"hidden_size": "32"}, "hidden_size is '32', wanted a positive"),
    (
      "bert",
      {"hidden_act": "relu", "is_decoder": True},
      "hidden_act is 'relu', only 'gelu' is supported; is_decoder is True",
    ),
    ("gpt2", {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
    ("llama", {"attention_bias": True}, "attention_bias is True"),
    (
      "llama",
      {"rope_parameters": {"rope_type": "yarn"}},
      "rotary positions of type 'yarn'",
    ),
    (
      "llama",
      {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}},
      "lacks low_freq_factor",
    ),
    ("gemma2", {"layer_types": ["full_attention"] * 3}, "layer_types is"),
  ],
)
def test_config_that_is_not_supported_is_named(name, fields, message, copy):
  target = copy(name, **fields)
  with pytest.raises(weights.WeightsError, match=message) as error:
    weights.load(target)
  assert str(target / "config.json") in str(error.value)


def test_older_config_of_rotary_positions(copy):
  config = json.loads((paths.FIXTURES / "llama" / "config.json").read_text())
  scaling = config["rope_parameters"]
  theta = scaling.pop("rope_theta")
  target = copy(
    "llama", rope_parameters=None, rope_theta=theta, rope_scaling=scaling
  )
  wanted = weights.load(paths.FIXTURES / "llama").config
  assert weights.load(target).config == wanted


@pytest.mark.parametrize("name", ["llama", "deepseek"])  # One is in shards.
def test_coded_directories_load(copy, tmp_path, name):
  source, coded, again = copy(name), tmp_path / "coded", tmp_path / "again"
  assert cli.main(["compress", str(source), str(coded), "--step=2^-10"]) == 0
  found = params_of(weights.load(coded))
  assert cli.main(["decompress", str(coded), str(again)]) == 0
  wanted = params_of(weights.load(again))
  for path, x in params_of(weights.load(source)).items():
    np.testing.assert_array_equal(found[path], wanted[path])
    np.testing.assert_allclose(found[path], x, atol=0.001)
  for file in coded.glob("model-00001*"):
    file.unlink()
    with pytest.raises(weights.WeightsError, match="1 of 3 shards are missing"):
      weights.load(coded)
  next(coded.glob("model*.json"), coded / "none").unlink(missing_ok=True)
  for file in coded.glob("model*.safetensors"):
    file.write_bytes(file.read_bytes()[:-1])
  with pytest.raises(weights.WeightsError, match=r"cut off|json: missing"):
    weights.load(coded)


def test_half_of_the_shards(copy):
  target = copy("deepseek")
  (target / "model-00002-of-00003.safetensors").unlink()
  with pytest.raises(
    weights.WeightsError, match=r"1 of 3 shards are missing: model-00002-of"
  ):
    weights.load(target)
  (target / "model.safetensors.index.json").unlink()
  with pytest.raises(weights.WeightsError, match=r"index\.json: missing"):
    weights.load(target)


def test_shard_without_what_its_index_lists(copy):
  target = copy("deepseek")
  path = target / "model-00003-of-00003.safetensors"
  tensors = safetensors.numpy.load_file(path)
  tensors.pop("lm_head.weight")
  safetensors.numpy.save_file(tensors, path)
  with pytest.raises(weights.WeightsError, match=r"lacks lm_head\.weight"):
    weights.load(target)


def test_index_does_not_reach_outside_its_folder(copy):
  target = copy("deepseek")
  path = target / "model.safetensors.index.json"
  path.write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
  with pytest.raises(weights.WeightsError, match="outside its folder"):
    weights.load(target)


def test_damaged_and_missing_files(copy, tmp_path):
  target = copy("gpt2")
  whole = (target / "model.safetensors").read_bytes()
  for part in (whole[: len(whole) // 2], b"", b"x" * 100):
    (target / "model.safetensors").write_bytes(part)
    with pytest.raises(weights.WeightsError, match="damaged or cut short"):
      weights.load(target)
  (target / "model.safetensors").unlink()
  with pytest.raises(weights.WeightsError, match=r"no model\.safetensors"):
    weights.load(target)
  (target / "config.json").write_text("{")
  with pytest.raises(weights.WeightsError, match="not readable as JSON"):
    weights.load(target)
  with pytest.raises(weights.WeightsError, match=r"config\.json: missing"):
    weights.load(tmp_path)


def test_an_interrupted_save_is_not_taken_for_a_model(tmp_path, monkeypatch):
  model = weights.load(paths.FIXTURES / "gpt2")
  weights.save(model, tmp_path)

  def fail(*args, **kwargs):
    raise OSError("No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(OSError, match="No space left"):
      weights.save(model, tmp_path)
  with pytest.raises(weights.WeightsError, match=r"config\.json: missing"):
    weights.load(tmp_path)
  weights.save(model, tmp_path)
  weights.load(tmp_path)


def test_legacy_weights_need_torch(copy):
  target = copy("gpt2")
  tensors = tensors_of(target)
  (target / "model.safetensors").unlink()
  path = target / "pytorch_model.bin"
  try:
    import torch
  except ModuleNotFoundError:
    path.write_bytes(b"")
    with pytest.raises(ModuleNotFoundError, match="pip install torch"):
      weights.load(target)
    return
  torch.save({k: torch.from_numpy(v.copy()) for k, v in tensors.items()}, path)
  wanted = params_of(weights.load(paths.FIXTURES / "gpt2"))
  jax.tree.map(
    np.testing.assert_array_equal, params_of(weights.load(target)), wanted
  )
  path.write_bytes(path.read_bytes()[:1000])
  with pytest.raises(weights.WeightsError, match="damaged or cut short"):
    weights.load(target)


@pytest.mark.parametrize("path", ["/no/such/folder", "a/b/c", "./x", "a b"])
def test_neither_a_directory_nor_an_id(path):
  with pytest.raises(weights.WeightsError, match="neither a directory nor"):
    weights.load(path)


def test_only_these_models_and_dtypes(tmp_path):
  with pytest.raises(weights.WeightsError, match="Linear is no model with a"):
    weights.save(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), tmp_path)
  (tmp_path / "file").write_text("")
  with pytest.raises(weights.WeightsError, match="a file, wanted a directory"):
    weights.save(weights.load(paths.FIXTURES / "gpt2"), tmp_path / "file")
  with pytest.raises(ValueError, match="dtype is int8"):
    weights.load(paths.FIXTURES / "gpt2", dtype=jnp.int8)
  with pytest.raises(ValueError, match="BERT predicts no next token"):
    bert.ModelConfig(
      vocab_size=9,
      width=4,
      depth=1,
      heads=1,
      mlp=4,
      max_positions=8,
      epsilon=1e-12,
      num_labels=None,
    )


class TestHub:
  """Downloads, with the hub replaced by what it answers."""

  @pytest.fixture(autouse=True)
  def hub(self):
    self.hub = pytest.importorskip("huggingface_hub")
    self.errors = pytest.importorskip("huggingface_hub.errors")

  def answer(self, monkeypatch, action):
    monkeypatch.setattr(self.hub, "snapshot_download", action)

  def test_safetensors_are_preferred_to_legacy_files(self, monkeypatch, copy):
    target, asked = copy("gpt2"), []

    def download(name, allow_patterns, ignore_patterns):
      asked.append((name, allow_patterns[-1]))
      return str(target)

    self.answer(monkeypatch, download)
    weights.load("owner/gpt2")
    assert asked == [("owner/gpt2", "*.safetensors")]
    (target / "model.safetensors").unlink()
    with pytest.raises(weights.WeightsError, match=r"no model\.safetensors"):
      weights.load("owner/gpt2")
    assert asked[-1] == ("owner/gpt2", "pytorch_model*.bin")

  @pytest.mark.parametrize(
    ("kind", "message"),
    [
      ("GatedRepoError", "a gated model; accept its licence"),
      ("RepositoryNotFoundError", "no such model on huggingface.co"),
      ("LocalEntryNotFoundError", "huggingface.co cannot be reached"),
      ("HfHubHTTPError", "the download failed"),
    ],
  )
  def test_each_refusal_says_what_to_do(self, kind, message, monkeypatch):
    error_type = getattr(self.errors, kind)

    def download(*args, **kwargs):
      # Their constructors want a response; what is caught is the type.
      raise error_type.__new__(error_type, "refused")

    self.answer(monkeypatch, download)
    with pytest.raises(weights.WeightsError, match=message) as error:
      weights.load("owner/name")
    assert "owner/name" in str(error.value)

  def test_offline(self, monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(weights.WeightsError, match="not in the local cache"):
      weights.load("owner/never-downloaded")


def shared(name):
  """A directory of real weights, or skips."""
  path = paths.SHARED / "weights" / name
  if not path.is_dir():
    pytest.skip(f"no {path}; BACKSLASH_SHARED names the folder of weights/")
  return path


@pytest.mark.parametrize(
  ("name", "continuation"),
  [
    (
      "stories260K",
      "1 403 407 261 378 432 383 286 261 376 298 315 421 395 317 426 338 401 "
      "396 267 337",
    ),
    (
      "babyllama361",
      "1 259 290 265 278 260 259 274 276 263 265 259 261 259 262 266 272 260 "
      "281 259 262",
    ),
  ],
)
def test_real_models_continue_as_in_transformers(name, continuation):
  wanted = np.array(continuation.split(), np.int32)
  model = weights.load(shared(name))
  # Each prefix of the wanted text at once: the mask is causal.
  logits = model(wanted[None], np.ones((1, wanted.size), bool))
  np.testing.assert_array_equal(np.argmax(logits[0, :-1], -1), wanted[1:])
