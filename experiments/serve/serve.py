"""python -m experiments.serve MODEL --prompt=TEXT --weights=coded

Answers prompts with a model whose weights may stay coded in memory, or scores
it on texts with --score. MODEL is a directory in the layout of Hugging Face,
plain or coded, or the workdir of a finished training. Answers go to stdout;
tokens a second and the memory that it took go to stderr.
"""

import argparse
import json
import pathlib
import sys
from typing import Any

from experiments import settings
from experiments.data import vocabulary
from experiments.huggingface import files
from experiments.serve import chat, generate, memory, model, score, weights


def main() -> None:
  """The program."""
  flags = _parse()
  if flags.dtype not in ("float32", "bfloat16"):
    raise settings.UserError(
      f"--dtype={flags.dtype}: it is float32 or bfloat16"
    )
  served = model.read(flags.model, flags.weights, flags.dtype)
  if flags.score is not None:
    _report(served, score.score(served, flags.score))
    return
  prompts = _prompts(flags)
  answers = generate.generate(
    served,
    [
      encoded(served, prompt, chatting=flags.chat, system=flags.system)
      for prompt in prompts
    ],
    _options(served, flags),
  )
  texts = [decoded(served, tokens) for tokens in answers.tokens]
  for prompt, text in zip(prompts, texts, strict=True):
    text = _cut(text, flags.stop)
    print(text if len(texts) == 1 else json.dumps([prompt, text]))
  later = sum(max(0, len(tokens) - 1) for tokens in answers.tokens)
  seconds = answers.token_seconds
  _report(
    served,
    {
      "tokens": sum(map(len, answers.tokens)),
      "prompt_seconds": answers.prompt_seconds,
      "tokens_per_second": later / seconds if later and seconds else 0.0,
      "processor_seconds_per_token": answers.processor_seconds / max(1, later),
      "temporary_bytes": answers.temporary_bytes,
      "prompt_temporary_bytes": answers.prompt_temporary_bytes,
      "loading_peak_bytes": answers.loading_peak_bytes,
    },
  )


def _report(served: model.Served, found: dict[str, Any]) -> None:
  """A line of JSON: on stderr after answers, on stdout what was scored."""
  is_score = "loss" in found
  line = {k: round(v, 6) for k, v in found.items()}
  line |= {"weights_bytes": served.nbytes, "peak_bytes": memory.peak()}
  print(json.dumps(line), file=sys.stdout if is_score else sys.stderr)


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="python -m experiments.serve",
    description=__doc__.split("\n\n")[1],
  )
  add = parser.add_argument
  add("model", type=pathlib.Path, metavar="MODEL")
  add(
    "--prompt",
    action="append",
    metavar="TEXT",
    help="what to answer; several make a batch",
  )
  add(
    "--prompts",
    metavar="FILE",
    help="a prompt in every line; - (default): standard input",
  )
  add("--chat", action="store_true", help="prompts are turns of a chat")
  add("--system", metavar="TEXT", help="what a chat begins with")
  add(
    "--weights",
    default="dense",
    help=f"what lies in memory: {', '.join(weights.KINDS)} (dense)",
  )
  add("--dtype", default="float32", help="of the computation, or bfloat16")
  add("--max-tokens", type=int, default=64, help="of an answer (64)")
  add("--temperature", type=float, default=0.0, help="0 (default): greedy")
  add("--top-k", type=int, help="samples one of so many likeliest tokens")
  add("--seed", type=int, default=0, help="of the samples (0)")
  add("--stop", action="append", default=[], help="a text that ends an answer")
  add(
    "--score",
    metavar="FILE",
    help="prints loss and accuracy of the texts in a file, one a line, or of a"
    " split of the training: validation or test",
  )
  return parser.parse_args()


def _prompts(flags: argparse.Namespace) -> list[str]:
  """The prompts of the flags, a file or standard input."""
  return flags.prompt or read_prompts(flags.prompts or "-")


def read_prompts(name: str) -> list[str]:
  """The prompts in the lines of a file; "-" is standard input.

  Raises:
    UserError: it cannot be read, or there is none.
  """
  try:
    if name == "-":
      text = sys.stdin.read()
    else:
      text = pathlib.Path(name).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise settings.UserError(f"--prompts={name}: {error}") from error
  prompts = text.splitlines()
  if not prompts:
    raise settings.UserError(
      f"no prompt in {'standard input' if name == '-' else name}: give one in"
      " each line, or --prompt=TEXT"
    )
  return prompts


def encoded(
  served: model.Served,
  prompt: str,
  *,
  chatting: bool = False,
  system: str | None = None,
) -> list[int]:
  """The tokens of a prompt; none of an empty one.

  Args:
    served: the model.
    prompt: a text.
    chatting: whether it is a turn of a chat.
    system: what a chat begins with.

  Raises:
    UserError: there is no tokenizer, or none for chats.
  """
  words = served.words
  if words is None:
    raise settings.UserError(
      f"{served.path} has no tokenizer: put its tokenizer.json there"
    )
  if not prompt.strip():
    return []
  if isinstance(words, vocabulary.Bytes):
    if chatting:
      raise settings.UserError(
        f"{served.path} reads bytes, which have no form of chats: leave --chat"
        " out"
      )
    return list(prompt.encode())
  if not chatting:
    return words.tokenizer.encode(prompt)
  text = chat.render(served.path, words.tokenizer, prompt, system)
  return words.tokenizer.encode(text, special=False)


def _options(
  served: model.Served, flags: argparse.Namespace
) -> generate.Options:
  """What the flags say of generation."""
  if not 0 <= flags.temperature < float("inf"):
    raise settings.UserError(
      f"--temperature={flags.temperature}: it is 0 or positive"
    )
  if flags.top_k is not None and flags.top_k < 1:
    raise settings.UserError(f"--top-k={flags.top_k}: it must be positive")

  def is_stop(tokens: list[int]) -> bool:
    text = decoded(served, tokens)
    return any(stop in text for stop in flags.stop)

  return generate.Options(
    max_tokens=flags.max_tokens,
    temperature=flags.temperature,
    top_k=flags.top_k,
    seed=flags.seed,
    stops=stops(served),
    **({"is_stop": is_stop} if flags.stop else {}),
  )


def stops(served: model.Served) -> frozenset[int]:
  """The tokens that end an answer, by all that the directory says."""
  found: list[Any] = [None if served.words is None else served.words.end]
  found.append(getattr(served.config, "eos_token_id", None))
  if (path := served.path / "generation_config.json").exists():
    found.append(files.read_json(path).get("eos_token_id"))
  found_ids: set[int] = set()
  for ids in found:
    if ids is not None:
      found_ids |= set(ids) if isinstance(ids, (list, tuple)) else {ids}
  return frozenset(found_ids)


def decoded(served: model.Served, tokens: list[int]) -> str:
  """The text of an answer of a model that has a tokenizer."""
  words = served.words
  assert words is not None
  if isinstance(words, vocabulary.Bytes):
    return bytes(t for t in tokens if t < 256).decode(errors="replace")
  return words.tokenizer.decode(tokens)


def _cut(text: str, stops: list[str]) -> str:
  """The text before the first stop."""
  return text[: min((text.find(s) for s in stops if s in text), default=None)]
