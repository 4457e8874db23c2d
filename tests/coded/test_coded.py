"""Weights that stay coded or packed: bit-equal to `bs.load` once decoded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import backslash_jax as bs
from backslash_jax import coded, quantize
from backslash_jax.coded import divide, encode, pallas_tpu, xla
from tests.coded_leaves import KINDS, assert_same, saved

SHAPES = [(), (7,), (1, 1), (33, 20), (6, 5, 4), (0,), (2, 0)]
DTYPES = ["float32", "bfloat16", "float16"]


@st.composite
def tensors(draw, shapes=SHAPES):
  """A tensor and a step: of any rate, with scales by row and column."""
  shape = draw(st.sampled_from(shapes))
  rng = np.random.default_rng(draw(st.integers(0, 99)))
  x = np.asarray(rng.laplace(size=shape))
  if draw(st.booleans()) and x.ndim and x.size:
    x *= np.exp(rng.normal(size=(shape[0],) + (1,) * (x.ndim - 1)))
    x *= np.exp(rng.normal(size=shape[-1]))
  if draw(st.booleans()) and x.size:
    x.flat[0] = 900
  if draw(st.integers(0, 9)) == 0:
    x = np.full(shape, draw(st.sampled_from([0.0, 1.0, -300.0])))
  dtype = draw(st.sampled_from(DTYPES))
  step = draw(st.sampled_from([20.0, 2.0, 0.7, 0.25, 0.03, 0.0021]))
  return np.asarray(jnp.asarray(x, dtype)), step


ZERO = pytest.mark.filterwarnings("ignore:.*all values became zero")


@ZERO
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(tensors())
def test_decoded_is_what_load_gives(tmp_path_factory, kind, tensor):
  path = tmp_path_factory.mktemp("coded") / "x"
  params = saved(path, {"x": tensor[0]}, tensor[1])
  found = jax.jit(bs.decode)(bs.load(path, coded=kind))
  assert_same(found["x"], params["x"])


def encoded(tensor):
  """A coded leaf, whether or not another would be smaller, and its array."""
  x, step = tensor
  levels = quantize.quantize(np.asarray(x, np.float32), step)
  own = divide.Tensor(levels, np.array([step]), x.dtype)
  leaf = encode.encode(own, divide.Grid(place=jnp.asarray))
  return leaf, quantize.dequantize(levels, step, x.dtype)


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(tensors([(3,), (1, 1), (40, 24), (9, 300), (5, 4, 3)]))
def test_implementations_give_the_same_tuples(tensor):
  # `encode` codes what `bs.load` would pack: few levels, many, and one.
  leaf, wanted = encoded(tensor)
  assert_same(bs.decode(leaf), wanted)
  assert pallas_tpu.limitation(leaf) is None
  assert_same(pallas_tpu.tuples(leaf, interpret=True), xla.tuples(leaf))


@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_of_mixed_leaves(stack, kind):
  path, params = stack
  loaded = bs.load(path, coded=kind, stacked="layers/*")
  cls = bs.Coded if kind is True else bs.Packed
  leaf = loaded["layers"]["kernel"]
  assert isinstance(leaf, cls)
  assert isinstance(loaded["head"][0], cls)
  assert (leaf.shape, leaf.dtype) == ((3, 96, 64), np.float32)
  assert leaf.nbytes < params["layers"]["kernel"].nbytes / 4
  assert isinstance(loaded["steps"], np.ndarray)
  found = jax.jit(bs.decode)(loaded)
  jax.tree.map(assert_same, found, params)


@pytest.mark.parametrize("kind", KINDS)
def test_a_scan_decodes_layer_by_layer(stack, kind):
  path, params = stack
  leaf = bs.load(path, coded=kind, stacked="layers/*")["layers"]["kernel"]
  x = params["layers"]["kernel"]
  norms = np.arange(6, dtype=np.float32).reshape(3, 2)

  def body(carry, i):
    found = bs.decode({"kernel": leaf, "norm": norms}, at=i)
    assert leaf.at(i).shape == x.shape[1:]
    return carry, found

  _, found = jax.jit(lambda: jax.lax.scan(body, 0, jnp.arange(3)))()
  assert_same(found["kernel"], x)
  assert_same(found["norm"], norms)


def test_layers_lie_one_after_the_other(stack):
  path, params = stack
  x = params["layers"]["kernel"]
  leaf = bs.load(path, coded=True, stacked="layers/*")["layers"]["kernel"]
  words = (np.asarray(leaf.counts, int) + leaf.begins[:, 1:2]).sum(1)
  assert words[2] > 1.5 * words[0]  # They have different rates, so
  assert leaf.words.size == words.sum()  # padding would show.
  assert leaf.words.ndim == 1  # TPUs would pad [1, n] to [2, n].
  assert_same(jax.jit(lambda i: bs.decode(leaf, at=i))(2), x[2])


@pytest.mark.parametrize("kind", [False, *KINDS])
def test_tensors_of_several_files_make_a_stack(tmp_path, kind):
  rng = np.random.default_rng(0)
  shape, steps = (60, 48), [0.3, 1.1, 0.7]
  sources, wanted = [], []
  for i, step in enumerate(steps):
    x = rng.laplace(size=shape).astype(np.float32)
    x[0, 0] = 300 * i  # Not in the smallest dtype of levels.
    file = tmp_path / str(i % 2)
    if i < 2:
      bs.save(file, {f"w{i}": x}, step=step)
    else:
      known = bs.load(file)["w0"]
      bs.save(file, {"w0": known, "w2": x}, step={"w0": 0.3, "w2": step})
    sources.append((file, f"w{i}"))
    wanted.append(bs.load(file)[f"w{i}"])
  found = coded.stack(sources, kind)
  cls = {False: np.ndarray, True: bs.Coded, "packed": bs.Packed}[kind]
  assert isinstance(found, cls)
  assert (found.shape, found.dtype) == ((3, *shape), np.float32)
  assert_same(bs.decode(found), np.stack(wanted))
  if kind is not False:
    assert_same(jax.jit(lambda i: bs.decode(found, at=i))(1), wanted[1])
  with pytest.raises(KeyError, match="w3"):
    coded.stack([*sources, (sources[0][0], "w3")], kind)


def test_a_stack_may_have_a_tensor_twice(stack):
  path, params = stack
  x = coded.stack([(path, "head/0"), (path, "head/0")], True)
  assert_same(bs.decode(x), np.stack([params["head"][0]] * 2))
  with pytest.raises(KeyError, match=r"x has no tensor named 'head/\*'"):
    coded.stack([(path, "head/*")], True)
  with pytest.raises(ValueError, match="no sources"):
    coded.stack([], True)


@pytest.mark.parametrize(
  "has_classes", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_the_kernel_for_tpu_gives_the_same_tuples(stack, has_classes):
  loaded = bs.load(stack[0], coded=True, stacked="layers/*")
  leaf = loaded["classes"] if has_classes else loaded["layers"]["kernel"].at(2)
  assert (leaf.frequency.shape[0] > 1) == has_classes
  assert pallas_tpu.limitation(leaf) is None
  assert_same(pallas_tpu.tuples(leaf, interpret=True), xla.tuples(leaf))


def test_layers_of_exact_tensors_are_rows_of_arrays(tmp_path):
  x = np.random.default_rng(0).normal(size=[3, 4]).astype(np.float32)
  bs.save(tmp_path / "x", {"bias": x, "w": np.ones([64, 64])}, step=0.1)
  loaded = bs.load(tmp_path / "x", coded=True, stacked=["bias"])
  assert_same(loaded["bias"], bs.load(tmp_path / "x")["bias"])
  assert_same(bs.decode(loaded["bias"], at=1), np.asarray(loaded["bias"])[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
  ("axis_type", "spec"),
  [
    ("Auto", ("data", "model")),
    ("Auto", ("data",)),
    ("Explicit", ("data", "model")),
    ("Explicit", ("data",)),
  ],
)
def test_shards_are_decoded_where_they_are(stack, kind, axis_type, spec):
  path, params = stack
  types = (getattr(jax.sharding.AxisType, axis_type),) * 2
  mesh = jax.make_mesh((4, 2), ("data", "model"), types)
  placed = jax.NamedSharding(mesh, jax.P(*spec))
  loaded = bs.load(path, names="head*", coded=kind, sharding=placed)
  decode = jax.jit(bs.decode, out_shardings=placed)
  program = decode.lower(loaded).compile().as_text()
  for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
    assert name not in program
  assert_same(decode(loaded)["head/0"], params["head"][0])


@pytest.mark.parametrize("kind", KINDS)
def test_layers_may_be_split_over_devices(stack, kind):
  mesh = jax.make_mesh(
    (3,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:3]
  )
  placed = jax.NamedSharding(mesh, jax.P("data"))
  loaded = bs.load(
    stack[0], names="layers*", coded=kind, stacked="layers*", sharding=placed
  )
  found = jax.jit(lambda x, i: bs.decode(x, at=i))(loaded, 2)
  assert_same(found["layers/kernel"], stack[1]["layers"]["kernel"][2])


@pytest.mark.parametrize("kind", KINDS)
def test_donated_leaves_become_the_new_ones(stack, kind):
  leaf = bs.load(stack[0], coded=kind)["head"][0]

  @functools.partial(jax.jit, donate_argnums=0)
  def apply(leaf):
    return leaf, bs.decode(leaf)

  kept, found = apply(leaf)
  assert_same(found, stack[1]["head"][0])
  assert_same(bs.decode(kept), found)
  assert all(x.is_deleted() for x in jax.tree.leaves(leaf) if x.size)


@pytest.mark.parametrize("kind", KINDS)
def test_levels_and_steps_give_the_values(stack, kind):
  path, params = stack
  loaded = bs.load(path, coded=kind, stacked="layers/*")
  for leaf, wanted in (
    (loaded["head"][0], params["head"][0]),
    (loaded["layers"]["kernel"], params["layers"]["kernel"]),
  ):
    levels, step = coded.levels(leaf)
    assert (levels.dtype, step.dtype) == (np.int8, np.float32)
    assert step.shape == (leaf.grid or (1,)) + (1,) * (wanted.ndim - 1)
    np.testing.assert_allclose(levels * step, wanted, rtol=1e-6)
  with pytest.raises(TypeError, match="is an array"):
    coded.levels(loaded["steps"])


def test_levels_are_those_of_qwix(stack):
  qwix = pytest.importorskip("qwix", reason="qwix is not installed")
  path, params = stack
  leaf = bs.load(path, coded="packed")["head"][0]
  kernel = qwix.QArray(*coded.levels(leaf))
  x = jax.random.normal(jax.random.key(0), (4, 128))
  found = qwix.dot_general(x, kernel, (((1,), (0,)), ((), ())))
  np.testing.assert_allclose(found, x @ params["head"][0], atol=1e-4)
