"""What an update needs of a chip, read from the compiled program."""

import re
from typing import Any, NamedTuple

from experiments.bench import cost, hlo, roofline


class Usage(NamedTuple):
  """What an update needs of each chip; sizes in bytes.

  Attributes:
    parameters: of the parameters.
    optimizer: of the optimizer state.
    temporary: of activations, gradients and everything else that is live.
    peak: of all memory at once.
    flops: floating point operations of matrix products and of the kernels of
      attention.
    moved: bytes read from the chip's memory and written to it.
    sent: bytes sent to other chips.
    collectives: kind -> (number, bytes), see `hlo.Collective`.
    kernels: Mosaic kernels of the moments in the program.
  """

  parameters: int
  optimizer: int
  temporary: int
  peak: int
  flops: float
  moved: float
  sent: float
  collectives: dict[str, tuple[int, int]]
  kernels: int


def of(compiled: Any, *, parameters: int, optimizer: int) -> Usage:
  """The `Usage` of a compiled update, whose state has these sizes."""
  memory = compiled.memory_analysis()
  text = compiled.as_text() or ""
  program = hlo.Program(text)
  collectives = program.collectives()
  return Usage(
    parameters=parameters,
    optimizer=optimizer,
    temporary=memory.temp_size_in_bytes,
    peak=memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes,
    flops=cost.flops(program),
    moved=cost.moved(program),
    sent=sum(c.sent for c in collectives),
    collectives=_count(collectives),
    kernels=moments_kernels(text),
  )


def table(name: str, off: Usage, on: Usage) -> str:
  """Updates without the rate and with it, in Markdown, for a topology."""
  chip = roofline.CHIPS[name.split(":")[0]]
  memory, mib = chip.memory * 2**30, 2**20
  bounds = [roofline.of(chip, p.flops, p.moved, p.sent) for p in (off, on)]
  rows = [
    ("parameters, MiB", off.parameters / mib, on.parameters / mib),
    ("optimizer state, MiB", off.optimizer / mib, on.optimizer / mib),
    (
      "activations and other temporaries, MiB",
      off.temporary / mib,
      on.temporary / mib,
    ),
    ("peak memory, MiB", off.peak / mib, on.peak / mib),
    (
      "peak memory, % of the chip",
      100 * off.peak / memory,
      100 * on.peak / memory,
    ),
    ("TFLOP", off.flops / 1e12, on.flops / 1e12),
    ("GB read and written", off.moved / 1e9, on.moved / 1e9),
    ("GB sent", off.sent / 1e9, on.sent / 1e9),
  ]
  for kind in hlo.KINDS:
    a, b = (p.collectives.get(kind, (0, 0)) for p in (off, on))
    if a[0] or b[0]:
      rows.append((f"{kind}, number", a[0], b[0]))
      rows.append((f"{kind}, MiB", a[1] / mib, b[1] / mib))
  rows.append(("moments kernels (Mosaic)", off.kernels, on.kernels))
  rows += [
    (f"seconds of {part}, at least", *(getattr(b, part) for b in bounds))
    for part in roofline.Roofline._fields
  ]
  a, b = bounds
  rows += [
    ("% of peak FLOPs, all else hidden", 100 * a.fraction, 100 * b.fraction),
    ("% of peak FLOPs, nothing hidden", 100 * a.exposed, 100 * b.exposed),
  ]
  lines = [
    f"| {name}, per chip and update | without rate | with rate | change |",
    "|---|---|---|---|",
  ]
  for label, a, b in rows:
    change = f"{100 * (b - a) / a:+.2f}%" if a else f"{b - a:+.4g}"
    lines.append(f"| {label} | {a:,.5g} | {b:,.5g} | {change} |")
  a, b = bounds
  lines.append(f"| bounded by | {a.bound} | {b.bound} | |")
  return "\n".join(lines)


def moments_kernels(text: str) -> int:
  """How many Mosaic kernels of the moments a compiled program has."""
  return len(re.findall(r"%backslash_moments[\w.]* = .* custom-call\(", text))


def _count(collectives):
  counts: dict[str, tuple[int, int]] = {}
  for c in collectives:
    number, size = counts.get(c.kind, (0, 0))
    counts[c.kind] = number + c.times, size + c.times * c.bytes
  return counts
