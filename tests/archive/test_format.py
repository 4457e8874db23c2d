"""A second decoder, written from docs/format.md, reads the same files."""

import functools
import hashlib
import itertools
import json
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from backslash_jax import archive
from backslash_jax.archive import index
from tests import paths

_M, _E = 1 << 14, 1 << 24


@functools.cache
def _root(exponent, halvings):
  value = 1 << exponent
  for _ in range(halvings):
    value = math.isqrt(value)
  return value


@functools.cache
def _log2(m):
  w = m.bit_length() - 1
  y = m << (31 - w)
  for _ in range(24):
    y = y * y >> 31
    b = y >> 32
    y >>= b
    w = 2 * w + b
  return w


def _exp2(x):
  t = _root(256 * 30 + ((x >> 16) & 255), 8)
  e = (x & 65535) * 2977044471 >> 32
  return (t + (t * (e + (e * e >> 25)) >> 24)) >> min(6 - (x >> 24), 62)


@functools.cache
def _frequencies(nu_index, alpha_index, tail, odd=None):
  """[(symbol, frequency)] of a GGD; the symbol of the escape is None.

  With `odd`, of a quantizer of a trellis, whose escapes are "even" and "odd".
  """
  n = _root(160 + nu_index, 3)

  def g(logarithm):
    z = ((logarithm - (alpha_index << 20)) * n >> 20) + 8872266
    return _exp2(-_exp2(min(max(z, -40 * _E), 6 * _E - 1)))

  first = [
    [g(_log2(16 + u) - (o + 5) * _E) for u in range(1, 16, 2)]
    for o in range(1, 25)
  ]
  halves = []  # The halves of the bins from 1 on.
  for k in range(1, 32):
    fine = [g(_log2(16 * k - 8 + u) - 4 * _E) for u in range(1, 16, 2)]
    halves += [sum(fine[:4]) << 25, sum(fine[4:]) << 25]
  for k in range(32, 2048):
    halves += [g(_log2(k)) << 27] * 2
  mass = [sum(sum(first[o - 1]) << (25 - o) for o in range(1, 25))]
  if odd:
    mass[0] = 2 * mass[0] - (sum(first[0]) << 25)
    halves = [sum(first[0]) << 24, *(2 * half for half in halves[:-1])]
  mass += [a + b for a, b in zip(halves[::2], halves[1::2], strict=True)]
  total = mass[0] + 2 * sum(mass[1:])
  largest = sum(m >= total >> 15 for m in mass[1:])
  free = _M - 2 * largest - 1 - (1 << tail)
  d = max(total.bit_length() - 48, 0)
  tails = list(itertools.accumulate([0, *mass[::-1]]))[::-1]
  unit = [(t >> d) * free // (total >> d) for t in tails[: largest + 2]]
  f = {k: unit[k] - unit[k + 1] + 1 for k in range(1, largest + 1)}
  f[0] = free - 2 * unit[1] + 1
  table = [(k, f[abs(k)]) for k in range(-largest, largest + 1)]
  escape = 2 * unit[largest + 1] + (1 << tail)
  if odd is not None:
    return [*table, ("even", escape // 2), ("odd", escape // 2)]
  return [*table, (None, escape)]


def _slots(table):
  """(symbol, frequency, slot - start) by slot."""
  return [(s, f, i) for s, f in table for i in range(f)]


def _fields(data, widths):
  whole, position, out = int.from_bytes(data, "little"), 0, []
  for width in widths:
    out.append((whole >> position) & ((1 << width) - 1))
    position += width
  return out


def _exp_golomb(data, k, count):
  """The zigzagged symbols of an exp-Golomb code."""
  bits = [b >> j & 1 for b in data for j in range(8)]
  ones = [i for i, bit in enumerate(bits) if bit][:count]
  zeros = [b - a - 1 for a, b in zip([-1, *ones], ones, strict=False)]
  head = (ones[-1] + 8) // 8
  widths = [z + k for z in zeros]
  fields = _fields(data[head:], widths)
  v = [(1 << w) + x - (1 << k) for w, x in zip(widths, fields, strict=True)]
  return [x >> 1 ^ -(x & 1) for x in v]


def _huffman(data, size, model):
  """The symbols of one part; the escape's symbol is None."""
  lowest, lengths, escape = model
  order = sorted((n, i) for i, n in enumerate(lengths) if n)
  words, code, last = {}, 0, 0
  for n, i in order:
    code <<= n - last
    escaped = escape and i == len(lengths) - 1
    words[n, code] = None if escaped else lowest + i
    code, last = code + 1, n
  runs = -(-size // 4096)
  cut = 4 * (runs - 1)
  sizes = struct.unpack_from(f"<{runs - 1}I", data)
  bits = [b >> j & 1 for b in data[cut:] for j in range(8)]
  out, position, borders = [], 0, []
  for i in range(size):
    if i % 4096 == 0:
      borders.append(position)
    n, code = 0, 0
    while (n, code) not in words:
      n, code = n + 1, 2 * code + bits[position]
      position += 1
    out.append(words[n, code])
  assert [b - a for a, b in itertools.pairwise(borders)] == list(sizes)
  cut += (position + 7) // 8
  count = out.count(None)
  excess = iter(_exp_golomb(data[cut + 1 :], data[cut], count) if count else [])
  return [next(excess) if y is None else y for y in out]


def _ranked(data, size, model):
  """The symbols of one part, coded by exp-Golomb with or without ranks."""
  k, ranks = model
  symbols = _exp_golomb(data, k, size)
  if ranks is None:
    return symbols
  return [ranks[2 * q if q >= 0 else -2 * q - 1] for q in symbols]


def _apart(data, parts, decode):
  """The symbols of each (rows, columns, model), coded one after another."""
  out = []
  for rows, columns, model in parts:
    (length,) = struct.unpack_from("<I", data)
    out.append(decode(data[4 : 4 + length], rows * columns, model))
    data = data[4 + length :]
  assert not data
  return out


def _points(model):
  """The scales of the row and of the column classes of a model of rANS."""
  return {2: (None, None), 6: model[4:], 8: model[3:5]}[len(model)]


def _rans(data, parts):
  """The symbols of each (rows, columns, model) of a chunk."""
  cut = 10
  lanes, tail, count = struct.unpack_from("<HII", data)
  states = list(struct.unpack_from(f"<{lanes}I", data, cut))
  cut += 4 * lanes
  words = list(struct.unpack_from(f"<{count}H", data, cut))[::-1]
  cut += 2 * count
  total = sum(
    rows * columns
    + (0 if _points(m)[0] is None else rows)
    + (0 if _points(m)[1] is None else columns)
    for rows, columns, m in parts
    if len(m) > 2 or len(m[1]) > 1
  )
  done = 0

  def segment(slots_of, size):
    nonlocal done, states
    out = []
    while len(out) < size:
      if done == total - tail:
        words.extend(x & 0xFFFF for x in reversed(states[max(lanes >> 3, 1) :]))
        states = states[: max(lanes >> 3, 1)]
      row = min(len(states), size - len(out))
      if done < total - tail:
        row = min(row, total - tail - done)
      for lane in range(row):
        x = states[lane]
        s, f, bias = slots_of(out)[x % _M]
        out.append(s)
        x = f * (x >> 14) + bias
        states[lane] = x if x >= 1 << 16 else x << 16 | words.pop()
      done += row
    return out

  decoded, odd_of = [], []
  for rows, columns, m in parts:
    if len(m) == 2:
      table = list(enumerate(m[1], m[0]))
      slots = _slots(table)
      constant = len(table) == 1
      size = rows * columns
      odd_of.append(None)
      decoded.append(
        [m[0]] * size if constant else segment(lambda _, s=slots: s, size)
      )
      continue
    nu_index, alpha_index, extra = m[:3]
    classes = []
    for point, n in zip(_points(m), (rows, columns), strict=True):
      if point is None:
        classes.append([0] * n)
      else:
        slots = _slots(_frequencies(8, point, 0))
        classes.append(segment(lambda _, s=slots: s, n))
    r, c = classes
    sums = [a + b for a in r for b in c]
    ggds = [(nu_index, alpha_index, extra), tuple(m[5:])][: len(m) // 4]
    odd = [None] if len(m) == 6 else [False, True]
    tables = {
      (total, o or 0): _frequencies(
        ggd[0], min(max(ggd[1] + 4 * total, -320), 176), ggd[2], o
      )
      for total in set(sums)
      for o, ggd in zip(odd, ggds, strict=True)
    }
    slots = {key: _slots(table) for key, table in tables.items()}
    size = rows * columns
    machines = [0] * min(max(size // 256, 1), 4096)
    quantizers = []

    def slots_of(out, sums=sums, slots=slots, machines=machines, q=quantizers):
      i = len(out)
      if len(slots) > len(set(sums)):
        j = i % len(machines)
        if i >= len(machines):
          last = out[i - len(machines)]
          is_odd = last == "odd" if type(last) is str else last % 2
          s = machines[j]
          machines[j] = s >> 1 ^ 33 * (s % 2) ^ 10 * is_odd
        q.append(machines[j] % 2)
      else:
        q.append(0)
      return slots[sums[i], q[i]]

    found = segment(slots_of, size)
    decoded.append(
      [
        y
        if type(y) is int
        else (y, max(s for s, _ in tables[total, o] if type(s) is int))
        for y, total, o in zip(found, sums, quantizers, strict=True)
      ]
    )
    odd_of.append(quantizers if len(m) == 8 else None)
  assert not words
  assert set(states) == {1 << 16}
  low = []
  for rows, columns, m in parts:
    width = m[3] if len(m) == 6 else 0
    size = rows * columns * width
    low.append(
      _fields(data[cut : cut + (size + 7) // 8], [width] * rows * columns)
    )
    cut += (size + 7) // 8
  escapes = sum(type(y) is tuple for out in decoded for y in out)
  excess = iter(
    _exp_golomb(data[cut + 1 :], data[cut], escapes) if escapes else []
  )
  for out, fields, odd, (_, _, m) in zip(
    decoded, low, odd_of, parts, strict=True
  ):
    shift = m[3] if len(m) == 6 else 0
    for i, y in enumerate(out):
      if type(y) is tuple:
        e, (parity, largest) = next(excess), y
        y = e + largest if e > 0 else e - largest
        assert parity in (None, ("even", "odd")[y % 2])
      out[i] = (y << shift) + fields[i] - (1 << shift >> 1)
      if odd:
        out[i] = 2 * y - (odd[i] if y > 0 else -odd[i] if y < 0 else 0)
  return decoded


def _planes(data, parts):
  """The values of each (count, dtype) of a chunk of exact tensors."""
  units = [
    ("float32" if dtype == "complex64" else dtype, count, dtype)
    for count, dtype in parts
  ]
  planes = [
    (count * np.dtype(dtype).itemsize // np.dtype(unit).itemsize, unit)
    for unit, count, dtype in units
    for _ in range(np.dtype(unit).itemsize)
  ]
  a, b, c = struct.unpack_from("<III", data)
  used = struct.unpack_from(f"<{len(planes)}H", data, 12)
  data = data[12 + 2 * len(planes) :]
  gaps = iter(_unsigned(data[:a], sum(used)))
  counts = iter(_unsigned(data[a : a + b], sum(n for n in used if n > 1)))
  tables = []
  for n in used:
    values = list(itertools.accumulate([next(gaps) + 1 for _ in range(n)]))
    values = [value - 1 for value in values]
    own = [next(counts) if n > 1 else _M for _ in range(n)]
    table = [0] * (values[-1] + 1 if values else 0)
    for value, count in zip(values, own, strict=True):
      table[value] = count
    if n == 1:
      table = table[-1:]
    tables.append([values[-1] if n == 1 else 0, table])
  coded = [
    (size, 1, table)
    for (size, _), table, n in zip(planes, tables, used, strict=True)
    if n
  ]
  found = iter(_rans(data[a + b : a + b + c], coded))
  raw, out = data[a + b + c :], []
  for (size, _), n in zip(planes, used, strict=True):
    if n:
      out.append(next(found))
    else:
      out.append(list(raw[:size]))
      raw = raw[size:]
  assert not raw
  values = []
  for unit, _, dtype in units:
    width = np.dtype(unit).itemsize
    own, out = out[:width], out[width:]
    words = [
      sum(x << 8 * j for j, x in enumerate(xs)) for xs in zip(*own, strict=True)
    ]
    if "float" in unit and width > 1:
      words = [w >> 1 | (w & 1) << 8 * width - 1 for w in words]
    octets = b"".join(w.to_bytes(width, "little") for w in words)
    values.append(np.frombuffer(octets, dtype))
  return values


def _unsigned(data, count):
  """Non-negative integers after a byte with the order of their code."""
  if not count:
    return []
  zigzagged = _exp_golomb(data[1:], data[0], count)
  return [2 * q if q >= 0 else -2 * q - 1 for q in zigzagged]


def _bytes_of(data, parts):
  """The values of each (count, dtype) of a chunk that is not split by bits."""
  data = zlib.decompress(data[1:], -15) if data[0] else data[1:]
  values = []
  for count, dtype in parts:
    width = np.dtype(dtype).itemsize
    octets = np.frombuffer(data[: count * width], np.uint8)
    data = data[count * width :]
    values.append(octets.reshape(width, count).T.copy().view(dtype).ravel())
  return values


def _all_rows(symbols, columns, repeats):
  """All rows of a matrix, of which the repeated ones are not stored."""
  stored = [symbols[i : i + columns] for i in range(0, len(symbols), columns)]
  rows = dict(
    zip(
      itertools.accumulate(repeats[0], initial=-1),
      [None, *repeats[1]],
      strict=True,
    )
  )
  del rows[-1]
  left, out = iter(stored), []
  for i in range(len(stored) + len(rows)):
    out.append(stored[rows[i]] if i in rows else next(left))
  return np.concatenate(out)


def _read(path):
  """{name: (symbols or values, step, digest)} of a file with a flat tree.

  At most one chunk of quantized and one of exact tensors.
  """
  file = Path(path).read_bytes()
  header = json.loads(file[8:256])
  version = header["__metadata__"]["backslash_jax"]
  size = header["payload"]["shape"][0]
  checksum = header["__metadata__"]["index_crc32"]
  assert f"{zlib.crc32(file[256 + size :]):08x}" == checksum
  fields = json.loads(zlib.decompress(file[256 + size :]))
  required = {"tree", "dtype", "shape", "step", "coder", "model", "bits"}
  required |= {"nu", "alpha", "bytes", "crc32"}
  free = {"axes", "same", "repeats", "base", "metadata"}
  free = free if version == "2" else set()
  assert required <= fields.keys() <= required | free
  axes, same, repeats = (
    {int(k): v for k, v in fields.get(name, {}).items()}
    for name in ("axes", "same", "repeats")
  )
  steps, shapes, names = fields["step"], fields["shape"], list(fields["tree"])
  matrices = []
  for i, shape in enumerate(shapes):
    split = axes.get(i, len(shape) - 1) if len(shape) > 1 else len(shape)
    rows = math.prod(shape[:split]) - len(repeats.get(i, [[]])[0])
    matrices.append((rows, math.prod(shape[split:])))
  own = [i for i in range(len(names)) if i not in same]
  quantized = [i for i in own if steps[i] is not None]
  exact = [i for i in own if steps[i] is None]
  found, cut = {}, 256
  groups = [g for g in (quantized, exact) if g]
  for group, length, crc in zip(
    groups, fields["bytes"], fields["crc32"], strict=True
  ):
    data = file[cut : cut + length]
    assert zlib.crc32(data) == crc
    cut += length
    if group is quantized:
      parts = [(*matrices[i], fields["model"][i]) for i in group]
      (coder,) = {fields["coder"][i] for i in group}
      if coder == "rans":
        decoded = _rans(data, parts)
      elif coder == "huffman":
        decoded = _apart(data, parts, _huffman)
      else:
        decoded = _apart(data, parts, _ranked)
    else:
      parts = [(math.prod(matrices[i]), fields["dtype"][i]) for i in group]
      assert data[0] < 2 or version == "2"
      decoded = (
        _planes(data[1:], parts) if data[0] == 2 else _bytes_of(data, parts)
      )
    for i, values in zip(group, decoded, strict=True):
      if i in repeats:
        values = _all_rows(values, matrices[i][1], repeats[i])
      is_trellis = len(fields["model"][i] or []) == 8
      found[i] = (values, steps[i] / 2 if is_trellis else steps[i])
  digests = {int(k): v for k, v in fields.get("base", {}).items()}
  return {
    name: (*found[same.get(i, i)], digests.get(i))
    for i, name in enumerate(names)
  }


def _digest(x):
  text = f"{x.dtype.name} {list(x.shape)}\n".encode()
  return hashlib.blake2b(text + x.tobytes(), digest_size=8).hexdigest()


def _of_base(found, step, own, wanted):
  """A tensor like `wanted` from its symbols or bits, and its base."""
  if step is None:
    bits = np.frombuffer(own.astype(wanted.dtype).tobytes(), np.uint8)
    stored = np.frombuffer(found.astype(wanted.dtype).tobytes(), np.uint8)
    return (bits ^ stored).view(wanted.dtype).reshape(wanted.shape)
  wide = np.float64 if wanted.dtype.itemsize > 4 else np.float32
  out = own.astype(wanted.dtype).ravel()
  for i, q in enumerate(found.ravel()):
    if q:
      value = wide(np.float64(q) * step)
      out[i] = (wide(own.astype(wide).ravel()[i]) + value).astype(out.dtype)
  return out.reshape(wanted.shape)


def _example():
  rng = np.random.default_rng(7)
  spread = np.exp(rng.normal(size=(60, 1)) + rng.normal(size=40))
  scaled = rng.normal(size=(60, 40)) * spread * 0.02
  scaled[5, 5] = 90.0
  return {
    "scaled": scaled.astype(np.float32),
    "heavy": rng.standard_cauchy(size=(50, 30)).astype(np.float32) * 0.01,
    "fine": rng.normal(size=(30, 30)) * 300.0,
    "sparse": (rng.random((90, 90)) < 0.05) * rng.choice([-1.0, 1.0], (90, 90)),
    "table": rng.choice([-1.0, 1.0], size=(90, 90)).astype(np.float16),
    "zeros": np.zeros((20, 20), np.float32),
    "bias": rng.normal(size=40).astype(np.float32),
    "count": np.int64(12345),
  }


def _example_2():
  """What files have since version 2."""
  rng = np.random.default_rng(8)
  table = rng.normal(size=(60, 20)).astype(np.float32)
  table[rng.permutation(60)[:25]] = table[7]
  table[40:44] = table[50:54]
  kernel = rng.normal(size=(24, 12, 5)) * np.exp(rng.normal(size=(24, 1, 1)))
  bias = rng.normal(size=400).astype(np.float32)
  return {
    "table": table,
    "tied": table,
    "kernel": kernel,
    "bias": bias,
    "half": rng.normal(size=400).astype(np.float16),
    "double": rng.normal(size=200),
    "complex": rng.normal(size=400).astype(np.float32).view(np.complex64),
    "ids": np.arange(1000),
    "flags": rng.random(300) < 0.1,
    "again": bias,
    "ones": np.ones(50, np.float32),
  }


def _example_of_trellis():
  """What a trellis quantizes, and what it leaves."""
  rng = np.random.default_rng(10)
  spread = np.exp(0.4 * rng.normal(size=(60, 1)) + 0.4 * rng.normal(size=40))
  scaled = rng.normal(size=(60, 40)) * spread
  scaled[5, 5], scaled[50, 30] = 5000.0, -3001.0
  heavy = rng.standard_cauchy(size=(50, 30)).clip(-900, 900)
  table = rng.normal(size=(90, 20)).astype(np.float32)
  table[rng.permutation(90)[:25]] = table[7]
  return {
    "scaled": scaled.astype(np.float32),
    "heavy": heavy.astype(np.float16),
    "table": table,
    "tied": table,
    "kernel": rng.normal(size=(24, 12, 5)),
    "sparse": rng.laplace(scale=0.1, size=(40, 40)).astype(np.float32),
    "zeros": np.zeros((50, 30)),
    "few": rng.normal(size=(5, 7)),
    "fine": rng.normal(size=(40, 30)) * 1e5,
    "ones": np.ones((50, 30), np.float32),
    "bias": rng.normal(size=40).astype(np.float32),
  }


def _example_of_difference():
  """A base and a fine-tune of it."""
  rng = np.random.default_rng(9)
  base = {
    "table": rng.normal(size=(60, 20)).astype(np.float32),
    "half": rng.normal(size=(30, 20)).astype(np.float16),
    "double": rng.normal(size=(10, 20)),
    "bias": rng.normal(size=40).astype(np.float32),
    "ids": np.arange(100),
    "resized": np.ones((4, 5), np.float32),
    "complex": rng.normal(size=40).astype(np.float32).view(np.complex64),
  }
  tuned = {
    name: (x + 0.05 * rng.normal(size=x.shape)).astype(x.dtype)
    for name, x in base.items()
    if x.dtype.kind == "f"
  }
  tuned["table"][5:50] = base["table"][5:50]
  tuned |= {
    "ids": np.where(base["ids"] == 7, 8, base["ids"]),
    "complex": base["complex"],
    "resized": rng.normal(size=(4, 6)).astype(np.float32),
    "head": rng.normal(size=(20, 3)).astype(np.float32),
  }
  return base, tuned


def _check(path, base=None):
  loaded = archive.load(path, base=base)
  digests = {_digest(x): x for x in (base or {}).values()}
  for name, (values, step, digest) in _read(path).items():
    wanted = loaded[name]
    found = np.array(values).reshape(wanted.shape)
    if digest is not None:
      found = _of_base(found, step, digests[digest], wanted)
    elif step is not None:
      found = (found.astype(np.float64) * step).astype(np.float32)
    np.testing.assert_array_equal(found.astype(wanted.dtype), wanted)
  return loaded


@pytest.mark.parametrize("coder", archive.CODERS)
def test_the_second_decoder_agrees(tmp_path, coder):
  path = tmp_path / "file"
  archive.save(path, _example(), step=2**-6, coder=coder)
  loaded = _check(path)
  for name, x in _example().items():
    bound = 2**-7 if np.ndim(x) > 1 else 0
    assert np.abs(loaded[name].astype(np.float64) - x).max() <= bound


@pytest.mark.parametrize("coder", archive.CODERS)
def test_the_second_decoder_agrees_on_what_version_2_adds(tmp_path, coder):
  path = tmp_path / "file"
  metadata = {"format": "pt", "note": "\u2713"}
  report = archive.save(
    path, _example_2(), step=2**-6, coder=coder, metadata=metadata
  )
  _check(path)
  by_name = {t.name: t for t in report.tensors}
  assert by_name["tied"].same == "table"
  assert by_name["again"].same == "bias"
  assert by_name["table"].repeated_rows == 27
  assert report.metadata == metadata


@pytest.mark.parametrize("mu", [0.0, 0.05])
def test_the_second_decoder_agrees_on_a_trellis(tmp_path, mu):
  path, params = tmp_path / "file", _example_of_trellis()
  report = archive.save(path, params, step=0.5, quantizer="trellis", mu=mu)
  loaded = _check(path)
  names = ["scaled", "heavy", "table", "tied", "kernel", "sparse"]
  assert names == [t.name for t in report.tensors if t.quantizer == "trellis"]
  for name in names:
    assert np.abs(loaded[name].astype(np.float64) - params[name]).max() < 0.51


@pytest.mark.parametrize("coder", archive.CODERS)
def test_the_second_decoder_agrees_on_differences(tmp_path, coder):
  path = tmp_path / "file"
  base, tuned = _example_of_difference()
  with pytest.warns(UserWarning, match="coded as they are, .* 'resized'"):
    report = archive.save(path, tuned, step=2**-6, base=base, coder=coder)
  loaded = _check(path, base)
  for name, x in tuned.items():
    assert loaded[name].dtype == x.dtype
    wide = loaded[name].astype(np.complex128), x.astype(np.complex128)
    assert np.abs(wide[0] - wide[1]).max() < 2**-7 + 2**-9
  assert {t.name for t in report.tensors if not t.base} == {"head", "resized"}


@pytest.mark.parametrize(
  "name",
  [
    *("version1", "version1_huffman", "version1_exp_golomb"),
    *("version1_exp_golomb_ranked", "version2", "version2_difference"),
    "version2_trellis",
  ],
)
def test_old_files_always_load(name):
  """Files that released versions wrote, and their values.

  They are never written anew. A new version adds a file that `archive.save`
  makes of an example above, and what `archive.load` makes of that.
  """
  path = paths.GOLDEN / f"{name}.safetensors"
  base = paths.GOLDEN / f"{name}_base.npz"
  loaded = _check(path, dict(np.load(base)) if base.exists() else None)
  wanted = np.load(paths.GOLDEN / f"{name}.npz")
  assert sorted(wanted) == sorted(loaded)
  for name in wanted:
    np.testing.assert_array_equal(loaded[name], wanted[name])
    assert loaded[name].dtype == wanted[name].dtype


def test_the_plan_of_chunks_is_the_documented_one(monkeypatch):
  monkeypatch.setattr(index, "CHUNK", 100)

  def entry(shape, step=0.5, dtype="float32"):
    kind = "exact" if step is None else "rans"
    return index.Entry("x", np.dtype(dtype), shape, step, kind)

  entries = [
    entry((6, 10)),
    entry((10,), None),
    entry((41, 7)),
    entry((0, 5)),
    entry((5, 10)),
    entry((2, 8), None),
    entry((1, 250)),
  ]
  plan = [[tuple(part) for part in parts] for parts in index.plan(entries)]
  # Weights 60, 40 (exact), 287, 0, 50, 64 (exact), 250.
  assert plan == [
    [(2, 0, 14)],
    [(2, 14, 28)],
    [(2, 28, 41)],
    [(0, 0, 6)],
    [(1, 0, 10)],
    [(6, 0, 84)],
    [(6, 84, 168)],
    [(6, 168, 250)],
    [(4, 0, 5)],
    [(5, 0, 2)],
  ]
