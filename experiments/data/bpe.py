"""A small vocabulary of byte pairs, learned from a task's training texts.

python -m experiments.data.bpe --name=imdb --source=DATA \
  --size=4096 --output=DIR

For models too small to carry a published vocabulary. DIR is then a tokenizer
in GPT-2's files, for --config.data.tokenizer.
"""

import pathlib
import shutil
import tempfile

from absl import flags

from experiments import program
from experiments.data import prepare, task, text

END = "<|endoftext|>"


def write(
  name: str, directory: pathlib.Path, *, size: int, source: str | None
) -> None:
  """Writes vocab.json and merges.txt into directory, unless it is there.

  Args:
    name: of a task of classified texts.
    directory: made whole under another name, then renamed.
    size: tokens, the 256 bytes and the end of a text among them.
    source: of the texts, as `data.source`.

  Raises:
    ValueError: the task or its source do not serve.
    ModuleNotFoundError: `tokenizers` is not installed.
  """
  if directory.exists():
    return
  import tokenizers

  options = task.Options(
    name=name,
    seq_len=1,
    source=source,
    tokenizer="bytes",
    strip=True,
    pack=False,
    max_train=None,
    max_eval=None,
  )
  records = text.records(options, pathlib.Path(prepare.default_dir()))
  words = tokenizers.ByteLevelBPETokenizer()
  words.train_from_iterator(
    (r["text"] for r in records["train"]),
    vocab_size=size,
    special_tokens=[END],
    show_progress=False,
  )
  directory.parent.mkdir(parents=True, exist_ok=True)
  fresh = tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-")
  try:
    words.save_model(fresh)
    pathlib.Path(fresh).rename(directory)
  except BaseException:
    shutil.rmtree(fresh, ignore_errors=True)
    raise


def _main(_) -> None:
  values = flags.FLAGS
  write(
    values.name,
    pathlib.Path(values.output),
    size=values.size,
    source=values.source,
  )


if __name__ == "__main__":
  flags.DEFINE_string("name", "imdb", "The task.")
  flags.DEFINE_string("source", None, "See docs/data.md; None downloads.")
  flags.DEFINE_string("output", None, "The directory.", required=True)
  flags.DEFINE_integer("size", 4096, "Tokens.")
  program.run(_main)
