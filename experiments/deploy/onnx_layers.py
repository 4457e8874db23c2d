"""The layers of experiments/models as ONNX operators, in float32.

Values are float32 [B, T, W] unless said otherwise; B and T stay open.
"""

import functools
import math
from typing import Any

import jax
import numpy as np

from experiments.deploy.onnx_graph import Graph
from experiments.models import bert, gemma2, llama, rotary

Tree = dict[str, Any]
_HIDDEN = -1e30  # The score of a position that is not seen.


def linear(g: Graph, p: Tree, x: str) -> str:
  y = g.add("MatMul", x, g.constant(p["kernel"]))
  return g.add("Add", y, g.constant(p["bias"])) if "bias" in p else y


def norm(g: Graph, config: Any, p: Tree, x: str) -> str:
  """LayerNorm where there is a bias, else by the root mean square."""
  epsilon = getattr(config, "epsilon", 1e-6)  # Of nnx.RMSNorm.
  scale = np.asarray(p["scale"], np.float32)
  if "bias" in p:
    return g.add(
      "LayerNormalization",
      x,
      g.constant(scale),
      g.constant(p["bias"]),
      axis=-1,
      epsilon=epsilon,
    )
  if isinstance(config, gemma2.ModelConfig):
    scale = 1 + scale
  # In the form that ONNX Runtime finds, and makes one operator of.
  square = g.add("Pow", x, g.constant(2.0))
  mean = g.add("ReduceMean", square, g.integers(-1), keepdims=1)
  root = g.add("Sqrt", g.add("Add", mean, g.constant(epsilon)))
  return g.add("Mul", g.add("Div", x, root), g.constant(scale))


def activate(g: Graph, config: Any, x: str) -> str:
  if isinstance(config, llama.ModelConfig):
    return g.add("Mul", x, g.add("Sigmoid", x))
  exact = isinstance(config, bert.ModelConfig)
  return g.add("Gelu", x, approximate="none" if exact else "tanh")


def mlp(g: Graph, config: Any, p: Tree, x: str) -> str:
  if "gate" in p:
    gate = activate(g, config, linear(g, p["gate"], x))
    return linear(g, p["down"], g.add("Mul", gate, linear(g, p["up"], x)))
  return linear(g, p["down"], activate(g, config, linear(g, p["up"], x)))


def softcap(g: Graph, x: str, cap: float | None) -> str:
  if cap is None:
    return x
  bound = g.constant(cap)
  return g.add("Mul", g.add("Tanh", g.add("Div", x, bound)), bound)


def positions(g: Graph, tokens: str) -> str:
  """0, 1, ..., of the length of tokens, int64 [T]."""
  shape = g.add("Shape", tokens, start=1, end=2)
  length = g.add("Squeeze", shape)
  zero, one = g.constant(0, np.int64), g.constant(1, np.int64)
  return g.add("Range", zero, length, one)


def angles(g: Graph, where: rotary.Rotary, dim: int, at_T: str) -> list[str]:
  """Cosine and sine of rotary positions, [T, D / 2]."""
  frequencies = np.asarray(where.frequencies(dim // 2))
  at = g.unsqueeze(g.add("Cast", at_T, to=1), 1)
  angle = g.add("Mul", at, g.constant(frequencies[None]))
  return [g.add("Cos", angle), g.add("Sin", angle)]


def rotate(g: Graph, x: str, cos_sin: list[str]) -> str:
  """Of [..., T, D], as `rotary.rotate`."""
  cos, sin = cos_sin
  first, second = g.add_many("Split", x, outputs=2, axis=-1, num_outputs=2)
  turned = [
    g.add("Sub", g.add("Mul", first, cos), g.add("Mul", second, sin)),
    g.add("Add", g.add("Mul", first, sin), g.add("Mul", second, cos)),
  ]
  return g.add("Concat", *turned, axis=-1)


def seen(g: Graph, mask: str) -> str:
  """Which positions all may see, bool [B, 1, 1, S], of a mask [B, S]."""
  return g.unsqueeze(mask, 1, 2)


def seen_before(g: Graph, mask: str, at: str, window: int | None = None) -> str:
  """Which positions each may see, bool [B, 1, T, S]."""
  rows, columns = g.unsqueeze(at, 1), g.unsqueeze(at, 0)
  earlier = g.add("LessOrEqual", columns, rows)
  if window is not None:
    oldest = g.add("Sub", rows, g.constant(window, np.int64))
    earlier = g.add("And", earlier, g.add("Greater", columns, oldest))
  return g.add("And", seen(g, mask), earlier)


def attention(
  g: Graph,
  config: Any,
  p: Tree,
  x: str,
  mask: str,
  cos_sin: list[str] | None,
) -> str:
  """Self-attention; how many heads there are is in the shapes."""
  dim = config.head_dim or config.width // config.heads
  kv_heads = p["key"]["kernel"].shape[-1] // dim
  shared = p["query"]["kernel"].shape[-1] // dim // kv_heads
  scale = 1 / math.sqrt(getattr(config, "query_scale", dim))

  def heads(name: str, groups: int, *order: int) -> str:
    """[B, K, T, D] in the order asked for; [B, K, G, T, D] if G > 1."""
    y = linear(g, p[name], x)
    if shared == 1:
      y = g.reshape(y, 0, 0, kv_heads, dim)
    else:
      y = g.reshape(y, 0, 0, kv_heads, groups, dim)
    return g.transpose(y, *order)

  straight, turned = (0, 2, 1, 3), (0, 2, 3, 1)
  if shared > 1:
    straight, turned = (0, 2, 3, 1, 4), (0, 2, 3, 4, 1)
    mask = g.unsqueeze(mask, 1)
  query = heads("query", shared, *straight)
  value = heads("value", 1, *straight)
  if cos_sin is None:
    key = heads("key", 1, *turned)
  else:
    query = rotate(g, query, cos_sin)
    key = rotate(g, heads("key", 1, *straight), cos_sin)
    axes = range(4 if shared == 1 else 5)
    key = g.transpose(key, *axes[:-2], axes[-1], axes[-2])
  query = g.add("Mul", query, g.constant(scale))
  scores = g.add("MatMul", query, key)
  scores = softcap(g, scores, getattr(config, "attention_softcap", None))
  scores = g.add("Where", mask, scores, g.constant(_HIDDEN))
  y = g.add("MatMul", g.add("Softmax", scores, axis=-1), value)
  if shared == 1:
    y = g.transpose(y, 0, 2, 1, 3)
  else:
    y = g.transpose(y, 0, 3, 1, 2, 4)
  return linear(g, p["out"], g.reshape(y, 0, 0, kv_heads * shared * dim))


def blocks(
  g: Graph,
  config: Any,
  p: Tree,
  x: str,
  masks: list[str],
  cos_sin: list[str] | None,
) -> str:
  """All blocks, with the masks in turn."""
  if "layers" in p:
    take = lambda i: jax.tree.map(lambda a: a[i], p["layers"])  # noqa: E731
    layers = [take(i) for i in range(config.depth)]
  else:
    # Of a layer that simplification left out as a whole nothing is there.
    layers = [p.get(f"layer_{i}", {}) for i in range(config.depth)]
  normalize = functools.partial(norm, g, config)
  for i, layer in enumerate(layers):
    mask = masks[i % len(masks)]
    attend = functools.partial(attention, g, config, mask=mask, cos_sin=cos_sin)
    feed = functools.partial(mlp, g, config)
    for name, function in (("attention", attend), ("mlp", feed)):
      if name not in layer:  # Simplification left it out.
        continue
      own = layer[f"{name}_norm"]
      if isinstance(config, bert.ModelConfig):
        y = function(layer[name], x)
        x = normalize(own, g.add("Add", x, y))
        continue
      y = function(layer[name], normalize(own, x))
      if f"{name}_out_norm" in layer:
        y = normalize(layer[f"{name}_out_norm"], y)
      x = g.add("Add", x, y)
  return x
