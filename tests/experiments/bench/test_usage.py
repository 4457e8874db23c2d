"""What is said of an update on chips, next to what follows from the model."""

import json
import math
import re

import pytest

from experiments.bench import roofline, timing, usage
from experiments.models import gemma2, llama

LENGTH = 2048
TABLES = [
  ("llama", llama.SIZES["3.2-1b"], 128256),
  ("gemma", gemma2.SIZES["2b"], 256000),
  ("deepseek_v5e", llama.SIZES["deepseek-7b"], 102400),
  ("deepseek_v5p", llama.SIZES["deepseek-7b"], 102400),
]


@pytest.mark.parametrize(("name", "model", "vocabulary"), TABLES)
def test_the_tables_count_every_layer_of_a_whole_update(
  name, model, vocabulary
):
  """FLOPs and bytes by hand, from the sizes of the model."""
  path = timing.RESULTS / f"aot_{name}_cpu.json"
  document = json.loads(path.read_text())
  (batch,) = re.findall(r"batch_size=(\d+)", document["command"])
  sides = document["results"]["topology"].split(":")[1].split("x")
  own = int(batch) / math.prod(map(int, sides))  # Sequences of a chip.
  heads = model.heads * model.head_dim
  attention = 2 * model.width * (heads + model.kv_heads * model.head_dim)
  down = model.width * model.mlp
  blocks = model.depth * (attention + 3 * down)
  table = vocabulary * model.width
  # Two operations forward, four backward and two in the recomputation, which
  # leaves out a block's last product, where nothing needs it.
  flops = 8 * (blocks + table) * own * LENGTH
  if name != "gemma":  # It has a norm after that product.
    flops -= 2 * model.depth * down * own * LENGTH
  # Attention: 2 products of the scores forward, 2 again, and 7 backward, where
  # its two kernels both compute the scores; a half of the scores each.
  flops += 11 * model.depth * own * LENGTH**2 * heads
  # Blocks are gathered forward and backward; gradients come from both uses of
  # the embedding, or from the embedding and the head.
  tables = 1 if name == "gemma" or model.tied else 2
  gathered, reduced = 2 * blocks + tables * table, blocks + 2 * table
  for rate in ("off", "on"):
    found = usage.Usage(**document["results"][rate])
    assert found.flops == pytest.approx(flops, rel=1e-5)
    assert found.collectives["all-gather"][1] == 2 * gathered
    assert found.collectives["all-reduce"][1] == pytest.approx(
      2 * reduced, rel=1e-3
    )


def test_the_roofline_is_of_the_part_that_takes_longest():
  bound = roofline.of(roofline.CHIPS["v5e"], 197e12, 819e9 / 2, 2 * 200e9)
  assert bound == (1.0, 0.5, 2.0)
  assert bound.bound == "links"
  assert (bound.fraction, bound.exposed) == (0.5, 1 / 3.5)
