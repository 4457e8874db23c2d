"""How long an update takes at least: at the published rates of the chips.

Sources: Google Cloud's pages on the TPU versions; for the links of v4, Jouppi
et al. 2023, arXiv 2304.01433.
"""

from typing import NamedTuple


class Chip(NamedTuple):
  """Of one chip.

  Attributes:
    slice: what libtpu calls a slice of them.
    memory: GiB.
    compute: peak of bfloat16, in 10^12 operations per second.
    bandwidth: of its memory, GB/s.
    links: what all of its links to other chips send together, GB/s: half of
      what is published, which is for both directions.
  """

  slice: str
  memory: int
  compute: float
  bandwidth: float
  links: float


CHIPS = {
  "v4": Chip("v4", 32, 275, 1200, 300),
  "v5e": Chip("v5litepod", 16, 197, 819, 200),
  "v5p": Chip("v5p", 95, 459, 2765, 600),
  "v6e": Chip("v6e", 32, 918, 1638, 400),
}


class Roofline(NamedTuple):
  """Seconds that an update takes at least, of each part alone."""

  compute: float
  memory: float
  links: float

  @property
  def bound(self) -> str:
    """The part that takes longest."""
    return max(self._fields, key=lambda name: getattr(self, name))

  @property
  def fraction(self) -> float:
    """Of peak FLOPs, if everything else is hidden behind the longest part."""
    return self.compute / max(self)

  @property
  def exposed(self) -> float:
    """Of peak FLOPs, if nothing is hidden."""
    return self.compute / sum(self)


def of(chip: Chip, flops: float, moved: float, sent: float) -> Roofline:
  """The roofline of an update.

  Args:
    chip: one of CHIPS.
    flops: floating point operations of a chip.
    moved: bytes that it reads from its memory and writes to it.
    sent: bytes that it sends to others.
  """
  return Roofline(
    flops / (1e12 * chip.compute),
    moved / (1e9 * chip.bandwidth),
    sent / (1e9 * chip.links),
  )
