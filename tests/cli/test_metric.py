"""compress finds the smallest file within a tolerance of a user's metric."""

import json
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from backslash_jax import archive
from backslash_jax.cli import main

MODULE = """
import numpy as np

CALLS = []

def close(params):
  print("a word of the metric's own")
  CALLS.append(sorted(params))
  w = np.concatenate([params[n].ravel() for n in ("a.weight", "b.weight")])
  exact = np.load("exact.npy")
  return -float(np.sqrt(np.square(w - exact).mean()))

def broken(params):
  raise RuntimeError("no\\ndata")

def nan(params):
  return float("nan")

def later(params):
  CALLS.append(None)
  return 1.0 if len(CALLS) == 1 else float("inf")

def strict(params):
  return -1e9 * abs(close(params))

def text(params):
  return "good"

number = 3
"""


def _tensors(seed):
  rng = np.random.default_rng(seed)
  name = "ab"[seed]
  return {
    f"{name}.weight": rng.laplace(scale=0.05, size=(96, 64)).astype("f4"),
    f"{name}.bias": rng.normal(size=64).astype("f4"),
  }


@pytest.fixture
def model(tmp_path, monkeypatch):
  """A directory of two files, and the module of metrics beside it."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
  monkeypatch.delitem(sys.modules, "own_metric", raising=False)
  (tmp_path / "own_metric.py").write_text(MODULE)
  (tmp_path / "own_fault.py").write_text("import no_such_module")
  (tmp_path / "in").mkdir()
  for i in range(2):
    save_file(
      _tensors(i), tmp_path / f"in/model-0000{i + 1}-of-00002.safetensors"
    )
  weights = [_tensors(i)[f"{'ab'[i]}.weight"].ravel() for i in range(2)]
  np.save(tmp_path / "exact.npy", np.concatenate(weights))
  return tmp_path / "in"


def _run(model, *options):
  words = ["compress", model, model.parent / "out", *options]
  return main.main([str(word) for word in words])


@pytest.mark.parametrize("options", [(), ("--mu=0.1",)])
def test_the_metric_of_the_file_is_within_the_tolerance(model, capsys, options):
  tolerance = 0.004
  named = "--evaluate=own_metric:close"
  wanted = f"--tolerance={tolerance}"
  assert _run(model, wanted, named, "--json", *options) == 0
  printed = json.loads(capsys.readouterr().out)  # Nothing but JSON.
  assert printed["output_bytes"] > 0
  own = sys.modules["own_metric"]
  assert all(
    names == ["a.bias", "a.weight", "b.bias", "b.weight"] for names in own.CALLS
  )
  assert len(own.CALLS) <= 12
  found = {}
  for file in (model.parent / "out").iterdir():
    found |= archive.load(file)
  loss = -own.close(found)
  assert 0.9 * tolerance < loss <= tolerance  # And not much better.


def test_a_difference_is_measured_as_what_it_adds_up_to(
  model, tmp_path, capsys
):
  file = model / "model-00001-of-00002.safetensors"
  tuned = {
    name: x
    + np.float32(0.01) * np.float32(np.sin(np.arange(x.size))).reshape(x.shape)
    for name, x in _tensors(0).items()
  }
  save_file(tuned, tmp_path / "tuned.safetensors")
  (tmp_path / "own_metric.py").write_text(
    "import numpy as np\n"
    "from safetensors.numpy import load_file\n"
    "def close(params):\n"
    "  exact = load_file('tuned.safetensors')['a.weight']\n"
    "  return -float(np.abs(params['a.weight'] - exact).mean())\n"
  )
  words = ["compress", tmp_path / "tuned.safetensors", tmp_path / "out"]
  words += ["--base", file, "--tolerance=0.002", "--evaluate=own_metric:close"]
  assert main.main([str(word) for word in words]) == 0
  found = archive.load(tmp_path / "out", base=file)
  loss = np.abs(found["a.weight"] - tuned["a.weight"]).mean()
  assert 0.0015 < loss <= 0.002


@pytest.mark.parametrize(
  ("options", "words"),
  [
    (["--evaluate=own_metric"], "own_metric: give module:function"),
    (["--evaluate=:close"], ":close: give module:function"),
    (["--evaluate=nowhere.at:all"], "cannot import it: ModuleNotFoundError"),
    (["--evaluate=own_fault:f"], "No module named 'no_such_module'"),
    (["--evaluate=own_metric:f"], "cannot import it: AttributeError"),
    (["--evaluate=own_metric:number"], "number is no function"),
    (["--evaluate=own_metric:broken"], "exact weights: RuntimeError: no data"),
    (["--evaluate=own_metric:nan"], "returned nan for the exact weights"),
    (["--evaluate=own_metric:later"], "returned inf for quantized weights"),
    (["--evaluate=own_metric:text"], "ValueError: could not convert"),
    (["--evaluate=own_metric:strict"], "--tolerance 0.1: the finest steps"),
    ([], "--tolerance is given without --evaluate"),
    (["--tolerance=-1", "--evaluate=own_metric:close"], "--tolerance -1: give"),
    (["--tolerance=nan", "--evaluate=own_metric:close"], "--tolerance nan: "),
  ],
)
def test_what_cannot_be_is_one_line(model, capsys, options, words):
  assert _run(model, "--tolerance=0.1", *options) == 1
  error = capsys.readouterr().err
  (line,) = [x for x in error.splitlines() if x != "a word of the metric's own"]
  assert line.startswith("backslash-jax: ")
  assert words in line
  assert not (model.parent / "out").exists()


def test_a_metric_without_a_tolerance_is_one_line(model, capsys):
  assert _run(model, "--bits=3", "--evaluate=own_metric:close") == 1
  assert "--evaluate is given without --tolerance" in capsys.readouterr().err
  with pytest.raises(SystemExit):
    _run(model, "--bits=3", "--tolerance=0.1", "--evaluate=own_metric:close")
