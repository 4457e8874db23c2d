"""What is read from the text of compiled programs."""

import jax
import jax.numpy as jnp
import pytest

from experiments import settings
from experiments.bench import cost, hlo

TEXT = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter (p: bf16[16,4]) -> bf16[4,4] {
  %p = bf16[16,4]{1,0} parameter(0)
  %r = bf16[16,4]{1,0} all-reduce(%p), channel_id=7, replica_groups={{0,1,2,3}}, to_apply=%add
  %i = u32[] partition-id()
  ROOT %s = bf16[4,4]{1,0} dynamic-slice(%r, %i, %i), dynamic_slice_sizes={4,4}
}

%body (t: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %t = (s32[], f32[8,4]{1,0}) parameter(0)
  %x = f32[8,4]{1,0} get-tuple-element(%t), index=1
  %g = f32[32]{0} all-gather(%x), channel_id=5, replica_groups=[2,4]<=[8], dimensions={0}
  %d = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  ROOT %u = (s32[], f32[8,4]{1,0}) tuple(%t, %x)
}

%condition (t: (s32[], f32[8,4])) -> pred[] {
  %t = (s32[], f32[8,4]{1,0}) parameter(0)
  %n = s32[] constant(6)
  %i = s32[] get-tuple-element(%t), index=0
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[2,2], y: bf16[16,4]) -> f32[2,2] {
  %x = f32[2,2]{1,0} parameter(0)
  %y = bf16[16,4]{1,0} parameter(1)
  %w = (s32[], f32[8,4]{1,0}) while(%x), condition=%condition, body=%body
  %f = bf16[4,4]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter
  %b = (f32[], bf16[8]{0}) all-reduce-start(%x, %y), channel_id=1, replica_groups=mesh['a'=2,'b'=4] {'b'}
  %c = (f32[4]{0}, f32[32]{0}) all-gather-start(%x), channel_id=2, dimensions={0}
  %c2 = f32[32]{0} all-gather-done(%c)
  %e = pred[3]{0} collective-permute(%x), channel_id=3
  %q = bf16[2,8,512,64]{3,2,1,0} broadcast(%x)
  %k = bf16[2,4,512,64]{3,2,1,0} broadcast(%x)
  %splash_mha_dq_segmented.1 = bf16[2,8,512,64]{3,2,1,0} custom-call(%x, %x, %q, %k, %k), custom_call_target="tpu_custom_call"
  ROOT %a = f32[2,2]{1,0} all-reduce(%x), channel_id=4, metadata={op_name="jit(f)/psum"}
}
"""  # noqa: E501


def test_collectives_are_read_with_their_bytes():
  assert hlo.collectives(TEXT) == [
    ("all-gather", 128, "", 4, 6),
    ("reduce-scatter", 128, "", 4, 1),
    ("all-reduce", 20, "", 4, 1),
    ("all-gather", 128, "", 0, 1),
    ("collective-permute", 3, "", 0, 1),
    ("all-reduce", 16, "jit(f)/psum", 0, 1),
  ]


def test_kernels_of_attention_count_as_causal():
  # Three products of half of the scores, and the one in the loop.
  kernel = 3 * 2 * 2 * 8 * 512 * 512 * 64 / 2
  assert cost.flops(hlo.Program(TEXT)) == kernel + 6 * 2 * 8 * 8 * 4


def test_a_loop_of_unknown_length_is_not_counted_as_one_round():
  text = TEXT.replace("s32[] constant(6)", "s32[] parameter(1)")
  with pytest.raises(settings.UserError, match="how often its loop w runs"):
    hlo.collectives(text)


def test_bytes_sent_are_those_of_a_ring():
  sent = {
    kind: hlo.Collective(kind, 80, "", 8, 3).sent
    for kind in ("all-gather", "reduce-scatter", "all-reduce")
  }
  assert sent == {"all-gather": 210, "reduce-scatter": 210, "all-reduce": 420}


def _program(function, *arrays):
  return hlo.Program(jax.jit(function).lower(*arrays).compile().as_text())


def test_a_loop_counts_as_often_as_it_runs():
  """Three products of matrices in each of five rounds."""
  weights = jnp.ones((5, 64, 64))

  def layer(x, w):
    return jnp.tanh(x @ w @ w @ w), None

  def scanned(x, weights):
    return jax.lax.scan(layer, x, weights)[0]

  program = _program(scanned, jnp.ones((32, 64)), weights)
  assert cost.flops(program) == 5 * 3 * 2 * 32 * 64 * 64
  # Of the stacked weights, each round reads its own.
  assert cost.moved(program) < 10 * 4 * weights.size


@pytest.mark.parametrize("equation", ["bij,bjk->bik", "bic,bjc->bij"])
def test_products_of_batches_count_each_of_them(equation):
  a, b = jnp.ones((3, 16, 32)), jnp.ones((3, 32, 32))
  program = _program(lambda a, b: jnp.einsum(equation, a, b), a, b)
  assert cost.flops(program) == 2 * 3 * 16 * 32 * 32


def test_bytes_moved_are_those_of_operands_and_results():
  x = jnp.ones((256, 256))
  program = _program(lambda x, y: jnp.tanh(x) + y, x, x)
  assert cost.moved(program) == 3 * 4 * x.size
