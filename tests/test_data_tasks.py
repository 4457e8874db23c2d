"""The text datasets: their splits, their tokens, and sources that are bad."""

import functools
import hashlib
import http.server
import io
import itertools
import json
import lzma
import os
import pathlib
import tarfile
import threading

import numpy as np
import pytest
import tokenizers

from configs import default
from experiments import data, models
from experiments.data import (
  classification,
  encode,
  files,
  generation,
  newsgroups,
  text,
  vocabulary,
)

SPLITS = ("train", "validation", "test")
WORDS = (
  "the film was good bad a of and to in is it you that he for on as".split()
)
SHARED = pathlib.Path(
  os.environ.get("BACKSLASH_SHARED")
  or pathlib.Path(__file__).parents[2] / "shared"
)
needs_shared = pytest.mark.skipif(
  not (SHARED / "data").is_dir(),
  reason="no real datasets here; BACKSLASH_SHARED names their place",
)


def write(path, value):
  """Rows to a .jsonl.xz file, an object to a .json.xz file."""
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = value if isinstance(value, list) else [value]
  content = "\n".join(json.dumps(line) for line in lines)
  path.write_bytes(lzma.compress(content.encode()))


def sentence(i):
  return " ".join(WORDS[(i + k * k) % len(WORDS)] for k in range(3 + i % 5))


def rows(count, classes, **fields):
  """Rows ordered by class, as in the real files."""
  return [
    {
      "id": f"{i}",
      "label": i * classes // count,
      "text": f"{sentence(i)} {i}",
      **{name: make(i) for name, make in fields.items()},
    }
    for i in range(count)
  ]


def squad(titles, contexts=2):
  return {
    "data": [
      {
        "title": title,
        "paragraphs": [
          {
            "context": f"In {title} {c} lives a cat. {sentence(c)}.",
            "qas": [
              {
                "question": f"Who lives in {title} {c}?",
                "answers": [
                  {
                    "text": "a cat",
                    "answer_start": len(f"In {title} {c} lives "),
                  }
                ],
              }
            ],
          }
          for c in range(contexts)
        ],
      }
      for title in titles
    ]
  }


@pytest.fixture(scope="session")
def source(tmp_path_factory):
  """A directory with a tiny version of every dataset."""
  root = tmp_path_factory.mktemp("source")
  write(root / "imdb/train.jsonl.xz", rows(2000, 2))
  write(root / "imdb/test.jsonl.xz", rows(40, 2))
  subject = {"subject": lambda i: f"about {i}"}
  write(root / "enron_spam/train.jsonl.xz", rows(300, 2, **subject))
  write(root / "enron_spam/test.jsonl.xz", rows(30, 2, **subject))
  place = {"id": lambda i: f"group/{(i * 7) % 400}"}
  write(root / "newsgroups20/train.jsonl.xz", rows(400, 20, **place))
  write(root / "newsgroups20/test.jsonl.xz", rows(40, 20, **place))
  for split, count in zip(SPLITS, (60, 10, 20), strict=True):
    write(root / f"sst2/{split}.jsonl.xz", rows(count, 2))
    write(
      root / f"wmt19_newstest_ende/{split}.jsonl.xz",
      [{"en": sentence(i), "de": sentence(i + 1)} for i in range(count)],
    )
  write(root / "squad/train.json.xz", squad([f"T{i}" for i in range(60)]))
  write(root / "squad/validation.json.xz", squad(["V0", "V1"]))
  return root


@pytest.fixture(scope="session")
def wordpiece(tmp_path_factory):
  directory = tmp_path_factory.mktemp("wordpiece")
  special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  (directory / "vocab.txt").write_text("\n".join(special + WORDS))
  return directory


@pytest.fixture(scope="session")
def bpe(tmp_path_factory):
  directory = tmp_path_factory.mktemp("bpe")
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  names = [*alphabet, "th", "the", "<|endoftext|>"]
  vocabulary = {name: i for i, name in enumerate(names)}
  (directory / "vocab.json").write_text(json.dumps(vocabulary))
  (directory / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")
  return directory


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make_config(source, cache):
  def make(name, **fields):
    config = default.get_config().data
    config.update(
      {"name": name, "source": str(source), "dir": str(cache), **fields}
    )
    return config

  return make


def whole(config, split):
  batches = list(data.eval_batches(config, split, 1))
  return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


def spell(tokens):
  return bytes(t for t in tokens.tolist() if t < 256).decode()


@pytest.mark.parametrize("name", sorted(text.CORPORA))
def test_every_dataset_gives_the_arrays_of_the_interface(make_config, name):
  config = make_config(name)
  task = data.load_task(config)
  assert task.kind == ("lm" if name in ("squad", "wmt19") else "classification")
  assert (task.vocab_size, task.seq_len) == (257, 128)
  for split in SPLITS:
    arrays = whole(config, split)
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
      split: {t.tobytes() for t in whole(config, split)["tokens"]}
      for split in SPLITS
    }
    assert not seen["train"] & seen["validation"]
    assert len(seen["train"]) + len(seen["validation"]) == total


def test_reviews_are_held_out_in_blocks_of_both_classes(make_config):
  targets = whole(make_config("imdb"), "validation")["targets"]
  assert np.bincount(targets).tolist() == [100, 100]


def test_the_validation_messages_of_a_group_are_its_latest(make_config):
  config = make_config("newsgroups20")
  latest = {}
  for split in ("train", "validation"):
    arrays = whole(config, split)
    for tokens, label in zip(arrays["tokens"], arrays["targets"], strict=True):
      number = int(spell(tokens).rstrip("\0").split()[-1]) * 7 % 400
      latest.setdefault((split, label), []).append(number)
  for label in range(20):
    assert max(latest["train", label]) < min(latest["validation", label])


def test_no_article_of_squad_is_in_two_splits(make_config):
  titles = {}
  for split in SPLITS:
    tokens = whole(make_config("squad", pack=False), split)["tokens"]
    titles[split] = {spell(t).split()[1] for t in tokens}
  assert titles["test"] == {"V0", "V1"}
  assert not titles["train"] & titles["validation"]
  assert len(titles["train"] | titles["validation"]) == 60


def test_only_the_answer_and_the_end_are_learned(make_config):
  for name, start in [("squad", "Answer:"), ("wmt19", "German:")]:
    arrays = whole(make_config(name), "test")
    for i in range(len(arrays["tokens"])):
      is_learned = arrays["weights"][i] > 0
      learned = arrays["targets"][i][is_learned]
      assert learned[-1] == 256
      before, answer = spell(arrays["tokens"][i]).rstrip("\0").split(start)
      assert spell(learned) == answer
      # The first prediction is made after the prompt.
      assert np.argmax(is_learned) == len(before + start) - 1


def test_packing_keeps_every_example_whole_and_once(make_config):
  packed = whole(make_config("wmt19"), "train")
  alone = whole(make_config("wmt19", pack=False), "train")
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
  tokens = whole(make_config("wmt19"), "test")["tokens"]
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
  assert spell(arrays["tokens"][0]) == "c" * 8 + "q" * 6 + "a" * 5
  assert arrays["tokens"][0, -1] == 256
  assert arrays["weights"][0].sum() == 6


def test_even_a_question_or_an_answer_that_is_too_long_fits():
  for changes in ({"question": "q" * 90}, {"answer": "a" * 90}):
    arrays = generated(prompts(**changes), 20)
    assert arrays["mask"].all()
    assert arrays["tokens"][0, -1] == 256
    assert spell(arrays["tokens"][0])[-1] == "a"


def test_training_leaves_out_what_lacks_its_answer():
  needed = prompts(needed=30) + prompts(needed=5)
  assert len(generated(needed, 20, train=True)["tokens"]) == 1
  assert len(generated(needed, 20, train=False)["tokens"]) == 2
  with pytest.raises(ValueError, match=r"data.seq_len is 20, too short"):
    generated(prompts(needed=30), 20, train=True)


def test_the_ends_of_bytes_are_counted_in_characters():
  (piece,) = vocabulary.Bytes().pieces(["aü€b"])
  assert piece.ends.tolist() == [1, 2, 2, 3, 3, 3, 4]


def test_wordpiece_puts_its_special_tokens_around_a_cut_text(
  make_config, wordpiece
):
  config = make_config("sst2", tokenizer=str(wordpiece), seq_len=6)
  task = data.load_task(config)
  assert task.vocab_size == 5 + len(WORDS)
  arrays = whole(config, "train")
  assert (arrays["tokens"][:, 0] == 2).all()
  last = arrays["mask"].sum(axis=1) - 1
  assert (arrays["tokens"][np.arange(len(last)), last] == 3).all()
  assert (arrays["tokens"][~arrays["mask"]] == 0).all()
  with pytest.raises(ValueError, match=r"data.seq_len is 2, but the tokenizer"):
    data.load_task(make_config("sst2", tokenizer=str(wordpiece), seq_len=2))


def test_byte_level_bpe_ends_answers_with_its_own_token(make_config, bpe):
  config = make_config("squad", tokenizer=str(bpe))
  assert data.load_task(config).vocab_size == 259
  arrays = whole(config, "test")
  assert (arrays["targets"][arrays["weights"] > 0] == 258).sum() == 4


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
  first = whole(config, "train")
  (path,) = tmp_path.rglob("*.npz")
  monkeypatch.setattr(text, "_records", None)  # Not needed any more.
  data._read.cache_clear()
  again = whole(config, "train")
  for name, array in first.items():
    np.testing.assert_array_equal(again[name], array)
  monkeypatch.undo()
  # One that is damaged is made again.
  path.write_bytes(path.read_bytes()[:1000])
  data._read.cache_clear()
  np.testing.assert_array_equal(
    whole(config, "train")["tokens"], first["tokens"]
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


def test_resumed_iterator_continues_the_packed_stream(make_config):
  dataset = data.train_dataset(make_config("squad"), seed=1, batch_size=4)
  unbroken, resumed = iter(dataset), iter(dataset)
  for _ in range(9):
    next(unbroken)
  resumed.set_state(json.loads(json.dumps(unbroken.get_state())))
  for _ in range(20):
    a, b = next(unbroken), next(resumed)
    np.testing.assert_array_equal(a["tokens"], b["tokens"])


def test_training_order_is_not_that_of_the_files(make_config):
  batch = next(
    iter(data.train_dataset(make_config("imdb"), seed=0, batch_size=32))
  )
  assert 0 < batch["targets"].sum() < 32


def test_a_part_of_the_examples_is_not_the_first_part(make_config):
  config = make_config("imdb", max_train=50, max_eval=10)
  assert data.load_task(config).num_train == 50
  assert len(whole(config, "test")["targets"]) == 10
  assert 0 < whole(config, "train")["targets"].sum() < 50


MESSAGE = """\
From: someone@motors.com
Newsgroups: rec.autos
Subject: Re: brakes

In article <1@motors.com> other@x.com writes:
> do brakes squeak?
>> yes

They do when wet.
The manual said so too.
Bob wrote:
: unquoted style

--
Bob, Motor Club
"""


def test_header_quotations_and_signature_are_stripped():
  kept = newsgroups.strip(MESSAGE)
  assert kept.startswith("They do when wet.\nThe manual said so too.")
  for leak in ("motors", "rec.autos", "squeak", "yes", "wrote", "Motor Club"):
    assert leak not in kept


def test_stripping_is_an_option_and_an_empty_rest_has_a_token(
  tmp_path, make_config
):
  only_header = [
    {"id": f"g/{i}", "label": i % 20, "text": "From: x\n\n"} for i in range(400)
  ]
  for name in ("train", "test"):
    write(tmp_path / f"newsgroups20/{name}.jsonl.xz", only_header)
  arrays = whole(make_config("newsgroups20", source=str(tmp_path)), "test")
  assert (arrays["mask"].sum(axis=1) == 1).all()
  kept = make_config("newsgroups20", source=str(tmp_path), strip=False)
  assert spell(whole(kept, "test")["tokens"][0]).startswith("From: x")


def test_the_id_of_a_mail_is_never_fed(make_config, tmp_path):
  mails = rows(100, 2, id=lambda i: "SECRET", subject=lambda i: "s")
  for name in ("train", "test"):
    write(tmp_path / f"enron_spam/{name}.jsonl.xz", mails)
  config = make_config("enron_spam", source=str(tmp_path))
  for split in SPLITS:
    for tokens in whole(config, split)["tokens"]:
      assert "SECRET" not in spell(tokens)


def test_mails_with_the_same_body_share_a_split():
  builder = classification.EnronSpam._split
  mails = [(f"subject {i}", f"body {i // 4}", 0) for i in range(400)]
  bodies = {
    split: {t.split("\n")[1] for t, _ in rows}
    for split, rows in builder(None, mails, 1).items()
  }
  assert all(bodies.values())
  for a, b in itertools.combinations(bodies.values(), 2):
    assert not a & b


def spoil(path, damage):
  if damage == "missing":
    path.unlink()
  elif damage == "truncated":
    path.write_bytes(path.read_bytes()[:-40])
  elif damage == "not xz":
    path.write_bytes(b"{}")
  elif damage == "not json":
    path.write_bytes(lzma.compress(b'{"text": "a", "label": 1}\n{"text'))
  elif damage == "empty":
    path.write_bytes(lzma.compress(b""))
  elif damage == "no text":
    write(path, [{"text": "a", "label": 1}, {"label": 1}])
  elif damage == "label":
    write(path, [{"text": "a", "label": 2}])


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    ("missing", r"train.jsonl.xz: No such file.*docs/data.md"),
    ("truncated", r"train.jsonl.xz: damaged or truncated .*fetch it again"),
    ("not xz", r"train.jsonl.xz: damaged or truncated"),
    ("not json", r"train.jsonl.xz, line 2: not JSON"),
    ("empty", r"no examples for the train split in "),
    ("no text", r"train.jsonl.xz, line 2: field 'text' is None, wanted str"),
    ("label", r"train.jsonl.xz, row 1: label 2, wanted one from 0 to 1"),
  ],
)
def test_bad_source_files_are_named(tmp_path, make_config, damage, message):
  for split in SPLITS:
    write(tmp_path / f"sst2/{split}.jsonl.xz", rows(20, 2))
  spoil(tmp_path / "sst2/train.jsonl.xz", damage)
  config = make_config("sst2", source=str(tmp_path), dir=str(tmp_path / "to"))
  with pytest.raises(files.SourceError, match=message):
    data.load_task(config)
  # And nothing is left that a repaired source would find.
  write(tmp_path / "sst2/train.jsonl.xz", rows(30, 2))
  assert data.load_task(config).num_train == 30


def test_squad_without_a_field_is_named(tmp_path, make_config):
  broken = squad(["T"])
  del broken["data"][0]["paragraphs"][1]["context"]
  for name in ("train", "validation"):
    write(tmp_path / f"squad/{name}.json.xz", broken)
  config = make_config("squad", source=str(tmp_path))
  with pytest.raises(files.SourceError, match="article 'T': field 'context'"):
    data.load_task(config)


def test_other_bad_fields_are_named(make_config, tmp_path, wordpiece):
  with pytest.raises(files.SourceError, match="imdb is not a directory; lay"):
    data.load_task(make_config("imdb", source=str(tmp_path)))
  with pytest.raises(
    ValueError, match=r"data.tokenizer is .*no tokenizer.json"
  ):
    data.load_task(make_config("imdb", tokenizer=str(tmp_path)))
  with pytest.raises(ValueError, match="no token that ends a text"):
    data.load_task(make_config("wmt19", tokenizer=str(wordpiece)))


def test_tasks_that_do_not_fit_a_model_are_refused(make_config):
  config = default.get_config().model
  config.update({"name": "gpt2", "size": "small"})
  long = data.load_task(make_config("sst2", seq_len=1025))
  with pytest.raises(
    ValueError, match="1025 tokens is longer than the model's"
  ):
    models.build(config, long, seed=0)
  fixture = pathlib.Path(__file__).parent / "fixtures" / "gpt2"
  config.update({"size": None, "weights": str(fixture)})
  wide = data.load_task(make_config("wmt19"))
  found = json.loads((fixture / "config.json").read_text())["vocab_size"]
  with pytest.raises(ValueError, match=f"257 tokens, but .* only {found}"):
    models.build(config, wide, seed=0)


@pytest.fixture
def server(tmp_path, monkeypatch):
  """A directory and its address on this machine."""

  class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
      pass

  root = tmp_path / "served"
  root.mkdir()
  monkeypatch.setenv("NO_PROXY", "127.0.0.1")
  handler = functools.partial(Quiet, directory=str(root))
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield root, f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    thread.join()


def imdb_archive():
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
    for split, side in itertools.product(("train", "test"), ("pos", "neg")):
      for i in range(1000 if split == "train" else 10):
        content = f"{split} {side} {i}".encode()
        member = tarfile.TarInfo(f"aclImdb/{split}/{side}/{i}_1.txt")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
  return buffer.getvalue()


def test_download_of_an_archive(server, make_config, monkeypatch, tmp_path):
  root, address = server
  content = imdb_archive()
  wanted = hashlib.sha256(content).hexdigest()
  archive = files.Archive(f"{address}/imdb.tar.gz", wanted)
  monkeypatch.setattr(classification.Imdb, "ARCHIVE", archive)
  config = make_config("imdb", source=None, dir=str(tmp_path / "to"))
  with pytest.raises(files.SourceError, match=r"cannot download .*data.source"):
    data.load_task(config)
  (root / "imdb.tar.gz").write_bytes(content[:-1] + b"x")
  with pytest.raises(
    files.SourceError, match=f"sha256 .*, wanted {wanted}; it"
  ):
    data.load_task(config)
  # The wrong file is gone, so that the right one is fetched.
  (root / "imdb.tar.gz").write_bytes(content)
  task = data.load_task(config)
  assert task.num_train == 1800
  arrays = whole(config, "test")
  assert {spell(t).rstrip("\0") for t in arrays["tokens"][:10]} == {
    f"test neg {i}" for i in range(10)
  }
  assert arrays["targets"].tolist() == [0] * 10 + [1] * 10


def test_archive_that_ends_early_is_named(tmp_path):
  path = tmp_path / "a.tar.gz"
  path.write_bytes(imdb_archive()[:3000])
  with pytest.raises(
    files.SourceError, match=r"a.tar.gz: damaged or truncated"
  ):
    list(files.members(path))


def test_formats_of_the_official_archives(monkeypatch, tmp_path):
  assert classification._sentence("(3 (2 A) (4 (3 -LRB-) (2 b\\/c)))") == (
    "a ( b/c",
    3,
  )
  content = {
    "src.en": '<doc><seg id="1">A &amp; B</seg>\n<seg id="2">C</seg></doc>',
    "ref.de": '<doc><seg id="1">X</seg>\n<seg id="2">Y</seg></doc>',
  }
  members = [(f"sgm/n-{k}.sgm", v.encode()) for k, v in content.items()]
  monkeypatch.setattr(files, "fetch", lambda *_: tmp_path)
  monkeypatch.setattr(files, "members", lambda _: members)
  pairs = generation._news(None, None, "n")
  assert pairs == [("A & B", "X"), ("C", "Y")]
  with pytest.raises(files.SourceError, match=r"wanted m-src.en.sgm"):
    generation._news(None, None, "m")


@needs_shared
def test_real_sentences(tmp_path):
  config = default.get_config().data
  config.update(
    {
      "name": "sst2",
      "source": str(SHARED / "data"),
      "dir": str(tmp_path),
      "seq_len": 64,
    }
  )
  assert data.load_task(config).num_train == 6920
  sizes = [len(whole(config, split)["targets"]) for split in SPLITS]
  assert sizes == [6920, 872, 1821]


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "sizes"),
  [
    ("imdb", (22_500, 2_500, 25_000)),
    ("enron_spam", (24_721, 2_723, 3_049)),
    ("newsgroups20", (10_174, 1_140, 7_532)),
    ("wmt19", (27_740, 2_998, 3_997)),
  ],
)
def test_real_datasets_have_their_sizes(tmp_path, name, sizes):
  options = data.Options(name, 128, str(SHARED / "data"))
  records = text.records(options, tmp_path)
  assert tuple(len(records[split]) for split in SPLITS) == sizes
