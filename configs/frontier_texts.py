"""The frontiers of fine-tuning a pretrained encoder, MiniLM, on three tasks.

python -m experiments.frontier --config=configs/frontier_texts.py:sst2 \
  --workdir=runs/frontier_sst2

The argument is TASK or TASK/PROFILE; the tasks are sst2, newsgroups and imdb.
The profile "small", the default, is for two CPU cores; "full" has every method
and point and three seeds; "delta" compares fine-tunes that are stored as
differences from the pretrained weights with LoRA. configs/pretrained.py says
where weights and data come from.

Hardware: two CPU cores with a process on each, see docs/frontier.md. Minutes on
a core of a training with one file, a training with seven files, and seven files
of a trained model, and of the 22 trainings of the small grid on both cores:

| task | one file | seven files | files alone | grid |
|---|---|---|---|---|
| sst2 | 6 | 9 | 3.5 | 80 |
| newsgroups, imdb | 7 | 12 | 5 | 100 |
"""

import ml_collections

from configs import pretrained

# Name of the data set, and tokens per example in the small and full profile.
TASKS = {
  "sst2": ("sst2", 32, 64),  # 25 tokens on average.
  "newsgroups": ("newsgroups20", 64, 256),
  "imdb": ("imdb", 64, 256),
}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  task, _, profile = argument.partition("/")
  if task not in TASKS:
    raise ValueError(
      f"the argument is {argument!r}, wanted a task, such as sst2 or"
      f" sst2/full: one of {', '.join(TASKS)}"
    )
  name, small, full = TASKS[task]
  if profile == "delta":
    return pretrained.differences(name, small)
  seq_len = full if profile == "full" else small
  return pretrained.grid(profile or "small", name, seq_len)
