"""Folders of odd images that become TFDS sets."""

import io

import numpy as np
from PIL import Image
import pytest
from test_folder import odd_images, picture, put, saved

from mixer import input
import sets

class_folders = pytest.importorskip('mixer.input.class_folders')
pytest.importorskip('tensorflow_datasets', reason='needs TFDS')


@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
def test_odd_images_of_a_prepared_set_are_read_as_pillow_reads_them(tmp_path, file_format):
  deep = (np.arange(1024).reshape(32, 32) * 64).astype(np.uint16)
  files = {name: file for name, file in odd_images().items() if not name.lower().endswith('.webp')}
  for name, content in {**files, '~16.png': saved(Image.fromarray(deep), 'PNG')}.items():
    put(tmp_path, f'images/{name}/{name}', content)
  class_folders.prepare(
    'odd', f'{tmp_path}/images', split=None, data_dir=str(tmp_path), file_format=file_format
  )
  data = input.build(
    source='tfds', name='odd', split='train', batch_size=1, image_size=32, crop='direct',
    data_dir=str(tmp_path),
  )  # fmt: skip
  (batch,) = data.eval_batches(data.num_examples)
  assert data.num_examples == len(files) + 1
  for found, number in zip(batch['image'], batch['label']):
    name = data.class_names[number]
    if name == '~16.png':
      expected = np.stack([deep // 256] * 3, axis=-1)
    else:
      expected = np.asarray(Image.open(io.BytesIO(files[name])).convert('RGB')).astype(int)
    jpeg = files.get(name, b'').startswith(b'\xff\xd8')
    np.testing.assert_allclose(found, expected, rtol=0, atol=8 if jpeg else 0, err_msg=name)


def test_a_bad_image_is_stored_and_stops_what_reads_it(tmp_path):
  for name, content in {'a/1.png': sets.encode(picture()), 'b/1.bmp': b'BM' + bytes(60)}.items():
    put(tmp_path, f'images/{name}', content)
  class_folders.prepare(
    'bad', f'{tmp_path}/images', split='full', data_dir=str(tmp_path), file_format='tfrecord'
  )
  data = input.build(
    source='tfds', name='bad', split='full', batch_size=2, image_size=32, crop='direct',
    data_dir=str(tmp_path),
  )  # fmt: skip
  with pytest.raises(input.InputError, match=r"bad/1.0.0, split 'full', example [01]: "):
    next(data.eval_batches(2))
