"""Weights that are already trained: compressed without training, with NumPy.

    python examples/compress_weights.py [model.safetensors]

Without data, the only choice is the quantization step. This program tries
several and keeps the coarsest one whose error is small. Better: choose it with
`bs.quantize.choose_step` and an evaluation of yours. Neither this program nor
one that reads the file imports JAX.
"""

import os
import pathlib
import sys

import numpy as np
import safetensors.numpy

import backslash_jax as bs

LARGEST_ERROR = 0.05  # Root mean square, relative to the weights.


def make_weights():
  """Stands for trained weights: their scale differs from matrix to matrix."""
  random = np.random.default_rng(0)
  return {
    f"layer_{i}.weight": random.laplace(size=(256, 256), scale=scale).astype(
      np.float32
    )
    for i, scale in enumerate([0.02, 0.03, 0.05])
  }


def main(folder=".", source=None):
  weights = safetensors.numpy.load_file(source) if source else make_weights()
  path = pathlib.Path(folder, "compressed.safetensors")
  # A step per matrix: a fraction of its root mean square.
  scales = {
    name: float(np.sqrt(np.mean(np.square(weight.astype(np.float32)))))
    for name, weight in weights.items()
    if weight.ndim >= 2
  }
  for fraction in (1.0, 0.5, 0.25, 0.125):
    steps = {name: fraction * scale or 1.0 for name, scale in scales.items()}
    report = bs.save(path, weights, step=steps)
    error = max(t.relative_error or 0.0 for t in report.tensors)
    print(
      f"step {fraction:5.3f} of the scale: {report.bits_per_parameter:.2f} bits"
      f" per parameter, relative error {error:.3f}"
    )
    if error <= LARGEST_ERROR:
      break
  print(f"{os.path.getsize(path):,} bytes in {path}")

  loaded = bs.load(path)  # The same names, shapes and dtypes.
  for name, step in steps.items():
    assert np.abs(loaded[name] - weights[name]).max() <= 0.501 * step
  return report


if __name__ == "__main__":
  main(source=sys.argv[1] if sys.argv[1:] else None)
