"""The metadata, and what stands in more than one file."""

import re
import tomllib

import backslash_jax as bs
from tests import paths

PROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]


def _needed(text):
  return re.findall(r"^\s*\"?([A-Za-z][\w.-]*)(?:\[\w+\])?[><=]", text, re.M)


def test_every_dependency_stands_once():
  dev = (paths.ROOT / "requirements-dev.txt").read_text()
  run = (paths.ROOT / "requirements.txt").read_text()
  assert not _needed(run)
  assert re.findall(r"^-e (\S+)", run, re.M) == [".[experiments]"]
  extras = PROJECT["optional-dependencies"]
  named = [*PROJECT["dependencies"], *extras["experiments"]]
  named += [*extras["deploy"], *extras["fast"]]
  assert not set(_needed("\n".join(named))) & set(_needed(dev))


def test_the_oldest_versions_are_those_promised():
  extras = PROJECT["optional-dependencies"]
  promised = dict(
    re.match(r"([\w.-]+)>=([\d.]+)", line).groups()
    for line in reversed([*PROJECT["dependencies"], *extras["experiments"]])
    if "python_version >=" not in line
  )
  oldest = (paths.ROOT / ".github" / "oldest.txt").read_text()
  for name, version in re.findall(r"^([\w.-]+)==([\d.]+)", oldest, re.M):
    floor = promised["jax" if name == "jaxlib" else name]
    assert version == floor or version == f"{floor}.0", name


def test_the_version_of_the_citation_is_the_package_s():
  citation = (paths.ROOT / "CITATION.cff").read_text()
  assert f"\nversion: {bs.__version__}\n" in citation
  assert f"## {bs.__version__}" in (paths.ROOT / "CHANGELOG.md").read_text()


def test_the_site_and_the_readme_have_every_example():
  nav = (paths.ROOT / "mkdocs.yml").read_text()
  index = (paths.ROOT / "examples" / "README.md").read_text()
  for path in (paths.ROOT / "examples").glob("*.py"):
    assert f"examples/{path.stem}.md" in nav
    assert f"]({path.name})" in index
