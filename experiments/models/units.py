"""The units of the models here: what can be taken out of them whole.

Every model names its layers alike, so one declaration serves all of them.
"""

from collections.abc import Sequence
from typing import Any

from backslash_jax.structure.groups import Group, Slice

NAMES = ("mlp", "heads", "rows", "features")


def declare(model: Any, names: Sequence[str]) -> tuple[Group, ...]:
  """The groups of a model, for `group_rate`, pruning and simplification.

  Args:
    model: its ModelConfig, or `config.model` of an experiment.
    names: "mlp", the hidden units of the feed-forward layers; "heads", a head
      of keys and values with the heads of queries that share it; "rows", those
      of the embedding of tokens; "features", its columns, where the encoder of
      bytes has a convolution after it.

  Raises:
    ValueError: an unknown name.
  """
  unknown = sorted(set(names) - set(NAMES))
  if unknown:
    raise ValueError(
      f"no groups are named {', '.join(unknown)}; there are {', '.join(NAMES)}"
    )
  stacked = int(getattr(model, "scan", False))
  size = getattr(model, "head_dim", None) or model.width // model.heads
  shared = model.heads // (getattr(model, "kv_heads", None) or model.heads)
  mlp = (
    Slice(r"(.*)mlp/(?:up|gate)/(?:kernel|bias)$", -1),
    Slice(r"(.*)mlp/down/kernel$", -2),
  )
  heads = (
    Slice(r"(.*)attention/query/(?:kernel|bias)$", -1, shared * size),
    Slice(r"(.*)attention/(?:key|value)/(?:kernel|bias)$", -1, size),
    Slice(r"(.*)attention/out/kernel$", -2, shared * size),
  )
  rows = (Slice(r"(?:embed|word)/embedding$", -2),)
  features = (Slice(r"embed/embedding$", -1), Slice(r"stem/kernel$", -2))
  known = {
    "mlp": Group("mlp", mlp, stacked),
    "heads": Group("heads", heads, stacked),
    "rows": Group("rows", rows),
    "features": Group("features", features),
  }
  return tuple(known[name] for name in names)
