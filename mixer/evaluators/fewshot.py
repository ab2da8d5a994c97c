"""Few-shot linear evaluation: ridge regression on frozen pre-logits, in closed form.

big_vision's rules (its `fewshot_lsr`), which the paper's authors use; the paper itself says
l2-regularised linear regression on the frozen features of images (section 3, "Metrics").
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import hashlib

from jax.sharding import Mesh
import numpy as np

from mixer.errors import InputError
from mixer.evaluators import features as extraction
from mixer.input import describe_preprocessing
from mixer.values import Count, Positive, Steps

BIAS = 100.0  # the constant feature; so large that the penalty hardly touches its weight
_ROWS = 8192  # of test images that are scored at once


def make(
  *,
  features: Callable,
  data,
  support_set,
  mesh: Mesh,
  sources: Mapping[str, Mapping],
  record: Callable[[dict, str], None],
  shots: Sequence[Count],
  seeds: Sequence[Steps],
  l2: Positive,
  images_per_device: Count,
  l2_sweep: Sequence[Positive] = (),
  cache_dir: str | None = None,
) -> Callable[[Mapping], dict[str, float]]:
  """A function params -> {'<k>shot_seed<s>', '<k>shot' (the mean over seeds), 'n'}.

  Each is the share of all test images that are classified rightly by the linear map fitted to
  `k` images of each class.

  Args:
    features: (params, images) -> (n, C).
    data: the test input; support_set: the one whose images are sampled.
    mesh: the devices that share the forward passes; the rest is done on the host.
    sources: the arguments that 'data' and 'support_set' were opened with, for the cache.
    record: called once, with the samples and settings, and with a line about them.
    shots: images of each class; where a class has fewer, those that there are.
    seeds: of the samples.
    l2: the penalty.
    images_per_device: in each forward pass.
    l2_sweep: penalties to try as well; the best for the test images themselves is reported, so
      under the name '<k>shot_best_l2_on_test'.
    cache_dir: keeps the features there, see `features.cached`.

  Raises:
    InputError: an argument is out of its range, or images have several labels.
  """
  _check(
    shots, seeds, [l2, *l2_sweep], images_per_device, data.multi_label or support_set.multi_label
  )
  extract = extraction.extractor(features, images_per_device=images_per_device, mesh=mesh)
  if cache_dir:
    extract = extraction.cached(extract, cache_dir)
  recorded: list[str] = []

  def evaluate(params) -> dict[str, float]:
    tested = extract(params, data, source=sources['data'])
    values, labels = extract(params, support_set, source=sources['support_set'])
    samples = {seed: sample(labels, support_set.num_classes, seed) for seed in seeds}
    if not recorded:
      facts = describe(samples, shots, support_set)
      line = f'l2 {l2:g}, seeds {tuple(seeds)}, {facts["note"]}'
      record({'l2': l2, 'l2_sweep': list(l2_sweep), 'seeds': list(seeds), **facts}, line)
      recorded.append(line)
    results = {}
    for k in shots:
      hits = np.zeros((len(seeds), 1 + len(l2_sweep)), np.int64)
      for i, seed in enumerate(seeds):
        chosen = np.concatenate([index[:k] for index in samples[seed]])
        ridge = fit(values[chosen], labels[chosen], support_set.num_classes)
        hits[i] = [count_hits(ridge, penalty, *tested) for penalty in (l2, *l2_sweep)]
        results[f'{k}shot_seed{seed}'] = hits[i, 0].item() / len(tested[0])
      means = hits.mean(axis=0) / len(tested[0])
      results[f'{k}shot'] = means[0].item()
      if l2_sweep:
        results[f'{k}shot_best_l2_on_test'] = means[1:].max().item()
        results[f'{k}shot_best_l2_on_test_is'] = l2_sweep[means[1:].argmax()]
    return {**results, 'n': len(tested[0])}

  return evaluate


def sample(labels: np.ndarray, num_classes: int, seed: int) -> list[np.ndarray]:
  """For each class, its examples in the order in which they are taken: k shots are the first k."""
  rng = np.random.default_rng(seed)
  return [rng.permutation(np.flatnonzero(labels == c)) for c in range(num_classes)]


def describe(
  samples: Mapping[int, Sequence[np.ndarray]], shots: Sequence[int], support_set
) -> dict:
  """The examples taken, as the record of a run has them, and a note in words."""
  most = max(shots)
  taken = {s: [index[:most].tolist() for index in of] for s, of in samples.items()}
  short = {
    name: len(index)
    for name, index in zip(support_set.class_names, next(iter(samples.values())), strict=True)
    if len(index) < most
  }
  digest = hashlib.sha256(repr(taken).encode()).hexdigest()
  images = describe_preprocessing(support_set.preprocessing)
  note = f'images: {images}; sample ids of sha256 {digest[:16]}'
  if short:
    note += (
      f'\n  {len(short)} of {support_set.num_classes} classes have fewer than {most} images, the '
      f'least {min(short.values())}: of these, all are taken'
    )
  return {
    'shots': list(shots),
    'preprocessing': support_set.preprocessing,
    'classes': list(support_set.class_names),
    'sha256': digest,
    'fewer_images': short,
    'note': note,
    'ids': taken,
  }


@dataclasses.dataclass(frozen=True)
class Whitening:
  """Each feature to mean 0 and deviation 1 on the samples, and a constant feature beside them."""

  mean: np.ndarray  # (C,)
  std: np.ndarray  # (C,)

  def __call__(self, features: np.ndarray) -> np.ndarray:
    """Features (n, C) -> float64 (n, C + 1)."""
    white = (features.astype(np.float64) - self.mean) / self.std
    return np.pad(white, ((0, 0), (0, 1)), constant_values=BIAS)


@dataclasses.dataclass(frozen=True)
class Ridge:
  """Linear maps onto {-1, 1} per class, for every penalty: see `fit`."""

  whiten: Whitening
  left: np.ndarray  # (C + 1, r)
  eigenvalues: np.ndarray  # (r,)
  right: np.ndarray  # (r, classes)

  def weights(self, l2: float) -> np.ndarray:
    """(C + 1, classes); the last row belongs to the constant feature."""
    return (self.left / (self.eigenvalues + l2)) @ self.right


def fit(features: np.ndarray, labels: np.ndarray, num_classes: int) -> Ridge:
  """Ridge regression of the targets {-1, 1} on whitened features (n, C), in float64."""
  wide = features.astype(np.float64)
  whiten = Whitening(wide.mean(axis=0), wide.std(axis=0) + 1e-5)
  x = whiten(features)  # (n, d) with d = C + 1
  y = np.where(labels[:, None] == np.arange(num_classes), 1.0, -1.0)  # (n, classes)
  # The w that minimises |x w - y|^2 + l2 |w|^2 solves (x'x + l2) w = x'y. With x'x = q e q', whose
  # q is orthogonal, x'x + l2 = q (e + l2) q', and so w = q (e + l2)^-1 q' x'y: all of l2 is in a
  # diagonal. With fewer examples than features, the n x n matrix xx' = q e q' is the smaller one:
  # since x'(xx' + l2) = (x'x + l2) x', w = x' (xx' + l2)^-1 y = x'q (e + l2)^-1 q' y.
  if len(x) >= x.shape[1]:
    eigenvalues, q = np.linalg.eigh(x.T @ x)
    return Ridge(whiten, left=q, eigenvalues=eigenvalues, right=q.T @ (x.T @ y))
  eigenvalues, q = np.linalg.eigh(x @ x.T)
  return Ridge(whiten, left=x.T @ q, eigenvalues=eigenvalues, right=q.T @ y)


def count_hits(ridge: Ridge, l2: float, features: np.ndarray, labels: np.ndarray) -> int:
  """The number of rows whose highest score is their label's."""
  weights, hits = ridge.weights(l2), 0
  for first in range(0, len(features), _ROWS):
    part = slice(first, first + _ROWS)
    guesses = np.argmax(ridge.whiten(features[part]) @ weights, axis=1)
    hits += int(np.count_nonzero(guesses == labels[part]))
  return hits


def _check(shots, seeds, penalties, images_per_device, multi_label) -> None:
  doubled = len(set(shots)) < len(shots) or len(set(seeds)) < len(seeds)
  empty = not shots or not seeds
  if empty or doubled or min(*shots, images_per_device) < 1 or min(seeds) < 0:
    raise InputError(
      f'few-shot: shots={tuple(shots)}, seeds={tuple(seeds)}, '
      f'images_per_device={images_per_device}; give at least one number of shots and one '
      'seed, none twice; seeds from 0 on, at least 1 shot, and 1 image per device.'
    )
  if min(penalties) <= 0:
    raise InputError(f'few-shot: the l2 penalties are {penalties}; each is above 0.')
  if multi_label:
    raise InputError('few-shot needs one label for each image, and this set has a list of them.')
