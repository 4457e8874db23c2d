"""How the cost of the rate term grows with parameters and with devices.

python -m experiments.bench.growth --largest=1e9

The time of an update against the number of parameters, and, as the compiler
counts them, the bytes that one device reads, writes and all-reduces where every
device holds a shard of the same size.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import backslash_jax as bs
from experiments import program
from experiments.bench import hlo, timing

_LARGEST = flags.DEFINE_float("largest", 1e8, "Parameters, at most.")


_ROWS = 1024


def updates(sizes: list[int]) -> dict[str, Callable[[], Any]]:
  """Size -> an update of the rate term alone on one tensor of that size."""
  placed = {"x": NamedSharding(_mesh(1), PartitionSpec())}
  tx = bs.backslash(1.0, sharding=placed)
  update = jax.jit(tx.update, donate_argnums=0)
  result: dict[str, Callable[[], Any]] = {}
  for size in sizes:
    shape = (_ROWS, size // _ROWS)
    row = 0.02 * jax.random.laplace(jax.random.key(0), shape[1:])
    params = jax.device_put({"x": jnp.broadcast_to(row, shape)}, placed)
    grads = [jax.tree.map(jnp.zeros_like, params)]
    state = [tx.init(params)]

    def run(params, grads, state):
      grads[0], state[0] = update(grads[0], state[0], params)
      return grads

    bound = functools.partial(run, params, grads, state)
    result[str(shape[0] * shape[1])] = bound
  return result


def per_device(devices: int) -> dict[str, float]:
  """What the compiled update of one shard per device costs a device."""
  placed = {"x": NamedSharding(_mesh(devices), PartitionSpec("fsdp"))}
  shape = jax.ShapeDtypeStruct((devices * _ROWS, _ROWS), jnp.float32)
  params = {"x": shape.update(sharding=placed["x"])}
  tx = bs.backslash(1.0, sharding=placed)
  state = jax.eval_shape(tx.init, params)
  compiled = jax.jit(tx.update).lower(params, state, params).compile()
  collectives = hlo.collectives(compiled.as_text() or "")
  cost = compiled.cost_analysis() or {}
  return {
    "flops": cost["flops"],
    "bytes": cost["bytes accessed"],
    "collectives": len(collectives),
    "bytes all-reduced": sum(c.bytes for c in collectives),
  }


def _mesh(devices):
  return jax.make_mesh(
    (devices,), ("fsdp",), (AxisType.Auto,), devices=jax.devices()[:devices]
  )


def _main(argv):
  del argv
  jax.config.update("jax_num_cpu_devices", 8)
  sizes = [s for s in (10**6, 10**7, 10**8, 10**9) if s <= _LARGEST.value]
  times = timing.measure(updates(sizes), timing.REPEATS.value)
  growth = {
    size: {
      clock: {
        "ns per parameter": timing.summary([s / int(size) * 1e9 for s in x])
      }
      for clock, x in clocks.items()
    }
    for size, clocks in times.items()
  }
  counts = [n for n in (1, 2, 4, 8) if n <= jax.device_count()]
  timing.write(
    "growth",
    " ".join(["python -m experiments.bench.growth", *sys.argv[1:]]),
    {"parameters": growth, "devices": {n: per_device(n) for n in counts}},
  )


if __name__ == "__main__":
  program.run(_main)
