"""Every test runs on eight CPU devices, and a warning is an error."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
_COUNT = "--xla_force_host_platform_device_count"
if _COUNT not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_COUNT}=8"
# Tests, their workers and what they start compile the same programs.
_CACHE = "JAX_COMPILATION_CACHE_DIR"
if _CACHE not in os.environ:
  _directory = tempfile.TemporaryDirectory(prefix="backslash_jax_tests_")
  os.environ[_CACHE] = _directory.name
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
