"""A damaged file is refused or gives exactly what was saved; nothing else."""

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
import zlib

import numpy as np
import pytest

from backslash_jax import archive
from backslash_jax.archive import container, schema

_ORIGINAL = "the original"


def _params(scale=1):
  rng = np.random.default_rng(0)
  return {
    "w": rng.laplace(scale=0.05, size=(4 * scale, 9)).astype(np.float32),
    # Two symbols, but as many values as elements: no exact code is smaller.
    "t": (
      rng.choice([0.0, 1.0], (3, 20 * scale))
      + rng.normal(scale=2**-9, size=(3, 20 * scale))
    ).astype(np.float32),
    "b": rng.normal(size=3).astype(np.float32),
    "n": np.arange(2),
  }


@pytest.fixture(params=archive.CODERS)
def saved(request, tmp_path):
  """The file, its bytes and the bytes of each of its tensors."""
  path = tmp_path / "file"
  archive.save(path, _params(), step=2**-5, coder=request.param)
  return path, path.read_bytes(), _contents(path)


def _contents(path):
  return {name: x.tobytes() for name, x in archive.load(path).items()}


def _outcome(path, data, wanted):
  """What came of loading `data`: the original, or the error's message."""
  path.write_bytes(data)
  try:
    found = _contents(path)
  except archive.ArchiveError as error:
    return str(error)
  assert found == wanted
  return _ORIGINAL


def test_every_flipped_byte_is_found(saved):
  path, data, wanted = saved
  for place in range(len(data)):
    damaged = bytearray(data)
    damaged[place] ^= 1 << place % 8
    assert str(path) in _outcome(path, damaged, wanted), place


def test_every_truncation_is_found(saved):
  path, data, wanted = saved
  for length in range(len(data)):
    assert _outcome(path, data[:length], wanted) != _ORIGINAL, length
  assert _outcome(path, data + b"\0", wanted) != _ORIGINAL


@pytest.mark.parametrize(
  "count", [500, pytest.param(20_000, marks=pytest.mark.slow)]
)
def test_random_mutations_are_found(tmp_path, count):
  path = tmp_path / "file"
  archive.save(path, _params(40), step=2**-5)
  data, wanted = path.read_bytes(), _contents(path)
  rng = np.random.default_rng(count)
  for _ in range(count):
    damaged = _mutated(rng, data)
    expected = _ORIGINAL if damaged == data else None
    outcome = _outcome(path, damaged, wanted)
    assert (outcome == _ORIGINAL) == (expected == _ORIGINAL)


def _mutated(rng, data):
  out = bytearray(data)
  for _ in range(rng.integers(1, 4)):
    start = int(rng.integers(len(out)))
    length = int(rng.integers(1, 40))
    match rng.integers(5):
      case 0:
        out[start] = rng.integers(256)
      case 1:
        out[start : start + length] = rng.bytes(length)
      case 2:
        del out[start : start + length]
      case 3:
        out[start:start] = out[start : start + length]
      case 4:
        out[start : start + length] = bytes(length)
    out = out or bytearray(b"\0")
  return bytes(out)


def _forge(path, change):
  """Rewrites a file's index with valid checksums, as an attacker could."""
  data = path.read_bytes()
  size = json.loads(data[8:256])["payload"]["shape"][0]
  fields = json.loads(zlib.decompress(data[256 + size :]))
  changed = change(fields)
  packed = zlib.compress(
    json.dumps(fields if changed is None else changed).encode()
  )
  header = container._header(size, len(packed), zlib.crc32(packed))
  path.write_bytes(header + data[256 : 256 + size] + packed)


def _set(field, value, place=0):
  def change(fields):
    fields[field][place] = value

  return change


@pytest.mark.parametrize(
  "change",
  [
    _set("shape", [10**15, 9]),
    _set("shape", [10**15, 9], 2),
    _set("shape", [2**40] * 64),
    _set("shape", [4, -9]),
    _set("shape", [4.0, 9]),
    _set("shape", "36"),
    _set("shape", [5, 9]),
    _set("dtype", "object"),
    _set("dtype", "U8"),
    _set("dtype", 7),
    _set("dtype", "float64", 2),
    _set("dtype", "int32"),
    _set("step", 0.0),
    _set("step", -1.0),
    _set("step", "1"),
    _set("step", float("inf")),
    _set("step", float("nan")),
    _set("coder", "zip"),
    _set("coder", "huffman"),
    _set("coder", None),
    _set("model", None),
    _set("model", []),
    _set("model", [0, [16384]]),
    _set("model", [0, 0, 0, 0, None, None]),
    _set("model", [0, 0, 0, 0, 0, 0]),
    _set("model", [0, 0, 0, 20, None, None]),
    _set("model", [0, 10**30, 0, 0, None, None]),
    _set("model", [0, True, 0, 0, None, None]),
    _set("model", {"a": 1}),
    _set("bytes", 10**12),
    _set("bytes", -1),
    _set("bytes", 0),
    _set("crc32", "x"),
    _set("bits", "many"),
    _set("nu", "wide"),
    _set("alpha", [1]),
    _set("bits", -1),
    _set("bits", 10**400),
    _set("bits", True),
    _set("bits", 1.0),
    _set("nu", float("nan")),
    _set("nu", float("-inf")),
    _set("nu", 10**400),
    _set("nu", 0.0),
    _set("nu", 1e-300),
    _set("nu", True),
    _set("nu", None),
    _set("alpha", 0.0),
    _set("alpha", -(10**400)),
    _set("alpha", None),
    _set("alpha", 1.0, 2),
    _set("crc32", -1),
    _set("crc32", 2**32),
    _set("crc32", 10**400),
    _set("shape", [0, 2**62, 2**62]),
    _set("shape", [0, 2**62, 2**62], 2),
    _set("shape", [2**61, 0, 4], 2),
    _set("shape", [0] * 65),
    _set("shape", [10**400]),
    _set("shape", [float("inf")]),
    _set("shape", [True, 9]),
    _set("shape", {}),
    _set("dtype", ["float32"]),
    _set("dtype", "finfo"),
    _set("step", 10**400),
    _set("step", 1),
    _set("step", True),
    _set("step", 0.5, 2),
    _set("coder", ["rans"]),
    _set("coder", "exact"),
    _set("model", [0, 0, 0, 0, None, None], 2),
    _set("model", [0, [10**30]]),
    _set("model", [0.0, [16384]]),
    _set("model", ["0", [16384]]),
    _set("model", [[[[]]], {"a": None}]),
    lambda fields: fields | {"pad": []},
    lambda fields: {k: v for k, v in fields.items() if k != "nu"},
    lambda fields: fields | {"shape": {"0": [4, 9]}},
    lambda fields: fields | {"step": fields["step"] + [None]},
    lambda fields: fields | {"dtype": "float32"},
    _set("tree", None, "w"),
    _set("tree", ["set", 0], "w"),
    lambda fields: [],
    lambda fields: 5,
    lambda fields: {},
    lambda fields: fields | {"tree": 0},
    lambda fields: fields | {"tree": ["dict", [0, 0], [0, 0], [1, 0], [2, 0]]},
    lambda fields: (
      fields | {"tree": ["dict", [[0], 0], [1, 0], [2, 0], [3, 0]]}
    ),
    lambda fields: fields | {"tree": ["dict", 0, 0, 0, 0]},
    lambda fields: fields | {"bytes": fields["bytes"][:1]},
    lambda fields: fields | {"bytes": None},
  ],
)
def test_forged_indices_are_refused(tmp_path, change):
  path = tmp_path / "file"
  archive.save(path, _params(), step=2**-5)
  _forge(path, lambda fields: None)
  _contents(path)  # Forging alone does no harm.
  _forge(path, change)
  with pytest.raises(archive.ArchiveError, match="file"):
    archive.load(path)


@pytest.mark.parametrize(
  ("coder", "model"),
  [
    ("huffman", [0, [10**30], False]),
    ("huffman", [0, [1, 16], False]),
    ("huffman", [0, [1, -1], False]),
    ("huffman", [10**30, [1, 1], False]),
    ("huffman", [0, [1, 1], 0]),
    ("huffman", [2047, [1, 1], False]),
    ("huffman", [-2048, [1, 1], False]),
    ("huffman", [0, 1, False]),
    ("exp_golomb", [10**30, None]),
    ("exp_golomb", [31, None]),
    ("exp_golomb", [-1, None]),
    ("exp_golomb", [True, None]),
    ("exp_golomb", [0, [1]]),
    ("exp_golomb_ranked", [0, None]),
    ("exp_golomb_ranked", [0, [10**11]]),
    ("exp_golomb_ranked", [0, [-(2**31) - 1]]),
    ("exp_golomb_ranked", [0, [1.5]]),
    ("rans", [0, 8, 0, None, None, 2, 12, 1]),
    ("rans", [0, 8, 1, None, None, 2, 12]),
    ("rans", [0, 8, 1, None, 999, 2, 12, 1]),
    ("rans", [0, 8, 1, None, None, 2, 12, 1.0]),
    ("rans", [0, 8, 1, None, None, 2, None, 1]),
    ("rans", [0, 8, 1, None, None, 2, 12, 10**30]),
  ],
)
def test_forged_models_are_refused(tmp_path, coder, model):
  path = tmp_path / "file"
  archive.save(path, _params(), step=2**-5, coder=coder)
  _forge(path, _set("model", model))
  for read in (
    archive.load,
    archive.inspect,
    lambda p: list(archive.stream(p)),
  ):
    with pytest.raises(archive.ArchiveError, match="tensor 'w'"):
      read(path)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("other", archive.CODERS)
@pytest.mark.parametrize("coder", archive.CODERS)
def test_the_coders_of_a_chunk_do_not_mix(tmp_path, coder, other, place):
  if coder == other:
    return
  path, second = tmp_path / "file", tmp_path / "second"
  archive.save(path, _params(), step=2**-5, coder=coder)
  archive.save(second, _params(), step=2**-5, coder=other)
  data = second.read_bytes()
  size = json.loads(data[8:256])["payload"]["shape"][0]
  wanted = json.loads(zlib.decompress(data[256 + size :]))

  def change(fields):
    for field in ("coder", "model"):
      fields[field][place] = wanted[field][place]

  _forge(path, change)
  with pytest.raises(archive.ArchiveError, match="different coders"):
    archive.load(path)


@pytest.mark.parametrize(
  "size", ["1e999", "-1e999", "1e400", "[]", '"9"', "-0"]
)
def test_a_header_with_impossible_sizes_is_refused(tmp_path, size):
  path = tmp_path / "file"
  archive.save(path, _params(), step=2**-5)
  data = path.read_bytes()
  text = data[8:256].rstrip()
  start = text.index(b'"shape":[') + 9
  stop = text.index(b"]", start)
  text = text[:start] + size.encode() + text[stop:]
  path.write_bytes(data[:8] + text.ljust(248) + data[256:])
  with pytest.raises(archive.ArchiveError, match="header"):
    archive.load(path)


def test_a_deeply_nested_index_is_refused(tmp_path):
  path = tmp_path / "file"
  archive.save(path, {"x": np.ones(3)}, step=None)
  packed = zlib.compress(b"[" * 100_000, 0)
  header = container._header(0, len(packed), zlib.crc32(packed))
  path.write_bytes(header + packed)
  with pytest.raises(archive.ArchiveError, match="index cannot be read"):
    archive.load(path)


def test_an_index_that_inflates_without_end_is_refused(tmp_path):
  path = tmp_path / "file"
  packed = zlib.compress(b" " * 10**8, 9)
  header = container._header(0, len(packed), zlib.crc32(packed))
  path.write_bytes(header + packed)
  with pytest.raises(archive.ArchiveError, match="does not end"):
    archive.load(path)


def test_a_newer_version_asks_for_an_update(tmp_path):
  path = tmp_path / "file"
  archive.save(path, {"x": np.ones(3)}, step=None)
  data = path.read_bytes().replace(
    b'"backslash_jax":"2"', b'"backslash_jax":"9"'
  )
  path.write_bytes(data)
  with pytest.raises(archive.ArchiveError, match=r"version '9'.*update"):
    archive.inspect(path)


def test_foreign_files_are_refused(tmp_path):
  path = tmp_path / "file"
  for data in (b"", b"{}", b"\x10" * 300, bytes(8) + b"{}" + bytes(400)):
    path.write_bytes(data)
    with pytest.raises(archive.ArchiveError, match="not a coded model file"):
      archive.load(path)
  with pytest.raises(FileNotFoundError):
    archive.load(tmp_path / "nothing")


@pytest.mark.skipif(os.name != "posix", reason="kills with SIGKILL")
def test_a_kill_leaves_the_old_file(tmp_path):
  path = tmp_path / "file"
  archive.save(path, {"x": np.ones((4, 4), np.float32)}, step=2**-8)
  before = path.read_bytes()
  code = """
    import sys, numpy as np
    from backslash_jax import archive
    params = {str(i): np.random.randn(300, 300) for i in range(200)}
    ready = lambda count: print("begun", flush=True)
    while True:
      archive.save(sys.argv[1], params, step=2**-4, progress=ready)
      sys.exit(9)
  """
  process = subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(code), str(path)],
    stdout=subprocess.PIPE,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
  )
  assert process.stdout is not None
  with process.stdout:
    assert process.stdout.readline() == b"begun\n"
    time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert path.read_bytes() == before
  archive.load(path)


def _index(count, shape, **fields):
  """An index of constant tensors in one chunk without bytes."""
  return {
    "tree": ["list"] + [0] * count,
    "dtype": ["float32"] * count,
    "shape": [shape] * count,
    "step": [1.0] * count,
    "coder": ["rans"] * count,
    "model": [[3, [16384]]] * count,
    "bits": [0] * count,
    "nu": [None] * count,
    "alpha": [None] * count,
    "bytes": [0],
    "crc32": [0],
  } | fields


_CHUNKS_OF_A_GIB = {"bytes": [0] * 128, "crc32": [0] * 128}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
  ("index", "message"),
  [
    (_index(1, [1 << 14, 1 << 14], **_CHUNKS_OF_A_GIB), "1073741824 bytes of"),
    (
      _index(1500, [1 << 8, 1 << 8], same={str(i): 0 for i in range(1, 1500)}),
      "bytes of tensors|fields",
    ),
    (_index(9000, [1, 1]), "does not end"),
    (_index(100_000, [0, 3], bytes=[], crc32=[]), "does not end"),
    (_index(1, [3, 3], pad=[[]] * 10**6), "does not end"),
  ],
  ids=["elements", "equal", "scalars", "empty", "key"],
)
def test_a_small_file_cannot_claim_much(tmp_path, index, message, version):
  """Refused before anything of the claimed size is allocated or parsed."""
  if version == 1 and "same" in index:
    return
  path = tmp_path / "file"
  if "same" in index:
    index["model"][1:] = [None] * 1499
  packed = zlib.compress(json.dumps(index).encode(), 9)
  header = container._header(0, len(packed), zlib.crc32(packed), version)
  path.write_bytes(header + packed)
  assert path.stat().st_size < 20_000
  tracemalloc.start()
  try:
    with pytest.raises(archive.ArchiveError, match=message):
      archive.load(path)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
  finally:
    tracemalloc.stop()


def test_what_is_written_may_claim_what_it_has(tmp_path, monkeypatch):
  """A file of constants is filled up to what its tensors need."""
  monkeypatch.setattr(schema, "FREE", 1 << 10)
  monkeypatch.setattr(schema, "RATIO", 1 << 5)
  path = tmp_path / "file"
  params = {"zeros": np.zeros((300, 200), np.float32), "n": np.arange(4)}
  report = archive.save(path, params, step=2**-8)
  assert report.bytes >= 240_000 >> 5
  np.testing.assert_array_equal(archive.load(path)["zeros"], params["zeros"])
  data = bytearray(path.read_bytes())
  data[4000] ^= 1
  path.write_bytes(data)
  with pytest.raises(archive.ArchiveError, match="damaged"):
    archive.load(path)


@pytest.mark.parametrize(
  "change",
  [
    *(
      lambda fields, x=x: fields | {"axes": {"1": x}}
      for x in (0, 2, -1, 1.0, True, None, "1")
    ),
    *(
      lambda fields, x=x: fields | {"repeats": {"1": x}}
      for x in (
        *(None, [], {}, [[], []], [[1], [0]], [[2], [1]], [[2, 2], [0, 2]]),
        *([[2], [0, 0]], [[2], 0], [[0], [0]], [[2, 0], [0, 0]], [[4], [0]]),
        *([[2], [-1]], [[10**30], [0]], [[2], [10**30]], [[2.0], [0]]),
        *([[2, 10**12], [0, 0]], [[True], [0]], [[2], [0], [0]]),
      )
    ),
    *(
      lambda fields, x=x: fields | {"same": {"1": x}}
      for x in (0, 1, 2, -1, 10**30, 0.0, None, "0", [0])
    ),
    *(
      lambda fields, key=key: fields | {"axes": {key: 1}}
      for key in ("", "-1", "01", "9", "x", "\u0661", "1" * 5000, "1.0")
    ),
    *(
      lambda fields, x=x: fields | {"metadata": x}
      for x in ({}, [], None, {"a": 1}, {"a": None}, {"a": ["b"]}, "a")
    ),
    *(
      lambda fields, x=x: fields | {"base": {"1": x}}
      for x in (None, "", "0" * 15, "0" * 17, "0" * 15 + "g", 0, "A" * 16)
    ),
    lambda fields: fields | {"metadata": {"a": "b" * (1 << 18)}},
    lambda fields: fields | {"same": {}},
    lambda fields: fields | {"same": []},
  ],
)
def test_forged_fields_of_some_tensors_are_refused(tmp_path, change):
  path = tmp_path / "file"
  archive.save(path, _params(), step=2**-5)
  _forge(path, change)
  for read in (archive.load, archive.inspect):
    with pytest.raises(archive.ArchiveError, match="index is invalid"):
      read(path)


def test_a_forged_difference_from_another_tensor_is_refused(tmp_path):
  path, params = tmp_path / "file", _params()
  base = archive.Base(params)
  archive.save(path, params, step=2**-5, base=params)
  saved = path.read_bytes()
  names = list(params)
  for name, other in itertools.permutations(names, 2):
    path.write_bytes(saved)

    def change(fields, name=name, other=other):
      fields["base"][str(names.index(name))] = base.digest(other)

    _forge(path, change)
    with pytest.raises(archive.ArchiveError, match=f"{name!r} cannot be"):
      archive.load(path, base=base)


def test_a_tensor_equal_to_another_must_be_like_it(tmp_path):
  path, (a, b) = (
    tmp_path / "file",
    np.random.default_rng(0).normal(size=(2, 9, 9)).astype(np.float32),
  )
  archive.save(path, {"a": a, "b": a, "c": b}, step=2**-5)
  assert archive.inspect(path).tensors[1].same == "a"
  saved = path.read_bytes()
  for field, value in {
    "shape": [3, 27],
    "dtype": "float16",
    "step": 2**-6,
    "coder": "huffman",
    "model": [0, [16384]],
    "bits": 7,
    "nu": 1.0,
    "alpha": 1.0,
  }.items():
    path.write_bytes(saved)
    _forge(path, _set(field, value, 1))
    with pytest.raises(archive.ArchiveError, match="'b'"):
      archive.load(path)
  for other in ({"1": 2}, {"1": 1}, {"1": 0, "2": 1}):
    path.write_bytes(saved)
    _forge(path, lambda fields, x=other: fields | {"same": x})
    with pytest.raises(archive.ArchiveError, match="index is invalid"):
      archive.load(path)


def test_version_1_has_none_of_the_new_fields(tmp_path):
  path = tmp_path / "file"
  archive.save(path, {"a": np.eye(9)}, step=2**-5, metadata={"a": "b"})
  data = path.read_bytes().replace(
    b'"backslash_jax":"2"', b'"backslash_jax":"1"'
  )
  path.write_bytes(data)
  with pytest.raises(archive.ArchiveError, match="fields"):
    archive.load(path)


def test_version_1_has_no_trellis(tmp_path):
  path = tmp_path / "file"
  w = np.random.default_rng(0).normal(size=(40, 40))
  archive.save(path, {"w": w}, step=0.5, quantizer="trellis")
  data = path.read_bytes().replace(
    b'"backslash_jax":"2"', b'"backslash_jax":"1"'
  )
  path.write_bytes(data)
  with pytest.raises(archive.ArchiveError, match="'w' has a trellis"):
    archive.load(path)
