"""`python -m mixer.input.check` and what it finds."""

import json
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
from test_folder import odd_images, picture, put, saved

from mixer import input, runtime
from mixer.input import check
import runs
import sets

inspection = pytest.importorskip('mixer.input.inspection', reason='needs TensorFlow')

tf = runtime.tensorflow()

COMMON = {'batch_size': 1, 'image_size': 32, 'crop': 'direct'}


def of_folder(root, split='train'):
  data = input.build(source='folder', path=str(root), split=split, val_fraction=0, **COMMON)
  return inspection.inspect(data.examples, split)


def of_set(root, name, split='train'):
  data = input.build(source='tfds', name=name, split=split, data_dir=str(root), **COMMON)
  return data, inspection.inspect(data.examples, name)


@pytest.fixture
def folder(tmp_path):
  """All kinds of odd images, each of a class of its own, and 40 bad ones among 40 good ones."""
  for name, content in odd_images().items():
    put(tmp_path, f'{name}/{name}', content)
  turned = Image.Exif()
  turned[0x0112] = 3
  deep = (np.arange(1024).reshape(32, 32) * 64).astype(np.uint16)
  others = {
    'deep.png': saved(Image.fromarray(deep), 'PNG'),
    'twelve.png': saved(Image.fromarray(deep // 16), 'PNG'),
    'ten.png': tf.io.encode_png(np.stack([deep // 64] * 3, -1)).numpy(),
    'palette.png': saved(Image.new('P', (40, 40)), 'PNG', transparency=0),
    'key.png': saved(Image.new('RGB', (40, 40)), 'PNG', transparency=(0, 0, 0)),
    'hole.gif': saved(Image.new('P', (40, 40)), 'GIF', transparency=0),
    'turned.png': saved(Image.new('RGB', (40, 40)), 'PNG', exif=turned),
    'moving.png': saved(Image.new('L', (40, 40)), 'PNG', save_all=True,
                        append_images=[Image.new('L', (40, 40), 9)]),
  }  # fmt: skip
  for name, content in others.items():
    put(tmp_path, f'{name}/{name}', content)
  put(tmp_path, 'small/small.png', saved(Image.fromarray(picture()).resize((31, 40)), 'PNG'))
  whole = odd_images()['RGB.jpg']
  for i in range(40):
    put(tmp_path, f'many/{i:02}.jpg', whole)
    put(tmp_path, f'many/{i:02}-bad.jpg', (b'', b'<html>', whole[:400])[i % 3])
  return tmp_path


ODD = {
  'alpha': {'LA.png', 'RGBA.png', 'clear.png', 'clear.webp', 'palette.png', 'key.png', 'hole.gif'},
  'animated': {'moving.gif', 'moving.webp', 'moving.png'},
  'cmyk': {'CMYK.jpg', 'CMYK.TIFF'},
  'dark': {'twelve.png', 'ten.png'},
  'deep': {'deep.png', 'twelve.png', 'ten.png'},
  'ending': {'png_in_truth.jpg', 'jpeg_in_truth.PNG', 'webp_in_truth.gif'},
  'rotated': {'turned.jpg', 'turned.png'},
  'tiny': {'small.png'},
}


def test_a_folder(folder):
  found = of_folder(folder)
  assert found.examples == len(odd_images()) + 9 + 80 and found.bad == 40
  bad = {place['where']: place['reason'] for place in found.bad_places}
  assert bad.keys() == {f'{folder}/many/{i:02}-bad.jpg' for i in range(40)}
  assert bad[f'{folder}/many/00-bad.jpg'] == 'Input is empty.'
  assert bad[f'{folder}/many/01-bad.jpg'].startswith('Unknown image file format.')
  assert bad[f'{folder}/many/02-bad.jpg'].startswith('jpeg::Uncompress failed.')
  odd = {kind: {path.rpartition('/')[2] for path in of} for kind, of in found.odd_places.items()}
  assert odd == ODD and found.odd == {kind: len(of) for kind, of in ODD.items()}
  assert ODD.keys() == inspection.ODD.keys()
  assert sorted(found.per_class) == [1] * (len(odd_images()) + 9) + [40]


@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
def test_a_set(tmp_path, file_format):
  good = sets.encode(picture(), 'JPEG')
  rows = [(b'x' if i in (3, 18, 19) else good, i % 4) for i in range(20)]
  sets.write_examples(tmp_path, 'ours', {'train': rows}, num_classes=5, file_format=file_format)
  data, found = of_set(tmp_path, 'ours')
  assert found.bad == 3 and not found.odd
  np.testing.assert_array_equal(found.per_class, [5, 5, 4, 3, 0])
  for place in found.bad_places:
    number = int(place['where'].removeprefix("ours/1.0.0, split 'train', example "))
    encoded, _ = data.examples.parse(*(c[0] for c in data.examples.fetch([number])))
    assert encoded.numpy() == b'x'


def test_several_labels(tmp_path):
  sets.write(tmp_path, 'many', {'train': 12}, num_classes=6, label_sequence=True)
  found = of_set(tmp_path, 'many')[1]
  expected = np.zeros(6, int)
  for i in range(12):
    for j in range(i % 4):
      expected[(i + j) % 6] += 1
  np.testing.assert_array_equal(found.per_class, expected)


def test_a_checksum_that_is_wrong(tmp_path):
  """The byte is in a feature that training does not read, so that only the checksum tells."""
  sets.write(tmp_path, 'ours', {'train': 20}, num_shards=2)
  path = sorted((tmp_path / 'ours/1.0.0').glob('*tfrecord*'))[1]
  content = bytearray(path.read_bytes())
  content[content.index(b'train') + 1] ^= 1
  path.write_bytes(content)
  found = of_set(tmp_path, 'ours')[1]
  assert [place['where'] for place in found.bad_places] == ["ours/1.0.0, split 'train', example 10"]
  assert 'checksum' in found.bad_places[0]['reason']


def test_the_list_of_bad_ones_ends_and_their_number_does_not(folder, monkeypatch):
  monkeypatch.setattr(inspection, '_KEPT', 7)
  monkeypatch.setattr(inspection, '_NAMED', 1)
  found = of_folder(folder)
  assert found.bad == 40 and len(found.bad_places) == 7
  assert found.odd['alpha'] == 7 and len(found.odd_places['alpha']) == 1


def test_the_program_on_the_inputs_of_a_config(tmp_path):
  root = tmp_path / 'photos'
  for name in ('ant', 'bee'):
    for i in range(20):
      put(root, f'{name}/{i}.jpg', sets.encode(picture(), 'JPEG'))
  put(root, 'bee/7.jpg', b'')
  put(root, 'bee/8.jpg', sets.encode(picture(), 'JPEG')[:600])  # ends within its data
  status, output = runs.run_module(
    'mixer.input.check', f'--config={runs.ROOT}/configs/finetune.py:data={root}',
    f'--output={tmp_path}/report.json', env=runs.environment(),
  )  # fmt: skip
  assert status == 1, output
  assert 'SKIPPED' not in output
  assert f'  bad: {root}/bee/7.jpg: Input is empty.\n' in output
  report = json.loads((tmp_path / 'report.json').read_text())
  assert report.keys() == {'train_input', 'val'}
  assert sum(part['examples'] for part in report.values()) == 40
  assert sum(part['bad'] for part in report.values()) == 2
  assert 'train_input: 36 images, ' in output and 'val: 4 images, ' in output


@pytest.mark.slow
def test_the_program_on_a_set_without_bad_images(tmp_path):
  sets.write(tmp_path, 'whole', {'train': 4, 'test': 3}, num_classes=5)
  flags = ('--source=tfds', '--name=whole', f'--data_dir={tmp_path}')
  status, output = runs.run_module('mixer.input.check', *flags, env=runs.environment())
  assert status == 0, output
  assert 'all: 7 images, 0 bad; 5 classes of 0 to 2 good images\n' in output
  assert '  1 classes have no image: 4\n' in output
  status, output = runs.run_module('mixer.input.check', env=runs.environment())
  assert status == 2 and 'error: give either --config or --source.\n' in output


@pytest.mark.slow
def test_the_program_on_a_config_of_evaluations_alone(tmp_path):
  """Their pools are read as well, and what is not on disk is named."""
  rows = [(sets.encode(picture(), 'JPEG'), i % 2) for i in range(3)]
  rows.append((b'x', 0))
  splits = {'train': rows, 'test': rows[:3]}
  sets.write_examples(tmp_path, 'caltech101', splits, num_classes=2)
  status, output = runs.run_module(
    'mixer.input.check', f'--config={runs.ROOT}/configs/fewshot.py',
    f'--config.data_dir={tmp_path}', env=runs.environment(),
  )  # fmt: skip
  assert status == 1, output
  assert 'caltech: 3 images, 0 bad; ' in output
  assert 'caltech.train_input: 4 images, 1 bad; ' in output
  assert "SKIPPED, not on disk: cars: no prepared data set 'cars196:2.1.0' in " in output


def test_the_splits_of_a_folder(tmp_path):
  """All that exist; where PATH holds the class folders themselves, it is one split."""
  for name in ('train/a', 'train/b', 'validation/a', 'test/b'):
    put(tmp_path, f'sets/{name}/1.png', sets.encode(picture()))
  opened = check.open_folder(f'{tmp_path}/sets', None)
  assert {name: data.num_examples for name, data in opened.items()} == {
    'train': 2, 'val': 1, 'test': 1
  }  # fmt: skip
  assert check.open_folder(f'{tmp_path}/sets', 'test').keys() == {'test'}
  assert check.open_folder(f'{tmp_path}/sets/train', None).keys() == {'train'}
  with pytest.raises(input.InputError, match='^--source=folder needs --path.$'):
    check.open_folder(None, 'train')


def test_two_programs_in_one_process():
  """Importing a program defines no flag, so their flags of the same name do not collide."""
  code = (
    'from absl import app, flags, logging; before = set(flags.FLAGS); '
    'from mixer.input import check, prepare; print(set(flags.FLAGS) - before)'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout == 'set()\n'
