"""The metadata, and what stands in more than one file."""

import re
import shutil
import subprocess
import tomllib

import pytest

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


FAKE = """#!/bin/sh
# A python of which venv makes an environment in two steps.
echo "$0 $@" >> "{log}"
case "$*" in
*"import ensurepip"*) exit {lacks} ;;
*'version("pip")'*) test -e "$(dirname "$0")/pip" ;;
"-m venv "*)
  mkdir -p "$3/bin" && cp "{python}" "$3/bin/python"
  test ! -e "{stop}" || exit 137
  touch "$3/bin/pip" ;;
*"-m pip install"*) test -e "$(dirname "$0")/pip" ;;
esac
"""


@pytest.fixture
def make(tmp_path):
  """Runs make for the environment, with a Python that only writes a log."""
  for name in ("Makefile", "requirements.txt", "pyproject.toml"):
    shutil.copy(paths.ROOT / name, tmp_path)
  stop, log, python = (tmp_path / x for x in ("stop", "log", "python3"))

  def run(target=".venv/run", *, lacks=0, stopped=False):
    stop.touch() if stopped else stop.unlink(missing_ok=True)
    log.write_text("")
    python.write_text(
      FAKE.format(log=log, stop=stop, python=python, lacks=lacks)
    )
    python.chmod(0o755)
    done = subprocess.run(
      ["make", f"PYTHON={python}", "VENV=.venv", target],
      cwd=tmp_path,
      capture_output=True,
      text=True,
    )
    return done, log.read_text()

  return run


def test_an_environment_whose_making_was_stopped_is_completed(make, tmp_path):
  done, _ = make(stopped=True)
  assert done.returncode != 0
  assert (tmp_path / ".venv/bin/python").exists()  # But no pip.
  done, calls = make()
  assert done.returncode == 0, done.stderr
  assert "-m venv" in calls
  assert (tmp_path / ".venv/run").exists()
  (tmp_path / "requirements.txt").touch()
  done, calls = make()
  assert done.returncode == 0
  assert "-m venv" not in calls  # What is whole is kept.


def test_a_python_without_venv_is_one_line_that_says_what_to_install(make):
  done, _ = make(lacks=1)
  assert done.returncode != 0
  line, *_ = done.stderr.splitlines()
  assert "apt install python3-venv" in line
