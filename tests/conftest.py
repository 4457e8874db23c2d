"""Every test runs on eight CPU devices, and a warning is an error."""

import os
import signal
import tempfile

from tests import xla_flags

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
_COUNT = "--xla_force_host_platform_device_count"
os.environ.setdefault("XLA_FLAGS", "")
if _COUNT not in os.environ["XLA_FLAGS"]:
  os.environ["XLA_FLAGS"] += f" {_COUNT}=8"
# Most programs run a few times only: what takes time is compiling them. What
# tests compare to the last bit is compiled in the same way on both sides.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
_FAST_FLAGS = (
  "--xla_cpu_use_fusion_emitters=false",
  "--xla_cpu_parallel_codegen_split_count=1",
)
# A worker starts with those of its controller.
_USUAL_FLAGS = " ".join(
  flag for flag in os.environ["XLA_FLAGS"].split() if flag not in _FAST_FLAGS
)
os.environ["XLA_FLAGS"] = " ".join(
  [_USUAL_FLAGS, *filter(xla_flags.exists, _FAST_FLAGS)]
)
# Tests, their workers and what they start compile the same programs.
_CACHE = "JAX_COMPILATION_CACHE_DIR"
if _CACHE not in os.environ:
  _directory = tempfile.TemporaryDirectory(prefix="backslash_jax_tests_")
  os.environ[_CACHE] = _directory.name
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

# Where tests run in the background, these are ignored, also by what they start.
for _number in (signal.SIGINT, signal.SIGHUP):
  if signal.getsignal(_number) is signal.SIG_IGN:
    _is_interrupt = _number == signal.SIGINT
    signal.signal(
      _number, signal.default_int_handler if _is_interrupt else signal.SIG_DFL
    )

import jax  # noqa: E402
import pytest  # noqa: E402

from tests import text_data  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def source(tmp_path_factory):
  """A directory with a tiny version of every dataset."""
  root = tmp_path_factory.mktemp("source")
  text_data.write_datasets(root)
  return root


@pytest.fixture(scope="session")
def wordpiece(tmp_path_factory):
  """The directory of a tokenizer that knows the words of `source`."""
  directory = tmp_path_factory.mktemp("wordpiece")
  special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  (directory / "vocab.txt").write_text("\n".join(special + text_data.WORDS))
  return directory


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
  """One directory in which the tokens of `source` are kept."""
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def no_figures():
  """Trainings write reports without figures, which take seconds to draw."""
  from experiments import plots

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(plots, "write", lambda report, runs, directory: None)
    yield


@pytest.fixture(autouse=True, scope="module")
def _programs():
  """What a module compiled is let go after it: all of it takes gigabytes."""
  yield
  jax.clear_caches()


@pytest.fixture
def make_config(source, cache):
  """Gives the `data` fields for a dataset of `source`."""
  from configs import default  # The library's own tests go without.

  def make(name, **fields):
    config = default.get_config().data
    config.update(
      {"name": name, "source": str(source), "dir": str(cache), **fields}
    )
    return config

  return make


@pytest.fixture(autouse=True)
def _compilation(request):
  """Slow tests, whose programs run often, and their processes compile as usual.

  So do programs for a TPU: libtpu ends a process at flags that it lacks.
  """
  if not any(map(request.node.get_closest_marker, ("slow", "optimized"))):
    yield
    return
  name = "jax_disable_most_optimizations"
  changed = (name, "jax_persistent_cache_min_compile_time_secs")
  before = {option: jax.config.values[option] for option in changed}
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XLA_FLAGS", _USUAL_FLAGS)
    patch.setenv(name.upper(), "false")
    jax.config.update(name, False)
    yield
    for option, value in before.items():
      jax.config.update(option, value)
