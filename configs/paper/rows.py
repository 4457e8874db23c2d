"""The rows of Tables 4 and 5 of the paper, a model and a task each.

python -m experiments.main --config=configs/paper/rows.py:table4_bert/full \\
  --workdir=DIR

The argument is ROW, ROW/PROFILE or ROW/PROFILE/ARM. The profile is "small", the
default, for two CPU cores, "medium", see medium.py, or "full", the paper's
model; docs/reproduction.md has the times of the small profile. The arms are
normal, backslash and, in the full profile, algorithm1; without ARM all of them
are trained.

The paper's numbers: bits per parameter with a fixed length (FL), exp-Golomb
(EG) and Huffman (HM) code, and the accuracy in %.

| row | model and task | training | FL | EG | HM | accuracy |
|---|---|---|---|---|---|---|
| table4_bert | BERT, IMDB | normal | 10 | 7.31 | 5.47 | 93.63 |
| | | BackSlash | 10 | 2.64 | 2.42 | 92.59 |
| table4_gpt2 | GPT-2 (774M), IMDB | normal | 11 | 7.78 | 5.73 | 85.92 |
| | | BackSlash | 11 | 2.46 | 2.25 | 88.73 |
| table4_llama3 | Llama-3 (3.2, 1B), IMDB | normal | 10 | 5.49 | 4.43 | 86.09 |
| | | BackSlash | 10 | 1.72 | 1.66 | 86.93 |
| table4_gemma2 | Gemma-2 (2B), IMDB | normal | 11 | 4.45 | 3.95 | 86.95 |
| | | BackSlash | 11 | 1.16 | 1.15 | 85.86 |
| table5_enron | BERT, Enron-Spam | normal | 10 | 7.31 | 5.47 | 99.65 |
| | | BackSlash | 10 | 2.42 | 2.19 | 98.96 |
| table5_newsgroups | BERT, 20 Newsgroups | normal | 10 | 7.31 | 5.47 | 70.78 |
| | | BackSlash | 10 | 3.61 | 3.18 | 69.36 |
| table5_squad | DeepSeek LLM 7B, SQuAD | normal | 11 | 5.95 | 4.70 | 99.97 |
| | | BackSlash | 11 | 2.90 | 2.81 | 99.97 |
| table5_wmt19 | DeepSeek LLM 7B, WMT-19 | normal | 11 | 6.10 | 4.70 | 99.96 |
| | | BackSlash | 11 | 3.10 | 3.00 | 99.95 |

table4_bert is in Table 5 too. WMT-19 is English to German. The accuracy of
SQuAD and WMT-19 is that of the next token of the reference.

Hardware of the full profile: one accelerator of 16 GB for BERT; one of 80 GB,
or 8 of 16, for GPT-2, Llama-3 and Gemma-2; 8 of 80 GB for DeepSeek. Its times
were not measured. In the small profile, table4_bert and table5_newsgroups are
the pretrained MiniLM encoder (22.7M parameters); the others are two blocks of
the architecture from scratch.
"""

from typing import Any

import ml_collections

from configs.paper import common

ROWS: dict[str, dict[str, Any]] = {
  "table4_bert": {"model": "bert", "task": "imdb"},
  "table4_gpt2": {"model": "gpt2", "task": "imdb"},
  "table4_llama3": {"model": "llama3", "task": "imdb"},
  "table4_gemma2": {"model": "gemma2", "task": "imdb"},
  "table5_enron": {"model": "bert", "task": "enron_spam", "pretrained": False},
  "table5_newsgroups": {"model": "bert", "task": "newsgroups20"},
  "table5_squad": {"model": "deepseek", "task": "squad"},
  "table5_wmt19": {"model": "deepseek", "task": "wmt19"},
}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  row, _, rest = argument.partition("/")
  if row not in ROWS:
    raise ValueError(
      f"the argument is {argument!r}, wanted a row, such as table4_bert or"
      f" table4_bert/full: one of {', '.join(ROWS)}"
    )
  return common.build(rest or "small", **ROWS[row])
