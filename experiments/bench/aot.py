"""Compiles the update of a config for a TPU slice that is not there.

python -m experiments.bench.aot \
  --config=configs/quickstart.py --topology=v5e:2x2

Needs libtpu (pip install 'backslash-jax[tpu]') and no TPU. Prints what one chip
holds, computes and communicates in an update, with the rate term and without,
and how long that takes at least. The numbers are read from the compiled
program, nothing is run. --length=N and --vocabulary=N take the place of the
data set's length and vocabulary, and --save=NAME keeps the numbers in
experiments/bench/results.
"""

import dataclasses
import math
import os
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from absl import flags, logging
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import config_flags

from experiments import data, learner, optimizer, program, settings, sharding
from experiments.bench import roofline, timing, usage

# XLA has no text for what gathers on the SparseCores of a v5p.
_OPTIONS: dict[str, bool | str] = {
  "xla_tpu_offload_gather_to_sparsecore": False
}


def topology_devices(name: str) -> list[Any]:
  """The devices of a TPU topology such as "v5e:4x4", to compile for.

  Raises:
    UserError: there is no libtpu, or no such topology.
  """
  match = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", name)
  if not match or match[1] not in roofline.CHIPS:
    raise settings.UserError(
      f"there is no topology {name!r}: a generation of"
      f" {', '.join(roofline.CHIPS)}, a colon and the chips in each direction"
      " are wanted, such as v5e:4x4, v6e:2x4 or v5p:2x2x2"
    )
  # libtpu would otherwise ask the machine's metadata server, and lock the TPU.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault(
    "TPU_ACCELERATOR_TYPE", f"{roofline.CHIPS[match[1]].slice}-16"
  )
  # Without a TPU no program for one is read from a cache, so none is written.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
  try:
    topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
  except (RuntimeError, ValueError, NotImplementedError) as error:
    raise settings.UserError(
      f"cannot describe the topology {name!r}: {_line(error)}. It needs libtpu"
      " (pip install 'backslash-jax[tpu]') and sizes that exist, such as"
      " v5e:2x2, v5e:4x4 or v5p:2x2x2"
    ) from error
  return list(topology.devices)


def compile_update(
  config: ml_collections.ConfigDict,
  mesh: Mesh,
  *,
  rate: bool,
  vocabulary: int | None = None,
  length: int | None = None,
) -> usage.Usage:
  """Compiles the update of a training for a mesh.

  Args:
    config: of the training.
    mesh: from `sharding.make_mesh`.
    rate: whether with the rate term and what it measures; False trains with
      lmbda 0.
    vocabulary: tokens that the model knows; None: the tokenizer's.
    length: tokens of a sequence; None: the data set's.

  Raises:
    UserError: the mesh does not divide the model or the batch, the model has
      fewer positions, or a chip's memory does not hold it.
  """
  config = ml_collections.ConfigDict(config.to_dict())
  if not rate:
    config.rate.lmbda = 0.0
  elif config.rate.lmbda == 0:
    config.rate.lmbda = 1.0
  try:
    task = data.load_task(config.data)
    if vocabulary is not None:
      task = dataclasses.replace(task, vocab_size=vocabulary)
    if length is not None:
      task = dataclasses.replace(task, seq_len=length)
    forward, params = learner.build_abstract(config, task)
  except (ValueError, OSError) as error:
    raise settings.UserError(str(error)) from error
  parts = mesh.shape["data"] * mesh.shape["fsdp"]
  if config.data.batch_size % parts:
    raise settings.UserError(
      f"config.data.batch_size is {config.data.batch_size}, wanted a multiple"
      f" of {parts}: config.mesh.data and config.mesh.fsdp split a batch"
    )
  placed = sharding.parameters(params, mesh)
  tx = optimizer.create(config, placed)
  opt_state = jax.eval_shape(tx.init, params)
  state = {"params": params, "opt_state": opt_state}
  state_shardings = {
    "params": placed,
    "opt_state": sharding.like(opt_state, params, placed, mesh),
  }
  replicated = NamedSharding(mesh, PartitionSpec())
  update = jax.jit(
    learner.make_update(config, forward, tx, mesh=mesh, measure_rate=rate),
    donate_argnums=0,
    in_shardings=(
      state_shardings,
      NamedSharding(mesh, sharding.BATCH),
      replicated,
    ),
    out_shardings=(state_shardings, replicated, replicated),
  )
  lowered = update.lower(
    state, batch(config, task), jax.ShapeDtypeStruct((), jnp.int32)
  )
  try:
    compiled = lowered.compile(
      _OPTIONS if mesh.devices.flat[0].platform == "tpu" else None
    )
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise settings.UserError(
      f"the update does not fit a chip: {_line(error)}. Use more chips, a"
      " larger config.mesh.fsdp or config.mesh.tensor, a smaller"
      " config.data.batch_size, or config.model.remat"
    ) from error
  return usage.of(
    compiled,
    parameters=_bytes(params, placed),
    optimizer=_bytes(opt_state, state_shardings["opt_state"]),
  )


def batch(config, task):
  """The shapes of a training batch."""
  size, length = config.data.batch_size, task.seq_len
  targets = (size,) if task.kind == "classification" else (size, length)
  shape = jax.ShapeDtypeStruct
  return {
    "tokens": shape((size, length), jnp.int32),
    "mask": shape((size, length), jnp.bool),
    "targets": shape(targets, jnp.int32),
    "weights": shape(targets, jnp.float32),
  }


def _bytes(tree, shardings):
  """What one device holds of a tree."""
  pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
  return sum(
    math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in pairs
  )


def _line(error):
  return " ".join(str(error).split())[:300]


_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The experiment, a file of configs/.", lock_config=True
)
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "The TPU slice.")
_VOCABULARY = flags.DEFINE_integer(
  "vocabulary",
  None,
  "Tokens that the model knows; the tokenizer's if not set.",
  lower_bound=1,
)
_LENGTH = flags.DEFINE_integer(
  "length",
  None,
  "Tokens of a sequence; the data set's if not set.",
  lower_bound=1,
)
_SAVE = flags.DEFINE_string("save", None, "Name to keep the numbers by.")


def _main(argv):
  del argv
  logging.set_verbosity(logging.ERROR)
  jax.config.update("jax_platforms", "cpu")  # Whatever this host has.
  config, name = _CONFIG.value, _TOPOLOGY.value
  try:
    if not config:
      raise settings.UserError("--config=FILE is needed")
    settings.check(config)
    mesh = sharding.make_mesh(config, topology_devices(name))
    off, on = (
      compile_update(
        config,
        mesh,
        rate=r,
        vocabulary=_VOCABULARY.value,
        length=_LENGTH.value,
      )
      for r in (False, True)
    )
  except settings.UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
  axes = ", ".join(f"{a} {n}" for a, n in mesh.shape.items())
  if _SAVE.value:
    results = {"topology": name, "off": off._asdict(), "on": on._asdict()}
    command = " ".join(["python -m experiments.bench.aot", *sys.argv[1:]])
    timing.write(f"aot_{_SAVE.value}", command, results)
  print(f"{name}: {mesh.size} chips, mesh {axes}")
  print(usage.table(name, off, on))


if __name__ == "__main__":
  program.run(_main)
