"""Losses and answers of several files of one model."""

import json
import shutil

import numpy as np
import pytest

from backslash_jax.cli import main as cli
from experiments import compare, include, settings
from tests import paths, text_data, tiny


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """A plain directory, two coded ones, and a file of texts."""
  root = tmp_path_factory.mktemp("models")
  shutil.copytree(paths.FIXTURES / "llama", root / "plain")
  text_data.write_tokenizer(root / "plain")
  for step in ("2^-5", "2^-2"):
    coded = ["compress", str(root / "plain"), str(root / step)]
    assert not cli.main([*coded, f"--step={step}"])
  texts = [text_data.sentence(i) for i in range(60)]
  (root / "texts.txt").write_text("\n".join(texts) + "\n")
  return root


def _config(models, **fields):
  return tiny.config(
    data__name="texts",
    data__source=str(models / "texts.txt"),
    data__tokenizer=str(models / "plain"),
    data__language=True,
    data__seq_len=12,
    data__eval_batch_size=8,
    **fields,
  )


def _named(models):
  steps = ("plain", "2^-5", "2^-2")
  return [(f"step {name}", models / name) for name in steps]


def test_models_stand_beside_the_first(tmp_path, models):
  prompts = ["the film", "it was"]
  records = compare.compare(
    _config(models), _named(models), tmp_path, prompts=prompts
  )
  exact = records[0]["texts"]["texts"]
  assert len(exact["loss"]) == 12  # A fifth of the texts.
  found = [compare.scored(r["texts"]["texts"], exact) for r in records]
  assert found[0]["above"] == found[0]["error"] == 0
  assert 0 < abs(found[1]["above"]) < abs(found[2]["above"])
  for own in found:
    assert own["loss"] - own["above"] == pytest.approx(found[0]["loss"])
  bits = [record["bits"] for record in records]
  assert bits[0] > 32 > bits[1] > bits[2] > 0  # A plain file has a header.
  assert json.loads((tmp_path / "records.json").read_text()) == records
  lines = (tmp_path / compare.LOSSES).read_text().splitlines()
  assert [line.split(" | ")[0] for line in lines[2:]] == [
    f"| {name}" for name, _ in _named(models)
  ]
  answers = (tmp_path / compare.ANSWERS).read_text().splitlines()
  assert answers[0] == "|  | the film | it was |"
  assert len(answers) == 2 + len(records)


def test_the_error_is_that_of_a_mean_over_drawn_texts():
  rng = np.random.default_rng(0)
  errors, found = [], []
  for _ in range(400):
    weight = rng.integers(1, 20, 50).astype(float)
    exact = weight * rng.gamma(2, size=50)
    more = exact + weight * (0.1 + 0.05 * rng.normal(size=50))
    own = compare.scored(
      {"loss": list(more), "weight": list(weight)},
      {"loss": list(exact), "weight": list(weight)},
    )
    errors.append(own["error"])
    found.append(own["above"])
  assert np.mean(found) == pytest.approx(0.1, abs=1e-3)
  assert np.std(found) == pytest.approx(np.mean(errors), rel=0.1)


def test_what_was_measured_is_not_measured_again(tmp_path, models, monkeypatch):
  first = _named(models)[:2]
  before = compare.compare(_config(models), first, tmp_path)
  measured = []
  own = compare._measured

  def spied(directory, *rest):
    measured.append(directory.name)
    return own(directory, *rest)

  monkeypatch.setattr(compare, "_measured", spied)
  after = compare.compare(_config(models), _named(models), tmp_path)
  assert measured == ["2^-2"]
  assert after[:2] == before
  renamed = [("exact", models / "plain"), *_named(models)[1:]]
  assert compare.compare(_config(models), renamed, tmp_path)[0]["name"] == (
    "exact"
  )
  assert measured == ["2^-2"]
  compare.compare(_config(models, data__max_eval=5), first, tmp_path)
  assert measured == ["2^-2", "plain", "2^-5"]


def test_a_model_under_two_names_is_measured_once(
  tmp_path, models, monkeypatch
):
  names = []
  own = compare._measured
  monkeypatch.setattr(
    compare, "_measured", lambda *a: names.append(a[0].name) or own(*a)
  )
  twice = [(name, models / "2^-2") for name in "ab"]
  records = compare.compare(_config(models), twice, tmp_path)
  assert names == ["2^-2"]
  assert [record["name"] for record in records] == ["a", "b"]


def test_a_record_is_of_its_texts_and_of_the_whole_model(tmp_path, models):
  def key():
    texts = [compare._read_texts(config, "texts")]
    return compare._key(tmp_path / "model", texts, ["the film"])

  shutil.copytree(models / "2^-2", tmp_path / "model")
  config = _config(models)
  found = {key()}
  described = tmp_path / "model" / "config.json"
  described.write_text(described.read_text().replace("500.0", "501.0"))
  found.add(key())
  other = tmp_path / "texts.txt"
  other.write_text((models / "texts.txt").read_text().replace("film", "it"))
  config = _config(models).unlock()
  config.data.source = str(other)
  found.add(key())
  weights = next((tmp_path / "model").glob("*.safetensors"))
  weights.write_bytes(weights.read_bytes()[:-1] + b"x")
  found.add(key())
  assert len(found) == 4


def test_answers_are_no_markdown():
  record = {"name": "a", "bits": 2.0, "answers": [["b|", "| *x*\n<y> `z_"]]}
  table = compare.answers_table([record])
  assert table.splitlines()[0] == r"|  | b\| |"
  assert table.splitlines()[2] == r"| a, 2.00 bits | \| \*x\* \<y> \`z\_ |"


def test_what_cannot_be_compared_is_said(tmp_path, models):
  def fails(message, config, named, **options):
    with pytest.raises(settings.UserError, match=message):
      compare.compare(config, named, tmp_path / "out", **options)

  config, named = _config(models), _named(models)
  fails("give --model=NAME=DIR", config, [])
  fails("nowhere: no such directory", config, [("a", models / "nowhere")])
  fails("there are enron_spam", config, named, others=["unknown"])
  labelled = models / "labelled.txt"
  labelled.write_text("".join(f"{i % 2}\ta text\n" for i in range(20)))
  classes = _config(models).unlock()
  classes.data.source, classes.data.language = str(labelled), False
  fails(r"config\.data\.language", classes, named)
  assert not list((tmp_path / "out").iterdir())
  large = _config(models).unlock()
  large.data.tokenizer = "bytes"  # There are more of them than tokens.
  fails(r"texts has \d+ tokens, but .* only 96: use", large, named)
  fails("prompt 2 is empty", config, named, prompts=["a", " "])
  for text in ("[", "[{}]", "5", '{"a": 1}', '[{"key": 1}]'):
    (tmp_path / "records.json").write_text(text)
    with pytest.raises(settings.UserError, match=r"records\.json: .*remove it"):
      compare.compare(config, named, tmp_path)
  with pytest.raises(settings.UserError, match=r"texts\.txt"):
    compare.compare(config, named, models / "texts.txt")


@pytest.mark.parametrize("text", ["a", "=a", "a="])
def test_a_model_has_a_name_and_a_directory(text):
  with pytest.raises(settings.UserError, match="give NAME=DIR"):
    compare._named(text)


def test_the_document_shows_the_committed_comparison():
  document = (paths.ROOT / "docs/feedback.md").read_text()
  results = paths.ROOT / "experiments/results"
  assert include.included(document, results) == document
