"""Several devices with explicit sharding: matrices are split over the devices.

    python examples/several_devices.py

With explicit mesh axes an array's type says how it is sharded, so nothing has
to be told to the library: each device sums over its own part, and one
all-reduce of two floats per matrix is all that the rate communicates. With
automatic axes, give `bs.recommended` the shardings of the parameters.
"""

import os
import pathlib

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import backslash_jax as bs

BITS = 1.0  # Of the coded matrices, per parameter.
UPDATES = 500
DEVICES = 4


def make_batch(key, size):
  """Noisy copies of ten images, float32 [size, 64], and their labels."""
  label_key, noise_key = jax.random.split(key)
  images = jax.random.rademacher(jax.random.key(0), (10, 64), jnp.float32)
  labels = jax.random.randint(label_key, [size], 0, 10)
  noise = jax.random.normal(noise_key, [size, 64])
  return images[labels] + 2.5 * noise, labels


def make_params(key):
  keys = jax.random.split(key)
  return {
    "hidden": {"kernel": jax.random.normal(keys[0], (64, 1024)) / 8},
    "out": {"kernel": jax.random.normal(keys[1], (1024, 10)) / 32},
  }


def forward(params, images):
  # The batch stays split; the weights are gathered when they are used.
  hidden = jax.sharding.reshard(params["hidden"]["kernel"], P())
  out = jax.sharding.reshard(params["out"]["kernel"], P())
  return jax.nn.relu(images @ hidden) @ out


@jax.jit
def accuracy(params):
  images, labels = make_batch(jax.random.key(2), 4096)
  return jnp.mean(forward(params, images).argmax(axis=-1) == labels)


def main(folder="."):
  mesh = jax.make_mesh(
    (DEVICES,),
    ("data",),
    axis_types=(AxisType.Explicit,),
    devices=jax.devices()[:DEVICES],
  )
  by_rows = NamedSharding(mesh, P("data", None))  # Input features are split.
  tx = optax.chain(bs.recommended(BITS), optax.adamw(1e-2))

  with jax.set_mesh(mesh):
    params = jax.device_put(make_params(jax.random.key(0)), by_rows)

    @jax.jit
    def train_step(params, opt_state, images, labels):
      def loss_fn(params):
        losses = optax.softmax_cross_entropy_with_integer_labels
        return losses(forward(params, images), labels).mean()

      grads = jax.grad(loss_fn)(params)
      updates, opt_state = tx.update(grads, opt_state, params)
      return optax.apply_updates(params, updates), opt_state

    opt_state = jax.jit(tx.init)(params)
    for key in jax.random.split(jax.random.key(1), UPDATES):
      images, labels = make_batch(key, 128)
      images = jax.device_put(images, NamedSharding(mesh, P("data", None)))
      labels = jax.device_put(labels, NamedSharding(mesh, P("data")))
      params, opt_state = train_step(params, opt_state, images, labels)
    assert params["hidden"]["kernel"].sharding == by_rows
    exact = float(accuracy(params))

    path = pathlib.Path(folder, "sharded.safetensors")
    report = bs.save(path, params, step=bs.steps(opt_state))
    # Every process decodes only the chunks of its own devices.
    coded = float(accuracy(bs.load(path, sharding=by_rows)))
  print(f"accuracy {exact:.1%} in float32, {coded:.1%} from the file")
  print(
    f"{os.path.getsize(path):,} bytes, {report.bits_per_parameter:.2f} bits per"
    f" parameter; float16 takes {2 * report.parameters:,} bytes"
  )
  return exact, coded, report


if __name__ == "__main__":
  if jax.config.jax_platforms in (None, "", "cpu"):
    jax.config.update("jax_num_cpu_devices", DEVICES)  # To try it on a CPU.
  main()
