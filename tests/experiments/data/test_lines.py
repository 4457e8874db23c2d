"""The dataset that is one file of texts."""

import json
import lzma

import numpy as np
import pytest

from experiments import data
from experiments.data import files, lines
from tests import tiny


def _config(path, **fields):
  return tiny.config(
    **{"data__name": "texts", "data__source": str(path), "data__language": True}
    | {"data__seq_len": 12}
    | fields
  ).data


def test_every_text_is_in_one_split(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text("".join(f"text {i:02}\n" for i in range(23)) + "\n")
  config = _config(path)
  task = data.load_task(config)
  assert (task.kind, task.num_train, task.num_classes) == ("lm", 13, None)
  seen = []
  for split in ("train", "validation", "test"):
    for batch in data.eval_batches(config, split, 1):
      row = batch["tokens"][0]
      seen.append(bytes(row[batch["mask"][0]].tolist()).decode())
      np.testing.assert_array_equal(batch["targets"][0, :-1], row[1:])
      assert batch["weights"].sum() == len(seen[-1]) - 1
  assert sorted(seen) == [f"text {i:02}" for i in range(23)]


def test_lines_with_labels_are_classes(tmp_path):
  rows = [{"text": f"text {i}", "label": i % 3} for i in range(9)]
  path = tmp_path / "a.jsonl.xz"
  with lzma.open(path, "wt") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)
  task = data.load_task(_config(path, data__language=False))
  assert (task.kind, task.num_classes) == ("classification", 3)
  assert lines.read(path, False)[4] == ("text 4", None)


@pytest.mark.parametrize(
  ("content", "language", "message"),
  [
    ("", True, "no texts in it"),
    ("a\nb\n", True, "2 texts, .* at least 5"),
    ("a\n" * 9, True, "no text of its .* has two tokens"),
    ("a text\n" * 9, False, "line 1: wanted LABEL"),
    ("-1\ta text\n" * 9, False, "line 1: .*not negative"),
    (None, True, "cannot be read"),
  ],
)
def test_a_bad_file_is_named(tmp_path, content, language, message):
  path = tmp_path / "a.txt"
  if content is not None:
    path.write_text(content)
  with pytest.raises(files.SourceError, match=f"a.txt.*{message}"):
    data.load_task(_config(path, data__language=language))


def test_the_file_must_be_given():
  with pytest.raises(files.SourceError, match=r"set data\.source to a file"):
    data.load_task(tiny.config(data__name="texts").data)
