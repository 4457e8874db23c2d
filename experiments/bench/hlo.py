"""What a compiled program computes, moves and communicates, from its text.

XLA's own cost analysis counts the body of a loop once. Here it counts as often
as it runs. Both branches of a conditional count.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

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
    """Every instruction, the computation it is in, how often it runs, and
    whether it is within a fusion."""
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
    return int(limits[0]) if len(limits) == 1 else 1

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

  def flops(self) -> float:
    """Floating point operations of all matrix products.

    Those in the kernels of attention count too, as of a causal mask: half of
    the scores.
    """
    return float(sum(times * _products(i, c) for i, c, times, _ in self.walk()))

  def moved(self) -> float:
    """Bytes read from main memory and written to it."""
    total = 0
    for i, computation, times, fused in self.walk():
      if not fused:
        total += times * self._moved(i, computation)
    return float(total)

  def _moved(self, i, computation):
    """Bytes of one run of an instruction that is in no fusion."""
    operands = [computation[o] for o in i.operands if o in computation]
    if i.opcode in _FREE or i.opcode.endswith("-done"):
      return 0
    if i.opcode in ("copy-start", "slice-start"):
      # (destination, source, context), or ((source), destination, context).
      moved = i.arrays[i.opcode == "slice-start"]
      source = operands[0].arrays[0]
      return moved.bytes * (moved.is_main + source.is_main)
    if i.opcode == "dynamic-slice":
      return _main(i.arrays) + i.bytes * operands[0].arrays[0].is_main
    if i.opcode == "dynamic-update-slice":
      return 2 * operands[1].bytes * i.arrays[0].is_main
    if i.opcode == "fusion":
      return self._moved_by_fusion(i, operands)
    return _main(i.arrays) + sum(_main(o.arrays) for o in operands)

  def _moved_by_fusion(self, i, operands):
    """Of what a fusion only slices or updates, that part counts."""
    (name,) = self.called(i)
    inside = self.computations[name]
    users: dict[str, list[Instruction]] = {}
    for user in inside.values():
      for o in user.operands:
        users.setdefault(o, []).append(user)
    *_, root = inside.values()
    results = [root]
    if root.opcode == "tuple":
      results = [inside[o] for o in root.operands]
    total = 0
    for parameter in inside.values():
      if parameter.opcode != "parameter":
        continue
      outer = operands[int(parameter.rest)]
      if not all(a.is_main for a in outer.arrays):
        continue
      used = _through(users, parameter)
      if all(u.opcode in _SLICES for u in used):
        sizes = (_part(u, parameter, inside) for u in used)
        total += min(parameter.bytes, sum(sizes))
      else:
        total += parameter.bytes
    for result, array in zip(results, i.arrays, strict=False):
      result = _source(result, inside)
      if not array.is_main or result.opcode in ("parameter", *KINDS):
        continue
      if result.opcode == "dynamic-update-slice":
        total += inside[result.operands[1]].bytes
      else:
        total += array.bytes
    return total


def collectives(text: str) -> list[Collective]:
  """The collectives in the text of a compiled program, `compiled.as_text()`."""
  return Program(text).collectives()


# Instructions that move nothing themselves.
_FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while",
  "conditional", "call", "async-start", "partition-id", "replica-id",
  "after-all", "opt-barrier",
}  # fmt: skip
_SLICES = (
  "dynamic-slice", "slice", "gather", "dynamic-update-slice", "tuple",
  "custom-call", *KINDS,
)  # fmt: skip


def _through(users, instruction):
  """Who uses a value, also through casts of its shape."""
  found = []
  for user in users.get(instruction.name, []):
    if user.opcode in ("bitcast", "reshape"):
      found += _through(users, user)
    else:
      found.append(user)
  return found


def _source(instruction, inside):
  """What a value is, before casts of its shape."""
  while instruction.opcode in ("bitcast", "reshape", "get-tuple-element"):
    instruction = inside[instruction.operands[0]]
  return instruction


def _part(user, parameter, inside):
  """Bytes of a parameter that one of _SLICES reads."""
  if user.opcode == "dynamic-update-slice":
    updated = _source(inside[user.operands[0]], inside)
    return 0 if updated.name == parameter.name else parameter.bytes
  if user.opcode in ("tuple", "custom-call"):
    return 0  # Passed on, or part of a collective.
  return user.bytes if user.opcode in _SLICES[:3] else parameter.bytes


def _main(arrays):
  return sum(a.bytes for a in arrays if a.is_main)


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


# Of JAX's kernel of attention: parts of its name, and products of matrices.
_KERNELS = {"_fwd": 2, "_dq": 3, "_dkv": 4}


def _products(i, computation):
  """Floating point operations of a matrix product; 0 for anything else."""
  if i.opcode == "custom-call" and i.name.startswith("splash_"):
    # Of [B, H, T, D] with [B, K, S, D], after two arrays about the mask.
    q, k = (computation[o].arrays[0].dims for o in i.operands[2:4])
    count = sum(n for part, n in _KERNELS.items() if part in i.name)
    return count * math.prod(q) * k[2]
  if i.opcode == "dot":
    left = computation[i.operands[0]].arrays[0].dims
    match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.rest)
    over = match[1].split(",") if match and match[1] else []
    contracted = math.prod(left[int(d)] for d in over)
    return 2 * math.prod(i.arrays[0].dims) * contracted
  if i.opcode != "convolution":
    return 0
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest)
  assert labels, i.name
  left, right = (computation[o].arrays[0].dims for o in i.operands[:2])
  out = i.arrays[0].dims
  flops = 2 * right[labels[2].index("i")]
  for label, size in zip(labels[3], out, strict=True):
    if not label.isdigit():
      flops *= size
  window = dict(re.findall(r"(\w+)=([\dx_\-]+)", _window(i.rest)))
  for axis in range(len(labels[3]) - 2):
    label = str(axis)
    flops *= _taps(
      left[labels[1].index(label)],
      right[labels[2].index(label)],
      out[labels[3].index(label)],
      {k: v.split("x")[axis] for k, v in window.items()},
    )
  return flops


def _window(rest):
  match = re.search(r"window=\{([^}]*)\}", rest)
  return match[1] if match else ""


def _taps(size, kernel, out, window):
  """Products along one axis of a convolution, without those with padding."""
  stride = int(window.get("stride", 1))
  low = int(window.get("pad", "0_0").split("_")[0])
  left, right = (int(window.get(f"{s}_dilate", 1)) for s in ("lhs", "rhs"))
  return sum(
    0 <= at <= (size - 1) * left and at % left == 0
    for o in range(out)
    for k in range(kernel)
    for at in [o * stride + k * right - low]
  )
