"""Tiny versions of the text datasets and a tokenizer."""

import json
import lzma

import numpy as np
import tokenizers

SPLITS = ("train", "validation", "test")
WORDS = (
  "the film was good bad a of and to in is it you that he for on as".split()
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


def write_datasets(root):
  """A tiny version of every dataset, laid out as `data.source` wants."""
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


def whole(config, split):
  """The arrays of a split, one batch after the other."""
  from experiments import data  # Slow, and conftest needs only the rows.

  batches = list(data.eval_batches(config, split, 1))
  return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


def spell(tokens):
  return bytes(t for t in tokens.tolist() if t < 256).decode()


def write_tokenizer(directory, size=96, **described):
  """One that knows a few words, the ends of a text, and x12, x13, ..."""
  vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
  for word in ["a", "bad", "film", "good", "is", "it", "the", "was"]:
    vocabulary[word] = len(vocabulary)
  for i in range(len(vocabulary), size):
    vocabulary[f"x{i}"] = i
  backend = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(vocabulary, unk_token="<unk>")
  )
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  backend.save(str(directory / "tokenizer.json"))
  (directory / "tokenizer_config.json").write_text(
    json.dumps({"bos_token": "<s>", "eos_token": "</s>"} | described)
  )
