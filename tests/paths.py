"""Where the tests find the project, their fixtures and the real data."""

import os
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
GOLDEN = ROOT / "tests" / "golden"
# Real data and weights, for the tests that need them; they skip without.
SHARED = pathlib.Path(
  os.environ.get("BACKSLASH_SHARED") or ROOT.parent / "shared"
)
