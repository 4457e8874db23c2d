"""The options of the command line."""

import argparse
from collections.abc import Callable
from pathlib import Path

import backslash_jax
from backslash_jax import archive

_DESCRIPTION = """\
Compresses the weights of a model: rounds them to multiples of a step, and
stores the integers with an entropy coder fitted to their distribution.

  backslash-jax compress model.safetensors model.coded --step 2^-8
  backslash-jax inspect model.coded
  backslash-jax decompress model.coded again.safetensors

A fine-tune is stored as the difference from its base, a tenth as large:

  backslash-jax compress tuned/ delta.safetensors --base base/ --step 2^-7
  backslash-jax decompress delta.safetensors again/ --base base/

The input of compress is a safetensors file or a Hugging Face directory. In a
directory and below, NAME.safetensors is coded to NAME.backslash.safetensors,
which no loader takes for plain weights, and the rest is copied. decompress
writes the plain names back, for transformers and others.
"""

_COMPRESS = """\
Weights are rounded to multiples of the step, so no weight moves by more than
half a step plus the rounding of its dtype. 2^-8 suits most models; try coarser
steps and evaluate the result.

By default, matrices are quantized and everything else (norms, biases, integers)
is stored exactly. --mask and --exclude change which tensors are quantized.
With --mu 0.1, some weights are rounded toward zero instead, by less than one
step, where that saves the most bits.

Always stored exactly: floats of 8 bits or fewer, tensors whose relative error
(rms error / rms of the tensor) would exceed --max-error, and tensors whose code
would be larger than the exact tensor. The output lists them.

Give one of --bits, --size, --tolerance and --step. The first three find the
steps: each is in proportion to the square root of the tensor's root mean
square.

--tolerance 0.01 --evaluate module:function gives the smallest file of which a
metric of yours loses at most 0.01. The function takes a dict, tensor name ->
NumPy array, with the values that the file would hold, and returns a number, of
which more is better: an accuracy, or minus a loss. It is called about ten
times, first with the exact weights.

What to expect, as loss in nats at bits per parameter of the whole file:

  model                    exact   5 bits  4 bits  3 bits  2 bits
  stories260K (Llama)      1.286   1.313   1.398   1.960
  babyllama361 (Llama)     0.616   0.630   0.666   0.911
  MiniLM tuned on SST-2    0.327                   0.332   0.391
  SmolLM2-135M-Instruct    4.005           4.247

With one --step, stories260K takes 5.0, 4.0 and 3.0 bits at 0.0155, 0.0319 and
0.0653; MiniLM takes 3.0 and 2.0 bits at 0.0288 and 0.0602; SmolLM2-135M takes
4.0 bits at 0.0435.

With --base, the tensors of the base are subtracted first, matched by name, and
the differences are quantized, those of biases and norms with a quarter of the
step. A directory can then be coded to one file: give an output that ends in
.safetensors. The file keeps the configuration, and what is the same in the base
(the tokenizer) is taken from there.

An output directory is written whole or not at all. In a directory, weights in
other formats (pytorch_model*.bin, tf_model.h5,
flax_model.msgpack) beside a safetensors file are not copied.
"""

_EXIT = (
  "exit codes: 0 success, 1 bad file or invalid value, 2 wrong usage, "
  "130 interrupted, 143 terminated"
)


def parser(
  compress: Callable, decompress: Callable, inspect: Callable
) -> argparse.ArgumentParser:
  """The parser; `command` of what it parses is one of the three functions."""
  made = argparse.ArgumentParser(
    "backslash-jax",
    description=_DESCRIPTION,
    epilog=_EXIT,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  made.add_argument(
    "--version",
    action="version",
    version=f"backslash-jax {backslash_jax.__version__}",
  )
  commands = made.add_subparsers(required=True, metavar="COMMAND")

  def add(name, command, summary, **keywords):
    sub = commands.add_parser(
      name,
      help=summary,
      epilog=_EXIT,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      **keywords,
    )
    sub.set_defaults(command=command)
    sub.add_argument("input", type=Path, help="file or directory")
    sub.add_argument("--json", action="store_true", help="print JSON")
    return sub

  def of_base(sub, what):
    sub.add_argument("--base", type=Path, metavar="MODEL", help=what)

  def writes(sub, what):
    sub.add_argument("output", type=Path, help=what)
    sub.add_argument(
      "--force", action="store_true", help="replace existing output"
    )

  sub = add("compress", compress, "compress a model", description=_COMPRESS)
  writes(sub, "coded file or directory")
  of_base(sub, "file or directory that the model was fine-tuned from")
  size = sub.add_mutually_exclusive_group(required=True)
  size.add_argument(
    "--bits",
    type=float,
    help="bits per parameter of the whole output, such as 3.5; finds the step",
  )
  size.add_argument(
    "--size",
    help="bytes of the whole output, such as 40MB (10^6), 40MiB (2^20) or "
    "40000000; finds the step",
  )
  size.add_argument(
    "--tolerance",
    type=float,
    help="how much the metric of --evaluate may fall below that of the exact "
    "weights; finds the step",
  )
  size.add_argument(
    "--step",
    help="quantization step: 2^-8, 1/256, 0.004, or absmax/127 for each "
    "tensor's largest magnitude divided by 127",
  )
  sub.add_argument(
    "--evaluate",
    metavar="MODULE:FUNCTION",
    help="the metric of --tolerance: dict of arrays -> number, more is better; "
    "modules in the current directory are found",
  )
  sub.add_argument(
    "--coder",
    choices=archive.CODERS,
    default="rans",
    help="entropy coder; default: rans",
  )
  sub.add_argument(
    "--mask",
    action="append",
    metavar="PATTERN",
    help="quantize floating tensors with names that match this glob pattern, "
    "such as '*.weight', instead of all matrices; repeatable",
  )
  sub.add_argument(
    "--exclude",
    action="append",
    default=[],
    metavar="PATTERN",
    help="do not quantize tensors with names that match this glob pattern; "
    "repeatable",
  )
  sub.add_argument(
    "--mu",
    type=float,
    default=0.0,
    help="extra squared error, in step^2, accepted per bit saved: 0 rounds to "
    "nearest (default), 0.1 is a usual value",
  )
  sub.add_argument(
    "--quantizer",
    choices=archive.QUANTIZERS,
    default="scalar",
    help="scalar (default): values are multiples of the step; trellis: "
    "dependent quantization, with fewer bytes at the same error",
  )
  sub.add_argument(
    "--max-error",
    type=float,
    default=archive.MAX_ERROR,
    metavar="RATIO",
    help="largest relative error of a quantized tensor, default %(default)s; "
    "inf for no limit",
  )
  sub.add_argument(
    "--report", action="store_true", help="show the file size with each coder"
  )
  sub = add("decompress", decompress, "convert back to plain safetensors")
  writes(sub, "safetensors file or directory")
  of_base(sub, "base of a difference: file or directory, plain or coded")
  sub = add("inspect", inspect, "show the coded size of each tensor")
  sub.add_argument(
    "--plot", action="store_true", help="plot each histogram with its fit"
  )
  return made
