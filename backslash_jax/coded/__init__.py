"""Weights that stay small in device memory and are decoded where they are used.

`bs.load(path, coded=True)` gives leaves of these types, `bs.decode` arrays.
"""

from backslash_jax.coded.decode import decode
from backslash_jax.coded.leaves import Coded, Packed
from backslash_jax.coded.levels import levels
from backslash_jax.coded.transcode import stack

__all__ = ["Coded", "Packed", "decode", "levels", "stack"]
