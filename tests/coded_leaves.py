"""What tests of weights that stay coded share."""

import numpy as np

import backslash_jax as bs

KINDS = [True, "packed"]


def assert_same(found, wanted):
  """Bit for bit, the sign of zeros and the dtype included."""
  found, wanted = np.asarray(found), np.asarray(wanted)
  assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
  octets = (
    np.ascontiguousarray(x).reshape(-1).view("u1") for x in (found, wanted)
  )
  np.testing.assert_array_equal(*octets)


def saved(path, params, step, **options):
  bs.save(path, params, step=step, mask=None, **options)
  return bs.load(path)
