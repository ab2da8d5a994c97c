"""Collectives as read from the text of compiled programs."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import pytest

from mixer.cost import hlo

PROGRAM = """
HloModule jit_step

%body.1 (p: (f32[8], s32[])) -> (f32[8], s32[]) {
  %all-gather.3 = bf16[16,128]{1,0} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
}

%condition.1 (p: (f32[8], s32[])) -> pred[] {
  %constant.9 = s32[]{:T(128)} constant(24), metadata={op_name="jit(step)/while/cond"}
  ROOT %compare.1 = pred[]{:T(512)} compare(%i, %constant.9), direction=LT
}

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %add.1 = f32[] add(%x, %y)
}

%inner.7 (p: f32[4]) -> f32[4] {
  %reduce-scatter.1 = f32[4]{0} reduce-scatter(%y), channel_id=4, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %all-reduce.5 = (bf16[512,2048]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[10]{0}) all-reduce(%a, %b), replica_groups=mesh['data'=4,'fsdp'=2] {'data','fsdp'}, to_apply=%add
  %get-tuple-element.4 = bf16[512,2048]{1,0} get-tuple-element(%all-reduce.5), index=0
  %collective-permute-start.2 = (u8[1,224,224,3]{2,1,3,0}, u8[1,224,224,3]{2,1,3,0}) collective-permute-start(%i), source_target_pairs={{0,1},{1,0}}
  %collective-permute-done.2 = u8[1,224,224,3]{2,1,3,0} collective-permute-done(%collective-permute-start.2)
  %while.1 = (f32[8], s32[]) while(%t), condition=%condition.1, body=%body.1
  %fusion.1 = f32[4]{0} fusion(%a), kind=kCustom, calls=%inner.7
}
"""  # noqa: E501


def test_every_collective_is_read_with_its_size_its_group_and_its_loop():
  found = {one.kind: one for one in hlo.collectives(PROGRAM)}
  assert found == {
    'all-gather': hlo.Collective('all-gather', 16 * 128 * 2, group=4, times=24),
    'reduce-scatter': hlo.Collective('reduce-scatter', 4 * 4, group=4, times=1),
    'all-reduce': hlo.Collective('all-reduce', 512 * 2048 * 2 + 40, group=8, times=1),
    'collective-permute': hlo.Collective('collective-permute', 224 * 224 * 3, group=2, times=1),
  }


def test_bytes_sent_are_those_of_a_ring():
  sent = {one.kind: one.sent for one in hlo.collectives(PROGRAM)}
  assert sent['all-gather'] == 24 * 4096 * 3 / 4  # all but the own part
  assert sent['reduce-scatter'] == 16 * 3  # the results of the three others
  assert sent['all-reduce'] == pytest.approx((512 * 2048 * 2 + 40) * 2 * 7 / 8)
  assert sent['collective-permute'] == 224 * 224 * 3


# As libtpu 0.0.50 writes them, with fsdp.
FORMS_OF_A_TPU = """
%all-reduce-scatter.17 (input: bf16[512,2048], input.1: bf16[2048,512]) -> (bf16[512,256], bf16[256,512]) {
  %all-reduce.198 = (bf16[512,2048]{1,0}, bf16[2048,512]{1,0}) all-reduce(%input, %input.1), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7},{8,9,10,11,12,13,14,15}}, to_apply=%add
  %dynamic-slice.125 = bf16[512,256]{1,0} dynamic-slice(%all-reduce.198, %partition-id.37)
}

%start.1 (p: bf16[512,256]) -> bf16[512,2048] {
  %all-gather.1 = bf16[512,2048]{1,0} all-gather(%p), channel_id=2, replica_groups=[2,8]<=[16], frontend_attributes={chain_id="0"}
}

%async_collective_fusion.1 (p: bf16[512,256]) -> bf16[512,2048] {
  %all-gather.2 = bf16[512,2048]{1,0:T(8,128)S(1)} all-gather(%p), channel_id=2, replica_groups=[2,8]<=[16], frontend_attributes={chain_id="0"}
}

%other.1 (p: bf16[512,256]) -> bf16[512,2048] {
  %all-gather.3 = bf16[512,2048]{1,0} all-gather(%p), channel_id=2, replica_groups=[2,8]<=[16], frontend_attributes={chain_id="1"}
}

%add (x: bf16[], y: bf16[]) -> bf16[] {
  ROOT %add.1 = bf16[] add(%x, %y)
}

ENTRY %main (a: bf16[8]) -> bf16[8] {
  %fusion.1 = (bf16[512,256]{1,0}, bf16[256,512]{1,0}) fusion(%a, %b), kind=kCustom, calls=%all-reduce-scatter.17
  %fusion.2 = bf16[512,2048]{1,0} fusion(%a), kind=kCustom, calls=%start.1
  %fusion.3 = bf16[512,2048]{1,0} fusion(%fusion.2), kind=kOutput, calls=%async_collective_fusion.1
  %fusion.4 = bf16[512,2048]{1,0} fusion(%a), kind=kOutput, calls=%other.1
}
"""  # noqa: E501


def test_forms_that_a_tpu_has_of_its_own():
  """A reduce-scatter of two arrays over 8, and two gathers of which one goes on in two fusions."""
  mib = 2**20
  assert hlo.by_kind(hlo.collectives(FORMS_OF_A_TPU)) == {
    'all-gather': {'count': 2, 'bytes': 2 * 2 * mib, 'sent': 2 * 2 * mib * 7 // 8},
    'reduce-scatter': {'count': 1, 'bytes': 4 * mib // 8, 'sent': 4 * mib * 7 // 8},
  }


@pytest.mark.parametrize('loop', [1, 5])
def test_a_real_program(loop):
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  rows, whole = NamedSharding(mesh, P('data')), NamedSharding(mesh, P())

  def step(x, w):
    def body(w, _):
      return w + jax.lax.with_sharding_constraint(jnp.tanh(x @ w).T @ x, whole), None

    return jax.lax.scan(body, w, None, length=loop)[0]

  shapes = jax.ShapeDtypeStruct((64, 32), jnp.float32), jax.ShapeDtypeStruct((32, 32), jnp.float32)
  compiled = jax.jit(step, in_shardings=(rows, whole), out_shardings=whole).lower(*shapes).compile()
  assert hlo.by_kind(hlo.collectives(compiled.as_text())) == {
    'all-reduce': {'count': loop, 'bytes': loop * 4096, 'sent': loop * 4096 * 2 * 7 // 8}
  }
