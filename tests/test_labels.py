"""The bundled label maps, and what is said of a wrong one."""

import importlib.util
import pathlib
import re
import tomllib

import pytest

from mixer import labels
from mixer.errors import InputError
import runs

SIZES = {'imagenet1k': 1000, 'imagenet21k': 21843}


def synsets(name):
  return [synset for synset, _ in labels.load(name, SIZES[name])]


@pytest.mark.parametrize('name', SIZES)
def test_a_bundled_map_is_sorted_and_complete(name):
  ids = synsets(name)
  assert len(ids) == SIZES[name] == labels.BUNDLED[name]
  assert ids == sorted(set(ids))
  assert all(re.fullmatch(r'n\d{8}', synset) for synset in ids)
  assert all(word == word.strip() and word for _, word in labels.load(name, SIZES[name]))


def test_imagenet1k():
  classes = labels.load('imagenet1k', 1000)
  assert classes[0] == ('n01440764', 'tench, Tinca tinca')
  assert classes[281] == ('n02123045', 'tabby, tabby cat')
  assert classes[999][0] == 'n15075141'
  cranes = [i for i, (_, name) in enumerate(classes) if name == 'crane']
  assert cranes == [134, 517]  # the bird and the machine: why names identify nothing


def test_imagenet1k_is_in_the_order_of_tfds():
  found = importlib.util.find_spec('tensorflow_datasets')
  if found is None:
    pytest.skip('needs TFDS')
  package = pathlib.Path(found.origin).parent
  theirs = (package / 'datasets' / 'imagenet2012' / 'labels.txt').read_text().split()
  assert synsets('imagenet1k') == theirs


def test_imagenet21k_is_googles():
  ids = synsets('imagenet21k')
  assert (ids[0], ids[-1]) == ('n00004475', 'n15102894')
  assert ids.index('n03931044') == 9205 and ids.index('n09859684') == 15027
  assert set(synsets('imagenet1k')) - set(ids) == {'n04399382'}


def test_the_maps_are_installed_with_the_package():
  settings = tomllib.loads((runs.ROOT / 'pyproject.toml').read_text())
  patterns = settings['tool']['setuptools']['package-data']['mixer.labels']
  folder = runs.ROOT / 'mixer' / 'labels'
  installed = {path.name for pattern in patterns for path in folder.glob(pattern)}
  assert installed == {'imagenet1k.txt', 'imagenet21k.txt', 'README.md'}


@pytest.mark.parametrize(
  ('text', 'wanted'),
  [
    ('n01440764\ttench, Tinca tinca\ncat\n', [('n01440764', 'tench, Tinca tinca'), ('', 'cat')]),
    ('n01440764 tench\r\nn01443537\r\n', [('n01440764', 'tench'), ('n01443537', 'n01443537')]),
    ('\ufeffa cat\n n0144 \n\n\n', [('', 'a cat'), ('', 'n0144')]),
  ],
)
def test_a_map_of_ones_own(tmp_path, text, wanted):
  (tmp_path / 'own.txt').write_bytes(text.encode())
  assert labels.load(str(tmp_path / 'own.txt'), 2) == wanted


def test_names_of_a_data_set():
  assert labels.describe(['cat', 'n02123045', 'n99999999'], 3, 'x') == [
    ('', 'cat'), ('n02123045', 'tabby, tabby cat'), ('', 'n99999999'),
  ]  # fmt: skip


KNOWN_SIZES = (
  "Known sizes: 1000 is ImageNet-1k (imagenet1k); 21,843 is Google's ImageNet-21k (imagenet21k); "
  "21,841 or 21,842 are other vendors' ImageNet-22k, 11,221 or 10,450 Alibaba-MIIL's "
  'ImageNet-21k-P, and their order differs too.'
)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (None, "no label map 'PATH'; give a file or one of ['imagenet1k', 'imagenet21k']."),
    (b'a\n\nb\n', 'the label map PATH has nothing on line 2; write one class on each line.'),
    (b'\xff\xfe', 'the label map PATH is not UTF-8 text:'),
    (b'a\nb\n', f"the label map 'PATH' has 2 classes, and the head 3. {KNOWN_SIZES}"),
    (b'', f"the label map 'PATH' has 0 classes, and the head 3. {KNOWN_SIZES}"),
  ],
)
def test_a_wrong_map(tmp_path, content, message):
  path = tmp_path / 'own.txt'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(InputError) as caught:
    labels.load(str(path), 3)
  assert str(caught.value).startswith(message.replace('PATH', str(path)))


def test_a_bundled_map_of_the_wrong_size():
  with pytest.raises(InputError) as caught:
    labels.load('imagenet1k', 21841)
  wanted = f"the label map 'imagenet1k' has 1000 classes, and the head 21841. {KNOWN_SIZES}"
  assert str(caught.value) == wanted
  with pytest.raises(InputError) as caught:
    labels.describe(['a', 'b'], 3, 'model.json')
  wanted = f'model.json, "class_names", has 2 classes, and the head 3. {KNOWN_SIZES}'
  assert str(caught.value) == wanted
