"""Section 2 of the paper in NumPy float64: what the network computes, written without JAX."""

import jax
import numpy as np

EPSILON = 1e-6


def gelu(x):
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def layer_norm(x, p):
  deviation = x - x.mean(-1, keepdims=True)
  variance = (deviation**2).mean(-1, keepdims=True)
  return deviation / np.sqrt(variance + EPSILON) * p['scale'] + p['bias']


def mlp(x, p):
  hidden = gelu(x @ p['Dense_0']['kernel'] + p['Dense_0']['bias'])
  return hidden @ p['Dense_1']['kernel'] + p['Dense_1']['bias']


def forward(params, images, patch, branch_scales=None):
  """Section 2 of the paper in NumPy float64: ({name: activation}, logits).

  `branch_scales` multiplies the token and the channel branch of each block.
  """
  params = jax.tree.map(np.float64, params)
  (height, width), kernel = patch, params['stem']['kernel']
  rows, columns = images.shape[1] // height, images.shape[2] // width
  stem = np.empty((len(images), rows, columns, kernel.shape[-1]))
  for r, c in np.ndindex(rows, columns):
    pixels = images[:, r * height : (r + 1) * height, c * width : (c + 1) * width]
    stem[:, r, c] = np.einsum('nhwi,hwio->no', pixels, kernel) + params['stem']['bias']
  found = {'stem': stem}
  x = np.stack([stem[:, r, c] for r in range(rows) for c in range(columns)], axis=1)
  for i in range(sum(name.startswith('MixerBlock_') for name in params)):
    p = params[f'MixerBlock_{i}']
    token_scale, channel_scale = branch_scales[i] if branch_scales else (1.0, 1.0)
    transposed = layer_norm(x, p['LayerNorm_0']).transpose(0, 2, 1)
    u = x + token_scale * mlp(transposed, p['token_mixing']).transpose(0, 2, 1)
    x = u + channel_scale * mlp(layer_norm(u, p['LayerNorm_1']), p['channel_mixing'])
    found[f'MixerBlock_{i}'] = x
  found['pre_logits'] = layer_norm(x, params['pre_head_layer_norm']).mean(axis=1)
  if 'head' in params:
    return found, found['pre_logits'] @ params['head']['kernel'] + params['head']['bias']
  return found, found['pre_logits']
