"""What the tests of the networks share: random parameters, inputs, comparisons, jaxprs."""

import jax
import numpy as np

from mixer import models


def shapes_of(model, image_size=224):
  return jax.eval_shape(lambda key: models.init(model, key, image_size), jax.random.key(0))


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def random_params(model, image_size=16, seed=0):
  """Parameters without a zero or a one among them, so that each has an effect."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    values = rng.standard_normal(leaf.shape)
    if path[-1].key == 'kernel':
      inputs = leaf.shape[:1] if path[-2].key in ('query', 'key', 'value') else leaf.shape[:-1]
      return np.float32(values / np.sqrt(np.prod(inputs)))
    return np.float32((path[-1].key == 'scale') + 0.3 * values)

  return jax.tree_util.tree_map_with_path(draw, shapes_of(model, image_size))


def run(model, params, images, keys=None):
  return np.asarray(jax.jit(models.apply_function(model))(params, images, keys))


def init(model, image_size=16, seed=0):
  return jax.jit(lambda key: models.init(model, key, image_size))(jax.random.key(seed))


def random_images(n, size=(16, 16), seed=1):
  rng = np.random.default_rng(seed)
  return np.float32(rng.uniform(-1, 1, (n, *size, 3)))


def example_keys(n, seed=2):
  return jax.random.split(jax.random.key(seed), n)


def close(actual, wanted, tolerance=1e-5):
  np.testing.assert_allclose(np.asarray(actual), wanted, rtol=tolerance, atol=tolerance)


def close_trees(actual, wanted, tolerance):
  """Each leaf to `tolerance` of its largest value; tiny gradients are rounding noise."""
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))

  def check(path, a, w):
    scale = max(np.abs(w).max(), 1e-2 * largest)
    np.testing.assert_allclose(a, w, rtol=0, atol=tolerance * scale, err_msg=str(path))

  jax.tree_util.tree_map_with_path(check, actual, wanted)


def equations(jaxpr):
  """Every equation of a jaxpr, those of its inner jaxprs too."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
    ):
      inner = getattr(inner, 'jaxpr', inner)
      if hasattr(inner, 'eqns'):
        yield from equations(inner)
