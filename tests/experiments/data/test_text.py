"""The text datasets: arrays, splits, tokens that are kept, order, cuts."""

import json

import numpy as np
import pytest

from configs import default
from experiments import data, models
from experiments.data import text, vocabulary
from tests import paths, text_data


@pytest.mark.parametrize("name", sorted(text.CORPORA))
def test_every_dataset_gives_the_arrays_of_the_interface(make_config, name):
  config = make_config(name)
  task = data.load_task(config)
  assert task.kind == ("lm" if name in ("squad", "wmt19") else "classification")
  assert (task.vocab_size, task.seq_len) == (257, 128)
  for split in text_data.SPLITS:
    arrays = text_data.whole(config, split)
    size = len(arrays["tokens"])
    assert size > 0
    assert arrays["tokens"].shape == arrays["mask"].shape == (size, 128)
    assert arrays["tokens"].dtype == arrays["targets"].dtype == np.int32
    assert arrays["mask"].dtype == bool
    assert arrays["weights"].dtype == np.float32
    assert arrays["mask"].any(axis=1).all()
    assert arrays["weights"].sum() > 0
    if task.kind == "classification":
      assert set(arrays["targets"]) == set(range(len(task.class_names)))
    else:
      assert arrays["targets"].shape == arrays["tokens"].shape
      assert arrays["mask"][arrays["weights"] > 0].all()


def test_splits_are_disjoint_and_complete(make_config):
  for name, total in [
    ("imdb", 2000),
    ("enron_spam", 300),
    ("newsgroups20", 400),
  ]:
    config = make_config(name)
    seen = {
      split: {t.tobytes() for t in text_data.whole(config, split)["tokens"]}
      for split in text_data.SPLITS
    }
    assert not seen["train"] & seen["validation"]
    assert len(seen["train"]) + len(seen["validation"]) == total


def test_reviews_are_held_out_in_blocks_of_both_classes(make_config):
  targets = text_data.whole(make_config("imdb"), "validation")["targets"]
  assert np.bincount(targets).tolist() == [100, 100]


def test_the_ends_of_bytes_are_counted_in_characters():
  (piece,) = vocabulary.Bytes().pieces(["aü€b"])
  assert piece.ends.tolist() == [1, 2, 2, 3, 3, 3, 4]


def test_wordpiece_puts_its_special_tokens_around_a_cut_text(
  make_config, wordpiece
):
  config = make_config("sst2", tokenizer=str(wordpiece), seq_len=6)
  task = data.load_task(config)
  assert task.vocab_size == 5 + len(text_data.WORDS)
  arrays = text_data.whole(config, "train")
  assert (arrays["tokens"][:, 0] == 2).all()
  last = arrays["mask"].sum(axis=1) - 1
  assert (arrays["tokens"][np.arange(len(last)), last] == 3).all()
  assert (arrays["tokens"][~arrays["mask"]] == 0).all()
  with pytest.raises(ValueError, match=r"data.seq_len is 2, but the tokenizer"):
    data.load_task(make_config("sst2", tokenizer=str(wordpiece), seq_len=2))


def test_another_tokenizer_or_length_or_source_is_another_dataset(
  make_config, wordpiece, tmp_path
):
  config = make_config("sst2", dir=str(tmp_path))
  data.load_task(config)
  others = [{"seq_len": 16}, {"tokenizer": str(wordpiece)}]
  for changes in others:
    data.load_task(make_config("sst2", dir=str(tmp_path), **changes))
  assert len(list(tmp_path.rglob("*.npz"))) == 3
  assert len(list(tmp_path.rglob("dataset_info.json"))) == 1


def test_tokens_that_are_kept_are_read_again(
  make_config, tmp_path, monkeypatch
):
  config = make_config("sst2", dir=str(tmp_path))
  first = text_data.whole(config, "train")
  (path,) = tmp_path.rglob("*.npz")
  monkeypatch.setattr(text, "_records", None)  # Not needed any more.
  data._read.cache_clear()
  again = text_data.whole(config, "train")
  for name, array in first.items():
    np.testing.assert_array_equal(again[name], array)
  monkeypatch.undo()
  # One that is damaged is made again.
  path.write_bytes(path.read_bytes()[:1000])
  data._read.cache_clear()
  np.testing.assert_array_equal(
    text_data.whole(config, "train")["tokens"], first["tokens"]
  )
  assert not list(tmp_path.rglob("*.part"))


def test_interrupted_writing_of_tokens_leaves_nothing(tmp_path, monkeypatch):
  def interrupted(file, **_):
    file.write(b"half")
    raise KeyboardInterrupt

  monkeypatch.setattr(np, "savez", interrupted)
  with pytest.raises(KeyboardInterrupt):
    text._keep(tmp_path / "tokens" / "x.npz", {})
  assert not list((tmp_path / "tokens").iterdir())


def test_training_order_is_not_that_of_the_files(make_config):
  batch = next(
    iter(data.train_dataset(make_config("imdb"), seed=0, batch_size=32))
  )
  assert 0 < batch["targets"].sum() < 32


def test_a_part_of_the_examples_is_not_the_first_part(make_config):
  config = make_config("imdb", max_train=50, max_eval=10)
  assert data.load_task(config).num_train == 50
  assert len(text_data.whole(config, "test")["targets"]) == 10
  assert 0 < text_data.whole(config, "train")["targets"].sum() < 50


def test_tasks_that_do_not_fit_a_model_are_refused(make_config):
  config = default.get_config().model
  config.update({"name": "gpt2", "size": "small"})
  long = data.load_task(make_config("sst2", seq_len=1025))
  with pytest.raises(
    ValueError, match="1025 tokens is longer than the model's"
  ):
    models.build(config, long, seed=0)
  fixture = paths.FIXTURES / "gpt2"
  config.update({"size": None, "weights": str(fixture)})
  wide = data.load_task(make_config("wmt19"))
  found = json.loads((fixture / "config.json").read_text())["vocab_size"]
  with pytest.raises(ValueError, match=f"257 tokens, but .* only {found}"):
    models.build(config, wide, seed=0)


def test_the_begins_of_texts_are_predicted(make_config):
  config = make_config("imdb", language=True, seq_len=16)
  task = data.load_task(config)
  assert (task.kind, task.num_classes) == ("lm", None)
  (batch, *_) = data.eval_batches(config, "test", 4)
  real = batch["weights"].any(axis=1)
  assert batch["mask"][real].all()
  np.testing.assert_array_equal(
    batch["targets"][real, :-1], batch["tokens"][real, 1:]
  )
  np.testing.assert_array_equal(batch["weights"][real].sum(1), 15)
  with pytest.raises(ValueError, match="no text has so many tokens"):
    data.load_task(make_config("imdb", language=True, seq_len=4096))
  with pytest.raises(ValueError, match="squad has no classes to leave out"):
    data.load_task(make_config("squad", language=True))
