"""Mixup, CutMix, random erasing and label smoothing against timm's rules, written in NumPy."""

import math
import random

import jax
from jax.sharding import Mesh
import numpy as np
import optax
import pytest
import scipy.stats

from mixer.errors import InputError
from mixer.training import batch_ops, losses, sharding, train_step
from mixer.training.augmentation import Augmentation, RandomErasing

SIZE = (6, 10)  # no square
CLASSES = 5


def batch_of(n, multi_label=False, seed=0):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 2, (n, CLASSES)) if multi_label else rng.integers(0, CLASSES, n)
  images = rng.integers(0, 256, (n, *SIZE, 3), dtype=np.uint8)
  return {'image': images, 'label': labels.astype(np.uint8 if multi_label else np.int32)}


def seen(batch, steps=1, **options):
  """(images, targets) of each of the first steps."""

  @jax.jit
  def run(batch, step):
    augmentation = Augmentation(num_classes=CLASSES, **options)
    begun, drawn = augmentation.begin(batch, jax.random.fold_in(jax.random.key(7), step))
    images, _, targets = augmentation.finish(begun, drawn)
    return images, targets

  return [[np.asarray(x) for x in run(batch, step)] for step in range(steps)]


def pairs(batch):
  """(images, those before them, label vectors, those before them), in float64."""
  own = np.float64(batch['image']) / 127.5 - 1
  y = np.eye(CLASSES)[batch['label']] if batch['label'].ndim == 1 else np.float64(batch['label'])
  return own, np.roll(own, 1, axis=0), y, np.roll(y, 1, axis=0)


def cut(images, own, partners):
  """Of each image, whether a pixel is the partner's; it is one of the two, in a box."""
  is_own, is_partners = (np.isclose(images, x, atol=1e-6).all(axis=-1) for x in (own, partners))
  assert (is_own | is_partners).all()
  boxes = ~is_own
  for box in boxes:
    rows, columns = box.any(axis=1), box.any(axis=0)
    np.testing.assert_array_equal(box, rows[:, None] & columns[None])
    for line in (rows, columns):  # without a gap
      assert (np.diff(np.flatnonzero(line)) == 1).all()
  return boxes


@pytest.mark.parametrize('mode', ['batch', 'elem'])
def test_cutmix(mode):
  """A box of the partner in every image, labels by its area: one box a batch, or each its own."""
  batch = batch_of(16, multi_label=mode == 'elem')
  own, partners, y, y_partners = pairs(batch)
  areas = set()
  for images, targets in seen(batch, steps=3, cutmix=1.0, mixup_mode=mode):
    boxes = cut(images, own, partners)
    share = 1 - boxes.mean(axis=(1, 2))[:, None]
    np.testing.assert_allclose(targets, share * y + (1 - share) * y_partners, atol=1e-6)
    assert (len({box.tobytes() for box in boxes}) > 4) == (mode == 'elem')
    areas |= set(share.ravel())
  assert len(areas) > 2


def timm_cutmix_area(p, size, rng):
  """The part of the image that timm's `rand_bbox` covers."""
  height, width = size
  ratio = np.sqrt(1 - rng.beta(p, p))
  cut_h, cut_w = int(height * ratio), int(width * ratio)
  y, x = rng.integers(0, height), rng.integers(0, width)
  top, bottom = np.clip([y - cut_h // 2, y + cut_h // 2], 0, height)
  left, right = np.clip([x - cut_w // 2, x + cut_w // 2], 0, width)
  return (bottom - top) * (right - left) / (height * width)


def test_cutmix_boxes_are_those_of_timm():
  """Kolmogorov-Smirnov at the 0.1 % level, of a rectangle's covered area and corner pixel."""
  n, size = 4000, (48, 80)
  keys = jax.random.split(jax.random.key(0), n)

  def draw(key):
    mask, share = batch_ops.cutmix_mask(key, 0.7, size)
    return 1 - share, mask[0, 0, 0] == 0, mask[24, 40, 0] == 0

  covered, corner, centre = (np.asarray(x) for x in jax.jit(jax.vmap(draw))(keys))
  rng = np.random.default_rng(1)
  wanted = [timm_cutmix_area(0.7, size, rng) for _ in range(n)]
  assert scipy.stats.ks_2samp(covered, wanted).pvalue > 1e-3
  assert corner.mean() < 0.8 * centre.mean()  # centres are uniform, and boxes are cut off


def test_switching_between_mixup_and_cutmix():
  """Each example has a mixup, a box, or nothing, with the probabilities given."""
  n = 400
  batch = batch_of(n)
  [(images, targets)] = seen(
    batch, mixup=0.8, cutmix=0.8, mixup_prob=0.75, mixup_switch_prob=0.4, mixup_mode='elem'
  )
  own, partners, y, y_partners = pairs(batch)
  kinds = {'none': 0, 'mixup': 0, 'cutmix': 0}
  for i in range(n):
    difference = (own[i] - partners[i]).ravel()
    weight = difference @ (images[i] - partners[i]).ravel() / (difference @ difference)
    mixed = weight * own[i] + (1 - weight) * partners[i]
    if np.allclose(images[i], own[i], atol=1e-6):
      kind, share = 'none', 1.0
    elif np.allclose(images[i], mixed, atol=1e-5):
      kind, share = 'mixup', weight
      assert weight >= 0.5
    else:
      kind, share = 'cutmix', 1 - cut(images[[i]], own[[i]], partners[[i]]).mean()
    np.testing.assert_allclose(targets[i], share * y[i] + (1 - share) * y_partners[i], atol=1e-5)
    kinds[kind] += 1
  # A box of less than two pixels, or a mixup weight of nearly 1, counts as none.
  assert kinds['mixup'] / n == pytest.approx(0.75 * 0.6, abs=0.08)
  assert kinds['cutmix'] / n == pytest.approx(0.75 * 0.4 * 0.9, abs=0.08)
  assert kinds['none'] / n == pytest.approx(0.25, abs=0.08)


def test_mixup_of_each_example():
  """What erases comes afterwards, here a function that does not commute with mixing."""
  batch = batch_of(64)
  own, partners, y, y_partners = pairs(batch)
  cube = lambda image, key: image**3  # noqa: E731
  [(images, targets)] = seen(batch, mixup=0.5, mixup_mode='elem', random_erasing=cube)
  images = np.cbrt(images)
  difference = (own - partners).reshape(64, -1)
  weight = (difference * (images - partners).reshape(64, -1)).sum(1) / (difference**2).sum(1)
  rows = weight[:, None, None, None]
  np.testing.assert_allclose(images, rows * own + (1 - rows) * partners, atol=1e-5)
  mixed = weight[:, None] * y + (1 - weight[:, None]) * y_partners
  np.testing.assert_allclose(targets, mixed, atol=1e-5)
  assert len(set(weight.round(4))) > 30 and weight.min() >= 0.5 - 1e-6


def timm_erased(probability, size, rng, min_area=0.02, max_area=1 / 3, min_aspect=0.3):
  """(height, width) of the box of timm's RandomErasing, or (0, 0)."""
  height, width = size
  if rng.random() > probability:
    return 0, 0
  for _ in range(10):
    area = rng.uniform(min_area, max_area) * height * width
    aspect = math.exp(rng.uniform(math.log(min_aspect), math.log(1 / min_aspect)))
    h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if w < width and h < height:
      return h, w
  return 0, 0


def test_random_erasing_is_that_of_timm():
  n, size = 3000, (20, 32)
  images = np.float32(np.random.default_rng(0).uniform(-1, 1, (1, *size, 1)))
  images = np.repeat(images, n, axis=0)
  keys = jax.random.split(jax.random.key(3), n)
  erased = jax.jit(jax.vmap(RandomErasing(probability=0.6)))(images, keys)
  boxes = np.asarray(erased != images)[..., 0]
  np.testing.assert_array_equal(np.asarray(erased)[boxes], 0.0)
  heights, widths = boxes.any(axis=2).sum(1), boxes.any(axis=1).sum(1)
  np.testing.assert_array_equal(boxes.sum((1, 2)), heights * widths)
  rng = random.Random(4)
  wanted = np.array([timm_erased(0.6, size, rng) for _ in range(n)])
  for found, want in ((heights, wanted[:, 0]), (widths, wanted[:, 1])):
    assert scipy.stats.ks_2samp(found, want).pvalue > 1e-3
  # Places are uniform where the box fits.
  top = boxes.any(axis=2).argmax(1)[heights > 0] / (size[0] - heights[heights > 0])
  assert abs(top.mean() - 0.5) < 4.5 * 0.35 / np.sqrt(len(top))


@pytest.mark.parametrize('mode', ['rand', 'pixel'])
def test_what_erasing_fills_in(mode):
  images = np.full((100, 16, 16, 3), 9.0, np.float32)
  keys = jax.random.split(jax.random.key(5), 100)
  erased = np.asarray(jax.jit(jax.vmap(RandomErasing(probability=1, mode=mode)))(images, keys))
  draws = [image[image[..., 0] != 9] for image in erased]  # (pixels, channels)
  of_one_colour = [len(np.unique(draw, axis=0)) == 1 for draw in draws if len(draw) > 1]
  assert all(of_one_colour) if mode == 'rand' else not any(of_one_colour)
  values = np.concatenate([draw[:1] for draw in draws]).ravel()
  assert scipy.stats.kstest(values, 'norm').pvalue > 1e-3


def test_label_smoothing():
  """timm's on and off values of one label; of several, the same off value for each class."""
  batch = batch_of(8)
  [(_, targets)] = seen(batch, label_smoothing=0.1)
  off = 0.1 / CLASSES
  wanted = np.where(np.eye(CLASSES)[batch['label']], 1 - 0.1 + off, off)
  np.testing.assert_allclose(targets, wanted, atol=1e-7)
  batch = batch_of(8, multi_label=True)
  [(_, targets)] = seen(batch, label_smoothing=0.2)
  np.testing.assert_allclose(targets, np.float64(batch['label']) * 0.8 + 0.04, atol=1e-7)


def test_settings_that_cannot_be():
  with pytest.raises(InputError, match=r'^cutmix is -1; it is the p of Beta\(p, p\), or 0'):
    Augmentation(num_classes=5, cutmix=-1)
  with pytest.raises(InputError, match='min_area=0.5 is above max_area=0.1'):
    RandomErasing(probability=1, min_area=0.5, max_area=0.1)


# --- In the step: class weights, distillation, any mesh ------------------------------------


def linear(params, images, keys=None):
  return images.reshape(len(images), -1) @ params['kernel'] + params['bias'][None]


def linear_params(seed, scale=0.3):
  rng = np.random.default_rng(seed)
  shape = (np.prod(SIZE) * 3, CLASSES)
  return {
    'kernel': np.float32(scale * rng.standard_normal(shape)),
    'bias': np.float32(rng.standard_normal(CLASSES)),
  }


def step_once(
  objective, batch, teacher=None, data=1, fsdp=1, microbatches=1, **augmentation
) -> tuple[dict, dict]:
  """(metrics, parameters) after a step of SGD at rate 1 of the linear model."""
  mesh = Mesh(np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp), ('data', 'fsdp'))
  tx, params = optax.sgd(1.0), linear_params(1)
  make, like = train_step.init_state(lambda _: params, tx, jax.random.key(0), mesh)
  step = train_step.make_step(
    apply=linear, tx=tx, learning_rate=lambda _: 1.0, objective=objective,
    augmentation=Augmentation(num_classes=CLASSES, **augmentation), microbatches=microbatches,
    key=jax.random.key(7), mesh=mesh,
  )  # fmt: skip
  batch = sharding.put(batch, mesh)
  shapes = teacher and sharding.spread(teacher, mesh)
  compiled = train_step.compile_step(step, like, batch, mesh, shapes)
  placed = [] if teacher is None else [sharding.place(teacher, shapes)]
  state, metrics = compiled(make(), batch, *placed)
  return {k: float(v) for k, v in metrics.items()}, jax.device_get(state.params)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def softmax(x):
  return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)


def by_hand(batch, seed):
  """(flat images, logits) of the linear model in float64."""
  x = (np.float64(batch['image']) / 127.5 - 1).reshape(len(batch['image']), -1)
  params = linear_params(seed)
  return x, x @ np.float64(params['kernel']) + params['bias']


@pytest.mark.parametrize('loss', ['softmax', 'sigmoid'])
def test_class_weights(loss):
  """Those of PyTorch: `weight` of the cross-entropy with probabilities, or `pos_weight`."""
  weights = np.float32([0.5, 2.0, 1.0, 0.0, 3.0])
  batch = batch_of(8, multi_label=loss == 'sigmoid')
  metrics, _ = step_once(losses.Objective(loss=loss, class_weights=weights), batch)
  _, logits = by_hand(batch, 1)
  y = pairs(batch)[2]
  if loss == 'softmax':
    wanted = -(weights * y * np.log(softmax(logits))).sum(1).mean()
  else:
    p = sigmoid(logits)
    wanted = -(weights * y * np.log(p) + (1 - y) * np.log(1 - p)).sum(1).mean()
  assert metrics['loss'] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
  ('loss', 'targets', 'multi_label'),
  [('softmax', 'soft', False), ('sigmoid', 'soft', True), ('softmax', 'hard', False),
   ('sigmoid', 'hard', False), ('sigmoid', 'hard', True)],
)  # fmt: skip
def test_distillation(loss, targets, multi_label):
  """Both losses and the gradient, which T * (student - teacher) is of soft targets."""
  t, w = (2.5, 0.7) if targets == 'soft' else (1.0, 0.7)
  distillation = losses.Distillation(
    apply=linear, targets=targets, temperature=t, weight=w, multi_label=multi_label
  )
  objective = losses.Objective(loss=loss, distillation=lambda: distillation)
  batch = batch_of(8, multi_label=multi_label)
  metrics, params = step_once(objective, batch, teacher=linear_params(2), microbatches=2)

  x, student = by_hand(batch, 1)
  _, teacher = by_hand(batch, 2)
  y, probabilities = pairs(batch)[2], {'softmax': softmax, 'sigmoid': sigmoid}[loss]

  def cross_entropy(logits, y):
    p = probabilities(logits)
    others = (1 - y) * np.log(1 - p) if loss == 'sigmoid' else 0
    return -(y * np.log(p) + others).sum(1).mean()

  p = probabilities(student)
  if targets == 'soft':
    wanted, given = probabilities(teacher / t), probabilities(student / t)
    ratio = wanted * np.log(wanted / given)
    if loss == 'sigmoid':
      ratio += (1 - wanted) * np.log((1 - wanted) / (1 - given))
    distilled, error = t**2 * ratio.sum(1).mean(), t * (given - wanted)
  else:
    wanted = teacher > 0 if multi_label else np.eye(CLASSES)[teacher.argmax(1)]
    distilled, error = cross_entropy(student, wanted), p - wanted
  own_error = p * y.sum(1, keepdims=True) - y if loss == 'softmax' else p - y
  error = ((1 - w) * own_error + w * error) / len(y)
  total = (1 - w) * cross_entropy(student, y) + w * distilled
  assert metrics['distill_loss'] == pytest.approx(distilled, rel=1e-5)
  assert metrics['loss'] == pytest.approx(total, rel=1e-5)
  before = linear_params(1)
  np.testing.assert_allclose(params['kernel'], before['kernel'] - x.T @ error, atol=1e-5)
  np.testing.assert_allclose(params['bias'], before['bias'] - error.sum(0), atol=1e-5)


def test_everything_on_any_mesh(monkeypatch):
  """Draws of each example, the teacher's parameters split over devices."""
  monkeypatch.setattr(sharding, '_MIN_SHARDED_SIZE', 2**8)
  distillation = losses.Distillation(apply=linear, targets='soft', temperature=2.0, weight=0.5)
  weights = np.float32([0.5, 2.0, 1.0, 0.5, 3.0])
  objective = losses.Objective(
    loss='softmax', class_weights=weights, distillation=lambda: distillation
  )
  options = {
    'mixup': 0.4, 'cutmix': 1.0, 'mixup_prob': 0.9, 'mixup_mode': 'elem', 'label_smoothing': 0.1,
    'random_erasing': RandomErasing(probability=0.5, mode='pixel'), 'teacher': linear_params(2),
  }  # fmt: skip
  plain, params = step_once(objective, batch_of(32), **options)
  found, others = step_once(objective, batch_of(32), data=2, fsdp=4, microbatches=2, **options)
  assert found.keys() == plain.keys()
  for name in ('loss', 'distill_loss', 'accuracy', 'grad_norm'):
    assert found[name] == pytest.approx(plain[name], rel=1e-5), name
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), others, params)
