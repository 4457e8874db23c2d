"""Adds to the site what lies outside docs/, and points its links there.

The documents link to files of the repository as they lie, so that they can be
read there too. On the site, README.md is the front page, each example is a page
with its source, other documents are pages of their path, and what they show or
link to is copied to the same path.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
_PAGES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "examples/README.md"]
_EXAMPLES = sorted(p.name for p in (ROOT / "examples").glob("*.py"))
_LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")


def on_files(files, config):
  """The pages and files that are not in docs/."""
  for path in _PAGES:
    text = (ROOT / path).read_text()
    files.append(File.generated(config, _target(path), content=text))
  for name in _EXAMPLES:
    text = (
      f"# {name}\n\n```python\n{(ROOT / 'examples' / name).read_text()}```\n"
    )
    uri = _target(f"examples/{name}")
    files.append(File.generated(config, uri, content=text))
  for page in list(files.documentation_pages()):
    own = _source(page.src_uri)
    text = page.content_string
    for _, link, _ in _LINK.findall(text):
      path = _resolve(own, link)
      if (ROOT / path).is_file() and files.get_file_from_path(
        _target(path)
      ) is None:
        source = str(ROOT / path)
        files.append(File.generated(config, _target(path), abs_src_path=source))
  return files


def on_page_markdown(markdown, page, **_):
  """The page with links to where the site has the files."""
  own = page.file.src_uri
  folder = posixpath.dirname(own)

  def moved(match):
    path = _resolve(_source(own), match[2])
    link = posixpath.relpath(_target(path), folder or ".")
    return f"{match[1]}{link}{match[3]}"

  return _LINK.sub(moved, markdown)


def _resolve(page, link):
  """The path in the repository that a link of a page means."""
  return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _target(path):
  """Where the site has a file of the repository."""
  if path == "README.md":
    return "index.md"
  if path == "examples/README.md":
    return "examples/index.md"
  if path.startswith("examples/") and path.endswith(".py"):
    return path.removesuffix(".py") + ".md"
  return path.removeprefix("docs/")


def _source(uri):
  """The file of the repository that a page of the site is made from."""
  found = {_target(path): path for path in _PAGES}
  if uri in found:
    return found[uri]
  if uri.startswith("examples/"):
    return uri.removesuffix(".md") + ".py"
  return f"docs/{uri}"
