"""A vocabulary learned from texts."""

import pytest

from experiments.data import bpe, text, tokenizer

RECORDS = {"train": 20 * [{"text": "the film, and the film again"}]}


def test_words_of_the_training_texts_become_tokens(tmp_path, monkeypatch):
  monkeypatch.setattr(text, "records", lambda *_: RECORDS)
  directory = tmp_path / "made" / "words"
  bpe.write("imdb", directory, size=280, source=None)
  words = tokenizer.load(directory)
  assert words.eos_id is not None
  assert len(words.encode("the film")) < len("the film")
  assert words.decode(words.encode("äß the film")) == "äß the film"

  def refuse(*_):
    raise AssertionError("what is there was made again")

  monkeypatch.setattr(text, "records", refuse)
  bpe.write("imdb", directory, size=280, source=None)


def test_a_stopped_attempt_leaves_nothing(tmp_path, monkeypatch):
  def stopped(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(text, "records", lambda *_: RECORDS)
  monkeypatch.setattr("pathlib.Path.rename", stopped)
  with pytest.raises(KeyboardInterrupt):
    bpe.write("imdb", tmp_path / "words", size=280, source=None)
  assert not list(tmp_path.iterdir())
