"""Parameters that are made from coded weights where they are used."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backslash_jax as bs
from experiments.models import compact

KINDS = [False, "packed", True]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
  """Loads matrices [256, 192] of a file, as arrays, packed or coded."""
  path = tmp_path_factory.mktemp("compact") / "matrices.safetensors"
  rng = np.random.default_rng(0)
  matrices = {
    f"layer_{i}": rng.laplace(size=(256, 192)).astype(np.float32)
    for i in range(6)
  }
  bs.save(path, matrices, step=0.7)

  def load(kind, **options):
    if not kind:
      return jax.tree.map(jnp.asarray, bs.load(path))
    return bs.load(path, coded=kind, **options)

  return load


@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_is_its_part_of_the_tensor(kind, load):
  source, tensor = load(kind)["layer_0"], load(False)["layer_0"]
  wanted = np.split(np.asarray(tensor).T, 2, axis=1)
  params = {
    str(i): compact.Parameter(source, transposed=True, part=i, parts=2)
    for i in range(2)
  }
  found = jax.jit(compact.dense)(params)
  for i in range(2):
    own = params[str(i)]
    assert (own.shape, own.dtype) == (wanted[i].shape, wanted[i].dtype)
    assert (own.size, len(own)) == (wanted[i].size, len(wanted[i]))
    np.testing.assert_array_equal(found[str(i)], wanted[i])


def test_a_tensor_of_several_parameters_is_decoded_once(load):
  source = load(True)["layer_0"]

  def sums(source):
    params = [compact.Parameter(source, part=i, parts=3) for i in range(3)]
    return [jnp.sum(x) for x in compact.dense(params)]

  def loops(function):
    return len(
      re.findall(r"(?:while|scan)\[", str(jax.make_jaxpr(function)(source)))
    )

  assert loops(sums) == loops(bs.decode) > 0


def test_what_is_skipped_stays(load):
  own = compact.Parameter(load("packed")["layer_0"])
  found = compact.dense({"word": {"embedding": own}, "b": own}, skip="word/emb")
  assert found["word"]["embedding"] is own
  assert isinstance(found["b"], jax.Array)
  with pytest.raises(TypeError, match="is not an array"):
    own[0]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_products_are_those_of_the_whole(kind, load):
  options = {"blocks": {"layer_0": 8}} if kind else {}
  own = compact.Parameter(load(kind, **options)["layer_0"], blocks=8)
  whole = load(False)["layer_0"]
  ids = np.array([[0, 255, 31], [32, 100, 0]], np.int32)
  rows = jax.jit(functools.partial(compact.lookup, dtype="float32"))(own, ids)
  np.testing.assert_array_equal(rows, whole[ids])
  x = jax.random.normal(jax.random.key(0), (3, 192))
  _, parts = jax.jit(
    lambda own: compact.by_block(own, lambda w, first: ((), x @ w.T))
  )(own)
  np.testing.assert_allclose(
    jnp.concatenate(list(parts), axis=1), x @ whole.T, atol=1e-4
  )


@pytest.mark.parametrize("kind", ["packed", True])
def test_one_layer_is_dense_at_a_time(kind, load):
  layers = load(kind)
  x = jnp.ones((16, 256))

  @jax.jit
  def apply(layers, x):
    for name in sorted(layers):
      own = {"kernel": compact.Parameter(layers[name])}
      kernel = compact.dense(own, after=x)["kernel"]
      x = jnp.tanh(jnp.tanh(x @ kernel) @ kernel.T)
    return x

  memory = apply.lower(layers, x).compile().memory_analysis()
  layer = 4 * 256 * 192
  # The levels, their values and some of both.
  assert memory.temp_size_in_bytes < 4 * layer < len(layers) * layer


@pytest.mark.parametrize("by_block", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_never_holds_all_layers(kind, by_block, tmp_path):
  x = np.random.default_rng(0).laplace(size=(8, 128, 96))
  x = jnp.asarray(x, jnp.bfloat16)
  if by_block:
    x = x.reshape(-1, 96)
  bs.save(tmp_path / "x", {"x": x}, step=0.7)
  options = {"blocks": {"x": 8}} if kind else {}
  source = bs.load(tmp_path / "x", coded=kind, **options)["x"]

  def products(source, y):
    parameter = compact.Parameter(source, blocks=8)

    def block(kernel, first):
      return (), y @ kernel.astype(y.dtype)

    def layer(y, i):
      own = compact.in_layer(parameter, i)
      kernel = compact.dense({"kernel": own}, after=y)["kernel"]
      return jnp.tanh(y @ kernel.astype(y.dtype)) @ jnp.ones((96, 128)), None

    if by_block:
      return compact.by_block(parameter, block)[1]
    return jax.lax.scan(layer, y, jnp.arange(8))[0]

  memory = (
    jax.jit(products)
    .lower(source, jnp.ones((4, 128)))
    .compile()
    .memory_analysis()
  )
  layer = 4 * 128 * 96  # In float32, which CPUs compute with.
  assert memory.temp_size_in_bytes < 6 * layer  # Of 8.


def test_blocks_divide_the_rows():
  for shape in ((128256, 2048), (49152, 576), (30522, 384), (96, 32)):
    count = compact.block_count(*shape)
    assert shape[0] % count == 0
    assert shape[0] * shape[1] / count <= 2**21


@pytest.mark.parametrize("count", [7, 0])
def test_blocks_that_there_are_not_are_named(count, load):
  with pytest.raises(ValueError, match=f"'layer_0'.* no {count} blocks"):
    load(True, blocks={"layer_0": count})
