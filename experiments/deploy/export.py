"""A model as files that other runtimes run: ONNX, int8 ONNX, StableHLO.

Every file is run beside the JAX model before it appears under its name, and one
whose outputs differ never does.
"""

import importlib
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from experiments import atomic
from experiments.deploy import simplify
from experiments.models import functional

TOLERANCE = 1e-4  # Of a logit, or of its size where it is larger than 1.
PLATFORMS = ("cpu", "cuda", "tpu")

Run = Callable[[np.ndarray, np.ndarray], np.ndarray]


class ExportError(ValueError):
  """A model that cannot be exported, or whose export does not match."""


def write_onnx(model: simplify.Simplified, path: pathlib.Path) -> float:
  """Writes the model as ONNX, float32, and returns the largest difference.

  Raises:
    ExportError: an output in ONNX Runtime differs from JAX's by more than
      TOLERANCE; nothing is written.
    ModuleNotFoundError: onnx or onnxruntime is missing.
  """
  onnx_models = _optional("experiments.deploy.onnx_models")
  proto = onnx_models.convert(model.config, model.params, model.token_ids)
  data = proto.SerializeToString()
  run = onnx_runner(data)
  difference = check(path, run, model)
  atomic.write(path, lambda file: file.write_bytes(data))
  return difference


def write_int8(source: pathlib.Path, path: pathlib.Path) -> None:
  """Writes an ONNX file with its matrices as int8, scaled at run time.

  Its outputs are close to the source's, not equal: measure what it is worth
  before it is used, as `experiments.deploy` does.
  """
  quantization = _optional("onnxruntime.quantization")
  kind = quantization.QuantType.QInt8
  logging.disable(logging.WARNING)  # It warns of what is not quantized.
  try:
    atomic.write(
      path,
      lambda file: quantization.quantize_dynamic(
        source, file, weight_type=kind
      ),
    )
  finally:
    logging.disable(logging.NOTSET)


def write_stablehlo(model: simplify.Simplified, path: pathlib.Path) -> float:
  """Writes the model as `jax.export` serializes it, for PLATFORMS.

  Batch and length are open. Read it with `jax.export.deserialize`, and call
  the result's `call(tokens, mask)`.

  Raises:
    ExportError: an output differs, as for `write_onnx`.
  """
  forward, ids = functional.forward(model.config), model.token_ids

  def function(tokens, mask):
    # Indexing would check each token on its way.
    tokens = tokens if ids is None else jnp.take(ids, tokens, axis=0)
    return forward(model.params, tokens, mask)

  multiple, longest = lengths(model.config)
  length = "length" if multiple == 1 else f"{multiple}*length"
  limits = ["batch>=1", "length>=1"]
  if longest is not None:
    limits.append(f"length<={longest}")
  shape = export.symbolic_shape(f"batch, {length}", constraints=limits)
  exported = export.export(jax.jit(function), platforms=PLATFORMS)(
    jax.ShapeDtypeStruct(shape, jnp.int32),
    jax.ShapeDtypeStruct(shape, jnp.bool_),
  )
  data = exported.serialize()
  read = export.deserialize(data)
  difference = check(
    path, lambda tokens, mask: np.asarray(read.call(tokens, mask)), model
  )
  atomic.write(path, lambda file: file.write_bytes(data))
  return difference


def onnx_runner(
  source: bytes | pathlib.Path, *, threads: int | None = None
) -> Run:
  """An ONNX model as a function (tokens, mask) -> logits.

  Args:
    source: the file, or its content.
    threads: of an operator; None: as many as there are cores.
  """
  onnxruntime = _optional("onnxruntime")
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3
  if threads is not None:
    options.intra_op_num_threads = threads
  session = onnxruntime.InferenceSession(
    source if isinstance(source, bytes) else str(source),
    options,
    providers=["CPUExecutionProvider"],
  )
  return lambda tokens, mask: session.run(
    None, {"tokens": tokens, "mask": mask}
  )[0]


def check(path: pathlib.Path, run: Run, model: simplify.Simplified) -> float:
  """The largest difference between an export and the JAX model.

  Args:
    path: of the file that it will be, for the error.
    run: the export.
    model: what it was made of.

  Raises:
    ExportError: an output differs by more than TOLERANCE, or is not finite.
  """
  forward = jax.jit(functional.forward(model.config))
  largest = 0.0
  for tokens, mask in _batches(model):
    ids = tokens if model.token_ids is None else model.token_ids[tokens]
    wanted = np.asarray(forward(model.params, ids, mask))
    found = run(tokens, mask)
    if wanted.ndim == 3:  # Logits at padding mean nothing.
      wanted, found = wanted[mask], found[mask]
    error = np.abs(found - wanted) / np.maximum(np.abs(wanted), 1)
    largest = max(largest, float(np.max(error)))
    if not np.all(error <= TOLERANCE):
      raise ExportError(
        f"{path} is not written: for tokens of shape {tokens.shape} its outputs"
        f" differ from JAX's by {np.max(error):.2g}, wanted {TOLERANCE:g} at"
        " most"
      )
  return largest


def lengths(config: Any) -> tuple[int, int | None]:
  """What a sequence's length is a multiple of, and at most."""
  return getattr(config, "stride", 1), getattr(config, "max_positions", None)


def _batches(
  model: simplify.Simplified,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Random tokens, of two sizes and lengths, with padding."""
  rng = np.random.default_rng(0)
  ids = model.token_ids
  vocabulary = model.config.vocab_size if ids is None else len(ids)
  multiple, longest = lengths(model.config)
  for size, length in ((1, 8), (3, 16)):
    length = min(length * multiple, longest or length * multiple)
    tokens = rng.integers(0, vocabulary, (size, length)).astype(np.int32)
    real = rng.integers(1, length + 1, (size, 1))
    yield tokens, np.arange(length)[None] < real


def _optional(name: str) -> Any:
  """A module of the extra `deploy`."""
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f"{error.name} is not installed: pip install -e '.[deploy]'",
      name=error.name,
    ) from error
