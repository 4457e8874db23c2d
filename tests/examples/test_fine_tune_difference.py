"""The example of a fine-tune, on a random model and on real weights."""

import pytest

from examples import fine_tune_difference
from tests import paths

STORIES = paths.SHARED / "weights" / "stories260K"


@pytest.mark.parametrize(
  "source",
  [
    None,
    pytest.param(
      STORIES,
      marks=[
        pytest.mark.slow,
        pytest.mark.skipif(
          not STORIES.exists(), reason=f"{STORIES} has no weights"
        ),
      ],
    ),
  ],
)
def test_the_file_keeps_what_the_fine_tune_learned(tmp_path, source):
  before, exact, coded, report = fine_tune_difference.main(
    tmp_path, source, updates=30, begin=15
  )
  assert exact < before - 0.3
  assert coded < before - 0.7 * (before - exact)
  assert report.bits_per_parameter < 0.5
  assert all(t.base for t in report.tensors)
