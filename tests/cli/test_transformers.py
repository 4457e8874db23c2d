"""A coded directory does not load as a random model in transformers."""

import numpy as np
import pytest

from backslash_jax import archive
from backslash_jax.cli import main
from tests import paths

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("name", ["llama", "deepseek"])  # One is in shards.
def test_only_the_decompressed_directory_loads(tmp_path, name):
  coded, again = tmp_path / "coded", tmp_path / "again"
  source = paths.FIXTURES / name
  assert main.main(["compress", str(source), str(coded), "--step=2^-10"]) == 0
  load = transformers.AutoModelForCausalLM.from_pretrained
  with pytest.raises(OSError, match=r"model\.safetensors"):
    load(coded)
  assert main.main(["decompress", str(coded), str(again)]) == 0
  model = load(again)
  tensors = archive.Base(coded).tensors
  for key, x in model.state_dict().items():
    if key in tensors:
      np.testing.assert_array_equal(x.numpy(), tensors[key])
  # The documented way without a second directory.
  state = {key: torch.from_numpy(x) for key, x in tensors.items()}
  config = transformers.AutoConfig.from_pretrained(coded)
  model = transformers.AutoModelForCausalLM.from_config(config)
  model.load_state_dict(state, strict=False)
  for key, x in model.state_dict().items():
    if key in tensors:
      np.testing.assert_array_equal(x.numpy(), tensors[key])
