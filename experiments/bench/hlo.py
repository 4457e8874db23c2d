"""What a compiled program communicates, read from its text."""

import math
import re
from typing import NamedTuple

KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)

_OPERATION = re.compile(
  rf"= (?P<shapes>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\("
)
_SHAPE = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


class Collective(NamedTuple):
  """One collective operation of a program.

  Attributes:
    kind: one of KINDS.
    bytes: of what each device holds of its result.
    name: the path of JAX scopes that it comes from; "" if unknown.
  """

  kind: str
  bytes: int
  name: str


def collectives(text: str) -> list[Collective]:
  """The collectives in the text of a compiled program, `compiled.as_text()`."""
  found = []
  for line in text.splitlines():
    match = _OPERATION.search(line)
    if match:
      shapes = _SHAPE.findall(match["shapes"])
      if match["start"] and match["kind"] != "all-reduce":
        # An asynchronous start holds its operands too, before its results.
        shapes = shapes[len(shapes) // 2 :]
      size = sum(_bytes(bits, dims) for _, bits, dims in shapes)
      name = re.search(r'op_name="([^"]*)"', line)
      found.append(Collective(match["kind"], size, name[1] if name else ""))
  return found


def _bytes(bits, dims):
  """Of an array type; a pred has no number of bits in its name."""
  return (
    math.prod(map(int, filter(None, dims.split(",")))) * int(bits or 8) // 8
  )
