"""The models here as ONNX: (tokens, mask) -> logits, batch and length open.

Written from the models' definitions rather than traced: half as many nodes as
a tracer gives, and a length that may change with every call, rotary positions
included. That the two say the same is not assumed: `export` runs both before it
lets a file be.
"""

import math
from typing import Any

import numpy as np
import onnx

from experiments.deploy import onnx_layers as layers
from experiments.deploy.onnx_graph import Graph
from experiments.models import bert, decoder, encoder, gemma2, gpt2, rotary

_ROTARY = rotary.Rotary()  # Of the small models.


def convert(
  config: Any, params: Any, token_ids: np.ndarray | None = None
) -> onnx.ModelProto:
  """The model of a config, in float32.

  Args:
    config: a ModelConfig of `experiments.models`.
    params: its parameters, nested dicts of arrays.
    token_ids: of `simplify.Simplified`: what is done with tokens first.

  Returns:
    A model with the inputs "tokens" int32 [batch, length] and "mask" bool
    [batch, length], True at real tokens, and the output "logits", float32
    [batch, classes] or [batch, length, vocabulary].
  """
  g = Graph()
  tokens, mask = "tokens", "mask"
  if token_ids is not None:
    tokens = g.add("Gather", g.constant(token_ids, np.int32), tokens)
  if isinstance(config, encoder.ModelConfig):
    logits = _encoder(g, config, params, tokens, mask)
  elif isinstance(config, bert.ModelConfig):
    logits = _bert(g, config, params, tokens, mask)
  else:
    logits = _causal(g, config, params, tokens, mask)
  classes = getattr(config, "num_classes", getattr(config, "num_labels", None))
  shape = ["batch", "length", config.vocab_size]
  kinds = onnx.TensorProto
  return g.model(
    {
      "tokens": (kinds.INT32, ["batch", "length"]),
      "mask": (kinds.BOOL, ["batch", "length"]),
    },
    logits,
    shape if classes is None else ["batch", classes],
  )


def _embed(g, p, tokens):
  return g.add("Gather", g.constant(p["embedding"]), tokens)


def _encoder(g, config, params, tokens, mask):
  """See `encoder.Encoder`; the stem's features are [B, W, L] here."""
  none, zero = g.constant(-1e30), g.constant(0.0)
  x = _embed(g, params["embed"], tokens)
  x = g.add("Where", g.unsqueeze(mask, 2), x, zero)
  x = g.transpose(x, 0, 2, 1)
  kernel = np.transpose(params["stem"]["kernel"], (2, 1, 0))
  before = (config.kernel - 1) // 2
  pads = [before, config.kernel - 1 - before]
  x = g.add("Conv", x, g.constant(kernel), pads=pads)
  pool = {"kernel_shape": [config.stride], "strides": [config.stride]}
  real = g.unsqueeze(mask, 1)
  x = g.add("MaxPool", g.add("Where", real, x, none), **pool)
  real = g.add("MaxPool", g.add("Cast", real, to=1), **pool)
  real = g.add("Greater", real, g.constant(0.5))  # [B, 1, T].
  x = g.transpose(g.add("Where", real, x, zero), 0, 2, 1)
  x = layers.activate(g, config, x)
  dim = config.head_dim or config.width // config.heads
  at = layers.positions(g, g.add("Squeeze", real, g.integers(1)))
  cos_sin = layers.angles(g, _ROTARY, dim, at)
  p = params["encoder"]
  x = layers.blocks(g, config, p, x, [g.unsqueeze(real, 1)], cos_sin)
  x = layers.norm(g, config, p["norm"], x)
  x = g.add("Where", g.transpose(real, 0, 2, 1), x, none)
  x = g.add("ReduceMax", x, g.integers(1), keepdims=0)
  any_real = g.add(
    "ReduceMax", g.add("Cast", real, to=1), g.integers(2), keepdims=0
  )
  any_real = g.add("Greater", any_real, g.constant(0.5))
  x = g.add("Where", any_real, x, zero)
  return layers.linear(g, params["head"], x)


def _bert(g, config, params, tokens, mask):
  at = layers.positions(g, tokens)
  x = g.add("Add", _embed(g, params["word"], tokens), _position(g, params, at))
  x = g.add("Add", x, g.constant(params["type"]["embedding"][0]))
  x = layers.norm(g, config, params["norm"], x)
  masks = [layers.seen(g, mask)]
  x = layers.blocks(g, config, params["encoder"], x, masks, None)
  first = g.add("Gather", x, g.constant(0, np.int64), axis=1)
  pooled = g.add("Tanh", layers.linear(g, params["pooler"], first))
  return layers.linear(g, params["classifier"], pooled)


def _position(g, params, at):
  """Learned positions, [1, T, W]."""
  return g.unsqueeze(_embed(g, params["position"], at), 0)


def _causal(g, config, params, tokens, mask):
  """The decoder of bytes, GPT-2, Llama and Gemma 2."""
  is_small = isinstance(config, decoder.ModelConfig)
  at = layers.positions(g, tokens)
  word = params["embed" if is_small else "word"]
  x = _embed(g, word, tokens)
  if isinstance(config, gpt2.ModelConfig):
    x = g.add("Add", x, _position(g, params, at))
    cos_sin = None
  else:
    dim = config.head_dim or config.width // config.heads
    where = getattr(config, "positions", _ROTARY)
    cos_sin = layers.angles(g, where, dim, at)
  masks = [layers.seen_before(g, mask, at)]
  if isinstance(config, gemma2.ModelConfig):
    x = g.add("Mul", x, g.constant(math.sqrt(config.width)))
    masks.insert(0, layers.seen_before(g, mask, at, config.window))
  p = params["decoder"]
  x = layers.blocks(g, config, p, x, masks, cos_sin)
  x = layers.norm(g, config, p["norm"] if is_small else params["norm"], x)
  if getattr(config, "num_labels", None) is not None:
    zero = g.constant(0, np.int64)
    last = g.add("Where", mask, g.unsqueeze(at, 0), zero)
    last = g.add("ReduceMax", last, g.integers(1), keepdims=1)
    x = g.add("GatherND", x, last, batch_dims=1)
    return layers.linear(g, params["score"], x)
  if "lm_head" in params:
    return layers.linear(g, params["lm_head"], x)
  x = g.add("MatMul", x, g.transpose(g.constant(word["embedding"]), 1, 0))
  return layers.softcap(g, x, getattr(config, "logit_softcap", None))
