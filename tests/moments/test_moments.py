"""One contract for every implementation of the moments."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backslash_jax import ggd, moments
from backslash_jax.moments import (
  dispatch,
  pallas_gpu,
  pallas_tpu,
  reference,
  tree_moments,
  xla_cpu,
)
from experiments.bench import shapes

try:
  from jax.experimental.pallas.mosaic_gpu import InterpretGPUParams
except ImportError:  # Newer releases of JAX have it in public.
  from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

# Off the accelerator the kernels run in Pallas' interpreter.
SUMS = {
  "xla": reference.sums,
  "xla_cpu": xla_cpu.sums,
  "pallas_tpu": functools.partial(pallas_tpu.sums, interpret=True),
  "pallas_gpu": functools.partial(
    pallas_gpu.sums,
    interpret=InterpretGPUParams(),
    max_programs=4,  # It interprets one after the other.
  ),
}
implementations = pytest.mark.parametrize("name", SUMS)


def _heavy_tailed(shape):
  """A generalized Gaussian of shape 1/2, as weights are distributed."""
  rng = np.random.default_rng(0)
  sign = rng.choice([-1.0, 1.0], size=shape)
  return 0.01 * sign * rng.gamma(2.0, size=shape) ** 2


def _exact(x):
  x = np.asarray(x).astype(np.float64)
  return np.abs(x).sum(), np.square(x).sum()


def _cases():
  for name, dtype, shape in itertools.product(
    SUMS, ["float32", "bfloat16", "float16"], shapes.MOMENTS
  ):
    # The interpreter of GPU kernels takes a second for each.
    is_slow = name == "pallas_gpu" and shape not in shapes.MOMENTS[2:3]
    marks = [pytest.mark.slow] if is_slow else []
    label = f"{name}-{dtype}-{shape}"
    yield pytest.param(name, dtype, shape, marks=marks, id=label)


@pytest.mark.parametrize(("name", "dtype", "shape"), [*_cases()])
def test_sums_are_those_of_float64(name, shape, dtype):
  x = jnp.asarray(_heavy_tailed(shape), dtype)
  limitation = dispatch.module(name).limitation(x)
  if limitation:
    # The only one on this list; anything else is not to be skipped in silence.
    assert (name, dtype) == ("pallas_tpu", "float16")
    assert "float16" in limitation
    return
  found = SUMS[name](x)
  assert [(s.shape, s.dtype) for s in found] == [((), jnp.float32)] * 2
  np.testing.assert_allclose(found, _exact(x), rtol=1e-5)


@implementations
def test_accumulation_loses_nothing(name):
  x = jnp.full([1024, 1024], 0.1)
  one_by_one = np.cumsum(np.asarray(x).ravel(), dtype=np.float32)[-1]
  assert abs(one_by_one / _exact(x)[0] - 1) > 1e-4
  np.testing.assert_allclose(SUMS[name](x), _exact(x), rtol=1e-6)


@implementations
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_shows(name, bad):
  x = jnp.ones([300, 200]).at[299, 199].set(bad)
  assert not np.isfinite(SUMS[name](x)).any()


@implementations
def test_vmap_is_one_result_per_row(name):
  x = jax.random.normal(jax.random.key(1), (3, 40, 50))
  found = jax.vmap(SUMS[name])(x)
  np.testing.assert_allclose(
    found, np.transpose([_exact(row) for row in x]), rtol=1e-5
  )


@implementations
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradient_is_that_of_the_formula(name, dtype):
  x = jax.random.normal(jax.random.key(2), (30, 20)).astype(dtype)

  def total(x):
    abs_sum, square_sum = dispatch._apply(x, SUMS[name])
    return 2.0 * abs_sum + 3.0 * square_sum

  found = jax.grad(total)(x)
  assert found.dtype == x.dtype
  x = x.astype(jnp.float32)
  wanted = 2.0 * jnp.sign(x) + 6.0 * x
  np.testing.assert_allclose(
    found.astype(jnp.float32),
    wanted,
    rtol=1e-2 if dtype == "bfloat16" else 1e-6,
  )


def test_moments_of_a_union_are_sums():
  a, b = jnp.arange(6.0).reshape(2, 3) - 2, jnp.linspace(-1, 1, 5)
  both = moments.moments(jnp.concatenate([a.ravel(), b]))
  each = tree_moments({"a": a, "n": jnp.arange(3), "b": b})
  np.testing.assert_allclose(
    jax.tree.map(jnp.sum, each), both, rtol=1e-6, atol=0
  )
  assert each.count.shape == (2,)  # The integers have no moments.


@pytest.mark.parametrize(
  ("x", "nu"),
  [
    (np.zeros([0]), 2.0),
    (np.zeros([5, 5]), 2.0),
    (np.full([7], 0.3), 8.0),  # The ratio of a constant is below a uniform's.
    (np.array(0.3), 8.0),
    (np.full([4], 1e-30), 2.0),  # Its squares underflow.
    (np.array([1.0, np.nan]), np.nan),
    (np.array([1.0, np.inf]), np.nan),
  ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shape_parameter_is_defined_for_every_tensor(x, nu, dtype):
  found = moments.shape_parameter(moments.moments(jnp.asarray(x, dtype)))
  np.testing.assert_allclose(found, nu, rtol=1e-6)


def test_shape_parameter_finds_the_shape_of_samples():
  for dtype in (jnp.float32, jnp.bfloat16):
    x = ggd.sample(jax.random.key(0), 0.7, 0.01, (400, 500)).astype(dtype)
    found = moments.shape_parameter(moments.moments(x))
    np.testing.assert_allclose(found, 0.7, rtol=0.02)


def test_empty_tensors_and_empty_trees_have_none():
  assert [float(m) for m in moments.moments(jnp.zeros([0, 4]))] == [
    0.0,
    0.0,
    0.0,
  ]
  assert [m.shape for m in tree_moments({})] == [(0,)] * 3


def test_numpy_arrays_and_float64_are_taken():
  m = moments.moments(np.full([4, 2], -0.5))
  assert [float(s) for s in m] == [8.0, 4.0, 2.0]


def test_integers_are_refused():
  with pytest.raises(TypeError, match="found int32"):
    moments.moments(jnp.arange(3))


@pytest.mark.parametrize("name", ["pallas_tpu", "pallas_gpu"])
def test_a_kernel_is_refused_on_another_platform(name):
  with pytest.raises(NotImplementedError, match=r"runs on .*, found cpu"):
    moments.moments(jnp.ones([8, 8]), implementation=name)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(10**8 + 77,), (10_000, 10_000)])
def test_a_hundred_million_elements_keep_float32_accuracy(shape):
  x = np.random.default_rng(0).standard_normal(shape, np.float32) * 0.02
  found = moments.moments(jnp.asarray(x))
  sizes = np.abs(x)
  wanted = sizes.sum(dtype=np.float64), np.square(sizes).sum(dtype=np.float64)
  np.testing.assert_allclose(found[1:], wanted, rtol=1e-5)


def test_an_unknown_implementation_is_refused_with_the_known_ones():
  with pytest.raises(NotImplementedError, match="there are xla, xla_cpu"):
    moments.moments(jnp.ones([8, 8]), implementation="cuda")


@pytest.mark.parametrize("module", [pallas_tpu, pallas_gpu])
def test_what_a_kernel_cannot_take_is_refused_with_the_reason(module):
  name = module.__name__.rsplit(".", 1)[-1]
  (platform,) = module.PLATFORMS
  for x, reason in (
    (jax.ShapeDtypeStruct((4, 4), jnp.float8_e4m3fn), "found float8_e4m3fn"),
    (jax.ShapeDtypeStruct((0, 4), jnp.float32), "found"),
  ):
    with pytest.raises(NotImplementedError, match=reason):
      dispatch.sums(x, name, platform)


def test_the_gpu_kernel_lowers_for_cuda():
  # Newer releases of JAX ask which GPU it is for, where there is none.
  device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", 132, "cuda")
  mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
  for dtype in pallas_gpu.DTYPES:
    x = jnp.ones([1000, 777], dtype)
    with jax.sharding.use_abstract_mesh(mesh):
      traced = jax.jit(pallas_gpu.sums).trace(x)
      program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in program
    assert "backslash_moments" in program


def test_a_loop_takes_what_its_index_reaches():
  x = jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32)
  with pytest.raises(NotImplementedError, match="fewer than 2\\^31 elements"):
    dispatch.sums(x, "xla_cpu", "cpu")


def test_only_large_tensors_get_what_is_made_for_the_platform():
  def calls(shape, platform, primitive):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    f = functools.partial(dispatch.sums, implementation=None, platform=platform)
    return str(jax.make_jaxpr(f)(x)).count(primitive)

  assert calls((512, 1024), "tpu", "pallas_call[") == 1
  assert calls((512, 1024), "cpu", "dynamic_slice[") == xla_cpu.ROWS
  for platform in ("tpu", "gpu", "cpu"):
    assert calls((768,), platform, "pallas_call[") == 0
    assert calls((768,), platform, "dynamic_slice[") == 0
  assert calls((512, 1024), "gpu", "pallas_call[") == 0


def test_a_program_for_another_platform_has_none_of_this_one():
  x = jnp.ones([512, 1024])
  sums = jax.jit(lambda x: dispatch.sums(x, None, "cpu"))
  for platform, loops in (("cpu", 1), ("cuda", 0)):
    program = sums.trace(x).lower(lowering_platforms=(platform,)).as_text()
    assert program.count("stablehlo.while") == loops


def test_what_may_be_split_is_left_to_the_compiler():
  # Eight devices, and nothing says where the tensor lies.
  program = jax.jit(tree_moments).lower(jnp.ones([512, 1024])).as_text()
  assert "stablehlo.while" not in program
