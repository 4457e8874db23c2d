"""The README, the documents and the docstrings run and name what exists."""

import doctest
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import backslash_jax as bs
from experiments import settings
from tests import paths

README = (paths.ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def _blocks(language):
  return [text for name, text in BLOCKS if name == language]


def test_every_block_is_of_a_language_that_is_run():
  assert {name for name, _ in BLOCKS} == {"python", "sh"}


def test_the_python_blocks_run_one_after_the_other(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  namespace = {}
  for text in _blocks("python"):
    exec(compile(text, "README.md", "exec"), namespace)
  assert (tmp_path / "model.safetensors").exists()


def _commands():
  lines = "".join(_blocks("sh")).replace("\\\n", "").splitlines()
  return [line.split("#")[0].strip() for line in lines if line.strip()]


def _check_install(words):
  """That pip would find what a line asks for; it is not run."""
  assert words[:2] == ["pip", "install"]
  (what,) = words[2:]
  extras = re.fullmatch(r"\.(?:\[([a-z,]+)\])?", what)
  assert extras, f"{what} is not this checkout"
  known = importlib.metadata.metadata("backslash-jax").get_all("Provides-Extra")
  assert set((extras[1] or "").split(",")) - {""} <= set(known or ())


@pytest.mark.parametrize("command", _commands())
def test_the_commands_run(command, tmp_path):
  words = shlex.split(command)
  if words[0] == "pip":
    _check_install(words)
    return
  if words[0] == "make":
    # Its targets exist; the quickstart itself is run by .ci/run.
    words.insert(1, "--dry-run")
    where = paths.ROOT
  elif words[:3] == ["python", "-m", "experiments.main"]:
    words = [sys.executable, *words[1:], "--helpshort"]
    where = paths.ROOT
  else:
    assert words[0] == "backslash-jax", f"no way to test {command!r}"
    x = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32) / 20
    save_file({"w": x}, tmp_path / "plain.safetensors")
    bs.save(tmp_path / "model.safetensors", {"w": x}, step=2**-6)
    words = [sys.executable, "-m", "backslash_jax", *words[1:]]
    where = tmp_path
  done = subprocess.run(words, cwd=where, capture_output=True, text=True)
  # absl answers --helpshort with 1.
  wanted = 1 if "--helpshort" in words else 0
  assert done.returncode == wanted, done.stdout + done.stderr


DOCUMENTS = [
  paths.ROOT / "README.md",
  paths.ROOT / "CHANGELOG.md",
  paths.ROOT / "CONTRIBUTING.md",
  paths.ROOT / "examples" / "README.md",
  *sorted((paths.ROOT / "docs").glob("*.md")),
]
MODULES = sorted(
  module.name
  for module in pkgutil.walk_packages(bs.__path__, "backslash_jax.")
  if not module.name.endswith(("__main__", "loops_numba"))
)


@pytest.mark.parametrize("name", ["backslash_jax", *MODULES])
def test_the_examples_of_the_docstrings_run(name):
  module = importlib.import_module(name)
  assert doctest.testmod(module).failed == 0


# What a block needs that stands before it in the text.
BEFORE = {
  "coding.md": {
    "bs": bs,
    "jax": jax,
    "jnp": jnp,
    "params": {"w": jnp.linspace(-1.0, 1.0, 64).reshape(8, 8)},
    "loss": lambda params, batch: jnp.sum((params["w"] @ batch) ** 2),
    "batch": jnp.ones((8, 3)),
  },
  "fine-tunes.md": {
    "base": {"w": jnp.linspace(-1.0, 1.0, 4096).reshape(64, 64)},
    "loss_fn": lambda params, batch: jnp.mean((params["w"] @ batch - 1.0) ** 2),
    "batches": 420 * [jnp.ones((64, 3))],
  },
  "compress.md": {},
  "feedback.md": {},
  "getting-started.md": {},
  "language-models.md": {},
  "memory.md": {},
  "models.md": {},
  "reading.md": {},
  "recipes.md": {},
  "size.md": {},
}


@pytest.mark.parametrize("name", sorted(BEFORE))
def test_the_python_of_the_documents_runs(
  name, tmp_path, monkeypatch, wordpiece
):
  text = (paths.ROOT / "docs" / name).read_text()
  blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
  (tmp_path / "runs").mkdir()
  monkeypatch.chdir(tmp_path)
  # A published model would be downloaded: a directory stands in for it.
  shutil.copytree(paths.FIXTURES / "gpt2", tmp_path / "gpt2")
  words = (wordpiece / "vocab.txt").read_text().splitlines()
  words += [f"[unused{i}]" for i in range(96 - len(words))]
  (tmp_path / "gpt2" / "vocab.txt").write_text("\n".join(words))
  namespace = dict(BEFORE[name])
  with jax.numpy_rank_promotion("allow"):  # As a user has it.
    for block in blocks:
      exec(compile(block, name, "exec"), namespace)


def test_the_python_of_every_document_runs():
  # deploy.md has a server; test_deploy.py runs it.
  named = {*BEFORE, "README.md", "deploy.md"}
  for path in DOCUMENTS:
    assert path.name in named or "```python" not in path.read_text(), path


def test_the_reference_has_every_public_name():
  text = (paths.ROOT / "docs" / "reference.md").read_text()
  named = re.findall(r"^::: ([\w.]+)", text, re.MULTILINE)
  for name in named:
    assert _exists(name), name
  modules = {name: getattr(bs, name) for name in ("quantize", "structure")}
  for name in bs.__all__:
    assert name == "STEP" or f"backslash_jax.{name}" in named, name
  for module, found in modules.items():
    members = text.split(f"::: backslash_jax.{module}\n")[1].split("]")[0]
    words = set(re.findall(r"\w+", members))
    assert set(found.__all__) <= words, module


@pytest.mark.parametrize(
  "path", DOCUMENTS, ids=lambda path: str(path.relative_to(paths.ROOT))
)
def test_a_document_names_what_exists(path):
  text = path.read_text()
  for name in re.findall(
    r"\b((?:experiments|backslash_jax)\.[a-z_.]+[a-z])", text
  ):
    assert _exists(name), f"{path.name} names {name}"
  for name in re.findall(r"`bs\.([a-zA-Z_]+)", text):
    assert hasattr(bs, name), f"{path.name} names bs.{name}"
  for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
    assert (path.parent / target).exists(), f"{path.name} links to {target}"
  for name in re.findall(
    r"`((?:configs|experiments|tests|docs)/[^`*<>:{} ]+)`", text
  ):
    assert (paths.ROOT / name).exists(), f"{path.name} names {name}"


def _exists(name):
  """Whether a dotted name is a module, or something in one."""
  try:
    if importlib.util.find_spec(name) is not None:  # A command, not imported.
      return True
  except ModuleNotFoundError:
    pass
  parts = name.split(".")
  found = importlib.import_module(parts[0])
  for i, part in enumerate(parts[1:], start=2):
    if not hasattr(found, part):
      try:
        importlib.import_module(".".join(parts[:i]))
      except ModuleNotFoundError:
        return False
    found = getattr(found, part)
  return True


def _configs():
  files = [*DOCUMENTS, *(paths.ROOT / "configs").rglob("*.py")]
  text = "\n".join(path.read_text() for path in files)
  return sorted(
    set(re.findall(r"--config=(configs/[a-z\d_/]+\.py(?::[\w/]+)?)", text))
  )


@pytest.mark.parametrize("config", _configs())
def test_the_configs_of_the_commands_load(config):
  path, _, argument = config.partition(":")
  name = path.removesuffix(".py").replace("/", ".")
  module = importlib.import_module(name)
  found = module.get_config(*([argument] if argument else []))
  settings.arms(found.unlock()) if "grid" not in found else None
