"""Documents that include tables."""

import pytest

from experiments import include
from tests import paths


def test_a_block_gets_the_table_without_its_title(tmp_path):
  (tmp_path / "table_4.md").write_text("## A title\n\n| a |\n| --- |\n")
  document = "before\n<!-- begin table_4.md -->\nold\n<!-- end -->\nafter\n"
  made = include.included(document, tmp_path)
  assert made == (
    "before\n<!-- begin table_4.md -->\n\n| a |\n| --- |\n\n"
    "<!-- end -->\nafter\n"
  )
  assert include.included(made, tmp_path) == made
  with pytest.raises(OSError, match=r"table_5"):
    include.included(document.replace("4", "5"), tmp_path)


def test_a_table_without_its_place_in_the_document_is_named(tmp_path):
  path = tmp_path / "document.md"
  path.write_text("<!-- begin new -->\n never ends")
  with pytest.raises(ValueError, match=r"document\.md: .*<!-- begin new -->"):
    include.update(path, {"new": "| a |"})
  twice = "<!-- begin a -->\n<!-- end -->\n" * 2
  with pytest.raises(ValueError, match="found 2 blocks"):
    include.filled(twice, {"a": "| a |"})


def test_the_document_shows_the_committed_results():
  document = (paths.ROOT / "docs/reproduction.md").read_text()
  results = paths.ROOT / "experiments/results/paper/small"
  assert include.included(document, results) == document
