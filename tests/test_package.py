"""The package as it is installed."""

import importlib.metadata
import pathlib
import subprocess
import sys

import backslash_jax as bs


def test_the_version_stands_once():
  assert bs.__version__ == importlib.metadata.version("backslash-jax")


def test_it_is_typed():
  assert (pathlib.Path(bs.__file__).parent / "py.typed").exists()


def test_it_runs_as_a_module():
  command = [sys.executable, "-m", "backslash_jax", "--version"]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  assert done.stdout == f"backslash-jax {bs.__version__}\n"


def test_every_public_name_exists():
  assert set(bs.__all__) < set(dir(bs))
  for name in bs.__all__:
    assert getattr(bs, name) is not None
  # A function is not hidden by a module of its name.
  for name in ("steps", "recommended", "inspect", "load", "save"):
    assert callable(getattr(bs, name)), name


def test_reading_a_file_imports_no_jax():
  code = """
import sys
import backslash_jax.archive
import backslash_jax.cli.main
assert not {"jax", "optax", "flax"} & sys.modules.keys()
"""
  subprocess.run([sys.executable, "-c", code], check=True)


def test_pallas_is_imported_when_a_kernel_runs():
  """It takes longer than the rest of the package."""
  code = """
import sys
import backslash_jax as bs
for name in bs.__all__:
  getattr(bs, name)
assert "jax" in sys.modules
assert not [m for m in sys.modules if "pallas" in m]
"""
  subprocess.run([sys.executable, "-c", code], check=True)
