"""The crops, against pixels computed with Pillow and numpy."""

import io

import numpy as np
from PIL import Image
import pytest

import sets

crops = pytest.importorskip('mixer.input.crops', reason='needs TensorFlow')

SIDE, SIZE = 200, 16  # of the ramp, and of crops of it


def ramp(height=SIDE, width=SIDE):
  """Red counts the columns, green the rows: a crop of it tells its own window."""
  rows, columns = np.mgrid[:height, :width].astype(np.uint8)
  return np.stack([columns, rows, np.full_like(rows, 77)], axis=-1)


def crop_many(file, seeds, size=(SIZE, SIZE), name='inception', **options):
  """The crop called `name` for every seed: uint8 (len(seeds), *size, 3)."""
  import tensorflow as tf

  dataset = tf.data.Dataset.from_tensor_slices(np.array(seeds, np.int64))
  function = crops.CROPS[name].function
  dataset = dataset.map(lambda seed: function(tf.constant(file), size, seed=seed, **options))
  return next(dataset.batch(len(seeds)).as_numpy_iterator())


def bilinear(values, size):
  """Samples of `values` (n, ...) at the centres of `size` equal cells, between neighbours."""
  at = (np.arange(size) + 0.5) * len(values) / size - 0.5
  low = np.floor(at).astype(int)
  share = (at - low).reshape(-1, *[1] * (values.ndim - 1))
  first, second = (values[np.clip(i, 0, len(values) - 1)] for i in (low, low + 1))
  return first * (1 - share) + second * share


def window_of(line):
  """(begin, extent) of the part of 0, 1, ..., SIDE - 1 that was resized to `line`."""
  guess = int((float(line[-1]) - float(line[0])) * SIZE / (SIZE - 1))
  for extent in range(guess - 2, guess + 4):
    steps = np.floor(bilinear(np.arange(extent), SIZE))
    begin = line[0] - steps[0]
    if np.array_equal(begin + steps, line) and 0 <= begin <= SIDE - extent:
      return int(begin), extent
  raise AssertionError(f'no window of the ramp resizes to {line}')


@pytest.fixture(scope='module')
def windows():
  """For 2,000 seeds: rows (flipped, left, width, top, height) of the crops of the ramp."""
  images = crop_many(sets.encode(ramp()), [(7, position) for position in range(2000)])
  assert (images[..., 2] == 77).all()
  found = []
  for image in images:
    columns, rows = image[0, :, 0], image[:, 0, 1]
    assert (image[:, :, 0] == columns).all() and (image[:, :, 1] == rows[:, None]).all()
    flipped = columns[0] > columns[-1]
    found.append((flipped, *window_of(columns[::-1] if flipped else columns), *window_of(rows)))
  return np.array(found)


def test_inception_windows_have_the_papers_areas_and_shapes(windows):
  _, left, width, top, height = windows.T
  assert (left + width).max() <= SIDE and (top + height).max() <= SIDE
  area, shape = width * height / SIDE**2, width / height
  assert 0.05 - 1 / SIDE <= area.min() < 0.06 and 0.9 < area.max() <= 1.0
  large = shape[area > 0.3]  # whole pixels move the shape of these by 2 % at most
  assert 0.75 * 0.98 < large.min() < 0.77 and 1.30 < large.max() < 1.33 * 1.02


def test_inception_windows_are_spread_as_documented(windows):
  """TensorFlow draws the shape, then the height, both uniformly within what fits."""
  rng = np.random.default_rng(0)
  shape = rng.uniform(0.75, 1.33, 100_000)
  lowest = np.sqrt(0.05 / shape)
  height = rng.uniform(lowest, np.minimum(np.sqrt(1 / shape), np.minimum(1, 1 / shape)))
  area = height**2 * shape
  _, left, width, top, tall = windows.T
  error = area.std() / np.sqrt(len(windows))
  assert abs((width * tall / SIDE**2).mean() - area.mean()) < 4 * error
  for begin, extent in ((left, width), (top, tall)):
    place = begin[extent < 180] / (SIDE - extent[extent < 180])
    assert abs(place.mean() - 0.5) < 4 * np.sqrt(1 / 12 / len(place))


def test_inception_flips_half_whatever_the_window(windows):
  flipped = windows[:, 0]
  assert abs(flipped.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(windows))
  for column in windows[:, 1:].T:
    assert abs(np.corrcoef(flipped, column)[0, 1]) < 4 / np.sqrt(len(windows))
  assert abs(np.corrcoef(flipped[:-1], flipped[1:])[0, 1]) < 4 / np.sqrt(len(windows))


def test_inception_windows_are_those_of_the_ops_own_aspects():
  """0.75 to 1.33, which the authors leave as they are."""
  import tensorflow as tf

  image = noise(90, 120)
  for position in range(40):
    seed = tf.constant((4, position), tf.int64)
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
      (90, 120, 3),
      tf.zeros((1, 0, 4)),
      seed,
      min_object_covered=0.0,
      area_range=(0.05, 1.0),
      use_image_if_no_bounding_boxes=True,
    )
    part = tf.slice(image, begin, tf.concat([extent[:2], [3]], 0)).numpy()
    wanted = crops.direct(sets.encode(part), (16, 16)).numpy()
    found = crops.inception_crop(sets.encode(image), (16, 16), seed).numpy()
    assert any(np.array_equal(found, one) for one in (wanted, wanted[:, ::-1]))


def test_inception_area_range():
  images = crop_many(sets.encode(ramp()), [(1, i) for i in range(40)], area_range=(0.3, 0.4))
  for image in images:
    columns = image[0, :, 0]
    _, width = window_of(columns if columns[0] < columns[-1] else columns[::-1])
    _, height = window_of(image[:, 0, 1])
    assert 0.3 - 2 / 110 <= width * height / SIDE**2 <= 0.4 + 2 / 110


def test_inception_draws_depend_on_both_words_of_the_seed():
  file = sets.encode(ramp())
  images = crop_many(file, [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0)])
  assert len({image.tobytes() for image in images}) == 4
  np.testing.assert_array_equal(images[0], images[4])
  np.testing.assert_array_equal(images, crop_many(file, [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0)]))


def test_inception_crop_of_a_jpeg_decodes_its_window_alone_to_the_same_pixels():
  import tensorflow as tf

  seeds = [(3, i) for i in range(40)]
  jpeg = sets.encode(ramp(120, 150), 'JPEG', quality=100, subsampling=0)  # no blur across an edge
  whole = sets.encode(tf.io.decode_jpeg(jpeg).numpy())
  np.testing.assert_array_equal(crop_many(jpeg, seeds), crop_many(whole, seeds))


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'BMP'])
def test_inception_crop_of_one_colour_is_that_colour(kind):
  file = sets.encode(np.full((40, 60, 3), 90, np.uint8), kind)
  images = crop_many(file, [(0, i) for i in range(10)], size=(12, 20))
  assert images.dtype == np.uint8 and images.shape == (10, 12, 20, 3)
  assert (images == 90).all()


def resized(image, size, resize, kind='PNG'):
  return crops.resize_small_crop(sets.encode(image, kind), size, resize=resize).numpy()


def noise(height, width):
  return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
  ('height', 'width', 'top', 'left'), [(32, 32, 4, 4), (32, 51, 4, 13), (47, 32, 11, 4)]
)
def test_without_scaling_the_crop_is_the_centre(height, width, top, left):
  image = noise(height, width)
  expected = image[top : top + 24, left : left + 24]
  np.testing.assert_array_equal(resized(image, (24, 24), (32, 32)), expected)


@pytest.mark.parametrize('factor', [2, 4])
def test_an_integer_factor_gives_the_means_of_blocks(factor):
  image = noise(32 * factor, 40 * factor)
  means = image.reshape(32, factor, 40, factor, 3).mean(axis=(1, 3)).astype(np.uint8)
  np.testing.assert_array_equal(resized(image, (28, 28), (32, 32)), means[2:30, 6:34])


def area_matrix(to, of):
  """(to, of): the share that each of `of` pixels has in each of `to` equal cells over them."""
  edges = np.arange(to + 1)[:, None] * of / to
  covered = np.clip(edges, np.arange(of), np.arange(of) + 1) - np.arange(of)
  return np.diff(covered, axis=0) * to / of


@pytest.mark.parametrize(
  ('shape', 'size', 'resize', 'scaled', 'corner'),
  [
    ((50, 75), (24, 24), (32, 32), (32, 48), (4, 12)),
    ((75, 50), (24, 24), (32, 32), (48, 32), (12, 4)),
    ((33, 47), (32, 32), (32, 32), (32, 46), (0, 7)),  # 47 / 33 * 32 = 45.6
    ((20, 21), (24, 24), (32, 32), (32, 34), (4, 5)),  # enlarged
    ((60, 60), (20, 30), (24, 36), (36, 36), (8, 3)),  # a rectangle that the width decides
    ((30, 90), (20, 30), (24, 36), (24, 72), (2, 21)),  # and one that the height decides
  ],
)
def test_the_shorter_side_is_scaled_by_areas_then_the_centre_cut(
  shape, size, resize, scaled, corner
):
  image = noise(*shape)
  rows, columns = (area_matrix(to, of) for to, of in zip(scaled, shape))
  exact = np.einsum('yh,hwc,xw->yxc', rows, image.astype(float), columns)
  window = tuple(slice(begin, begin + extent) for begin, extent in zip(corner, size))
  assert between(resized(image, size, resize), exact[window])


@pytest.mark.parametrize('side', [255, 257, 333, 375, 500, 767, 1023])
def test_rounding_never_leaves_the_shorter_side_below_the_crop(side):
  for shape in ((side, side + 1), (side + 1, side)):
    found = resized(np.full((*shape, 3), 50, np.uint8), (256, 256), (256, 256))
    assert found.min() >= 49 and found.max() <= 50  # shares that add up to 1 - 1e-7, truncated


def between(found, exact):
  """`exact`, truncated; float32 may fall on either side of an integer."""
  return (found >= np.floor(exact - 1e-3)).all() and (found <= np.floor(exact + 1e-3)).all()


def test_an_image_much_longer_than_wide_is_cut_before_it_is_scaled(monkeypatch):
  """The centre has the areas' means, whichever way it is made, and nothing large is made."""
  made, resize = [], crops.tf.image.resize

  def spy(image, size, method):
    resized = resize(image, size, method)
    made.append(np.prod(resized.shape))
    return resized

  monkeypatch.setattr(crops.tf.image, 'resize', spy)
  for shape in ((1, 6000), (9000, 1), (3, 30_000), (40_000, 7), (100, 9000)):
    image = noise(*shape)
    file = sets.encode(image)
    found = crops.resize_small_crop(file, (224, 224), resize=(256, 256)).numpy()
    scaled = [round(side * 256 / min(shape)) for side in shape]
    exact = image.astype(float)
    for axis, (to, of) in enumerate(zip(scaled, shape)):
      edges = ((to - 224) // 2 + np.arange(225))[:, None] * of / to
      covered = np.clip(edges, np.arange(of), np.arange(of) + 1) - np.arange(of)
      shares = np.diff(covered, axis=0) * to / of
      exact = np.moveaxis(np.tensordot(shares, exact, (1, axis)), 0, axis)
    assert between(found, exact)
    for name in ('resize_small_random', 'resize_random', 'inception'):
      options = {} if name == 'inception' else {'resize': (256, 256)}
      crops.CROPS[name].function(file, (224, 224), seed=(0, 1), **options)
  assert made and max(made) <= 3 * crops._LARGE


@pytest.mark.parametrize('name', ['resize_small', 'resize_small_random'])
@pytest.mark.parametrize('shape', [(30, 900), (700, 40), (64, 4001)])
def test_both_ways_to_a_part_of_a_scaled_image_agree(monkeypatch, name, shape):
  file, options = sets.encode(noise(*shape)), {'resize': (40, 64)}
  options |= {'seed': (2, 3)} if crops.CROPS[name].random else {}
  whole = crops.CROPS[name].function(file, (32, 48), **options).numpy().astype(int)
  monkeypatch.setattr(crops, '_LARGE', 0)
  monkeypatch.setattr(crops, 'max', lambda *_: 0, raising=False)
  part = crops.CROPS[name].function(file, (32, 48), **options).numpy()
  assert np.abs(part - whole).max() <= 1 and (part == whole).mean() > 0.9


@pytest.mark.parametrize('size', [(24, 24), (80, 90), (3, 200)])
def test_a_large_image_is_resized_without_a_float_copy_to_the_same_pixels(monkeypatch, size):
  file = sets.encode(noise(50, 75))
  usual = crops.direct(file, size).numpy()
  monkeypatch.setattr(crops, '_LARGE', 0)
  np.testing.assert_array_equal(crops.direct(file, size), usual)


def squeezed(image, size):
  """The image at `size`, bilinear without antialiasing, its shape not kept: float (*size, 3)."""
  rows = bilinear(image.astype(float), size[0])
  return bilinear(rows.transpose(1, 0, 2), size[1]).transpose(1, 0, 2)


@pytest.mark.parametrize('shape', [(50, 75), (75, 50), (20, 21), (300, 30)])
@pytest.mark.parametrize(('size', 'resize'), [((24, 24), (32, 32)), ((20, 30), (24, 37))])
def test_resize_is_the_centre_of_the_squeezed_image(shape, size, resize):
  image = noise(*shape)
  found = crops.resize_crop(sets.encode(image), size, resize=resize).numpy()
  top, left = ((r - s) // 2 for s, r in zip(size, resize))
  exact = squeezed(image, resize)[top : top + size[0], left : left + size[1]]
  assert found.dtype == np.uint8 and found.shape == (*size, 3)
  assert between(found, exact)


@pytest.mark.parametrize('size', [(24, 24), (20, 30), (80, 90)])
def test_direct_is_the_whole_squeezed_image(size):
  image = noise(50, 75)
  found = crops.direct(sets.encode(image), size).numpy()
  assert found.dtype == np.uint8 and between(found, squeezed(image, size))


@pytest.mark.parametrize('name', ['resize_random', 'resize_small_random'])
def test_random_windows_are_uniform_flipped_half_and_all_reached(name):
  """Without scaling: a window of the ramp tells its own place."""
  image = ramp(40, 45)[:, :40] if name == 'resize_random' else ramp(40, 45)
  seeds = [(5, i) for i in range(1500)]
  found = crop_many(sets.encode(image), seeds, (32, 30), name, resize=(40, 40))
  flipped = found[:, 0, 0, 0] > found[:, 0, -1, 0]
  left, top = found[..., 0].min(axis=(1, 2)), found[..., 1].min(axis=(1, 2))
  for one, mirror, x, y in zip(found, flipped, left, top):
    window = image[y : y + 32, x : x + 30]
    np.testing.assert_array_equal(one, window[:, ::-1] if mirror else window)
  assert abs(flipped.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(seeds))
  for place, room in ((left, image.shape[1] - 30), (top, 8)):
    counts = np.bincount(place, minlength=room + 1)
    expected = len(seeds) / (room + 1)
    assert len(counts) == room + 1 and (abs(counts - expected) < 5 * np.sqrt(expected)).all()
    assert abs(np.corrcoef(place, flipped)[0, 1]) < 4 / np.sqrt(len(seeds))
  assert abs(np.corrcoef(left, top)[0, 1]) < 4 / np.sqrt(len(seeds))


@pytest.mark.parametrize(
  ('random', 'fixed'), [('resize_random', 'resize'), ('resize_small_random', 'resize_small')]
)
def test_random_crops_scale_as_those_of_evaluation(random, fixed):
  """Where the window is all of the resized image, the two differ by the flip alone."""
  file = sets.encode(noise(60, 60))
  whole = crops.CROPS[fixed].function(file, (24, 24), resize=(24, 24)).numpy()
  found = crop_many(file, [(0, i) for i in range(12)], (24, 24), random, resize=(24, 24))
  images = {image.tobytes() for image in found}
  assert images == {whole.tobytes(), whole[:, ::-1].tobytes()}


def test_without_a_flip_the_windows_are_the_same():
  file, seeds = sets.encode(noise(50, 60)), [(3, i) for i in range(40)]
  flipped = crop_many(file, seeds, name='resize_random', resize=(40, 40))
  found = crop_many(file, seeds, name='resize_random_unflipped', resize=(40, 40))
  same = (found == flipped).all(axis=(1, 2, 3))
  mirrored = (found[:, :, ::-1] == flipped).all(axis=(1, 2, 3))
  assert (same ^ mirrored).all() and 8 < same.sum() < 32
  whole = crops.resize_crop(file, (40, 40), resize=(40, 40)).numpy()
  windows = {
    whole[y : y + SIZE, x : x + SIZE].tobytes() for y in range(25) for x in range(25)
  }  # fmt: skip
  assert {one.tobytes() for one in found} <= windows


def test_a_flip_of_the_whole_image_is_made_half_of_the_time():
  file = sets.encode(noise(50, 75))
  found = crop_many(file, [(3, i) for i in range(400)], (20, 30), 'direct_flip')
  whole = crops.direct(file, (20, 30)).numpy()
  same = (found == whole).all(axis=(1, 2, 3))
  mirrored = (found == whole[:, ::-1]).all(axis=(1, 2, 3))
  assert (same ^ mirrored).all() and abs(same.mean() - 0.5) < 4 * 0.5 / np.sqrt(400)


@pytest.mark.parametrize('name', ['resize_random', 'resize_small_random'])
def test_draws_of_random_crops_depend_on_both_words_of_the_seed(name):
  file, seeds = sets.encode(ramp()), [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0)]
  images = crop_many(file, seeds, name=name, resize=(190, 190))
  assert len({image.tobytes() for image in images}) == 4
  np.testing.assert_array_equal(images[0], images[4])


def test_the_table_of_crops():
  """Which are for training, and which take `resize`."""
  facts = {name: (crop.random, crop.resizes) for name, crop in crops.CROPS.items()}
  assert facts == {
    'direct': (False, False),
    'direct_flip': (True, False),
    'inception': (True, False),
    'resize': (False, True),
    'resize_random': (True, True),
    'resize_random_unflipped': (True, True),
    'resize_small': (False, True),
    'resize_small_random': (True, True),
  }


def test_a_truncated_jpeg_passes_where_the_inception_crop_lies_in_what_is_there():
  import tensorflow as tf

  file = sets.encode(noise(120, 150), 'JPEG', quality=95)
  cut = file[: len(file) * 3 // 4]
  passed = 0
  for i in range(20):
    try:
      crops.inception_crop(cut, (8, 8), (0, i))
      passed += 1
    except tf.errors.InvalidArgumentError:
      pass
  assert 0 < passed < 20
  for name in ('resize', 'resize_small'):  # these decode all of it
    with pytest.raises(tf.errors.InvalidArgumentError, match='Invalid JPEG data'):
      crops.CROPS[name].function(cut, (8, 8), resize=(10, 10))


def test_all_formats_give_three_channels():
  def one(mode, kind, colour):
    file = io.BytesIO()
    Image.new(mode, (20, 20), colour).save(file, kind)
    return crops.resize_small_crop(file.getvalue(), (8, 8), resize=(10, 10)).numpy()

  assert (one('L', 'PNG', 99) == 99).all()
  assert (one('L', 'JPEG', 99) == 99).all()
  assert (one('RGBA', 'PNG', (1, 2, 3, 255)) == (1, 2, 3)).all()
  assert (one('P', 'GIF', 0).shape) == (8, 8, 3)
  assert (one('CMYK', 'JPEG', (0, 0, 0, 0)) == 255).all()


def test_the_first_frame_of_an_animation():
  file = io.BytesIO()
  first, second = (Image.new('RGB', (20, 20), (v, v, v)) for v in (10, 200))
  first.save(file, 'GIF', save_all=True, append_images=[second])
  assert (crops.resize_small_crop(file.getvalue(), (8, 8), resize=(10, 10)).numpy() == 10).all()
  assert (crop_many(file.getvalue(), [(0, 0)], size=(8, 8)) == 10).all()
