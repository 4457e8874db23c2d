"""The memory that this process holds."""

import contextlib
import pathlib
import resource
import sys

_STATUS = pathlib.Path("/proc/self/status")
_CLEAR = pathlib.Path("/proc/self/clear_refs")


def peak() -> int:
  """Bytes that the process held at most, since `forget_peak` on Linux."""
  with contextlib.suppress(OSError):
    for line in _STATUS.read_text().splitlines():
      if line.startswith("VmHWM:"):
        return 1024 * int(line.split()[1])
  found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return found if sys.platform == "darwin" else 1024 * found


def forget_peak() -> None:
  """Lets `peak` start from what is held now, where the system can."""
  with contextlib.suppress(OSError):
    _CLEAR.write_text("5")
