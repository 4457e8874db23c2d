"""Reading and writing files needs NumPy, but neither JAX nor optax."""

import os
import subprocess
import sys
import textwrap

import pytest

_CODE = """
  import sys, types

  for name in {blocked}:
    sys.modules[name] = None  # Importing it raises ImportError.
  # The package without what its root imports.
  root = types.ModuleType("backslash_jax")
  root.__path__ = [{folder!r}]
  sys.modules["backslash_jax"] = root

  import numpy as np
  from backslash_jax import archive
  from backslash_jax.archive import plain

  x = np.linspace(-1, 1, 200_000, dtype=np.float32).reshape(400, 500)
  archive.save("file", {{"x": x, "b": x[0]}}, step=2**-8, mu=0.1)
  found = archive.load("file")
  assert np.abs(found["x"] - x).max() < 2**-8
  archive.inspect("file")
  plain.write("plain", {{"x": ("float32", x.shape)}}, [("x", found["x"])])
"""


@pytest.mark.parametrize(
  "blocked",
  [
    {"jax", "jaxlib", "optax", "flax", "ml_dtypes", "safetensors", "numba"},
    {"jax", "jaxlib", "optax"},
  ],
  ids=["numpy-alone", "with-numba"],
)
def test_numpy_is_enough(tmp_path, blocked):
  import backslash_jax

  folder = os.path.dirname(os.path.abspath(backslash_jax.__file__))
  code = textwrap.dedent(_CODE).format(blocked=blocked, folder=folder)
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
