"""The command `python -m backslash_jax`, equivalent to `backslash-jax`."""

import sys

from backslash_jax.cli import main

sys.exit(main.main())
