"""How to share bits among tensors without data, by loss at equal bytes.

python -m experiments.bench.allocation MODEL... [--text=FILE] [--bits=2,3,4]

A MODEL is a Hugging Face directory of a language model, with samples.npz in it
(token sequences, key "test") or with --text (a text file, or .jsonl.xz with a
field "text"), or the directory of one finished training of a classifier.
For each rule, each model is coded to the same sizes, and its loss measured on
the same texts. Every rule is compared with the square root of the rms: the
standard error of the difference is over the texts, in pairs.
Writes results/allocation_cpu.json and the table of docs/compress.md.
"""

import argparse
import itertools
import json
import lzma
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import backslash_jax as bs
from backslash_jax import archive, tree
from backslash_jax.archive import naming
from backslash_jax.cli import goal
from experiments import (
  cells,
  data,
  include,
  learner,
  program,
  resume,
  scoring,
  sharding,
)
from experiments.bench import timing
from experiments.data import tokenizer
from experiments.huggingface import weights

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "compress.md"
RULES = {
  "one step": goal.one,
  "square root of rms": goal.root,
  "rms": goal.rms,
  "largest magnitude": goal.largest,
}
RULE = "square root of rms"  # Of the command line.
_PART = 8  # Texts at a time.
Losses = Callable[[pathlib.Path], np.ndarray]  # Mean of each text, [S].


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("models", type=pathlib.Path, nargs="+")
  parser.add_argument("--text", type=pathlib.Path)
  parser.add_argument("--bits", default="2,3,4,5")
  parser.add_argument("--sequences", type=int, default=16)
  options = parser.parse_args()
  path = timing.RESULTS / "allocation_cpu.json"
  for model in options.models:
    params, losses = _open(model, options)
    with tempfile.TemporaryDirectory() as folder:
      file = pathlib.Path(folder) / naming.coded("model.safetensors")
      measured = _measure(params, losses, file, options)
    found = json.loads(path.read_text())["results"] if path.exists() else {}
    found[model.name] = measured
    command = "python -m experiments.bench.allocation MODEL..."
    timing.write("allocation", command, found)
    include.update(DOCS, {"allocation": _table(found)})


def _measure(params, losses: Losses, file, options) -> dict[str, Any]:
  """Loss by rule and size; nothing is stored exactly for its error."""
  chosen = tree.selected(params, tree.matrices)
  parameters = sum(x.size for x in params.values())
  bs.save(file, params, step=None)
  own = losses(file)
  found: dict[str, Any] = {
    "parameters": parameters,
    "texts": own.size,
    "exact": {"bytes": file.stat().st_size, "loss": float(own.mean())},
  } | {rule: {} for rule in RULES}
  print(found, flush=True)
  for wanted in map(float, options.bits.split(",")):
    by_rule = {}
    for rule in [RULE, *(r for r in RULES if r != RULE)]:
      steps = goal.Steps(chosen, archive.MAX_ERROR, RULES[rule])

      def size(scale, steps=steps):
        return bs.save(file, params, step=steps(scale)).bytes

      aim = goal.parse(wanted, None, parameters)
      assert aim is not None
      try:
        scale = goal.solve(size, aim, steps.scale(wanted))
      except ValueError as error:
        print(rule, wanted, error, flush=True)
        continue
      own = {"bytes": size(scale), "scale": scale}
      by_rule[rule] = losses(file)
      own["loss"] = float(by_rule[rule].mean())
      if rule != RULE and RULE in by_rule and by_rule[rule].size > 1:
        own["error"] = _error(by_rule[rule] - by_rule[RULE])
      found[rule][f"{wanted:g}"] = own
      print(rule, wanted, own, flush=True)
  return found


def _error(values: np.ndarray) -> float:
  """The standard error of the mean of independent values."""
  return float(values.std(ddof=1) / np.sqrt(values.size))


def _open(model: pathlib.Path, options) -> tuple[dict, Losses]:
  """The parameters by name, and the losses of a coded file of them."""
  if (model / cells.TRAINED).exists():
    return _open_classifier(model, options)
  if options.text:
    tokens = _tokens(model, options.text, options.sequences)
  else:
    tokens = np.load(model / "samples.npz")["test"][: options.sequences]
  tokens = np.asarray(tokens, np.int32)

  def losses(file):
    (file.parent / "config.json").write_bytes(
      (model / "config.json").read_bytes()
    )
    loaded = weights.load(file.parent)
    parts = np.split(tokens, range(_PART, len(tokens), _PART))
    return np.concatenate([_cross_entropy(loaded, part) for part in parts])

  tensors = archive.Base(model).tensors
  return {name: np.asarray(x) for name, x in tensors.items()}, losses


@nnx.jit
def _cross_entropy(model, tokens):
  logits = model(tokens, jnp.ones_like(tokens, bool))
  losses = optax.softmax_cross_entropy_with_integer_labels
  return losses(logits[:, :-1], tokens[:, 1:]).mean(axis=1)


def _tokens(model, path, count, length=128):
  """The first tokens of the first texts that have as many."""
  if path.suffix == ".xz":
    with lzma.open(path, "rt", encoding="utf-8") as file:
      lines = itertools.islice(file, 20 * count)
      texts = [json.loads(line)["text"] for line in lines]
  else:
    texts = [path.read_text()]
  encode = tokenizer.load(model).backend.encode
  found = [ids for text in texts if len(ids := encode(text).ids) >= length]
  return np.array([ids[:length] for ids in found[:count]])


def _open_classifier(run, options):
  config = resume.read_config(run)
  config.data.max_eval = 16 * options.sequences
  forward, _ = learner.build_abstract(config, data.load_task(config.data))
  params = bs.load(run / cells.TRAINED)["params"]
  score = scoring.make_score(config, forward, sharding.make_mesh(config))
  leaves, structure = jax.tree.flatten(params)
  del leaves

  def losses(file):
    coded = bs.load(file)
    flat = [coded[name] for name, _ in tree.named_leaves(params)]
    found = score(jax.tree.unflatten(structure, flat), "validation")
    return np.array([found["loss"]])  # Of all texts together.

  return dict(tree.named_leaves(params)), losses


def _table(found: dict[str, Any]) -> str:
  lines = [
    f"| model | bits per parameter | {' | '.join(RULES)} | exact |",
    f"|---|---:|{'---:|' * (len(RULES) + 1)}",
  ]
  for model, own in found.items():
    bits: set[str] = {b for rule in RULES for b in own[rule]}
    for b in sorted(bits, key=float):
      cells_ = [_cell(own, rule, b) for rule in RULES]
      exact = f"{own['exact']['loss']:.3f}"
      lines.append(f"| {model} | {b} | {' | '.join([*cells_, exact])} |")
  return "\n".join(lines)


def _cell(own: dict[str, Any], rule: str, bits: str) -> str:
  """A loss, and its difference from that of RULE where its error is known."""
  if bits not in own[rule]:
    return "-"
  found = own[rule][bits]
  text = f"{found['loss']:.3f}"
  if "error" in found:
    change = found["loss"] - own[RULE][bits]["loss"]
    text += f" ({change:+.3f} ± {found['error']:.3f})"
  return text


if __name__ == "__main__":
  program.end(main)
