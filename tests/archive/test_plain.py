"""Plain safetensors files: every dtype, and what safetensors refuses."""

import json

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load as load_safetensors

from backslash_jax import archive
from backslash_jax.archive import plain
from backslash_jax.cli import main


def _file(path, header, data, *, text=None):
  text = text or json.dumps(header)
  text = text if isinstance(text, bytes) else text.encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + data)
  return path


def _entry(start, stop, dtype="U8", shape=None):
  shape = [stop - start] if shape is None else shape
  return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


_A = json.dumps(_entry(0, 2))
_TWICE = f'{{"a":{_A},"a":{_A}}}'


@pytest.mark.parametrize(
  ("text", "size"),
  [
    (f'{{"a":{_A}}}', 3),
    (f'{{"a":{_A},"b":{json.dumps(_entry(1, 3))}}}', 3),
    (f'{{"a":{_A},"b":{json.dumps(_entry(3, 4))}}}', 4),
    (f'{{"a":{json.dumps(_entry(1, 2))}}}', 2),
    (_TWICE, 2),
    (f'{{"a":{_A},"b":{_A}}}', 2),
    (f'{{"a":{_A},"e":{json.dumps(_entry(1, 1))}}}', 2),
    (f'{{"a":{_A},"__metadata__":{{"n":1}}}}', 2),
    (f'{{"a":{_A},"__metadata__":["n"]}}', 2),
    ('{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}', 2),
    (f'\ufeff{{"a":{_A}}}', 2),
    (f'{{"a":{_A}}}'.encode("utf-16"), 2),
    (f'{{"a":{_A}}}'.encode() + b"\xff", 2),
    (f'{{"a\\ud800":{_A}}}', 2),
    (f'{{"a":{_A},"__metadata__":{{"n":"\\udc80"}}}}', 2),
    (f'{{"a":{_A[:-1]},"more":NaN}}}}', 2),
  ],
  ids=[
    *("trailing", "overlap", "hole", "hole at the start", "key twice"),
    *("same bytes", "inside", "number", "list", "half a byte"),
    *("mark", "UTF-16", "not UTF-8", "surrogate", "in metadata", "NaN"),
  ],
)
def test_what_safetensors_refuses_is_refused(tmp_path, text, size):
  path = _file(tmp_path / "x", None, bytes(size), text=text)
  with pytest.raises(ValueError, match=r"x: a bad safetensors header: "):
    plain.read(path)
  if text != _TWICE:  # It takes the last of two.
    with pytest.raises(safetensors.SafetensorError):
      load_safetensors(path.read_bytes())


def test_order_and_empty_tensors_are_free(tmp_path):
  header = {"b": _entry(2, 5), "e": _entry(2, 2), "a": _entry(0, 2)}
  header["__metadata__"] = {"format": "pt", "title": "t"}
  path = _file(tmp_path / "x", header, b"abcde")
  found = {name: x.tobytes() for name, x in plain.read(path).items()}
  assert found == {"a": b"ab", "b": b"cde", "e": b""}
  assert plain.metadata(path) == header["__metadata__"]


@pytest.mark.parametrize(
  "dtype",
  [
    *("BOOL", "I8", "U16", "I32", "U64", "F16", "BF16", "F32", "F64", "C64"),
    *("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "F4"),
  ],
)
def test_every_dtype_survives_the_command_line(tmp_path, dtype):
  data = np.random.default_rng(0).integers(0, 256, 64, np.uint8).tobytes()
  if dtype == "BOOL":
    data = bytes(x & 1 for x in data)
  bits = {"F4": 4, "BOOL": 8, "C64": 64}.get(dtype)
  bits = bits or int(dtype.split("_")[0].lstrip("BFUI"))
  header = {"w": _entry(0, 64, dtype, [2, 256 // bits])}
  path = _file(tmp_path / "a", header, data)
  paths = [str(tmp_path / name) for name in "abc"]
  options = ["--step=1", "--exclude=w"]
  assert main.main(["compress", *paths[:2], *options]) == 0
  assert main.main(["decompress", *paths[1:]]) == 0
  assert plain.read(paths[2])["w"].tobytes() == plain.read(path)["w"].tobytes()
  assert (tmp_path / "c").read_bytes()[-64:] == data


@pytest.mark.parametrize("extra", [{}, {"title": "\u2713", "n": "1"}])
def test_metadata_come_back(tmp_path, capsys, extra):
  metadata = {"format": "pt"} | extra
  header = {"w": _entry(0, 4), "__metadata__": metadata}
  _file(tmp_path / "a", header, bytes(4))
  paths = [str(tmp_path / name) for name in "abc"]
  assert main.main(["compress", *paths[:2], "--step=1"]) == 0
  assert main.main(["decompress", *paths[1:]]) == 0
  assert plain.metadata(paths[2]) == metadata
  assert archive.inspect(paths[1]).metadata == ({} if not extra else metadata)
  assert "not kept" not in capsys.readouterr().out


def test_too_many_metadata_are_left_out_and_refused(tmp_path, capsys):
  large = {"text": "x" * archive.MAX_METADATA}
  header = {"w": _entry(0, 4), "__metadata__": large}
  path = _file(tmp_path / "a", header, bytes(4))
  assert main.main(["compress", str(path), f"{path}b", "--step=1"]) == 0
  assert "metadata not kept" in capsys.readouterr().out
  assert archive.inspect(f"{path}b").metadata == {}
  for bad in (large, {"a": 1}, {1: "a"}):
    with pytest.raises(ValueError, match="strings by name"):
      archive.save(tmp_path / "x", {}, step=None, metadata=bad)
