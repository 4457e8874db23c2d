"""Texts and their classes: IMDB, Enron-Spam, 20 Newsgroups and SST-2.

Each docstring says where the splits come from; docs/data.md has the layout of a
local directory.
"""

import hashlib
import re

from experiments.data import corpus, files


class Imdb(corpus.Corpus, skip_registration=True):
  """Sentiment of film reviews (Maas et al. 2011).

  Neighbours in the official order review the same film, so every tenth block
  of 50 training reviews, not a random tenth, is the validation split. The
  films of the test split are others anyway.
  """

  DIRECTORY = "imdb"
  CLASSES = ("negative", "positive")
  ARCHIVE = files.Archive(
    "http://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
    "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe",
  )
  BLOCK = 50

  def local(self, paths):
    train, test = (
      [(r["text"], r["label"]) for r in corpus.labelled(path, self.CLASSES)]
      for path in paths
    )
    return self._held_out(train) | {"test": test}

  def official(self, manager):
    found = {"train": [], "test": []}
    for name, text in files.members(files.fetch(manager, self.ARCHIVE)):
      match = re.search(r"/(train|test)/(neg|pos)/([^/]+)\.txt$", name)
      if match:
        split, side, number = match.groups()
        label = int(side == "pos")
        found[split].append((label, number, text.decode()))
    ordered = {
      split: [(text, label) for label, _, text in sorted(rows)]
      for split, rows in found.items()
    }
    return self._held_out(ordered["train"]) | {"test": ordered["test"]}

  def _held_out(self, rows):
    splits = {"train": [], "validation": []}
    for i, row in enumerate(rows):
      is_held_out = i // self.BLOCK % 10 == 9
      splits["validation" if is_held_out else "train"].append(row)
    return splits


class EnronSpam(corpus.Corpus, skip_registration=True):
  """Spam among the mail of Enron's employees (Metsis et al. 2006).

  There is no official split. The digest of a message's body decides about it,
  in tenths, so that messages with the same body are never in two splits; a
  local directory that has a test split keeps that. The name of a message's file
  tells its class and date, and is not used.
  """

  DIRECTORY = "enron_spam"
  CLASSES = ("ham", "spam")
  ARCHIVES = tuple(
    files.Archive(
      "https://www2.aueb.gr/users/ion/data/enron-spam/preprocessed/"
      f"enron{i}.tar.gz"
    )
    for i in range(1, 7)
  )

  def local(self, paths):
    train, test = (
      [(r["subject"], r["text"], r["label"]) for r in rows]
      for rows in (
        corpus.labelled(path, self.CLASSES, subject=str) for path in paths
      )
    )
    return self._split(train, 0) | {
      "test": [(f"{subject}\n{body}", label) for subject, body, label in test]
    }

  def official(self, manager):
    found = {}
    for archive in self.ARCHIVES:
      for name, content in files.members(files.fetch(manager, archive)):
        match = re.search(r"/(ham|spam)/[^/]+\.txt$", name)
        if match:
          text = content.decode("latin-1").replace("\r\n", "\n")
          subject, _, body = text.partition("\n")
          subject = subject.removeprefix("Subject:").strip()
          label = int(match[1] == "spam")
          found.setdefault((subject, body.strip(), label))
    return self._split(found, 1)

  def _split(self, messages, test_tenths):
    splits = {split: [] for split in corpus.SPLITS}
    for subject, body, label in messages:
      value = hashlib.sha256((body or subject).encode(errors="replace"))
      tenth = int(value.hexdigest(), 16) % 10
      if tenth < test_tenths:
        split = "test"
      else:
        split = "validation" if tenth == 9 else "train"
      splits[split].append((f"{subject}\n{body}", label))
    return splits


class Newsgroups20(corpus.Corpus, skip_registration=True):
  """Which of 20 newsgroups a message was sent to, split by date.

  The test messages are later than the training messages. So are those of the
  validation split: it has the last tenth of every group, by message number.
  Here the text is whole; `newsgroups.strip` takes out what leaks the group.
  """

  DIRECTORY = "newsgroups20"
  CLASSES = (
    "alt.atheism",
    "comp.graphics",
    "comp.os.ms-windows.misc",
    "comp.sys.ibm.pc.hardware",
    "comp.sys.mac.hardware",
    "comp.windows.x",
    "misc.forsale",
    "rec.autos",
    "rec.motorcycles",
    "rec.sport.baseball",
    "rec.sport.hockey",
    "sci.crypt",
    "sci.electronics",
    "sci.med",
    "sci.space",
    "soc.religion.christian",
    "talk.politics.guns",
    "talk.politics.mideast",
    "talk.politics.misc",
    "talk.religion.misc",
  )
  ARCHIVE = files.Archive(
    "http://qwone.com/~jason/20Newsgroups/20news-bydate.tar.gz",
    "8f1b2514ca22a5ade8fbb9cfa5727df95fa587f4c87b786e15c759fa66d95610",
  )

  def local(self, paths):
    names = paths[0].parent / "labels.json"
    if names.exists() and files.read_json(names) != list(self.CLASSES):
      raise files.SourceError(
        f"{names}: wanted the 20 groups in alphabetical order"
      )
    train, test = (
      [(r["id"], r["text"], r["label"]) for r in rows]
      for rows in (
        corpus.labelled(path, self.CLASSES, id=str) for path in paths
      )
    )
    return self._split(train, test)

  def official(self, manager):
    found = {"train": [], "test": []}
    for name, content in files.members(files.fetch(manager, self.ARCHIVE)):
      match = re.search(r"20news-bydate-(train|test)/([^/]+/\d+)$", name)
      if match:
        split, place = match.groups()
        label = self.CLASSES.index(place.split("/")[0])
        found[split].append((place, content.decode("latin-1"), label))
    return self._split(found["train"], found["test"])

  def _split(self, train, test):
    groups: list[list[tuple[int, str]]] = [[] for _ in self.CLASSES]
    for place, text, label in train:
      groups[label].append((_message_number(place), text))
    splits = {"train": [], "validation": []}
    for label, messages in enumerate(groups):
      messages.sort()
      first = len(messages) * 9 // 10
      splits["train"] += [(text, label) for _, text in messages[:first]]
      splits["validation"] += [(text, label) for _, text in messages[first:]]
    return splits | {"test": [(text, label) for _, text, label in test]}


class Sst2(corpus.Corpus, skip_registration=True):
  """Sentiment of sentences from film reviews (Socher et al. 2013).

  Whole sentences with their official splits and labels, neutral ones left out;
  not the phrases of GLUE, whose test labels are not public.
  """

  DIRECTORY = "sst2"
  CLASSES = ("negative", "positive")
  FILES = ("train.jsonl.xz", "validation.jsonl.xz", "test.jsonl.xz")
  ARCHIVE = files.Archive(
    "https://nlp.stanford.edu/sentiment/trainDevTestTrees_PTB.zip",
    "5c613a4f673fc74097d523a2c83f38e0cc462984d847b82c7aaf36b01cbbbfcc",
  )

  def local(self, paths):
    return {
      split: [
        (r["text"], r["label"]) for r in corpus.labelled(path, self.CLASSES)
      ]
      for split, path in zip(corpus.SPLITS, paths, strict=True)
    }

  def official(self, manager):
    trees = dict(files.members(files.fetch(manager, self.ARCHIVE)))
    splits = {}
    for split, name in zip(
      corpus.SPLITS, ("train", "dev", "test"), strict=True
    ):
      lines = trees[f"trees/{name}.txt"].decode().splitlines()
      sentences = [_sentence(line) for line in lines if line]
      # From 0, very negative, to 4, very positive.
      splits[split] = [(text, int(n > 2)) for text, n in sentences if n != 2]
    return splits


def _message_number(place: str) -> int:
  number = place.rpartition("/")[2]
  if not number.isdecimal():
    raise files.SourceError(
      f"20 Newsgroups: id {place!r}, wanted `group/number`"
    )
  return int(number)


def _sentence(tree: str) -> tuple[str, int]:
  """The words of a tree such as (3 (2 Good) (2 .)) and its root's number."""
  words = " ".join(re.findall(r" ([^()\s]+)\)", tree)).lower()
  for escape, character in (("-lrb-", "("), ("-rrb-", ")"), ("\\/", "/")):
    words = words.replace(escape, character)
  return words, int(tree.lstrip()[1])
