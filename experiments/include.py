"""Puts tables into documents.

python -m experiments.include docs/reproduction.md RESULTS

The text between `<!-- begin NAME -->` and the next `<!-- end -->` becomes the
content of the file NAME in the results, without its title.
"""

import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

_BLOCK = re.compile(r"<!-- begin ([^>]+) -->\n.*?<!-- end -->", re.S)


def filled(document: str, tables: Mapping[str, str]) -> str:
  """The text of a document with each table, Markdown by name, in its block.

  Raises:
    ValueError: a table has no block, or several.
  """
  names = _BLOCK.findall(document)
  for name in tables:
    if names.count(name) != 1:
      raise ValueError(
        f"found {names.count(name)} blocks for a table, wanted one:"
        f" <!-- begin {name} -->, a new line, <!-- end -->"
      )

  def fill(match):
    if match[1] not in tables:
      return match[0]
    return f"<!-- begin {match[1]} -->\n\n{tables[match[1]]}\n\n<!-- end -->"

  return _BLOCK.sub(fill, document)


def included(document: str, results: pathlib.Path) -> str:
  """The text of a document with all its blocks filled from files in results.

  Raises:
    OSError: a file that it names is not in results.
    ValueError: two blocks have the same name.
  """

  def body(name):
    lines = (results / name).read_text().splitlines()
    return "\n".join(x for x in lines if not x.startswith("#")).strip()

  return filled(
    document, {name: body(name) for name in _BLOCK.findall(document)}
  )


def table(
  header: Sequence[str], rows: Sequence[Sequence[str]], rule: str = "---:"
) -> str:
  """A table in Markdown; all columns but the first are of numbers.

  Args:
    header: of each column.
    rows: of the table.
    rule: what is below the header of these; "---" if they are of text.
  """
  lines = [header, ["---", *[rule] * (len(header) - 1)], *rows]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def update(path: pathlib.Path, tables: Mapping[str, str]) -> None:
  """Puts tables into the document at path.

  Raises:
    ValueError: as `filled`.
  """
  try:
    path.write_text(filled(path.read_text(), tables))
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


if __name__ == "__main__":
  if len(sys.argv) != 3:
    sys.exit("usage: python -m experiments.include DOCUMENT RESULTS")
  path = pathlib.Path(sys.argv[1])
  try:
    path.write_text(included(path.read_text(), pathlib.Path(sys.argv[2])))
  except OSError as error:
    sys.exit(f"error: {error.filename}: {error.strerror}")
  except ValueError as error:
    sys.exit(f"error: {path}: {error}")
