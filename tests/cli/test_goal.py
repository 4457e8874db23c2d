"""compress finds the step for a size."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from backslash_jax import archive
from backslash_jax.cli import goal, main


def _run(*arguments):
  return main.main([str(a) for a in arguments])


def _tensors(seed=0):
  rng = np.random.default_rng(seed)
  return {
    "embed.weight": rng.laplace(scale=0.05, size=(200, 64)).astype("f4"),
    "layer.weight": rng.normal(scale=0.2, size=(64, 100)).astype("f2"),
    "zero.weight": np.zeros((9, 9), "f4"),
    "layer.bias": rng.normal(size=64).astype("f4"),
  }


@pytest.fixture
def model(tmp_path):
  path = tmp_path / "model.safetensors"
  save_file(_tensors(), path)
  return path


@pytest.mark.parametrize(
  ("option", "size"),
  [
    ("--bits=3", 3 * 19345 / 8),
    ("--bits=7.5", 7.5 * 19345 / 8),
    ("--size=9.5KB", 9500),
    ("--size=12 KiB", 12 * 1024),
    ("--size=5000", 5000),
    ("--size=0.02MB", 20000),
  ],
)
def test_the_file_has_the_size(model, tmp_path, capsys, option, size):
  out = tmp_path / "coded"
  assert _run("compress", model, out, option, "--json") == 0
  found = json.loads(capsys.readouterr().out)
  assert found["output_bytes"] == out.stat().st_size
  assert 0.995 * size - 1 <= out.stat().st_size <= size
  # Every tensor is quantized: none is exact because a step is too coarse.
  report = archive.inspect(out)
  steps = {t.name: t.step for t in report.tensors}
  assert all(steps[n] for n in ("embed.weight", "layer.weight"))
  assert found["exact"]["error"] == []


def test_all_files_of_a_directory_count(tmp_path):
  source, out = tmp_path / "in", tmp_path / "out"
  source.mkdir()
  for i in range(2):
    save_file(_tensors(i), source / f"model-0000{i + 1}-of-00002.safetensors")
  assert _run("compress", source, out, "--size=17KB") == 0
  assert 16900 <= sum(f.stat().st_size for f in out.iterdir()) <= 17000
  found = []
  for i, file in enumerate(sorted(out.iterdir())):
    steps = {t.name: t.step for t in archive.inspect(file).tensors if t.step}
    weights = {n: goal.root(_tensors(i)[n]) for n in steps}
    scales = [steps[n] / weights[n] for n in steps if weights[n]]
    found += scales
  np.testing.assert_allclose(found, found[0])  # Of all files.


def test_a_difference_has_the_size(model, tmp_path):
  tuned, out = tmp_path / "tuned.safetensors", tmp_path / "out"
  rng = np.random.default_rng(1)
  save_file(
    {
      name: (x + 0.01 * rng.normal(size=x.shape)).astype(x.dtype)
      for name, x in _tensors().items()
    },
    tuned,
  )
  assert _run("compress", tuned, out, "--base", model, "--size=6KB") == 0
  assert 5969 <= out.stat().st_size <= 6000
  assert archive.inspect(out).is_difference


@pytest.mark.parametrize(
  ("option", "words"),
  [
    ("--bits=0.1", "--bits 0.1: the smallest size that steps can give is "),
    ("--size=1KB", "--size 1KB: the smallest size that steps can give is "),
    ("--size=1GB", "--size 1GB: the largest size that steps can give is "),
    ("--bits=60", "--bits 60: the largest size that steps can give is "),
    ("--size=x", "--size x: give bytes, such as 40000000"),
    ("--size=0", "--size 0: give bytes"),
    ("--bits=-1", "--bits -1: give a positive number"),
    ("--bits=nan", "--bits nan: give a positive number"),
  ],
)
def test_what_cannot_be_is_one_line(model, tmp_path, capsys, option, words):
  assert _run("compress", model, tmp_path / "coded", option) == 1
  error = capsys.readouterr().err
  assert words in error
  assert error.count("\n") == 1
  assert not (tmp_path / "coded").exists()


def test_the_smallest_size_is_reached(model, tmp_path, capsys):
  assert _run("compress", model, tmp_path / "coded", "--bits=0.1") == 1
  size = capsys.readouterr().err.split(" bytes")[0].split()[-1]
  option = f"--size={size.replace(',', '')}"
  assert _run("compress", model, tmp_path / "coded", option) == 0


def test_one_of_step_bits_and_size(model, tmp_path):
  for options in ([], ["--step=1", "--bits=3"], ["--bits=3", "--size=1KB"]):
    with pytest.raises(SystemExit):
      _run("compress", model, tmp_path / "coded", *options)


@pytest.mark.parametrize("seed", range(20))
def test_few_tries_suffice(seed):
  """For any size that falls with the scale, steps of whole bytes as well."""
  rng = np.random.default_rng(seed)
  slope, coarse = rng.uniform(0.3, 1.2), rng.uniform(0, 5)
  tries = []

  def size(scale):
    tries.append(scale)
    bits = slope * np.logaddexp(0, coarse - np.log2(scale)) + 0.2
    return int(1000 * bits / 8)

  wanted = goal.parse(rng.uniform(0.5, 6), None, 1000)
  found = size(goal.solve(size, wanted, 2.0 ** rng.uniform(-4, 4)))
  assert 0.995 * wanted.bytes - 2 <= found <= wanted.bytes
  assert len(tries) <= 26
