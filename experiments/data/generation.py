"""Prompts and their answers: SQuAD v1.1 and WMT-19, English to German.

Each docstring says where the splits come from; docs/data.md has the layout of a
local directory.
"""

import gzip
import hashlib
import html
import re
from typing import ClassVar

from experiments.data import corpus, files


class Squad(corpus.Corpus, skip_registration=True):
  """Questions about paragraphs of Wikipedia (Rajpurkar et al. 2016).

  The official test split is not public: the official validation split is the
  test split here. One in ten training articles, by the digest of the title,
  is the validation split, so that no paragraph is in two. Where a question has
  several answers, the first is taken.
  """

  DIRECTORY = "squad"
  FIELDS: ClassVar[dict[str, type]] = {
    "context": str,
    "question": str,
    "answer": str,
    "answer_start": int,
  }
  FILES = ("train.json.xz", "validation.json.xz")
  URL = "https://rajpurkar.github.io/SQuAD-explorer/dataset"
  ARCHIVES = (
    files.Archive(
      f"{URL}/train-v1.1.json",
      "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
    ),
    files.Archive(
      f"{URL}/dev-v1.1.json",
      "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
    ),
  )

  def local(self, paths):
    train, test = (_articles(path) for path in paths)
    splits = {
      "train": [],
      "validation": [],
      "test": [row for rows in test.values() for row in rows],
    }
    for title, rows in train.items():
      value = int(hashlib.sha256(title.encode()).hexdigest(), 16)
      splits["validation" if value % 10 == 9 else "train"] += rows
    return splits

  def official(self, manager):
    return self.local([files.fetch(manager, a) for a in self.ARCHIVES])


class Wmt19(corpus.Corpus, skip_registration=True):
  """News in English and German.

  Validation is newstest2018, test is newstest2019. The training data are what
  the local directory has, or else News Commentary v14, the smallest clean one
  of the official training corpora.
  """

  DIRECTORY = "wmt19_newstest_ende"
  FIELDS: ClassVar[dict[str, type]] = {"en": str, "de": str}
  FILES = ("train.jsonl.xz", "validation.jsonl.xz", "test.jsonl.xz")
  URL = "http://data.statmt.org"
  TRAIN = files.Archive(
    f"{URL}/news-commentary/v14/training/news-commentary-v14.de-en.tsv.gz",
    "8aaa98a77d38bd39dcbdbcb775f3b6c633700e4c10fd915cf3dc6b9bfd0f2dca",
  )
  VALIDATION = files.Archive(
    f"{URL}/wmt19/translation-task/dev.tgz",
    "7a7deccf82ebb05ba508dba5eb21356492224e8f630ec4f992132b029b4b25e7",
  )
  TEST = files.Archive(
    f"{URL}/wmt19/translation-task/test.tgz", "84de7162d158e28403103b01aeefc39a"
  )

  def local(self, paths):
    return {
      split: [(r["en"], r["de"]) for r in files.rows(path, self.FIELDS)]
      for split, path in zip(corpus.SPLITS, paths, strict=True)
    }

  def official(self, manager):
    with gzip.open(files.fetch(manager, self.TRAIN)) as file:
      pairs = [line.split("\t") for line in file.read().decode().split("\n")]
    return {
      "train": [(p[1], p[0]) for p in pairs if len(p) == 2 and all(p)],
      "validation": _news(manager, self.VALIDATION, "newstest2018-ende"),
      "test": _news(manager, self.TEST, "newstest2019-ende"),
    }


def _articles(path) -> dict[str, list[tuple]]:
  """Title -> rows of a file in SQuAD's format."""
  content = files.read_json(path)
  files.check(content, {"data": list}, str(path))
  articles = {}
  for article in content["data"]:
    files.check(article, {"title": str, "paragraphs": list}, str(path))
    place = f"{path}, article {article['title']!r}"
    rows = articles.setdefault(article["title"], [])
    for paragraph in article["paragraphs"]:
      files.check(paragraph, {"context": str, "qas": list}, place)
      for item in paragraph["qas"]:
        files.check(item, {"question": str, "answers": list}, place)
        for answer in item["answers"][:1]:
          files.check(answer, {"text": str, "answer_start": int}, place)
          rows.append(
            (
              paragraph["context"],
              item["question"],
              answer["text"],
              answer["answer_start"],
            )
          )
  return articles


def _news(manager, archive, name) -> list[tuple[str, str]]:
  """The segments of a test set, (English, German)."""
  sides = {}
  path = files.fetch(manager, archive)
  for member, content in files.members(path):
    for side in ("src.en", "ref.de"):
      if member.endswith(f"/{name}-{side}.sgm"):
        found = re.findall(r"<seg[^>]*>(.*?)</seg>", content.decode(), re.S)
        sides[side] = [html.unescape(text).strip() for text in found]
  if len(sides) != 2 or len(sides["src.en"]) != len(sides["ref.de"]):
    raise files.SourceError(
      f"{path}: wanted {name}-src.en.sgm and {name}-ref.de.sgm of one length"
    )
  return list(zip(sides["src.en"], sides["ref.de"], strict=True))
