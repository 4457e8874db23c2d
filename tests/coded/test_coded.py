"""Weights that stay coded or packed: bit-equal to `bs.load` once decoded."""

import dataclasses
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


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
  """A file with a stack of layers, and its tree."""
  path = tmp_path_factory.mktemp("coded") / "x"
  rng = np.random.default_rng(0)
  layers = rng.laplace(size=[3, 96, 64]).astype(np.float32)
  layers *= np.array([0.5, 1, 2], np.float32)[:, None, None]
  params = {
    "layers": {"kernel": layers},
    "head": [rng.normal(size=[128, 64]).astype(np.float32)],
    "classes": np.exp(rng.normal(scale=2, size=[32, 1])).astype(np.float32)
    * rng.laplace(size=[32, 192]).astype(np.float32),
    "zero": np.zeros([64, 64], np.float32),
    "steps": np.arange(3, dtype=np.int32),
  }
  return path, saved(path, params, 0.8)


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


def test_tensors_of_different_kinds_make_no_stack(stack):
  sources = [(stack[0], name) for name in ("head/0", "classes")]
  with pytest.raises(ValueError, match=r"'head/0' float32\[128, 64\]"):
    coded.stack(sources, True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_leaf_is_not_an_array(stack, kind):
  leaf = bs.load(stack[0], coded=kind)["head"][0]
  for use in (
    jnp.asarray,
    np.asarray,
    lambda x: x + 1,
    lambda x: jnp.ones([2, 128]) @ x,
    lambda x: jnp.ones([128, 64]) + x,
    lambda x: np.ones([128, 64]) - x,
    lambda x: x[0],
    list,
    bool,
    float,
    lambda x: x == 0,
    lambda x: x < 1,
    lambda x: x // 2,
    jnp.sum,
    np.sum,
    jax.nn.relu,
    jax.jit(lambda x: jnp.sum(x)),
  ):
    with pytest.raises(TypeError, match=r"bs\.decode"):
      use(leaf)
  with pytest.raises(AttributeError, match=r"no 'astype'.*bs\.decode"):
    leaf.astype(jnp.float32)
  assert leaf in {leaf}


def test_an_axis_that_is_not_divided_is_not_sliced(stack):
  leaf = bs.load(stack[0], coded=True)["layers"]["kernel"]
  sliced = jax.tree.map(lambda x: x[None], leaf)
  with pytest.raises(ValueError, match="at=layer"):
    bs.decode(sliced)
  with pytest.raises(ValueError, match="stacked="):
    bs.decode(leaf, at=0)


def test_an_unknown_implementation_is_refused(stack):
  leaf = bs.load(stack[0], coded=True)["head"][0]
  with pytest.raises(NotImplementedError, match="there are xla"):
    bs.decode(leaf, implementation="pallas")
  with pytest.raises(NotImplementedError, match="it runs on tpu"):
    bs.decode(leaf, implementation="pallas_tpu")


@pytest.mark.parametrize(
  "has_classes", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_the_kernel_for_tpu_gives_the_same_tuples(stack, has_classes):
  loaded = bs.load(stack[0], coded=True, stacked="layers/*")
  leaf = loaded["classes"] if has_classes else loaded["layers"]["kernel"].at(2)
  assert (leaf.frequency.shape[0] > 1) == has_classes
  assert pallas_tpu.limitation(leaf) is None
  assert_same(pallas_tpu.tuples(leaf, interpret=True), xla.tuples(leaf))


@pytest.mark.parametrize("kind", ["tight", 1, np.True_, None])
def test_an_unknown_kind_is_refused(stack, kind):
  with pytest.raises(ValueError, match="'packed'"):
    bs.load(stack[0], coded=kind)


@pytest.mark.parametrize(
  ("options", "error", "message"),
  [
    ({"stacked": "layers/*"}, ValueError, "are for coded=True"),
    ({"blocks": {"head/0": 4}}, ValueError, "are for coded=True"),
    ({"coded": True, "stacked": "nope"}, ValueError, "stacked.*'nope'"),
    ({"coded": True, "blocks": {"nope": 2}}, ValueError, "no tensor 'nope'"),
    ({"coded": True, "blocks": {"head/0": 3}}, ValueError, "'head/0' of shape"),
    ({"coded": True, "blocks": {"head/0": 2.0}}, TypeError, "'head/0' has 2.0"),
    ({"coded": True, "blocks": {"head/0": True}}, TypeError, "'head/0' has T"),
    ({"coded": True, "blocks": ["head/0"]}, TypeError, "blocks is"),
    ({"coded": True, "sharding": jax.P("x")}, TypeError, "jax.sharding.Shar"),
    ({"sharding": "x"}, TypeError, "jax.sharding.Sharding"),
  ],
)
def test_options_of_no_use_are_refused_by_name(stack, options, error, message):
  with pytest.raises(error, match=message):
    bs.load(stack[0], **options)


def test_layers_of_exact_tensors_are_rows_of_arrays(tmp_path):
  x = np.random.default_rng(0).normal(size=[3, 4]).astype(np.float32)
  bs.save(tmp_path / "x", {"bias": x, "w": np.ones([64, 64])}, step=0.1)
  loaded = bs.load(tmp_path / "x", coded=True, stacked=["bias"])
  assert_same(loaded["bias"], bs.load(tmp_path / "x")["bias"])
  assert_same(bs.decode(loaded["bias"], at=1), np.asarray(loaded["bias"])[1])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_layer_is_refused(stack, kind):
  path, params = stack
  leaf = bs.load(path, coded=kind, stacked="layers/*")["layers"]["kernel"]
  for x in (leaf, params["layers"]["kernel"]):
    for at in (3, -4, np.int32(3)):
      with pytest.raises(IndexError, match="there are 3 layers"):
        bs.decode(x, at=at)
    for at in (1.5, "a", True, jnp.arange(2), slice(2)):
      with pytest.raises(TypeError, match="must be an integer"):
        bs.decode(x, at=at)
  assert_same(bs.decode(leaf, at=-1), params["layers"]["kernel"][2])
  with pytest.raises(ValueError, match="of no dimensions"):
    bs.decode(3, at=0)


@pytest.mark.parametrize("kind", KINDS)
def test_leaves_whose_arrays_were_changed_are_refused(stack, kind):
  loaded = bs.load(stack[0], coded=kind, stacked="layers/*")

  def cast(x):
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(jnp.bfloat16) if is_float else x

  for name, leaf in (("head", loaded["head"][0]), *loaded["layers"].items()):
    with pytest.raises(ValueError, match="were cast: decode it first"):
      bs.decode(jax.tree.map(cast, leaf))
    if name != "head":
      for change in (lambda x: x[:2], lambda x: x[None]):
        with pytest.raises(ValueError, match="sliced or got an axis"):
          bs.decode(jax.tree.map(change, leaf))


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


def test_a_leaf_that_is_split_otherwise_is_refused(stack):
  mesh = jax.make_mesh((2,), ("data",))
  leaf = bs.load(stack[0], coded="packed")["head"][0]
  leaf = jax.device_put(leaf, jax.NamedSharding(mesh, jax.P()))
  assert_same(jax.jit(bs.decode)(leaf), bs.decode(leaf))
  octets = jax.device_put(leaf.octets, jax.NamedSharding(mesh, jax.P("data")))
  with pytest.raises(ValueError, match="sharding"):
    jax.jit(bs.decode)(dataclasses.replace(leaf, octets=octets))


def test_a_leaf_that_no_mesh_axis_divides_is_named(stack):
  mesh = jax.make_mesh((8,), ("data",))
  placed = jax.NamedSharding(mesh, jax.P("data"))
  for kind in (False, *KINDS):
    with pytest.raises(ValueError, match=r"'layers/kernel' of shape \(3, 96"):
      bs.load(stack[0], names="layers/*", coded=kind, sharding=placed)


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
def test_a_damaged_file_is_refused(stack, tmp_path, kind):
  data = stack[0].read_bytes()
  path = tmp_path / "x"
  for at in (9, len(data) // 3, len(data) // 2, len(data) - 1):
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(bs.ArchiveError):
      bs.load(path, coded=kind)
    with pytest.raises(bs.ArchiveError):
      coded.stack([(path, "head/0"), (path, "classes")], kind)


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


def test_levels_beyond_int8_are_refused(tmp_path):
  x = np.full([64, 64], 0.4, np.float32)
  x[0, 0] = 150
  bs.save(tmp_path / "x", {"x": x}, step=0.5)
  with pytest.raises(ValueError, match="a level of 300, beyond int8"):
    coded.levels(bs.load(tmp_path / "x", coded="packed")["x"])
