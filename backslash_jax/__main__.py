"""The command `python -m backslash_jax`, the same as `backslash-jax`."""

import sys

from backslash_jax.cli import main

sys.exit(main.main())
