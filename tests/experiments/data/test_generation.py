"""The tasks that generate: articles of squad, prompts, packing."""

import json

import numpy as np
import pytest
import tokenizers

from experiments import data
from experiments.data import encode, vocabulary
from tests import text_data


@pytest.fixture(scope="session")
def bpe(tmp_path_factory):
  directory = tmp_path_factory.mktemp("bpe")
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  names = [*alphabet, "th", "the", "<|endoftext|>"]
  vocabulary = {name: i for i, name in enumerate(names)}
  (directory / "vocab.json").write_text(json.dumps(vocabulary))
  (directory / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")
  return directory


def test_no_article_of_squad_is_in_two_splits(make_config):
  titles = {}
  for split in text_data.SPLITS:
    tokens = text_data.whole(make_config("squad", pack=False), split)["tokens"]
    titles[split] = {text_data.spell(t).split()[1] for t in tokens}
  assert titles["test"] == {"V0", "V1"}
  assert not titles["train"] & titles["validation"]
  assert len(titles["train"] | titles["validation"]) == 60


def test_only_the_answer_and_the_end_are_learned(make_config):
  for name, start in [("squad", "Answer:"), ("wmt19", "German:")]:
    arrays = text_data.whole(make_config(name), "test")
    for i in range(len(arrays["tokens"])):
      is_learned = arrays["weights"][i] > 0
      learned = arrays["targets"][i][is_learned]
      assert learned[-1] == 256
      before, answer = (
        text_data.spell(arrays["tokens"][i]).rstrip("\0").split(start)
      )
      assert text_data.spell(learned) == answer
      # The first prediction is made after the prompt.
      assert np.argmax(is_learned) == len(before + start) - 1


def test_packing_keeps_every_example_whole_and_once(make_config):
  packed = text_data.whole(make_config("wmt19"), "train")
  alone = text_data.whole(make_config("wmt19", pack=False), "train")
  assert len(packed["tokens"]) < len(alone["tokens"]) == 60

  def examples(arrays):
    found = []
    for tokens, mask in zip(arrays["tokens"], arrays["mask"], strict=True):
      ids = tokens[mask].tolist()
      while ids:
        end = ids.index(256) + 1
        found.append(tuple(ids[:end]))
        ids = ids[end:]
    return sorted(found)

  assert examples(packed) == examples(alone)
  assert packed["weights"].sum() == alone["weights"].sum()
  # No example's end predicts the beginning of the next.
  assert not packed["weights"][packed["tokens"] == 256].any()


def test_evaluation_has_one_example_a_row(make_config):
  tokens = text_data.whole(make_config("wmt19"), "test")["tokens"]
  assert len(tokens) == 20
  assert ((tokens == 256).sum(axis=1) == 1).all()


def prompts(**changes):
  return [
    encode.Prompt(
      **{
        "context": "c" * 50,
        "question": "q" * 6,
        "answer": "a" * 5,
        "needed": 0,
      }
      | changes
    )
  ]


def generated(examples, length, train=False):
  return encode.generation(
    examples, vocabulary.Bytes(), length, train=train, pack=False
  )


def test_what_is_too_long_is_cut_from_the_context():
  arrays = generated(prompts(), 20)
  assert text_data.spell(arrays["tokens"][0]) == "c" * 8 + "q" * 6 + "a" * 5
  assert arrays["tokens"][0, -1] == 256
  assert arrays["weights"][0].sum() == 6


def test_even_a_question_or_an_answer_that_is_too_long_fits():
  for changes in ({"question": "q" * 90}, {"answer": "a" * 90}):
    arrays = generated(prompts(**changes), 20)
    assert arrays["mask"].all()
    assert arrays["tokens"][0, -1] == 256
    assert text_data.spell(arrays["tokens"][0])[-1] == "a"


def test_training_leaves_out_what_lacks_its_answer():
  needed = prompts(needed=30) + prompts(needed=5)
  assert len(generated(needed, 20, train=True)["tokens"]) == 1
  assert len(generated(needed, 20, train=False)["tokens"]) == 2
  with pytest.raises(ValueError, match=r"data.seq_len is 20, too short"):
    generated(prompts(needed=30), 20, train=True)


def test_byte_level_bpe_ends_answers_with_its_own_token(make_config, bpe):
  config = make_config("squad", tokenizer=str(bpe))
  assert data.load_task(config).vocab_size == 259
  arrays = text_data.whole(config, "test")
  assert (arrays["targets"][arrays["weights"] > 0] == 258).sum() == 4


def test_resumed_iterator_continues_the_packed_stream(make_config):
  dataset = data.train_dataset(make_config("squad"), seed=1, batch_size=4)
  unbroken, resumed = iter(dataset), iter(dataset)
  for _ in range(9):
    next(unbroken)
  resumed.set_state(json.loads(json.dumps(unbroken.get_state())))
  for _ in range(20):
    a, b = next(unbroken), next(resumed)
    np.testing.assert_array_equal(a["tokens"], b["tokens"])
