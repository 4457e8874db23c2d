"""The bytes of a coded model file: a safetensors file of two uint8 tensors.

`payload` is the chunks end to end, `index` the compressed JSON that describes
them. The header is a fixed function of five values, so a reader rebuilds it and
compares: together with the index's checksum and one per chunk, every byte of
the file is covered. See docs/format.md.
"""

import json
import os
import threading
import zlib

VERSION = 1
HEADER_SIZE = 256
MAX_INDEX_RATIO = 64


class ArchiveError(Exception):
  """A coded model file that is damaged, foreign or impossible."""


class Writer:
  """Writes chunks, then the index; the file appears whole or not at all."""

  def __init__(self, path: str | os.PathLike):
    self._path = os.fspath(path)
    self._temporary = f"{self._path}.{os.getpid()}.tmp"

  def __enter__(self):
    self._file = open(self._temporary, "wb")
    self._file.write(bytes(HEADER_SIZE))
    self._size = 0
    self._done = False
    return self

  def __exit__(self, *exception):
    self._file.close()
    if self._done:
      os.replace(self._temporary, self._path)
      _sync_directory(self._path)
    else:
      os.remove(self._temporary)

  def chunk(self, data: bytes) -> list[int]:
    """Appends a chunk; its size in bytes and checksum."""
    self._file.write(data)
    self._size += len(data)
    return [len(data), zlib.crc32(data)]

  def finish(self, index: object) -> None:
    """Writes the index and the header, and flushes the file to the disk."""
    text = json.dumps(index, separators=(",", ":"), allow_nan=False).encode()
    data = zlib.compress(text, 9)
    if len(text) > MAX_INDEX_RATIO * len(data):
      data = zlib.compress(text, 0)
    self._file.write(data)
    self._file.seek(0)
    self._file.write(_header(self._size, len(data), zlib.crc32(data)))
    self._file.flush()
    os.fsync(self._file.fileno())
    self._done = True


class Reader:
  """Reads and checks the header and the index; chunks on demand.

  Attributes:
    path: the file's name, for messages.
    size: its bytes.
    index: the parsed JSON.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = os.fspath(path)
    self._lock = threading.Lock()

  def __enter__(self):
    self._file = open(self.path, "rb")
    try:
      self._open()
    except BaseException:
      self._file.close()
      raise
    return self

  def __exit__(self, *exception):
    self._file.close()

  def error(self, message: str) -> ArchiveError:
    return ArchiveError(f"{self.path}: {message}")

  def chunk(self, offset: int, size: int, checksum: int) -> bytes:
    """The chunk at `offset` of the payload, verified."""
    if offset + size > self.payload_size:
      raise self.error("a chunk lies beyond the end of the payload")
    with self._lock:
      self._file.seek(HEADER_SIZE + offset)
      data = self._file.read(size)
    if len(data) != size or zlib.crc32(data) != checksum:
      raise self.error(f"the chunk at byte {HEADER_SIZE + offset} is damaged")
    return data

  def _open(self):
    self.size = os.fstat(self._file.fileno()).st_size
    header = self._file.read(HEADER_SIZE)
    payload, index, checksum = _parse_header(self, header)
    if self.size != HEADER_SIZE + payload + index:
      raise self.error(
        f"the file has {self.size} bytes, its header says "
        f"{HEADER_SIZE + payload + index}: it is cut off or extended"
      )
    self.payload_size = payload
    self._file.seek(HEADER_SIZE + payload)
    data = self._file.read(index)
    if zlib.crc32(data) != checksum:
      raise self.error("the index is damaged: its checksum does not match")
    inflate = zlib.decompressobj()
    try:
      text = inflate.decompress(data, (MAX_INDEX_RATIO + 1) * (index + 64))
      if not inflate.eof or inflate.unused_data:
        raise self.error("the index does not end where its compression says")
      self.index = json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
      raise self.error(f"the index cannot be read: {error}") from None


def _header(payload: int, index: int, checksum: int) -> bytes:
  """The first HEADER_SIZE bytes of the file: length, JSON, spaces."""
  entries = {
    "__metadata__": {
      "backslash_jax": str(VERSION),
      "index_crc32": f"{checksum:08x}",
    },
    "payload": _entry(0, payload),
    "index": _entry(payload, payload + index),
  }
  text = json.dumps(entries, separators=(",", ":")).encode()
  room = HEADER_SIZE - 8
  if len(text) > room:
    raise ValueError(f"a payload of {payload} bytes is more than a file holds")
  return room.to_bytes(8, "little") + text.ljust(room)


def _entry(start: int, stop: int) -> dict:
  return {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}


def _parse_header(reader: Reader, header: bytes) -> tuple[int, int, int]:
  """The payload's and the index's bytes, and the index's checksum."""
  try:
    fields = json.loads(header[8:])
    metadata = fields["__metadata__"]
    version = metadata["backslash_jax"]
    checksum = int(metadata["index_crc32"], 16)
    payload, index = (int(fields[k]["shape"][0]) for k in ("payload", "index"))
  except (ValueError, LookupError, TypeError, RecursionError):
    raise reader.error(
      "not a coded model file of backslash_jax, or one with a damaged header"
    ) from None
  if version != str(VERSION):
    raise reader.error(
      f"format version {version!r}, and this library reads {VERSION}: "
      "update backslash_jax"
    )
  sizes = (payload, index, checksum)
  if min(sizes) < 0 or max(sizes) > 2**53 or header != _header(*sizes):
    raise reader.error("the header is damaged")
  return sizes


def _sync_directory(path: str) -> None:
  """Makes the rename itself durable, where the platform can."""
  try:
    descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
  except OSError:
    return
  try:
    os.fsync(descriptor)
  except OSError:
    pass
  finally:
    os.close(descriptor)
