"""Bytes accessed, as read from the text of compiled programs."""

import jax
import jax.numpy as jnp
import pytest

from mixer import models
from mixer.cost import hlo_traffic

PROGRAM = """
HloModule jit_step

%takes_a_slice (stack: f32[24,256], i: s32[], x: f32[256]) -> f32[256] {
  %stack = f32[24,256]{1,0} parameter(0)
  %x = f32[256]{0} parameter(2)
  %i = s32[] parameter(1)
  %dynamic-slice.1 = f32[1,256]{1,0} dynamic-slice(%stack, %i, %zero), dynamic_slice_sizes={1,256}
  %bitcast.1 = f32[256]{0} bitcast(%dynamic-slice.1)
  ROOT %add.1 = f32[256]{0} add(%bitcast.1, %x)
}

%puts_a_slice (stack: f32[24,256], i: s32[], x: f32[256]) -> f32[24,256] {
  %stack = f32[24,256]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = f32[256]{0} parameter(2)
  %bitcast.2 = f32[1,256]{1,0} bitcast(%x)
  ROOT %dynamic-update-slice.1 = f32[24,256]{1,0} dynamic-update-slice(%stack, %bitcast.2, %i, %zero)
}

%body.1 (p: (f32[24,256], s32[], f32[256])) -> (f32[24,256], s32[], f32[256]) {
  %p = (f32[24,256]{1,0}, s32[], f32[256]{0}) parameter(0)
  %stack.1 = f32[24,256]{1,0} get-tuple-element(%p), index=0
  %i.1 = s32[] get-tuple-element(%p), index=1
  %x.1 = f32[256]{0:T(256)S(1)} get-tuple-element(%p), index=2
  %fusion.1 = f32[256]{0:T(256)S(1)} fusion(%stack.1, %i.1, %x.1), kind=kLoop, calls=%takes_a_slice
  ROOT %fusion.2 = f32[24,256]{1,0} fusion(%stack.1, %i.1, %fusion.1), kind=kLoop, calls=%puts_a_slice
}

%condition.1 (p: (f32[24,256], s32[], f32[256])) -> pred[] {
  %constant.9 = s32[]{:T(128)} constant(24)
}

%one (a: f32[1024]) -> f32[1024] {
  %a.1 = f32[1024]{0} parameter(0)
  ROOT %negate.1 = f32[1024]{0} negate(%a.1)
}

%other (a: f32[1024]) -> f32[1024] {
  ROOT %a.2 = f32[1024]{0} parameter(0)
}

ENTRY %main (a: f32[1024], b: f32[4096], c: f32[24,256]) -> f32[1024] {
  %a = f32[1024]{0:T(1024)} parameter(0)
  %b = f32[4096]{0:T(1024)} parameter(1)
  %c = f32[24,256]{1,0} parameter(2)
  %copy-start.1 = (f32[1024]{0:T(1024)S(1)}, f32[1024]{0:T(1024)}, u32[]{:S(2)}) copy-start(%a)
  %copy-done.1 = f32[1024]{0:T(1024)S(1)} copy-done(%copy-start.1)
  %slice-start.1 = ((f32[4096]{0:T(1024)}), f32[1024]{0:T(1024)S(1)}, s32[]{:S(2)}) slice-start(%b), slice={[0:1024]}
  %slice-done.1 = f32[1024]{0:T(1024)S(1)} slice-done(%slice-start.1)
  %custom-call.1 = f32[2048]{0:T(1024)S(1)} custom-call(%copy-done.1, %slice-done.1), custom_call_target="ConcatBitcast"
  %multiply.1 = f32[1024]{0:T(1024)} multiply(%copy-done.1, %slice-done.1), metadata={op_name="jit(step)/mul"}
  %t = (f32[24,256]{1,0}, s32[], f32[256]{0}) tuple(%c, %zero, %x)
  %while.1 = (f32[24,256]{1,0}, s32[], f32[256]{0}) while(%t), condition=%condition.1, body=%body.1
  ROOT %conditional.1 = f32[1024]{0} conditional(%i, %multiply.1, %multiply.1), branch_computations={%one, %other}
}
"""  # noqa: E501


def test_main_memory_alone():
  """A copy and a slice are read, a product written; 24 times a row is read and one written."""
  entry = 4096 + 4096 + 4096
  turn = 1024 + 4 + 1024 + 4  # with the index
  branch = (4096 + 4096) / 2
  assert hlo_traffic.bytes_accessed(PROGRAM) == entry + 24 * turn + branch


@pytest.mark.parametrize('remat', [False, True])
def test_the_compiler_counts_the_same_where_there_is_no_loop(remat):
  """All operands and results; no memory of a CPU counts as on chip."""
  net = models.build('Mixer-S/16', 10, num_blocks=2, hidden_dim=64, remat=remat)
  shapes = jax.eval_shape(lambda key: models.init(net, key, 32), jax.random.key(0))

  def step(params, images):
    grads = jax.grad(lambda p: jnp.mean(net.apply({'params': p}, images) ** 2))(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

  images = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)
  compiled = jax.jit(step).lower(shapes, images).compile()
  found = hlo_traffic.bytes_accessed(compiled.as_text())
  assert found == pytest.approx(compiled.cost_analysis()['bytes accessed'], rel=1e-3)


def test_a_loop_counts_as_often_as_it_runs():
  """Of a stack of matrices, each turn reads one; unrolled, the program reads the same."""

  def step(stack, x, unroll):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack, unroll=unroll)[0]

  shapes = jax.ShapeDtypeStruct((16, 256, 256), jnp.float32), jax.ShapeDtypeStruct((1, 256), 'f4')
  found = {
    unroll: hlo_traffic.bytes_accessed(
      jax.jit(step, static_argnums=2).lower(*shapes, unroll).compile().as_text()
    )
    for unroll in (1, 16)
  }
  assert found[1] == pytest.approx(found[16], rel=0.05)
  assert found[1] > 16 * 256 * 256 * 4
