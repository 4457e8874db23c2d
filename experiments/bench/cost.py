"""What a compiled program computes, and what it moves in main memory."""

import math
import re

from experiments.bench import hlo


def flops(program: hlo.Program) -> float:
  """Floating point operations of all matrix products.

  Those in the kernels of attention count too, as of a causal mask: half of
  the scores.
  """
  return float(
    sum(times * _products(i, c) for i, c, times, _ in program.walk())
  )


def moved(program: hlo.Program) -> float:
  """Bytes read from main memory and written to it."""
  total = 0
  for i, computation, times, fused in program.walk():
    if not fused:
      total += times * _moved(program, i, computation)
  return float(total)


def _moved(program, i, computation):
  """Bytes of one run of an instruction that is in no fusion."""
  operands = [computation[o] for o in i.operands if o in computation]
  if i.opcode in _FREE or i.opcode.endswith("-done"):
    return 0
  if i.opcode in ("copy-start", "slice-start"):
    # (destination, source, context), or ((source), destination, context).
    copied = i.arrays[i.opcode == "slice-start"]
    source = operands[0].arrays[0]
    return copied.bytes * (copied.is_main + source.is_main)
  if i.opcode == "dynamic-slice":
    return _main(i.arrays) + i.bytes * operands[0].arrays[0].is_main
  if i.opcode == "dynamic-update-slice":
    return 2 * operands[1].bytes * i.arrays[0].is_main
  if i.opcode == "fusion":
    return _moved_by_fusion(program, i, operands)
  return _main(i.arrays) + sum(_main(o.arrays) for o in operands)


def _moved_by_fusion(program, i, operands):
  """Of what a fusion only slices or updates, that part counts."""
  (name,) = program.called(i)
  inside = program.computations[name]
  users: dict[str, list[hlo.Instruction]] = {}
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
    if not array.is_main or result.opcode in ("parameter", *hlo.KINDS):
      continue
    if result.opcode == "dynamic-update-slice":
      total += inside[result.operands[1]].bytes
    else:
      total += array.bytes
  return total


# Instructions that move nothing themselves.
_FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while",
  "conditional", "call", "async-start", "partition-id", "replica-id",
  "after-all", "opt-barrier",
}  # fmt: skip
_SLICES = (
  "dynamic-slice", "slice", "gather", "dynamic-update-slice", "tuple",
  "custom-call", *hlo.KINDS,
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
