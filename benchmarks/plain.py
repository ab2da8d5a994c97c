"""The Mixer as a plain Flax module with plain optax: what benchmarks/compare.py compares with.

It computes what the Mixers of vision_transformer and big_vision compute, under the same parameter
names, with none of this package's options. Nothing here is made to be fast.
"""

import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks.throughput_workers import classifier_program
from mixer import models
from mixer.training import train_step


class Mlp(nn.Module):
  hidden_dim: int
  dtype: str

  @nn.compact
  def __call__(self, x):
    hidden = nn.gelu(nn.Dense(self.hidden_dim, dtype=self.dtype, name='Dense_0')(x))
    return nn.Dense(x.shape[-1], dtype=self.dtype, name='Dense_1')(hidden)


class Block(nn.Module):
  tokens_mlp_dim: int
  channels_mlp_dim: int
  dtype: str

  @nn.compact
  def __call__(self, x):
    tokens = jnp.swapaxes(nn.LayerNorm(dtype=self.dtype, name='LayerNorm_0')(x), 1, 2)
    tokens = Mlp(self.tokens_mlp_dim, self.dtype, name='token_mixing')(tokens)
    x = x + jnp.swapaxes(tokens, 1, 2)
    channels = nn.LayerNorm(dtype=self.dtype, name='LayerNorm_1')(x)
    return x + Mlp(self.channels_mlp_dim, self.dtype, name='channel_mixing')(channels)


class Mixer(nn.Module):
  """Images (n, height, width, channels) in [-1, 1] -> logits (n, num_classes), float32."""

  num_classes: int
  patch_size: int
  num_blocks: int
  hidden_dim: int
  tokens_mlp_dim: int
  channels_mlp_dim: int
  dtype: str

  @nn.compact
  def __call__(self, images):
    patch = (self.patch_size, self.patch_size)
    x = nn.Conv(self.hidden_dim, patch, patch, dtype=self.dtype, name='stem')(images)
    x = x.reshape(len(x), -1, self.hidden_dim)
    for i in range(self.num_blocks):
      mlp_dims = self.tokens_mlp_dim, self.channels_mlp_dim
      x = Block(*mlp_dims, self.dtype, name=f'MixerBlock_{i}')(x)
    x = nn.LayerNorm(dtype=self.dtype, name='pre_head_layer_norm')(x)
    return nn.Dense(self.num_classes, name='head')(jnp.mean(x, axis=1))


def of(model: models.mlp_mixer.MlpMixer) -> Mixer:
  """The plain form of a Mixer of this package."""
  same = 'num_classes', 'patch_size', 'num_blocks', 'hidden_dim', 'dtype'
  widths = 'tokens_mlp_dim', 'channels_mlp_dim'
  return Mixer(**{name: getattr(model, name) for name in (*same, *widths)})


def make_step(net: Mixer, tx: optax.GradientTransformation):
  """(params, optimizer state, uint8 images, labels) -> the next two, and the loss."""

  def step(params, opt_state, images, labels):
    def loss(params):
      logits = net.apply({'params': params}, images / 127.5 - 1.0)
      targets = jax.nn.one_hot(labels, net.num_classes)
      return jnp.mean(jnp.sum(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1))

    value, grads = jax.value_and_grad(loss)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value

  return step


def training_program(device, model, dtype, batch_size, image_size, num_classes):
  """As `throughput_workers.training_program`, with a constant learning rate."""
  model = models.build(model, num_classes, dtype=dtype)
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.03))

  def init(key):
    params = models.init(model, key, image_size)
    return params, tx.init(params)

  key = jax.random.key(0)
  like = (
    *jax.eval_shape(init, key),
    jax.ShapeDtypeStruct((batch_size, image_size, image_size, 3), jnp.uint8),
    jax.ShapeDtypeStruct((batch_size,), jnp.int32),
  )
  begin = time.perf_counter()
  compiled = jax.jit(make_step(of(model), tx), donate_argnums=(0, 1)).lower(*like).compile()
  compile_seconds = time.perf_counter() - begin

  def start():
    state = jax.jit(init)(key)
    images = jax.random.bits(key, like[2].shape, jnp.uint8)
    labels = jax.random.randint(key, like[3].shape, 0, num_classes)

    def run(steps):
      nonlocal state
      for _ in range(steps):
        *state, loss = compiled(*state, images, labels)
      jax.block_until_ready((state, loss))

    return run

  return start, compile_seconds, train_step.compiled_bytes(compiled)


def inference_program(device, model, dtype, batch_size, image_size, num_classes):
  """As `throughput_workers.inference_program`."""
  model = models.build(model, num_classes, dtype=dtype)
  net = of(model)

  def apply(params, images):
    return net.apply({'params': params}, images / 127.5 - 1.0)

  return classifier_program(model, apply, batch_size, image_size)


def difference(model: models.mlp_mixer.MlpMixer, image_size: int) -> dict[str, float]:
  """How far a Mixer of this package is from its plain form, for the same random weights.

  The norm of the difference over that of the plain form: of the 'logits' of two images, and of the
  'gradient' of a weighted sum of them.
  """
  keys = jax.random.split(jax.random.key(0), 4)
  params = jax.jit(lambda key: models.init(model, key, image_size))(keys[0])
  params['head']['kernel'] = 0.1 * jax.random.normal(keys[1], params['head']['kernel'].shape)
  images = jax.random.uniform(keys[2], (2, image_size, image_size, 3), minval=-1.0)
  weights = jax.random.normal(keys[3], (2, model.num_classes))
  net = of(model)

  def results(apply):
    def weighted(params):
      logits = apply(params, images)
      return jnp.sum(weights * logits), logits

    gradient, logits = jax.jit(jax.grad(weighted, has_aux=True))(params)
    return {'logits': logits, 'gradient': gradient}

  ours = results(models.apply_function(model))
  plain = results(lambda params, images: net.apply({'params': params}, images))
  return {
    name: float(
      optax.tree.norm(jax.tree.map(jnp.subtract, ours[name], plain[name]))
      / optax.tree.norm(plain[name])
    )
    for name in ours
  }
