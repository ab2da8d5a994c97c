"""Dot-product attention with a choice of kernel."""

import jax
import jax.numpy as jnp


def attend(query: jax.Array, key: jax.Array, value: jax.Array, *, fused: bool) -> jax.Array:
  """softmax(query key^T / sqrt(d)) value, each (n, tokens, heads, d), with a float32 softmax.

  With `fused`, cuDNN's kernel is used where `has_fused_kernel`; elsewhere it is XLA's attention,
  which stores the weights (n, heads, tokens, tokens) for the backward pass. As cuDNN's backward
  pass requires an even number of tokens, an odd one is padded by a masked token.
  """
  if not (fused and has_fused_kernel(query)):
    return jax.nn.dot_product_attention(query, key, value, implementation='xla')
  n, tokens = query.shape[:2]
  lengths = None
  if tokens % 2:
    query, key, value = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (query, key, value))
    lengths = jnp.full(n, tokens, jnp.int32)
  out = jax.nn.dot_product_attention(
    query,
    key,
    value,
    query_seq_lengths=lengths,
    key_value_seq_lengths=lengths,
    implementation='cudnn',
  )
  return out[:, :tokens]


def has_fused_kernel(query: jax.Array) -> bool:
  """Whether cuDNN's fused attention runs for `query` (n, tokens, heads, d) on the default device.

  It needs an NVIDIA GPU of compute capability 8.0 or higher, bfloat16, and a d that is at most 128
  and a multiple of 8. It does not serve float32, CPUs, TPUs and AMD GPUs.
  """
  major, _, _ = getattr(jax.local_devices()[0], 'compute_capability', '').partition('.')
  is_recent = major.isdigit() and int(major) >= 8
  dim = query.shape[-1]
  return is_recent and query.dtype == jnp.bfloat16 and dim % 8 == 0 and dim <= 128
