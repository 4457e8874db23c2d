"""Which flags the installed compiler knows; it ends a process at any other."""

import importlib.util
import mmap
import pathlib


def exists(flag: str) -> bool:
  """Whether XLA_FLAGS may have "--name=value", found without loading XLA."""
  name = flag.strip("-").partition("=")[0]
  spec = importlib.util.find_spec("jaxlib")
  for folder in spec.submodule_search_locations:
    for path in pathlib.Path(folder).glob("*.so"):
      with path.open("rb") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
          # As a whole string: others may begin alike.
          if content.find(f"\0{name}\0".encode()) >= 0:
            return True
  return False
