"""The program that the commands of tables and of figures share."""

import fnmatch
import functools
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from absl import flags

from configs.paper import common
from experiments import program, settings
from experiments.paper import plan

# Of name and seed, see `plan.read`.
Records = Mapping[str, Mapping[int, Mapping[str, Any]]]


def launch(
  kind: str,
  names: Sequence[str],
  cells: Callable[[str], Collection[str]],
  write: Callable[[str, Records, pathlib.Path], None],
) -> None:
  """Runs the program: runs the missing cells, then writes everything.

  Args:
    kind: "table" or "figure", the flag that chooses one of `names`, or "all".
    names: of the tables or figures.
    cells: the names of the cells that a table or figure shows.
    write: called with a name, its records and the directory of the results.
  """
  flags.DEFINE_enum(kind, "all", [*names, "all"], f"The {kind} to write.")
  flags.DEFINE_enum(
    "profile",
    "small",
    common.PROFILES,
    "small: for two CPU cores; medium: pretrained models, days of a few CPU"
    " cores; full: the paper's models.",
  )
  flags.DEFINE_string(
    "source", None, "Directory with the data sets; downloaded without it."
  )
  flags.DEFINE_string(
    "encoder", None, "Directory of MiniLM; downloaded without it."
  )
  flags.DEFINE_string(
    "llama", None, "Directory of SmolLM2; downloaded without it."
  )
  flags.DEFINE_string(
    "workdir", None, "Directory of the trainings; default: runs/paper/PROFILE."
  )
  flags.DEFINE_string(
    "results",
    None,
    "Directory of records and tables; default: results in the workdir.",
  )
  flags.DEFINE_list(
    "seeds", ["0", "1", "2"], "Seeds; every cell is run with each."
  )
  flags.DEFINE_list(
    "cells", [], "Run only cells of these glob patterns: table4_gpt2/*."
  )
  flags.DEFINE_bool("run", True, "Run the cells that are missing.")
  program.run(functools.partial(_main, kind, names, cells, write))


def _main(kind, names, cells, write, argv) -> None:
  del argv
  values = flags.FLAGS
  chosen = getattr(values, kind)
  if not all(seed.isdecimal() for seed in values.seeds):
    raise settings.UserError(
      f"--seeds is {','.join(values.seeds)}, wanted numbers like 0,1,2"
    )
  workdir = pathlib.Path(values.workdir or f"runs/paper/{values.profile}")
  results = pathlib.Path(values.results or workdir / "results")
  planned = plan.plan(
    values.profile,
    plan.Places(
      workdir=workdir,
      results=results,
      source=values.source,
      encoder=values.encoder,
      llama=values.llama,
    ),
    [int(seed) for seed in values.seeds],
  )
  chosen = names if chosen == "all" else [chosen]
  shown_in = {name: with_normal(cells(name)) for name in chosen}
  every = dict.fromkeys(n for shown in shown_in.values() for n in shown)
  wanted = matching(every, values.cells)
  for name, shown in shown_in.items():
    if values.run:
      plan.run(planned, wanted.intersection(shown))
    write(name, {n: plan.records(planned, n) for n in shown}, results)
    print(f"{kind} {name} is in {results}")


def matching(cells: Collection[str], patterns: Sequence[str]) -> set[str]:
  """The cells that a pattern matches; all of them without patterns.

  Raises:
    UserError: a pattern matches none.
  """
  found: set[str] = set() if patterns else set(cells)
  for pattern in patterns:
    some = fnmatch.filter(cells, pattern)
    if not some:
      raise settings.UserError(
        f"--cells: no cell matches {pattern!r}; there are"
        f" {', '.join(sorted(cells))}"
      )
    found.update(some)
  return found


def with_normal(names: Collection[str]) -> list[str]:
  """The names, with those of the normal trainings that they compare with."""
  normal = [f"{name.partition('/')[0]}/normal" for name in names]
  return list(dict.fromkeys([*normal, *names]))
