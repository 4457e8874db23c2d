"""What a compiled program consists of and communicates, from its text.

XLA's own cost analysis counts the body of a loop once. Here it counts as often
as it runs. Both branches of a conditional count.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from experiments import settings

KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)


class Collective(NamedTuple):
  """One collective operation of a program.

  Attributes:
    kind: one of KINDS.
    bytes: of the whole array on a device: the operand of a reduce-scatter, the
      result of the others.
    name: the path of JAX scopes that it comes from; "" if unknown.
    devices: that take part together; 0 if unknown.
    times: how often it runs.
  """

  kind: str
  bytes: int
  name: str
  devices: int = 0
  times: int = 1

  @property
  def sent(self) -> float:
    """Bytes that each device sends in all of its runs, around a ring."""
    if self.kind == "collective-permute":
      return float(self.times * self.bytes)
    # An all-reduce is a reduce-scatter and an all-gather.
    passes = 2 if self.kind == "all-reduce" else 1
    others = 1 - 1 / self.devices if self.devices else 1.0
    return self.times * passes * self.bytes * others


class Array(NamedTuple):
  """Type of an array.

  Attributes:
    dims: its shape.
    bytes: its size.
    is_main: whether it lies in the device's main memory (HBM), not on the chip.
  """

  dims: tuple[int, ...]
  bytes: int
  is_main: bool


class Instruction(NamedTuple):
  """A line of a computation.

  Attributes:
    name: without %.
    arrays: types of the result, of a tuple's in order.
    opcode: such as "fusion".
    operands: names.
    rest: what follows the operands; of a parameter and a constant, what stands
      in their place.
  """

  name: str
  arrays: list[Array]
  opcode: str
  operands: list[str]
  rest: str

  @property
  def bytes(self) -> int:
    return sum(a.bytes for a in self.arrays)


Computation = dict[str, Instruction]

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_CALLED = re.compile(
  r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Program:
  """The computations of a compiled program.

  Args:
    text: `compiled.as_text()`.
  """

  def __init__(self, text: str):
    self.computations: dict[str, Computation] = {}
    self.entry = ""
    current: Computation = {}
    for line in text.splitlines():
      if header := _HEADER.match(line):
        current = self.computations[header[2]] = {}
        if header[1]:
          self.entry = header[2]
      elif match := _LINE.match(line):
        name, shape, opcode, rest = match.groups()
        inside, _, after = rest.partition(")")
        if opcode in ("parameter", "constant"):
          after = inside  # Its number, its value.
        operands = re.findall(r"%([\w.\-]+)", inside)
        current[name] = Instruction(
          name, _arrays(shape), opcode, operands, after
        )

  def walk(self) -> Iterator[tuple[Instruction, Computation, int, bool]]:
    """Every instruction, its computation, how often it runs, if in a fusion.

    Raises:
      UserError: the program does not say how often a loop runs.
    """
    yield from self._walk(self.entry, 1, False)

  def _walk(self, name, times, fused):
    computation = self.computations[name]
    for i in computation.values():
      yield i, computation, times, fused
      if i.opcode == "while":
        times_ = times * self._trips(i)
        yield from self._walk(_named(i, "body"), times_, fused)
      elif i.opcode in ("fusion", "call", "conditional", "async-start"):
        for called in self.called(i):
          yield from self._walk(called, times, fused or i.opcode == "fusion")

  def called(self, i: Instruction) -> list[str]:
    """Names of the computations that an instruction runs."""
    names = _CALLED.findall(i.rest)
    for found in _BRANCHES.findall(i.rest):
      names += re.findall(r"%([\w.\-]+)", found)
    return names

  def _trips(self, i):
    """How often the body of a loop runs, which JAX's scans have fixed."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', i.rest)
    if known:
      return int(known[1])
    # The loop ends when a counter that begins at 0 reaches a constant.
    condition = self.computations[_named(i, "condition")]
    limits = [c.rest for c in condition.values() if c.opcode == "constant"]
    if len(limits) != 1:
      raise settings.UserError(
        f"what the program does cannot be counted: it does not say how often"
        f" its loop {i.name} runs"
      )
    return int(limits[0])

  def collectives(self) -> list[Collective]:
    """What is communicated; parts of one operation count once together."""
    found = {}
    for i, computation, times, fused in self.walk():
      kind = i.opcode.removesuffix("-start")
      if kind not in KINDS:
        continue
      arrays = i.arrays
      if i.opcode.endswith("-start") and kind != "all-reduce":
        # It holds its operands too, before its results.
        arrays = arrays[len(arrays) // 2 :]
      size = sum(a.bytes for a in arrays)
      if kind == "reduce-scatter":
        size = sum(computation[o].bytes for o in i.operands)
      if kind == "all-reduce" and _is_scattered(i, computation):
        kind = "reduce-scatter"
      name = re.search(r'op_name="([^"]*)"', i.rest)
      channel = re.search(r"channel_id=(\d+)", i.rest)
      found[channel[1] if fused and channel else i.name] = Collective(
        kind, size, name[1] if name else "", _devices(i.rest), times
      )
    return list(found.values())


def collectives(text: str) -> list[Collective]:
  """The collectives in the text of a compiled program, `compiled.as_text()`."""
  return Program(text).collectives()


def _arrays(text):
  """The types in the text of a result's."""
  found = []
  for kind, bits, dims, layout in _ARRAY.findall(text):
    sizes = tuple(map(int, filter(None, dims.split(","))))
    # A pred has no number of bits in its name.
    size = math.prod(sizes) * (8 if kind == "pred" else int(bits)) // 8
    found.append(Array(sizes, size, not re.search(r"S\([1-9]\d*\)", layout)))
  return found


def _named(i, attribute):
  """The computation that an attribute names."""
  match = re.search(rf"\b{attribute}=%?([\w.\-]+)", i.rest)
  assert match, (i.name, attribute)
  return match[1]


def _is_scattered(i, computation):
  """Whether a TPU's all-reduce hands each device only its part."""
  users = [u for u in computation.values() if i.name in u.operands]
  if len(i.arrays) > 1:
    names = {u.name for u in users if u.opcode == "get-tuple-element"}
    users = [u for u in computation.values() if names & set(u.operands)]
  return bool(users) and all(u.opcode == "dynamic-slice" for u in users)


def _devices(rest):
  """Devices of a group, from {{0,1},{2,3}}, [2,4]<=[8] or mesh['a'=2] {'a'}."""
  if match := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
    return len(match[1].split(","))
  if match := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
    return int(match[1])
  match = re.search(r"replica_groups=\w+\[(.*?)\][^{]*\{([^}]*)\}", rest)
  if not match:
    return 0
  sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
  axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
  return math.prod(int(part or sizes[axis]) for axis, part in axes)
