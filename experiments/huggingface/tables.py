"""Names of tensors in Hugging Face checkpoints, beside the parameters here.

One table per architecture, of rows (tensor, parameter, layout); `{}` stands for
the number of a block. A layout says how the tensor is stored:

  SAME        as the parameter
  TRANSPOSED  [out, in], where kernels here are [in, out]
  FUSED       query, key and value side by side along the last axis; such a row
              names three parameters
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

SAME, TRANSPOSED, FUSED = "same", "transposed", "fused"

Row = tuple[str, str | tuple[str, str, str], str]


def _linear(tensor: str, parameter: str) -> tuple[Row, Row]:
  """The two rows of a torch Linear with a bias."""
  return (
    (f"{tensor}.weight", f"{parameter}/kernel", TRANSPOSED),
    (f"{tensor}.bias", f"{parameter}/bias", SAME),
  )


def _norm(tensor: str, parameter: str) -> tuple[Row, Row]:
  """The two rows of a layer normalization."""
  return (
    (f"{tensor}.weight", f"{parameter}/scale", SAME),
    (f"{tensor}.bias", f"{parameter}/bias", SAME),
  )


@dataclasses.dataclass(frozen=True)
class Table:
  """How the checkpoints of one architecture name their tensors."""

  rows: Sequence[Row]
  # Of every tensor but the heads'; files of the bare model leave it out.
  prefix: str
  # (regex, replacement): spellings of older files.
  renames: Sequence[tuple[str, str]] = ()
  # Tensors that are no parameters here: buffers, heads of pretraining tasks.
  ignored: Sequence[str] = ()

  def canonical(self, tensor: str) -> str | None:
    """A name in a file as the table has it; None for what is ignored."""
    for pattern, replacement in self.renames:
      tensor = re.sub(pattern, replacement, tensor)
    if any(re.search(pattern, tensor) for pattern in self.ignored):
      return None
    heads = ("score.", "classifier.", "lm_head.")
    if not tensor.startswith((self.prefix, *heads)):
      return self.prefix + tensor
    return tensor

  def expand(self, depth: int) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Yields (tensor, parameters, layout), a row of a block once per block."""
    for tensor, parameters, layout in self.rows:
      if isinstance(parameters, str):
        parameters = (parameters,)
      if "{}" not in tensor:
        yield tensor, parameters, layout
        continue
      for i in range(depth):
        yield tensor.format(i), tuple(p.format(i) for p in parameters), layout


_LAYER = "encoder/layer_{}"
BERT = Table(
  prefix="bert.",
  renames=(
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
  ),
  ignored=(r"embeddings\.position_ids$", r"^cls\."),
  rows=(
    ("bert.embeddings.word_embeddings.weight", "word/embedding", SAME),
    ("bert.embeddings.position_embeddings.weight", "position/embedding", SAME),
    ("bert.embeddings.token_type_embeddings.weight", "type/embedding", SAME),
    *_norm("bert.embeddings.LayerNorm", "norm"),
    *_linear(
      "bert.encoder.layer.{}.attention.self.query",
      f"{_LAYER}/attention/query",
    ),
    *_linear(
      "bert.encoder.layer.{}.attention.self.key", f"{_LAYER}/attention/key"
    ),
    *_linear(
      "bert.encoder.layer.{}.attention.self.value",
      f"{_LAYER}/attention/value",
    ),
    *_linear(
      "bert.encoder.layer.{}.attention.output.dense", f"{_LAYER}/attention/out"
    ),
    *_norm(
      "bert.encoder.layer.{}.attention.output.LayerNorm",
      f"{_LAYER}/attention_norm",
    ),
    *_linear("bert.encoder.layer.{}.intermediate.dense", f"{_LAYER}/mlp/up"),
    *_linear("bert.encoder.layer.{}.output.dense", f"{_LAYER}/mlp/down"),
    *_norm("bert.encoder.layer.{}.output.LayerNorm", f"{_LAYER}/mlp_norm"),
    *_linear("bert.pooler.dense", "pooler"),
    *_linear("classifier", "classifier"),
  ),
)

_LAYER = "decoder/layer_{}"
_QKV = tuple(f"{_LAYER}/attention/{name}" for name in ("query", "key", "value"))
GPT2 = Table(
  prefix="transformer.",
  ignored=(r"\.attn\.(masked_)?bias$", r"^lm_head\."),
  rows=(
    ("transformer.wte.weight", "word/embedding", SAME),
    ("transformer.wpe.weight", "position/embedding", SAME),
    *_norm("transformer.h.{}.ln_1", f"{_LAYER}/attention_norm"),
    # Its linear layers are stored [in, out] already.
    (
      "transformer.h.{}.attn.c_attn.weight",
      (f"{_QKV[0]}/kernel", f"{_QKV[1]}/kernel", f"{_QKV[2]}/kernel"),
      FUSED,
    ),
    (
      "transformer.h.{}.attn.c_attn.bias",
      (f"{_QKV[0]}/bias", f"{_QKV[1]}/bias", f"{_QKV[2]}/bias"),
      FUSED,
    ),
    (
      "transformer.h.{}.attn.c_proj.weight",
      f"{_LAYER}/attention/out/kernel",
      SAME,
    ),
    ("transformer.h.{}.attn.c_proj.bias", f"{_LAYER}/attention/out/bias", SAME),
    *_norm("transformer.h.{}.ln_2", f"{_LAYER}/mlp_norm"),
    ("transformer.h.{}.mlp.c_fc.weight", f"{_LAYER}/mlp/up/kernel", SAME),
    ("transformer.h.{}.mlp.c_fc.bias", f"{_LAYER}/mlp/up/bias", SAME),
    ("transformer.h.{}.mlp.c_proj.weight", f"{_LAYER}/mlp/down/kernel", SAME),
    ("transformer.h.{}.mlp.c_proj.bias", f"{_LAYER}/mlp/down/bias", SAME),
    *_norm("transformer.ln_f", "norm"),
    ("score.weight", "score/kernel", TRANSPOSED),
  ),
)


def _gated_decoder(norms: Sequence[tuple[str, str]]) -> tuple[Row, ...]:
  """The rows of Llama and Gemma 2, which differ in the blocks' norms."""
  projections = (
    ("self_attn.q_proj", "attention/query"),
    ("self_attn.k_proj", "attention/key"),
    ("self_attn.v_proj", "attention/value"),
    ("self_attn.o_proj", "attention/out"),
    ("mlp.gate_proj", "mlp/gate"),
    ("mlp.up_proj", "mlp/up"),
    ("mlp.down_proj", "mlp/down"),
  )
  return (
    ("model.embed_tokens.weight", "word/embedding", SAME),
    *(
      (f"model.layers.{{}}.{a}.weight", f"{_LAYER}/{b}/kernel", TRANSPOSED)
      for a, b in projections
    ),
    *(
      (f"model.layers.{{}}.{a}.weight", f"{_LAYER}/{b}/scale", SAME)
      for a, b in norms
    ),
    ("model.norm.weight", "norm/scale", SAME),
    ("lm_head.weight", "lm_head/kernel", TRANSPOSED),
    ("score.weight", "score/kernel", TRANSPOSED),
  )


LLAMA = Table(
  prefix="model.",
  ignored=(r"rotary_emb\.inv_freq$",),
  rows=_gated_decoder(
    [
      ("input_layernorm", "attention_norm"),
      ("post_attention_layernorm", "mlp_norm"),
    ]
  ),
)

GEMMA2 = Table(
  prefix="model.",
  ignored=(r"rotary_emb\.inv_freq$",),
  rows=_gated_decoder(
    [
      ("input_layernorm", "attention_norm"),
      ("post_attention_layernorm", "attention_out_norm"),
      ("pre_feedforward_layernorm", "mlp_norm"),
      ("post_feedforward_layernorm", "mlp_out_norm"),
    ]
  ),
)
