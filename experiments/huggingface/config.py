"""config.json of a Hugging Face directory <-> the ModelConfig of a model here.

Fields that the models here do not implement must have the values that the
published models have; anything else is an error that names all such fields.
"""

from collections.abc import Callable
from typing import Any

from experiments.huggingface.files import WeightsError
from experiments.models import bert, gemma2, gpt2, llama, rotary
from experiments.models.config import ModelConfig

_REQUIRED = object()


class _Fields:
  """The fields of a config.json, with errors that name the file."""

  def __init__(self, path: Any, values: dict[str, Any]):
    self.path = path
    self.values = values

  def get(self, name: str, default: Any = _REQUIRED) -> Any:
    value = self.values.get(name)
    if value is not None:
      return value
    if default is _REQUIRED:
      raise WeightsError(f"{self.path}: has no field {name!r}")
    return default

  def size(self, name: str, default: Any = _REQUIRED) -> int:
    value = self.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
      raise WeightsError(
        f"{self.path}: {name} is {value!r}, wanted a positive integer"
      )
    return value

  def only(self, **supported: Any) -> None:
    """Raises WeightsError for all fields that ask for what is not here."""
    wrong = [
      f"{name} is {self.values[name]!r}, only {value!r} is supported"
      for name, value in supported.items()
      if self.values.get(name) not in (None, value)
    ]
    if wrong:
      raise WeightsError(f"{self.path}: {'; '.join(wrong)}")

  def common(self) -> dict[str, Any]:
    """The fields that all ModelConfigs carry under the same name."""
    eos = self.values.get("eos_token_id")
    return {
      "vocab_size": self.size("vocab_size"),
      "pad_token_id": self.values.get("pad_token_id"),
      "bos_token_id": self.values.get("bos_token_id"),
      "eos_token_id": tuple(eos) if isinstance(eos, list) else eos,
    }

  def positions(self) -> rotary.Rotary:
    """Rotary positions, from the fields of transformers 4 or 5."""
    scaling = self.get("rope_parameters", self.get("rope_scaling", {}))
    theta = scaling.get("rope_theta", self.get("rope_theta", 1e4))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
      return rotary.Rotary(float(theta))
    if kind != "llama3":
      raise WeightsError(
        f"{self.path}: rotary positions of type {kind!r}; there are 'default' "
        "and 'llama3'"
      )
    names = ("factor", "low_freq_factor", "high_freq_factor")
    names += ("original_max_position_embeddings",)
    if missing := [name for name in names if name not in scaling]:
      raise WeightsError(
        f"{self.path}: rotary scaling lacks {', '.join(missing)}"
      )
    return rotary.Rotary(
      float(theta), rotary.RotaryScaling(*(scaling[name] for name in names))
    )


def _read_bert(fields: _Fields) -> bert.ModelConfig:
  fields.only(
    hidden_act="gelu",
    position_embedding_type="absolute",
    is_decoder=False,
    add_cross_attention=False,
  )
  return bert.ModelConfig(
    **fields.common(),
    width=fields.size("hidden_size"),
    depth=fields.size("num_hidden_layers"),
    heads=fields.size("num_attention_heads"),
    mlp=fields.size("intermediate_size"),
    max_positions=fields.size("max_position_embeddings"),
    num_types=fields.size("type_vocab_size", 2),
    epsilon=fields.get("layer_norm_eps", 1e-12),
  )


def _write_bert(config: bert.ModelConfig) -> dict[str, Any]:
  return {
    "hidden_size": config.width,
    "num_hidden_layers": config.depth,
    "num_attention_heads": config.heads,
    "intermediate_size": config.mlp,
    "max_position_embeddings": config.max_positions,
    "type_vocab_size": config.num_types,
    "layer_norm_eps": config.epsilon,
    "hidden_act": "gelu",
  }


def _read_gpt2(fields: _Fields) -> gpt2.ModelConfig:
  fields.only(
    activation_function="gelu_new",
    scale_attn_weights=True,
    scale_attn_by_inverse_layer_idx=False,
    add_cross_attention=False,
    tie_word_embeddings=True,
  )
  width = fields.size("n_embd")
  return gpt2.ModelConfig(
    **fields.common(),
    width=width,
    depth=fields.size("n_layer"),
    heads=fields.size("n_head"),
    mlp=fields.size("n_inner", 4 * width),
    max_positions=fields.size("n_positions", 1024),
    epsilon=fields.get("layer_norm_epsilon", 1e-5),
  )


def _write_gpt2(config: gpt2.ModelConfig) -> dict[str, Any]:
  return {
    "n_embd": config.width,
    "n_layer": config.depth,
    "n_head": config.heads,
    "n_inner": config.mlp,
    "n_positions": config.max_positions,
    "layer_norm_epsilon": config.epsilon,
    "activation_function": "gelu_new",
  }


def _read_decoder(fields: _Fields) -> dict[str, Any]:
  """The fields that Llama and Gemma 2 share."""
  width = fields.size("hidden_size")
  heads = fields.size("num_attention_heads")
  return fields.common() | {
    "width": width,
    "depth": fields.size("num_hidden_layers"),
    "heads": heads,
    "kv_heads": fields.size("num_key_value_heads", heads),
    "head_dim": fields.size("head_dim", width // heads),
    "mlp": fields.size("intermediate_size"),
    "max_positions": fields.size("max_position_embeddings"),
    "epsilon": fields.get("rms_norm_eps", 1e-6),
    "positions": fields.positions(),
  }


def _write_decoder(
  config: llama.ModelConfig | gemma2.ModelConfig,
) -> dict[str, Any]:
  values: dict[str, Any] = {
    "hidden_size": config.width,
    "num_hidden_layers": config.depth,
    "num_attention_heads": config.heads,
    "num_key_value_heads": config.kv_heads,
    "head_dim": config.head_dim,
    "intermediate_size": config.mlp,
    "max_position_embeddings": config.max_positions,
    "rms_norm_eps": config.epsilon,
    "rope_theta": config.positions.theta,
  }
  if (scaling := config.positions.scaling) is not None:
    values["rope_scaling"] = {
      "rope_type": "llama3",
      "factor": scaling.factor,
      "low_freq_factor": scaling.low_frequency_factor,
      "high_freq_factor": scaling.high_frequency_factor,
      "original_max_position_embeddings": scaling.original_max_positions,
    }
  return values


def _read_llama(fields: _Fields) -> llama.ModelConfig:
  fields.only(hidden_act="silu", attention_bias=False, mlp_bias=False)
  return llama.ModelConfig(
    **_read_decoder(fields), tied=fields.get("tie_word_embeddings", False)
  )


def _write_llama(config: llama.ModelConfig) -> dict[str, Any]:
  return _write_decoder(config) | {
    "hidden_act": "silu",
    "tie_word_embeddings": config.tied,
  }


def _read_gemma2(fields: _Fields) -> gemma2.ModelConfig:
  values = _read_decoder(fields)
  values["head_dim"] = fields.size("head_dim", 256)
  fields.only(
    hidden_activation="gelu_pytorch_tanh",
    attention_bias=False,
    tie_word_embeddings=True,
    use_bidirectional_attention=False,
    layer_types=_gemma2_layers(values["depth"]),
  )
  return gemma2.ModelConfig(
    **values,
    window=fields.size("sliding_window", 4096),
    query_scale=fields.size("query_pre_attn_scalar", 256),
    attention_softcap=fields.values.get("attn_logit_softcapping", 50.0),
    logit_softcap=fields.values.get("final_logit_softcapping", 30.0),
  )


def _gemma2_layers(depth: int) -> list[str]:
  kinds = ("sliding_attention", "full_attention")
  return [kinds[i % 2] for i in range(depth)]


def _write_gemma2(config: gemma2.ModelConfig) -> dict[str, Any]:
  return _write_decoder(config) | {
    "hidden_activation": "gelu_pytorch_tanh",
    "layer_types": _gemma2_layers(config.depth),
    "sliding_window": config.window,
    "query_pre_attn_scalar": config.query_scale,
    "attn_logit_softcapping": config.attention_softcap,
    "final_logit_softcapping": config.logit_softcap,
    "tie_word_embeddings": True,
  }


_READ: dict[str, Callable[[_Fields], ModelConfig]] = {
  "bert": _read_bert,
  "gpt2": _read_gpt2,
  "llama": _read_llama,
  "gemma2": _read_gemma2,
}


def read(path: Any, values: dict[str, Any]) -> tuple[str, ModelConfig]:
  """The architecture and the config that a config.json describes.

  Args:
    path: of the file, for errors.
    values: its contents.

  Returns:
    "bert", "gpt2", "llama" or "gemma2", and that module's ModelConfig.

  Raises:
    WeightsError: an unknown architecture, missing or unsupported fields.
  """
  kind = values.get("model_type")
  if not isinstance(kind, str) or kind not in _READ:
    raise WeightsError(
      f"{path}: model_type is {kind!r}; there are {', '.join(sorted(_READ))}"
    )
  try:
    return kind, _READ[kind](_Fields(path, values))
  except WeightsError:
    raise
  except (TypeError, ValueError, AttributeError) as error:
    raise WeightsError(f"{path}: {error}") from error


# (model_type, fields, class of the next-token model, stem of its classes)
_WRITE: dict[
  type[ModelConfig], tuple[str, Callable[..., dict], str | None, str]
] = {
  bert.ModelConfig: ("bert", _write_bert, None, "Bert"),
  gpt2.ModelConfig: ("gpt2", _write_gpt2, "GPT2LMHeadModel", "GPT2"),
  llama.ModelConfig: ("llama", _write_llama, "LlamaForCausalLM", "Llama"),
  gemma2.ModelConfig: ("gemma2", _write_gemma2, "Gemma2ForCausalLM", "Gemma2"),
}


def write(config: ModelConfig) -> dict[str, Any]:
  """The contents of config.json, as transformers 4 and 5 read them."""
  kind, write_fields, causal, name = _WRITE[type(config)]
  head_dim = config.head_dim or config.width // config.heads
  has_head_dim = "head_dim" in (fields := write_fields(config))
  if config.layer_sizes or (
    not has_head_dim and head_dim * config.heads != config.width
  ):
    raise WeightsError(
      f"a simplified {kind} has layers or heads of sizes that its config.json"
      " cannot name; write it with bs.save, or export it"
    )
  values: dict[str, Any] = {"architectures": [causal], "model_type": kind}
  if config.num_labels is not None:
    labels = [f"LABEL_{i}" for i in range(config.num_labels)]
    values["architectures"] = [f"{name}ForSequenceClassification"]
    values["id2label"] = {str(i): label for i, label in enumerate(labels)}
    values["label2id"] = {label: i for i, label in enumerate(labels)}
  for field in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"):
    values[field] = getattr(config, field)
  # transformers 4 calls it torch_dtype and 5 reads that too.
  values["torch_dtype"] = config.param_dtype
  return values | fields


def num_labels(values: dict[str, Any]) -> int | None:
  """The number of classes that a config.json names, if it names one."""
  labels = values.get("id2label")
  if isinstance(labels, dict):
    return len(labels)
  count = values.get("num_labels")
  return count if isinstance(count, int) else None
