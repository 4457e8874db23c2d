"""The benchmarks run, and compare what they say."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import backslash_jax as bs
from experiments import include
from experiments.bench import (
  eager,
  feedback,
  fine_tunes,
  growth,
  memory,
  moments,
  optimizer,
  quickstart,
  scaling,
  shapes,
  timing,
  trellis,
)


def test_bert_base_has_its_110_million_parameters():
  names = shapes.bert()
  assert len(names) == 199
  assert sum(map(math.prod, names.values())) == 109_482_240


def test_ratios_are_of_the_calls_of_the_same_turn():
  times = {
    "base": {"wall": [1.0, 2.0, 4.0]},
    "other": {"wall": [2.0, 4.0, 8.0]},
  }
  compared = timing.compare(times, "base")["other"]["wall"]
  assert compared["ratio"]["quartile_1"] == compared["ratio"]["median"] == 2.0
  assert compared["seconds"]["median"] == 4.0
  assert compared["ratio_of_means"] == 2.0


def test_every_candidate_is_called_as_often_and_the_first_is_not_counted():
  calls = []
  candidates = {n: lambda n=n: calls.append(n) or jnp.ones([]) for n in "ab"}
  times = timing.measure(candidates, repeats=3)
  assert calls == ["a", "b"] * 4
  assert [len(times[n]["wall"]) for n in "ab"] == [3, 3]


def test_results_are_kept_with_the_machine(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(timing, "RESULTS", tmp_path)
  timing.write("x", "python -m x", {"a": 1})
  document = json.loads((tmp_path / "x_cpu.json").read_text())
  assert document["results"] == {"a": 1}
  assert document["machine"]["platform"] == "cpu"
  assert json.loads(capsys.readouterr().out) == document


def test_optimizer_steps_change_their_own_parameters_alone():
  params = optimizer.tensors({"a": (8, 4), "b": (3,)}, seed=0)
  grads = jax.tree.map(jnp.ones_like, params)
  before = jax.device_get(params)
  run = optimizer.make_step(optax.sgd(0.5), params, grads)
  first, _ = jax.device_get(run())
  second, _ = jax.device_get(run())
  for name, x in before.items():
    np.testing.assert_allclose(first[name], x - 0.5, rtol=1e-6)
    np.testing.assert_allclose(second[name], x - 1.0, rtol=1e-6)
    np.testing.assert_array_equal(params[name], x)


def test_moments_are_compared_with_a_copy_on_this_platform():
  candidates = moments.candidates(jnp.ones([4, 4]), calls=2)
  assert list(candidates) == ["copy", "xla", "xla_cpu"]
  copied, _ = candidates["copy"]()
  np.testing.assert_array_equal(copied, 1.0)


def test_a_shard_costs_a_device_the_same_however_many_there_are():
  one, eight = growth.per_device(1), growth.per_device(8)
  assert one["bytes all-reduced"] == eight["bytes all-reduced"] == 12
  assert eight["bytes"] <= 1.01 * one["bytes"]


def test_the_eager_update_is_the_paper_s():
  torch = pytest.importorskip("torch", reason="only the benchmark needs torch")
  params = optimizer.tensors({"a": (40, 300), "b": (7,)}, seed=0)
  tx = bs.backslash(3.0)
  wanted, _ = tx.update(
    jax.tree.map(jnp.zeros_like, params), tx.init(params), params
  )
  tensors = [torch.from_numpy(np.array(x)) for x in params.values()]
  for r, u in zip(
    eager.rate_gradients(tensors, 3.0), wanted.values(), strict=True
  ):
    np.testing.assert_allclose(r.numpy(), u, rtol=3e-4)


def test_the_eager_update_inverts_the_moments_of_known_shapes():
  # E|x| and E x^2 of a Laplace distribution and of a Gaussian one.
  np.testing.assert_allclose(eager.shape_parameter(5.0, 10.0, 5), 1, rtol=1e-6)
  gaussian = math.sqrt(2 / math.pi) * 9
  np.testing.assert_allclose(
    eager.shape_parameter(gaussian, 9.0, 9), 2, rtol=1e-6
  )


def test_the_document_holds_what_was_measured():
  text = scaling.DOCS.read_text()
  assert include.filled(text, scaling.tables(timing.RESULTS)) == text


def test_the_readme_holds_what_the_quickstart_printed():
  text = quickstart.README.read_text()
  found = json.loads(quickstart.RESULTS.read_text())["results"]
  assert include.filled(text, quickstart.tables(found)) == text
  # Each run loses at most a point.
  for run in found.values():
    assert run["comparison"]["backslash"]["accuracy_change"] > -0.01


def test_fine_tunes_share_one_base(tmp_path, monkeypatch):
  monkeypatch.setattr(fine_tunes, "ROWS", 10)
  rng = np.random.default_rng(0)
  params = {
    "embed": rng.normal(size=(200, 64)).astype(np.float32),
    "kernel": rng.normal(size=(64, 32)).astype(np.float32),
  }
  path = tmp_path / "base.safetensors"
  bs.save(path, params, step=None)
  before = sum(x.nbytes for x in jax.live_arrays())
  found = fine_tunes.measure(path, 3, tmp_path)
  assert found["base_bytes"] == sum(x.nbytes for x in params.values())
  assert found["fine_tunes_bytes"] < 0.1 * found["base_bytes"]
  # The base and one fine-tune, however many there are.
  assert found["device_bytes"] - before <= 2 * found["base_bytes"]


def test_savings_at_equal_error_are_those_of_the_better_mu():
  """Curves of 6 dB per bit: the trellis has 0.1 bits less than the best."""
  points = [
    {"quantizer": quantizer, "mu": mu, "bits": bits}
    | dict.fromkeys(("error", "weighted error", "divergence"), error)
    for quantizer, mu, more in (
      *(("scalar", 0.0, 0.3), ("scalar", 0.05, 0.1)),
      *(("trellis", 0.0, 0.0), ("trellis", 0.05, 0.5)),
    )
    for bits in np.arange(1.0, 3.6, 0.001)
    for error in [4.0 ** (more - bits)]
  ]
  savings = trellis.compare(points)
  assert savings.keys() == {"error", "weighted error", "divergence"}
  for saved in savings.values():
    assert list(saved) == ["1.8", "2", "2.5", "3"]
    for rate, own in saved.items():
      assert own == pytest.approx(0.1 / (float(rate) + 0.1), abs=1e-4)
  lines = trellis.table(savings).splitlines()
  assert lines[2] == "| 1.8 | 5.3% | 5.3% | 5.3% |"
  assert lines[-1] == "| 3.75 | - | - | - |"


def test_the_guide_to_memory_holds_what_was_measured():
  text = memory.DOCS.read_text()
  assert include.filled(text, memory.tables()) == text


def test_the_cost_of_feedback_is_per_product():
  found = feedback.measure(((8, 4),), tokens=16, repeats=2)["8x4"]
  for name, products in (("moments", 8 * 8 * 16), ("levels", 8 * 8 * 4)):
    own = found[name]
    seconds = own["seconds"]["median"]
    np.testing.assert_allclose(own["ns_per_product"], 1e9 * seconds / products)
