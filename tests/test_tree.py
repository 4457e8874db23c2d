"""Names and selection of leaves: one meaning of `mask` in every function."""

import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import backslash_jax as bs
from backslash_jax import tree


class Pair(NamedTuple):
  value: object
  other: object


PARAMS = {
  "dense": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)},
  "stack": [jnp.ones((2, 3)), None, jnp.arange(6).reshape(2, 3)],
  "pair": Pair(jnp.ones((2, 2)), jnp.ones((2, 2), jnp.bfloat16)),
}
FLOATING = [
  "dense/bias",
  "dense/kernel",
  "pair/value",
  "pair/other",
  "stack/0",
]


def _chosen(mask, params=PARAMS):
  return sorted(tree.selected(params, mask))


def test_names_are_keys_joined_by_slashes():
  assert tree.names(PARAMS) == [*FLOATING, "stack/2"]


def test_a_variable_of_nnx_adds_nothing_to_a_name():
  class Model(nnx.Module):
    def __init__(self, rngs):
      self.attention = nnx.MultiHeadAttention(2, 8, rngs=rngs)
      self.norm = nnx.LayerNorm(8, rngs=rngs)

  state = nnx.state(Model(nnx.Rngs(0)), nnx.Param)
  names = tree.names(state)
  assert "attention/value/kernel" in names
  assert names == tree.names(nnx.to_pure_dict(state))
  # The biases of attention have two axes, [heads, head_dim].
  chosen = _chosen(bs.matrices, state)
  assert chosen == [n for n in sorted(names) if n.endswith("kernel")]


@pytest.mark.parametrize(
  ("name", "is_matrix"),
  [
    ("kernel", True),
    ("weight", True),
    ("embedding", True),
    ("scaled_kernel", True),
    ("lora_b", True),
    ("bias", False),
    ("query_bias", False),
    ("scale", False),
    ("layer.0.attention.bias", False),
    ("weight_scale_inv", False),
    ("gamma", False),
    ("b", True),
  ],
)
def test_matrices_leave_out_biases_and_scales_of_any_shape(name, is_matrix):
  assert bs.matrices({name: jnp.ones((2, 3))}) == {name: is_matrix}
  assert bs.matrices({name: jnp.ones(3)}) == {name: False}
  assert bs.matrices({name: jnp.ones((2, 3), int)}) == {name: False}


@pytest.mark.parametrize(
  ("mask", "expected"),
  [
    (None, FLOATING),
    (bs.matrices, ["dense/kernel", "pair/other", "pair/value", "stack/0"]),
    ("dense/*", ["dense/bias", "dense/kernel"]),
    (["*/kernel", "pair/value"], ["dense/kernel", "pair/value"]),
    (lambda params: "stack/0", ["stack/0"]),
    (lambda params: tree.select(params, "dense/*"), FLOATING[:2]),
    (tree.select(PARAMS, "pair/*"), ["pair/other", "pair/value"]),
    ({"dense": True, "stack": False, "pair": False}, FLOATING[:2]),
  ],
)
def test_a_mask_means_the_same_in_every_function(mask, expected, tmp_path):
  assert _chosen(mask) == sorted(expected)
  params = jax.tree.map(lambda x: x, PARAMS)
  params["pair"] = tuple(params["pair"])  # What a file can keep.
  if isinstance(mask, dict) and isinstance(mask.get("pair"), Pair):
    mask = mask | {"pair": tuple(mask["pair"])}
  expected = {n.replace("value", "0").replace("other", "1") for n in expected}
  patterns = isinstance(mask, list)
  if patterns:
    mask = [n.replace("value", "0") for n in mask]
  tx = bs.backslash(1.0, mask=mask, step=0.3)
  state = tx.init(params)
  assert set(bs.steps(state)) == expected
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
  priced = {n for n, u in tree.named_leaves(updates) if np.any(u)}
  assert priced == expected
  rounded = bs.round_through(params, 0.3, mask)
  bs.save(tmp_path / "m", params, step=0.3, mask=mask)
  for other in (rounded, bs.load(tmp_path / "m")):
    changed = {
      name
      for (name, a), (_, b) in zip(
        tree.named_leaves(params), tree.named_leaves(other), strict=True
      )
      if np.any(np.asarray(a) != np.asarray(b))
    }
    assert changed == expected


@pytest.mark.parametrize(
  ("mask", "message"),
  [
    ("*/weight", r"no floating leaf matches '\*/weight'"),
    ({"dense": True}, "another structure"),
    (lambda p: jax.tree.map(lambda _: False, p), "selects none of 'dense/b"),
    (lambda p: jax.tree.map(lambda _: True, p), "'stack/2' of dtype int32"),
    (3, "mask is 3: wanted"),
  ],
)
def test_a_mask_that_does_not_fit_is_refused_by_name(mask, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    bs.round_through(PARAMS, 0.1, mask)
  with pytest.raises(ValueError, match=message):
    bs.backslash(1.0, mask=mask).init(PARAMS)


def test_the_default_mask_says_when_there_is_no_matrix(tmp_path):
  params = {"w": jnp.ones(8)}
  for function in (
    lambda: bs.recommended(2.0).init(params),
    lambda: bs.round_through(params, 0.1),
    lambda: bs.save(tmp_path / "m", params, step=0.1),
  ):
    with pytest.raises(ValueError, match="selects none of 'w'; mask=None"):
      function()
  bs.recommended(2.0, mask=None).init(params)


def test_a_tree_of_bool_that_can_be_called_is_a_tree():
  @jax.tree_util.register_pytree_node_class
  class Module:
    def __init__(self, kernel):
      self.kernel = kernel

    def __call__(self, x):
      raise AssertionError("a mask was called")

    def tree_flatten(self):
      return (self.kernel,), None

    @classmethod
    def tree_unflatten(cls, aux, children):
      return cls(*children)

  params, mask = Module(jnp.full((2, 2), 0.4)), Module(True)
  rounded = bs.round_through(params, 1.0, mask)
  np.testing.assert_array_equal(rounded.kernel, 0.0)
  tx = bs.backslash(1.0, mask=mask)
  tx.update(params, tx.init(params), params)


def test_none_leaves_and_none_gradients_pass(tmp_path):
  params = {"w": jnp.ones((2, 2)), "none": None, "count": jnp.arange(2)}
  gradients = {"w": jnp.ones((2, 2)), "none": None, "count": None}
  tx = optax.chain(bs.recommended(2.0, begin=1, limit=0.3))
  bs.round_through(params, 0.5)
  updates, state = jax.jit(tx.update)(gradients, tx.init(params), params)
  assert updates["count"] is None
  bs.save(tmp_path / "m", params, step=bs.steps(state))
  assert bs.load(tmp_path / "m")["none"] is None


def test_without_jax_the_trees_are_dicts_lists_and_tuples(tmp_path):
  code = """
import sys
for name in ("jax", "jaxlib", "optax", "flax"):
  sys.modules[name] = None
import numpy as np
from backslash_jax import archive, tree
params = {"b": [np.ones((2, 3)), None], "a": {"bias": np.ones((2, 2))},
          "c": (np.arange(4),)}
assert tree.names(params) == ["a/bias", "b/0", "c/0"]
assert list(tree.selected(params)) == ["b/0"]
mask = {"a": True, "b": [False, None], "c": (False,)}
assert list(tree.selected(params, mask)) == ["a/bias"]
kept = tree.keep(params)
assert kept["a"] == {"bias": None} and kept["b"][1] is None
archive.save("m", params, step=0.3)
loaded = archive.load("m")
assert abs(loaded["b"][0] - 0.9).max() < 1e-6 and type(loaded["c"]) is tuple
assert archive.inspect("m").parameters == 14
"""
  subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
