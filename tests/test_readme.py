"""Every code block of the README and the documents' Python runs."""

import re
import subprocess
import sys

import pytest

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


@pytest.mark.parametrize("command", _commands())
def test_the_commands_run(command, tmp_path):
  words = command.split()
  if words[0] == "make":
    # Its targets exist; the quickstart itself is run by .ci/run.
    words.insert(1, "--dry-run")
    where = paths.ROOT
  elif words[:3] == ["python", "-m", "experiments.main"]:
    words = [sys.executable, *words[1:], "--helpshort"]
    where = paths.ROOT
  else:
    assert words[0] == "backslash-jax", f"no way to test {command!r}"
    code = """
import jax, backslash_jax as bs
x = jax.random.normal(jax.random.key(0), (64, 32)) * 0.05
from safetensors.numpy import save_file
import numpy as np
save_file({"w": np.asarray(x)}, "plain.safetensors")
bs.save("model.safetensors", {"w": x})
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    words = [sys.executable, "-m", "backslash_jax", *words[1:]]
    where = tmp_path
  done = subprocess.run(words, cwd=where, capture_output=True, text=True)
  # absl answers --helpshort with 1.
  wanted = 1 if "--helpshort" in words else 0
  assert done.returncode == wanted, done.stdout + done.stderr
