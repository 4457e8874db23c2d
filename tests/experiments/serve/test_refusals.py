"""A directory that cannot be served is refused in a line that says why."""

import json
import shutil

import numpy as np
import pytest

import backslash_jax as bs
from backslash_jax.archive import naming, plain
from experiments import evaluate, settings
from experiments.huggingface import weights as pretrained
from experiments.serve import model, weights
from tests import paths

PLAIN, CODED = "model.safetensors", naming.coded("model.safetensors")
SHARDS = [f"model-0000{i}-of-00002.backslash.safetensors" for i in (1, 2)]


def refusal(path, kind="dense"):
  with pytest.raises(settings.UserError) as error:
    model.read(path, kind)
  assert "\n" not in str(error.value)
  return str(error.value)


@pytest.fixture
def directory(tmp_path):
  """The config.json of a model; its weights are to be written."""
  shutil.copy(paths.FIXTURES / "llama" / "config.json", tmp_path)
  return tmp_path


def save(path, names=("a",), value=1.0, **options):
  params = {name: np.full((4, 4), value, np.float32) for name in names}
  bs.save(path, params, step=0.5, **options)


@pytest.mark.parametrize(
  ("content", "reason"),
  [
    (b"3", "holds int, not a JSON object"),
    (b"[1]", "holds list, not a JSON object"),
    (b'"data model"', "holds str, not a JSON object"),
    (b"{", "not readable as JSON"),
    (b"\x80\xff", "not readable as JSON"),
    (b"[" * 100_000, "not readable as JSON"),
    (b'{"model_type": []}', "model_type is []; there are bert"),
    (b'{"data": 1, "model": 2}', "train it to its end"),
  ],
)
def test_a_bad_config_is_named(tmp_path, content, reason):
  (tmp_path / "config.json").write_bytes(content)
  found = refusal(tmp_path)
  assert str(tmp_path) in found
  assert "config.json" in found
  assert reason in found


def test_without_config_both_kinds_of_directories_are_described(tmp_path):
  found = refusal(tmp_path)
  assert f"{tmp_path} has no config.json" in found
  assert f"config.json and {PLAIN} (or {CODED})" in found
  assert f"config.json and {evaluate.SHIPPED}" in found
  (tmp_path / "arm").mkdir()
  (tmp_path / "arm" / evaluate.SHIPPED).touch()
  assert f"name one, such as {tmp_path / 'arm'}" in refusal(tmp_path)


@pytest.mark.parametrize("kind", weights.KINDS)
@pytest.mark.parametrize("size", [0, 8, 60, -1])
def test_damaged_weights_are_named(directory, kind, size):
  save(directory / CODED)
  content = (directory / CODED).read_bytes()
  (directory / CODED).write_bytes(content[:size])
  found = refusal(directory, kind)
  assert str(directory / CODED) in found
  assert "backslash-jax compress" not in found


@pytest.mark.parametrize("kind", weights.KINDS)
def test_shards_are_those_of_the_index(directory, kind):
  for name, shard in zip("ab", SHARDS, strict=True):
    save(directory / shard, [name])
  index = directory / naming.coded("model.safetensors.index.json")
  assert f"{index}: missing" in refusal(directory, kind)
  weight_map = dict(zip("ac", SHARDS, strict=True))
  index.write_text(json.dumps({"weight_map": weight_map}))
  with pytest.raises(ValueError, match=f"{SHARDS[1]}: lacks c"):
    list(weights.of_directory(directory, kind))
  (directory / SHARDS[1]).unlink()
  assert f"1 of 2 shards are missing: {SHARDS[1]}" in refusal(directory, kind)


@pytest.mark.parametrize("kind", weights.KINDS)
@pytest.mark.parametrize("other", [PLAIN, "copy.safetensors"])
def test_two_models_in_a_directory_are_named(directory, kind, other):
  save(directory / CODED)
  save(directory / other)
  if other == PLAIN:
    shape = {"a": ("float32", (4,))}
    plain.write(directory / PLAIN, shape, [("a", np.ones(4, np.float32))])
  found = refusal(directory, kind)
  assert CODED in found
  assert other in found
  with pytest.raises(pretrained.WeightsError, match="are both weights"):
    pretrained.load(directory)


@pytest.mark.parametrize("kind", weights.KINDS)
def test_a_difference_is_decompressed_with_its_base(directory, kind):
  base = {"a": np.zeros((4, 4), np.float32)}
  save(directory / CODED, base=base)
  for path in (directory, directory / CODED):
    found = refusal(path, kind)
    assert f"{directory / CODED}: a difference" in found
    assert f"`backslash-jax decompress {path} OUT --base BASE`" in found


def test_weights_of_torch_are_not_coded(directory):
  (directory / "pytorch_model.bin").touch()
  assert "in the format of torch" in refusal(directory, "coded")
  assert "a file; give the directory" in refusal(directory / "config.json")
