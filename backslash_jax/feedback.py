"""Quantization with error feedback, for layers whose inputs are known.

A layer x @ W has the squared error

    E |x (W - V)|^2 = sum over columns of e^T H e,    e = W - V,

when V is in place of W; H = E[x^T x] are the second moments of its inputs. With
H = M M^T, M upper triangular, it is a sum over inputs:

    e^T H e = sum_i d_i (t_i - v_i)^2,
    d_i = M_ii^2,    t_i = w_i + sum_{k < i} e_k M_ki / M_ii.

So the inputs are quantized one after another, each with the target t_i that
corrects the errors of those before. d_i is the variance of input i given the
inputs that come later. Rounding to nearest takes the level of least error;
with a price, the bits of each level count too, as the file's coder takes them.

Sources: Frantar et al., GPTQ, arXiv 2210.17323, for the method; Chee et al.,
QuIP, arXiv 2307.13304, for this form of it; CERWU, arXiv 2505.18758, for the
price of bits in it.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from backslash_jax import arguments
from backslash_jax.coding import fit
from backslash_jax.quantize.step import check_step

DAMPING = 0.01
_BLOCK = 128  # Inputs whose errors reach the later blocks in one product.
_FITS = 2  # How often the model of the bits is fitted.


def second_moments(x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
  """The sum of x^T x, float32 [I, I].

  Args:
    x: inputs of a layer, [..., I].
    mask: bool [...]; False leaves a position out.
  """
  x = jnp.asarray(x, jnp.float32)
  if mask is not None:
    x = jnp.where(mask[..., None], x, 0)
  rows = tuple(range(x.ndim - 1))
  own = jax.typeof(x).sharding
  whole = None
  if AxisType.Explicit in own.mesh.axis_types:  # Every device gets the sum.
    whole = NamedSharding(own.mesh, PartitionSpec())
  return jax.lax.dot_general(
    x, x, ((rows, rows), ((), ())), precision="highest", out_sharding=whole
  )


def quantize(
  weights: ArrayLike,
  moments: ArrayLike,
  step: float,
  *,
  mu: float = 0.0,
  damping: float = DAMPING,
) -> np.ndarray:
  """Levels of a layer's weights, chosen by the error of its outputs.

  The inputs are quantized in the order of falling second moments.

  Args:
    weights: floating [I, O], of a layer x @ weights.
    moments: second moments of its inputs up to a common factor, [I, I]. If they
      are diagonal, and mu is 0, the result is that of `bs.quantize.quantize`.
    step: quantization step, in the units of the weights.
    mu: extra error accepted per bit saved, in step^2 times the mean of d_i; 0
      takes no account of bits, 0.1 is a usual value.
    damping: this times the mean of the diagonal is added to the diagonal. It
      stands for inputs that the moments have not seen: with fewer examples than
      inputs, take more.

  Returns:
    int32 [I, O]; the quantized weights are these times the step. A file saved
    with this step holds the same levels.

  Raises:
    ValueError: if shapes do not match, the moments are not symmetric, not
      finite or negative, or a weight has no int32 level; it says which.
  """
  check_step(step)
  weights, moments = _checked(weights, moments, damping, mu)
  if not weights.size:
    return np.zeros(weights.shape, np.int32)
  order = jnp.argsort(-jnp.diagonal(moments))
  variances, couplings = _factors(moments[order][:, order], damping)
  if not bool(jnp.isfinite(couplings).all()):
    raise ValueError(
      f"the second moments have no Cholesky factor with a damping of {damping}:"
      " take more"
    )
  run = functools.partial(
    _levels, weights[order], variances, couplings, jnp.float32(step)
  )
  back = jnp.argsort(order)
  found = _on_host(run(None, 0.0)[back], step)
  for _ in range(_FITS if mu else 0):
    model, _ = fit.quantized_ggd(found)
    if model.shift:
      break  # The steps are so fine that all levels cost about the same.
    rows, columns, table = fit.costs(found, model)
    costs = (rows[order], columns, table.astype(np.float32))
    found = _on_host(run(costs, mu)[back], step)
  return found


def error(
  weights: ArrayLike, quantized: ArrayLike, moments: ArrayLike
) -> jax.Array:
  """The squared error of a layer's outputs, summed over the outputs, float32.

  Args:
    weights: [I, O].
    quantized: what is in their place, [I, O].
    moments: second moments of the inputs, [I, I].
  """
  error = jnp.asarray(weights, jnp.float32) - jnp.asarray(
    quantized, jnp.float32
  )
  moved = jnp.matmul(jnp.asarray(moments, jnp.float32), error)
  return jnp.sum(error * moved)


def _checked(weights, moments, damping, mu) -> tuple[jax.Array, jax.Array]:
  """The arrays as float32, or ValueError that says what is wrong with them."""
  for name, value in (("mu", mu), ("damping", damping)):
    arguments.check(
      "feedback.quantize",
      name,
      value,
      "finite and not negative",
      lambda v: 0 <= v < math.inf,
    )
  weights = _automatic(jnp.asarray(weights, jnp.float32))
  moments = _automatic(jnp.asarray(moments, jnp.float32))
  if weights.ndim != 2 or moments.shape != weights.shape[:1] * 2:
    raise ValueError(
      f"weights of shape {weights.shape} need second moments of shape"
      f" {weights.shape[:1] * 2}, found {moments.shape}"
    )
  diagonal = jnp.diagonal(moments)
  largest = jnp.max(jnp.abs(moments), initial=0.0)
  for what, bad in (
    ("finite: an input is NaN or too large", ~jnp.isfinite(largest)),
    ("symmetric", jnp.any(jnp.abs(moments - moments.T) > 1e-3 * largest)),
    ("positive on the diagonal", jnp.any(diagonal < 0)),
  ):
    if bool(bad):
      raise ValueError(f"the second moments are not {what}")
  if weights.size and not bool(largest > 0):
    raise ValueError("the second moments are zero: no input was ever seen")
  return weights, moments


def _automatic(x: jax.Array) -> jax.Array:
  """x where it is, on a mesh whose axes the compiler sees to."""
  if not isinstance(x.sharding, NamedSharding):
    return x
  mesh = Mesh(x.sharding.mesh.devices, x.sharding.mesh.axis_names)
  return jax.device_put(x, NamedSharding(mesh, x.sharding.spec))


def _on_host(levels: jax.Array, step: float) -> np.ndarray:
  """Levels as NumPy's int32; ValueError if there are none."""
  found = np.asarray(levels)
  largest = np.abs(found).max(initial=0)
  if not largest < 2**24:  # Beyond it, float32 has no place for an error.
    raise ValueError(
      "a weight is NaN or infinite"
      if not np.isfinite(largest)
      else f"a weight is {largest:.3g} steps of {step:g}: take a coarser step"
    )
  return found.astype(np.int32)


@jax.jit
def _factors(moments: jax.Array, damping) -> tuple[jax.Array, jax.Array]:
  """d_i, [I], and M_ki / M_ii for k < i, otherwise 0, [I, I]."""
  size = len(moments)
  moments += damping * jnp.mean(jnp.diagonal(moments)) * jnp.eye(size)
  upper = jnp.linalg.cholesky(moments[::-1, ::-1])[::-1, ::-1]
  diagonal = jnp.diagonal(upper)
  return jnp.square(diagonal), jnp.triu(upper / diagonal[None], 1)


@jax.jit
def _levels(weights, variances, couplings, step, costs, mu) -> jax.Array:
  """Levels in float32, [I, O].

  Args:
    weights: [I, O].
    variances: d_i, [I].
    couplings: M_ki / M_ii for k < i, otherwise 0, [I, I].
    step: a scalar.
    costs: as `fit.costs` returns them; None takes no account of bits.
    mu: a scalar.
  """
  inputs, outputs = weights.shape
  block = min(_BLOCK, inputs)
  price = mu * jnp.mean(variances) / jnp.maximum(variances, 1e-30)
  row_class = jnp.zeros(inputs, jnp.int32)
  if costs is not None:
    row_class, column_class, table = map(jnp.asarray, costs)

  def bits(levels, row):
    size = jnp.minimum(jnp.abs(levels), table.shape[1] - 1).astype(jnp.int32)
    return table[row + column_class, size]

  def choose(target, row, price):
    """The level of each of the O targets of an input."""
    nearest = jnp.rint(target)
    if costs is None:
      return nearest
    lower = nearest - jnp.sign(nearest)
    loss = jnp.square(target - lower) - jnp.square(target - nearest)
    gain = bits(nearest, row) - bits(lower, row)
    return jnp.where(loss < price * gain, lower, nearest)

  padding = -inputs % block

  def blocks(x):
    x = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(-1, block, *x.shape[1:])

  def of_block(errors, own):
    """Errors of all inputs so far, [B, block, O], in steps."""
    number, own_weights, coupling, own_price, own_class = own
    # [I, block]: what the errors of all inputs do to those of this block.
    everything = coupling.T
    targets = own_weights + everything.T @ errors.reshape(-1, outputs)[:inputs]
    start = number * block
    inner = jax.lax.dynamic_slice_in_dim(
      jnp.pad(everything, [(0, padding), (0, 0)]), start, block
    )

    def of_input(done, own):
      i, weight, target, column, price, row = own
      target = target + column @ done
      level = choose(target, row, price)
      return done.at[i].set(weight - level), level

    done, levels = jax.lax.scan(
      of_input,
      jnp.zeros((block, outputs), jnp.float32),
      (
        jnp.arange(block),
        own_weights,
        targets,
        inner.T,
        own_price,
        own_class,
      ),
    )
    return errors.at[number].set(done), levels

  scaled = blocks(weights / step)
  _, levels = jax.lax.scan(
    of_block,
    jnp.zeros(scaled.shape, jnp.float32),
    (
      jnp.arange(len(scaled)),
      scaled,
      blocks(couplings.T),
      blocks(price),
      blocks(row_class),
    ),
  )
  return levels.reshape(-1, outputs)[:inputs]
