"""The form that a model's chats have: prompts as it was trained to answer them.

The template of the tokenizer is used where there is one, which needs jinja2.
Without one, a tokenizer that has the two tokens of ChatML is taken to want it.
"""

import pathlib
from typing import Any

from experiments import settings
from experiments.data import tokenizer
from experiments.huggingface import files

_BEGIN, _END = "<|im_start|>", "<|im_end|>"


def render(
  path: pathlib.Path,
  words: tokenizer.Tokenizer,
  prompt: str,
  system: str | None = None,
) -> str:
  """The text that a model continues with its answer to a prompt.

  Args:
    path: the directory of the tokenizer.
    words: the tokenizer.
    prompt: what the user says.
    system: what comes before it; None leaves it to the template.

  Raises:
    UserError: the model has no form of chats, or its template refuses.
  """
  messages = [{"role": "user", "content": prompt}]
  if system is not None:
    messages.insert(0, {"role": "system", "content": system})
  described: dict[str, Any] = {}
  if (file := path / "tokenizer_config.json").exists():
    described = files.read_json(file)
  template = described.get("chat_template")
  if (file := path / "chat_template.jinja").exists():
    template = file.read_text(encoding="utf-8")
  if isinstance(template, list):  # Several, by name.
    template = {t["name"]: t["template"] for t in template}.get("default")
  if template is not None:
    return _templated(path, template, messages, described)
  if any(words.backend.token_to_id(t) is None for t in (_BEGIN, _END)):
    raise settings.UserError(
      f"{path}: the tokenizer has no chat_template, and no tokens of ChatML:"
      " leave --chat out, and write the prompt as the model wants it"
    )
  turns = [f"{_BEGIN}{m['role']}\n{m['content']}{_END}\n" for m in messages]
  return "".join(turns) + f"{_BEGIN}assistant\n"


def _templated(path, template, messages, described) -> str:
  try:
    # pyrefly: ignore[missing-import]
    from jinja2 import TemplateError, sandbox
  except ModuleNotFoundError as error:
    raise settings.UserError(
      f"{path}: its chat_template needs `pip install jinja2`"
    ) from error

  def refuse(message):
    raise TemplateError(message)

  # The template comes with the model: it runs with nothing within its reach.
  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True
  )
  special = {
    name: tokenizer.content(described.get(name))
    for name in ("bos_token", "eos_token", "pad_token", "unk_token")
  }
  try:
    return environment.from_string(template).render(
      messages=messages,
      add_generation_prompt=True,
      raise_exception=refuse,
      **special,
    )
  except TemplateError as error:
    raise settings.UserError(
      f"{path}: the chat_template refuses: {error}"
    ) from error
