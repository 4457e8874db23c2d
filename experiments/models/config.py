"""What the configurations of the models have in common."""

import dataclasses
from typing import Any, Self


@dataclasses.dataclass(frozen=True)
class LayerSize:
  """What one block has, where blocks differ: after simplification.

  The small models' blocks may have none of one or both: it is left out.
  """

  heads: int
  mlp: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallConfig:
  """Sizes of a small model over bytes."""

  vocab_size: int
  depth: int
  width: int
  heads: int
  mlp: int
  dtype: str
  head_dim: int | None = None  # Features per head; None means width / heads.
  layer_sizes: tuple[LayerSize, ...] | None = None  # None: the above for all.

  def layer(self, index: int) -> LayerSize:
    """The sizes of one block."""
    if self.layer_sizes is None:
      return LayerSize(self.heads, self.mlp)
    return self.layer_sizes[index]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """Sizes of a Transformer, its output and how it is computed.

  Each architecture adds its own fields. `num_labels` chooses the output:
  None gives logits of the next token, a number gives that many class logits
  per sequence.
  """

  vocab_size: int
  width: int
  depth: int
  heads: int
  mlp: int  # Hidden size of the feed-forward layers.
  max_positions: int  # The longest sequence.
  epsilon: float  # Of the normalizations.
  num_labels: int | None = None
  head_dim: int | None = None  # Features per head; None means width / heads.
  layer_sizes: tuple[LayerSize, ...] | None = None  # None: the above for all.
  # Only carried, for the directory that a model is written back to.
  pad_token_id: int | None = None
  bos_token_id: int | None = None
  eos_token_id: int | tuple[int, ...] | None = None
  dtype: str = "float32"  # Of the computation; logits are float32.
  param_dtype: str = "float32"
  attention: str | None = None  # See attention.IMPLEMENTATIONS; None chooses.
  remat: bool = False  # Blocks are computed again in the backward pass.
  scan: bool = False  # One compiled block; parameters stacked [depth, ...].

  def __post_init__(self) -> None:
    for field in ("vocab_size", "width", "depth", "heads", "mlp"):
      if getattr(self, field) < 1:
        raise ValueError(
          f"{type(self).__module__}: {field} is {getattr(self, field)}, "
          "wanted a positive number"
        )
    if self.layer_sizes is None:
      return
    if self.scan:
      raise ValueError(
        f"{type(self).__module__}: scan is set and layer_sizes too, but stacked"
        " blocks share one size"
      )
    if len(self.layer_sizes) != self.depth:
      raise ValueError(
        f"{type(self).__module__}: {len(self.layer_sizes)} layer_sizes, wanted"
        f" one for each of {self.depth} blocks"
      )

  def layer(self, index: int) -> Self:
    """The config of one block: heads and mlp are its own."""
    if self.layer_sizes is None:
      return self
    size = self.layer_sizes[index]
    own: dict[str, Any] = {"heads": size.heads, "mlp": size.mlp}
    if (kv_heads := getattr(self, "kv_heads", None)) is not None:
      own["kv_heads"] = size.heads * kv_heads // self.heads
    return dataclasses.replace(self, layer_sizes=None, **own)

  def check_length(self, length: int) -> None:
    """Raises ValueError for sequences that have no positions."""
    if length > self.max_positions:
      raise ValueError(
        f"a sequence of {length} tokens is longer than the model's "
        f"{self.max_positions} positions: truncate it (data.seq_len) or "
        "choose a model with more"
      )
