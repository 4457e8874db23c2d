"""Sources of text: bad files, downloads, official archives, real datasets."""

import functools
import hashlib
import http.server
import io
import itertools
import lzma
import tarfile
import threading

import pytest

from configs import default
from experiments import data
from experiments.data import classification, files, generation, text
from tests import paths, text_data

needs_shared = pytest.mark.skipif(
  not (paths.SHARED / "data").is_dir(),
  reason="no real datasets here; BACKSLASH_SHARED names their place",
)


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
    text_data.write(path, [{"text": "a", "label": 1}, {"label": 1}])
  elif damage == "label":
    text_data.write(path, [{"text": "a", "label": 2}])


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
  for split in text_data.SPLITS:
    text_data.write(tmp_path / f"sst2/{split}.jsonl.xz", text_data.rows(20, 2))
  spoil(tmp_path / "sst2/train.jsonl.xz", damage)
  config = make_config("sst2", source=str(tmp_path), dir=str(tmp_path / "to"))
  with pytest.raises(files.SourceError, match=message):
    data.load_task(config)
  # And nothing is left that a repaired source would find.
  text_data.write(tmp_path / "sst2/train.jsonl.xz", text_data.rows(30, 2))
  assert data.load_task(config).num_train == 30


def test_squad_without_a_field_is_named(tmp_path, make_config):
  broken = text_data.squad(["T"])
  del broken["data"][0]["paragraphs"][1]["context"]
  for name in ("train", "validation"):
    text_data.write(tmp_path / f"squad/{name}.json.xz", broken)
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
  arrays = text_data.whole(config, "test")
  assert {text_data.spell(t).rstrip("\0") for t in arrays["tokens"][:10]} == {
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
      "source": str(paths.SHARED / "data"),
      "dir": str(tmp_path),
      "seq_len": 64,
    }
  )
  assert data.load_task(config).num_train == 6920
  sizes = [
    len(text_data.whole(config, split)["targets"]) for split in text_data.SPLITS
  ]
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
  options = data.Options(name, 128, str(paths.SHARED / "data"))
  records = text.records(options, tmp_path)
  assert tuple(len(records[split]) for split in text_data.SPLITS) == sizes
