"""Images as cameras, scanners and the web make them, beside Pillow's pixels."""

import io
import logging
import struct

import numpy as np
from PIL import Image, ImageOps
import pytest

from mixer import input as inputs
from mixer.errors import InputError
from mixer.input import image_facts
import sets

conversion = pytest.importorskip('mixer.input.conversion', reason='needs TensorFlow')
tf = conversion.tf

SIDE = 24


def picture(height=SIDE, width=SIDE):
  return sets.smooth(np.random.default_rng(3), height, width)


def saved(image, kind, **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def decoded(encoded, **options):
  """In a tf.data pipeline, as in training."""

  def decode(file):
    plain = conversion.Conversion(**options)(file)
    return tf.io.decode_image(plain, channels=3, expand_animations=False)

  return next(tf.data.Dataset.from_tensors(encoded).map(decode).as_numpy_iterator())


def pillow(encoded):
  return np.asarray(Image.open(io.BytesIO(encoded)).convert('RGB'))


def build(root, files, **arguments):
  for name, content in files.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)
  given = {'split': 'train', 'val_fraction': 0, 'batch_size': 2, 'image_size': SIDE}
  return inputs.build(
    source='folder', path=str(root), **given | {'crop': 'direct'} | arguments
  )  # fmt: skip


# GIF.


def gif(canvas, place, size, data, *, transparent=False):
  """Two colours, black and red; the frame `size` (width, height) at `place` of `canvas`."""
  screen = b'GIF89a' + struct.pack('<HHBBB', *canvas, 0x80, 1, 0) + b'\0\0\0\xff\0\0'
  control = b'!\xf9\4\1\0\0\0\0' if transparent else b''
  return screen + control + b',' + struct.pack('<HHHHB', *place, *size, 0) + data


TWO_BY_TWO = b'\2\3\x4c\x98\x14\0;'  # red


@pytest.mark.parametrize(
  ('canvas', 'place', 'transparent'),
  [((4, 4), (2, 2), False), ((9, 3), (0, 0), False), ((6, 7), (1, 5), True), ((2, 2), (1, 1), 0)],
)
def test_a_frame_that_does_not_fill_its_canvas(canvas, place, transparent):
  file = gif(canvas, place, (2, 2), TWO_BY_TWO, transparent=transparent)
  expected = pillow(file)
  assert (expected != 0).any()
  np.testing.assert_array_equal(decoded(file), expected)


def test_other_gifs_are_left_to_tensorflow():
  file = saved(Image.fromarray(picture()).convert('P'), 'GIF')
  plain = conversion.DEFAULT(file).numpy()
  assert plain == file
  np.testing.assert_array_equal(decoded(file), pillow(file))


# 16 bits.


def levels(bits):
  return np.linspace(0, 2**bits - 1, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16)


def deep_files(grey):
  colours = np.stack([grey, grey[::-1], grey.T], axis=-1)
  return {
    'grey.png': (saved(Image.fromarray(grey), 'PNG'), np.stack([grey] * 3, -1)),
    'rgb.png': (tf.io.encode_png(colours).numpy(), colours),
    'rgba.png': (tf.io.encode_png(np.dstack([colours, grey])).numpy(), colours),
    'grey.tif': (saved(Image.fromarray(grey), 'TIFF'), np.stack([grey] * 3, -1)),
    'grey.pgm.tif': (saved(Image.fromarray(grey.astype(np.int32)), 'TIFF'), np.dstack([grey] * 3)),
  }


@pytest.mark.parametrize('bits', [10, 12, 14, 16])
def test_levels_of_so_many_bits_keep_the_upper_eight(bits):
  for name, (file, expected) in deep_files(levels(bits)).items():
    found = decoded(file, bits_per_channel=bits)
    np.testing.assert_array_equal(found, expected >> (bits - 8), err_msg=name)


def test_levels_above_the_bits_are_white():
  (file, _), expected = deep_files(levels(16))['rgb.png'], levels(16)
  red = decoded(file, bits_per_channel=12)[..., 0]
  np.testing.assert_array_equal(red, np.minimum(expected >> 4, 255))


def test_bits_do_not_matter_to_other_images():
  for file in (
    sets.encode(picture()),
    sets.encode(picture(), 'JPEG'),
    sets.encode(picture(), 'BMP'),
  ):
    assert conversion.Conversion(bits_per_channel=12)(file).numpy() == file


def test_pixels_that_are_no_levels_are_refused():
  for image in (np.full((4, 4), 0.5, np.float32), np.full((4, 4), 2**20, np.int32)):
    with pytest.raises(ValueError, match='convert them to 8 or 16'):
      conversion.DEFAULT(saved(Image.fromarray(image), 'TIFF'))


# EXIF orientation.


@pytest.mark.parametrize('number', range(1, 9))
def test_orientations_are_applied_on_request_alone(number):
  exif = Image.Exif()
  exif[0x0112] = number
  image = Image.fromarray(picture(SIDE, 40))
  for kind, options in (('PNG', {}), ('JPEG', {'quality': 95}), ('WEBP', {'lossless': True})):
    file = saved(image, kind, exif=exif, **options)
    stored = pillow(file) if kind != 'JPEG' else tf.io.decode_jpeg(file).numpy()
    np.testing.assert_array_equal(decoded(file), stored)
    upright = Image.fromarray(stored)
    upright.info['exif'] = exif.tobytes()
    expected = np.asarray(ImageOps.exif_transpose(upright))
    np.testing.assert_array_equal(decoded(file, exif_orientation=True), expected)


def test_a_tiff_is_turned_once():
  exif = Image.Exif()
  exif[0x0112] = 6
  file = saved(Image.fromarray(picture(SIDE, 40)), 'TIFF', exif=exif)
  for turn in (False, True):  # Pillow turns it in any case
    assert decoded(file, exif_orientation=turn).shape == (40, SIDE, 3)


# Limits.


def test_images_of_many_pixels_are_refused_before_they_are_decoded():
  image = Image.new('RGB', (300, 200))
  for kind in ('PNG', 'JPEG', 'BMP', 'GIF', 'WEBP', 'TIFF'):
    lossless = {'lossless': True} if kind == 'WEBP' else {}
    for file in (saved(image, kind), saved(image, kind, **lossless)):
      assert decoded(file, max_pixels=60_000).shape == (200, 300, 3)
      for turn in (False, True):
        with pytest.raises(ValueError, match='^300 x 200 pixels are more than 59999, .*max_pixels'):
          conversion.Conversion(max_pixels=59_999, exif_orientation=turn)(file)


def test_a_header_that_promises_too_much_is_refused_by_default():
  whole = sets.encode(np.zeros((8, 8, 3), np.uint8))
  bomb = whole[:16] + struct.pack('>II', 60_000, 60_000) + whole[24:]
  jpeg = sets.encode(np.zeros((8, 8, 3), np.uint8), 'JPEG')
  at = jpeg.index(b'\xff\xc0') + 5
  for file in (bomb, jpeg[:at] + struct.pack('>HH', 60_000, 60_000) + jpeg[at + 4 :]):
    with pytest.raises(ValueError, match='60000 x 60000 pixels are more than 178956970'):
      conversion.DEFAULT(file)


@pytest.mark.parametrize(
  ('arguments', 'text'),
  [
    ({'max_pixels': 0}, 'max_pixels'),
    ({'bits_per_channel': 7}, 'bits_per_channel.* from 8 to 16'),
    ({'bits_per_channel': 32}, 'bits_per_channel.* from 8 to 16'),
  ],
)
def test_values_out_of_range(tmp_path, arguments, text):
  with pytest.raises(InputError, match=text):
    build(tmp_path, {}, **arguments)


# What is told.


def unusual_files():
  exif = Image.Exif()
  exif[0x0112] = 8
  files = {f'{"ab"[i % 2]}/{i}.png': sets.encode(picture()) for i in range(6)}
  dark = deep_files(levels(12))
  return files | {
    'a/turned.jpg': saved(Image.fromarray(picture()), 'JPEG', exif=exif),
    'a/turned.png': saved(Image.fromarray(picture()), 'PNG', exif=exif),
    'b/dark.png': dark['rgb.png'][0],
    'b/full.png': deep_files(levels(16))['grey.png'][0],
    'b/bad.png': b'x',
  }


def test_a_run_tells_once_how_many_images_are_not_read_as_they_are_meant(tmp_path, caplog):
  told = [
    f'2 of 11 images that were looked at, such as {tmp_path}/a/turned.jpg, have an EXIF '
    'orientation, which is ignored: they are used as they are stored. exif_orientation=True turns '
    'them.',
    f'1 of 11 images that were looked at, such as {tmp_path}/b/dark.png, have 16 bits per channel, '
    'of which the upper two or more are 0: they are used as nearly black ones. '
    'bits_per_channel=12, for 12-bit data, scales them.',
  ]
  for options, expected in (
    ({}, told),
    ({'exif_orientation': True}, told[1:]),
    ({'bits_per_channel': 12}, told[:1]),
    ({'exif_orientation': True, 'bits_per_channel': 12}, []),
  ):
    for use in ('train_batches', 'eval_batches'):
      data = build(tmp_path, unusual_files(), **options)
      with caplog.at_level(logging.WARNING, 'absl'):
        for shard in (0, 0, 1):
          getattr(data, use)(*((0, 1) if use == 'train_batches' else (2,)), shard, 2)
      assert caplog.messages == expected
      caplog.clear()


def test_of_many_files_a_hundred_are_looked_at():
  numbers = image_facts.sample(10**9)
  assert len(numbers) == 100 and numbers[0] == 0 and numbers[-1] == 10**9 - 1
  assert image_facts.sample(3) == [0, 1, 2]


def test_options_are_recorded_for_prediction_and_the_same_in_evaluations(tmp_path):
  from mixer.input import single_images

  options = {'exif_orientation': True, 'bits_per_channel': 12}
  files = unusual_files()
  del files['b/bad.png']
  data = build(tmp_path, files, **options)
  assert options.items() <= data.preprocessing.items()
  plain = build(tmp_path, files)
  assert not options.keys() & plain.preprocessing.keys()
  (batch,) = data.eval_batches(10)
  paths = [data.examples.describe(i) for i in range(10)]
  decode = single_images.decoder(data.preprocessing, (SIDE, SIDE), 3)
  for path, image in zip(paths, batch['image'], strict=True):
    with open(path, 'rb') as file:
      np.testing.assert_array_equal(decode(file.read()), image)
  found = list(single_images.find([tmp_path]))
  assert single_images.remarks(found, data.preprocessing) == []
  assert len(single_images.remarks(found, plain.preprocessing)) == 2

  section = {'source': 'folder', 'path': str(tmp_path), 'split': 'train', 'val_fraction': 0}
  section |= {'batch_size': 2, 'image_size': SIDE, 'crop': 'direct'}
  with pytest.raises(
    InputError, match='input differ in exif_orientation: not set and True. Give both'
  ):
    inputs.open_evals({'val': {'kind': 'classification', 'input': section}}, data)
