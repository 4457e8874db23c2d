"""Puts the tables of a results directory into a document.

python -m experiments.include docs/reproduction.md RESULTS

Between a line `<!-- begin NAME -->` and the next `<!-- end -->`, the document
gets what is in NAME of the results, without its title.
"""

import pathlib
import re
import sys

_BLOCK = re.compile(
  r"(?P<begin><!-- begin (?P<name>\S+) -->\n).*?(?P<end><!-- end -->)", re.S
)


def included(document: str, results: pathlib.Path) -> str:
  """The text of a document with its blocks filled.

  Raises:
    OSError: a file that it names is not in results.
  """

  def fill(match):
    text = (results / match["name"]).read_text()
    body = "\n".join(x for x in text.splitlines() if not x.startswith("#"))
    return f"{match['begin']}\n{body.strip()}\n\n{match['end']}"

  return _BLOCK.sub(fill, document)


if __name__ == "__main__":
  if len(sys.argv) != 3:
    sys.exit("usage: python -m experiments.include DOCUMENT RESULTS")
  path = pathlib.Path(sys.argv[1])
  try:
    path.write_text(included(path.read_text(), pathlib.Path(sys.argv[2])))
  except OSError as error:
    sys.exit(f"error: {error.filename}: {error.strerror}")
