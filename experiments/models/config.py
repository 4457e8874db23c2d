"""What the configurations of the pretrained architectures have in common."""

import dataclasses


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
  # Only carried, for the directory that a model is written back to.
  pad_token_id: int | None = None
  bos_token_id: int | None = None
  eos_token_id: int | tuple[int, ...] | None = None
  dtype: str = "float32"  # Of the computation; logits are float32.
  param_dtype: str = "float32"
  remat: bool = False  # Blocks are computed again in the backward pass.
  scan: bool = False  # One compiled block; parameters stacked [depth, ...].

  def __post_init__(self) -> None:
    for field in ("vocab_size", "width", "depth", "heads", "mlp"):
      if getattr(self, field) < 1:
        raise ValueError(
          f"{type(self).__module__}: {field} is {getattr(self, field)}, "
          "wanted a positive number"
        )

  def check_length(self, length: int) -> None:
    """Raises ValueError for sequences that have no positions."""
    if length > self.max_positions:
      raise ValueError(
        f"a sequence of {length} tokens is longer than the model's "
        f"{self.max_positions} positions: truncate it (data.seq_len) or "
        "choose a model with more"
      )
