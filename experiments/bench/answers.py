"""What serving takes with dense, packed and coded weights: memory and time.

python -m experiments.bench.answers --model=CODED --name=smollm2

CODED is a directory that `backslash-jax compress` wrote. Every run of
`experiments.serve` is a process of its own; the three kinds of weights take
turns. The table of docs/memory.md is written, too.
"""

import json
import subprocess
import sys
from typing import Any

from absl import flags

from experiments import program
from experiments.bench import memory, timing
from experiments.serve import weights

_FACTS = (
  "tokens_per_second",
  "processor_seconds_per_token",
  "prompt_seconds",
  "weights_bytes",
  "temporary_bytes",
  "prompt_temporary_bytes",
  "loading_peak_bytes",
  "peak_bytes",
)
_MODEL = flags.DEFINE_string("model", None, "The directory.", required=True)
_NAME = flags.DEFINE_string("name", None, "Of the results.", required=True)
_PROMPT = flags.DEFINE_string(
  "prompt", "What is the capital of France?", "What is answered."
)
_ROWS = flags.DEFINE_integer("rows", 1, "Prompts in a batch, all alike.")
_TOKENS = flags.DEFINE_integer("tokens", 64, "Of an answer, at most.")
_KINDS = flags.DEFINE_list(
  "kinds", list(weights.KINDS), "What is measured; the others keep their rows."
)
_DTYPE = flags.DEFINE_string("dtype", "float32", "Of the computation.")


def run(kind: str) -> tuple[str, dict[str, Any]]:
  """The answers, and the facts of one process."""
  found = subprocess.run(
    [
      *(sys.executable, "-m", "experiments.serve", _MODEL.value, "--chat"),
      *(f"--prompt={_PROMPT.value}" for _ in range(_ROWS.value)),
      f"--weights={kind}",
      f"--max-tokens={_TOKENS.value}",
      f"--dtype={_DTYPE.value}",
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  if found.returncode:
    sys.exit(found.stderr)
  return found.stdout, json.loads(found.stderr.splitlines()[-1])


def _summary(samples: list[float]) -> dict[str, float]:
  """See `timing.summary`; one sample is its own median."""
  return timing.summary(samples * 2 if len(samples) == 1 else samples)


def main(argv):
  del argv
  samples: dict[str, list[dict[str, Any]]] = {k: [] for k in _KINDS.value}
  answers = {}
  for _ in range(timing.REPEATS.value):
    for kind, own in samples.items():
      answers[kind], facts = run(kind)
      own.append(facts)
  name = f"answers_{_NAME.value}"
  path = timing.RESULTS / f"{name}_cpu.json"
  results: dict[str, Any] = {}
  if path.exists():
    results = json.loads(path.read_text())["results"]
  for kind, own in samples.items():
    results[kind] = {
      fact: _summary([facts[fact] for facts in own]) for fact in _FACTS
    } | {"answers": answers[kind]}
  words = (w for w in sys.argv[1:] if not w.startswith("--kinds"))
  command = " ".join(["python -m experiments.bench.answers", *words])
  timing.write(name, command, results)
  memory.update()


if __name__ == "__main__":
  program.run(main)
