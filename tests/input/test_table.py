"""Tables of images and labels: what is read of them, and that they read as a folder does."""

from itertools import islice
import json
import logging
from pathlib import Path
import re

import numpy as np
import pytest

from mixer import config_file, input
from mixer.errors import InputError, MissingData
from mixer.input import check, class_folders
import sets

inspection = pytest.importorskip('mixer.input.inspection', reason='needs TensorFlow')
table = pytest.importorskip('mixer.input.sources.table', reason='needs TensorFlow')

ROOT = Path(__file__).parents[2]
CLASSES = ('ant', 'bee', 'cat')
NAMES = [f'{name}/{i}.png' for name in CLASSES for i in range(7)]


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """A folder of class folders with 7 images each."""
  root = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  for name in NAMES:
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_bytes(sets.encode(sets.smooth(rng, 24, 30)))
  return root


@pytest.fixture
def write(tmp_path, images):
  """Writes a table, given as text or bytes: its path."""

  def write_table(content, name='labels.csv'):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)

  return write_table


@pytest.fixture
def open_table(write, images):
  """Opens a table, of which everything is in the split 'train' by default."""

  def opened(content, name='labels.csv', split='train', **own):
    given = {'val_fraction': 0, 'images_dir': str(images), **own}
    return table.ImageTable(path=write(content, name), split=split, **given)

  return opened


def build(source, path=None, **given):
  shape = {'batch_size': 4, 'image_size': 16, 'crop': 'resize_random', 'resize': 20}
  where = {'path': str(path)} if path else {}
  return input.build(source=source, **where, **shape | given)


def rows(data):
  """[(path below the last two folders, label)] of all examples."""
  _, labels = data.fetch(range(data.num_examples))
  if data.multi_label:
    labels = [tuple(np.frombuffer(label, '<i4').tolist()) for label in labels]
  paths = ['/'.join(data.describe(i).split('/')[-2:]) for i in range(data.num_examples)]
  return list(zip(paths, labels, strict=True))


# The same as a folder


@pytest.mark.parametrize('split', ['train', 'val', 'train[:80%]', 'train[80%:]'])
def test_a_table_of_a_folders_images_gives_its_batches(split, images, write):
  """Whatever the order of the lines; with the byte-order mark and line ends of a spreadsheet."""
  lines = [f'{name.replace("/", chr(92))},{name.split("/")[0]}' for name in NAMES]
  np.random.default_rng(1).shuffle(lines)
  path = write('\ufeff' + '\r\n'.join(['path,label', *lines, '']))
  folder = build('folder', images, split=split)
  data = build('table', path, split=split, images_dir=str(images))
  assert data.class_names == CLASSES and data.num_examples == folder.num_examples
  for first in (0, 5):
    sets.assert_same(*(list(islice(one.train_batches(first, seed=3), 6)) for one in (folder, data)))


def test_what_identifies_a_table_is_its_content(images, open_table, tmp_path):
  content = 'path,label\nant/1.png,a\nant/2.png,b\nbee/1.png,a\n'
  moved = 'label;file\nb;ant/2.png\na;bee/1.png\na;ant/1.png\n'
  known = open_table(content).fingerprint
  assert open_table(moved, 'other.csv').fingerprint == known
  assert open_table(content.replace('1.png,a', '1.png,b', 1)).fingerprint != known
  assert open_table(content.replace('bee/1', 'bee/2')).fingerprint != known


# What is read


def test_labels_are_names_or_numbers(open_table):
  data = open_table('file_name\tTarget\nant/1.png\t10\nant/2.png\t 2\nant/3.png\t3.0\n', 'a.tsv')
  assert data.class_names == ('2', '3', '10') and not data.multi_label
  assert rows(data) == [('ant/2.png', 0), ('ant/3.png', 1), ('ant/1.png', 2)]
  content = 'path,label,notes\nant/1.png,"cat, big","a ""b""\nc"\n\nant/2.png,bee,\n'
  assert open_table(content).class_names == ('bee', 'cat, big')
  lines = '{"image": "ant/1.png", "label": 7}\r\n\n{"image": "ant/2.png", "label": "8"}'
  assert open_table(lines, 'a.JSONL').class_names == ('7', '8')


def test_columns_by_name(open_table):
  content = 'id,path,breed,label,part\n1,ant/1.png,x,a,b\n2,ant/2.png,y,b,b\n'
  assert open_table(content).class_names == ('a', 'b')
  assert open_table(content, label_column='breed').class_names == ('x', 'y')
  content = 'id,label,part\nant/1.png,a,training\nant/2.png,b,Train\nant/3.png,b,dev\n'
  data = open_table(content, path_column='id', split_column='part')
  assert rows(data) == [('ant/1.png', 0), ('ant/2.png', 1)]


def test_the_split_column(open_table, caplog):
  content = 'path,label,Split\nant/1.png,a,train\nant/2.png,b,train\nbee/1.png,b,VALID\n'
  assert [open_table(content, split=split).num_examples for split in ('train', 'val')] == [2, 1]
  with caplog.at_level(logging.WARNING, 'absl'):
    assert rows(open_table(content, split='validation')) == [('bee/1.png', 1)]
  assert "split 'validation': 1 of 2 classes have no image, such as ['a']" in caplog.text
  with pytest.raises(InputError, match=r"no rows of the split 'test'; it has \['train', 'val'\]"):
    open_table(content, split='test')


def test_another_table_with_fewer_classes(open_table, write):
  train = write('path,label\nant/1.png,a\nant/2.png,b\nant/3.png,c\n', 'train.csv')
  own = {'split': 'test', 'val_fraction': 1}
  test = 'path,label\nbee/1.png,c\nbee/2.png,a\n'
  for names in (train, ('a', 'b', 'c'), write('a\nb\nc\n', 'classes.txt')):
    data = open_table(test, class_names=names, **own)
    assert data.class_names == ('a', 'b', 'c')
    assert rows(data) == [('bee/2.png', 0), ('bee/1.png', 2)]
  data = open_table('path,label\nbee/1.png,2\n', class_names=train, **own)
  assert rows(data) == [('bee/1.png', 2)]  # the number of a class
  with pytest.raises(InputError, match="line 2: the label 'd' is none of the 3 classes a, b, c"):
    open_table('path,label\nbee/1.png,d\n', class_names=train, **own)


MULTI = [('ant/1.png', (0, 1)), ('ant/2.png', ()), ('ant/3.png', (2,))]


@pytest.mark.parametrize(
  ('name', 'content', 'own'),
  [
    ('a.csv', 'path,label\nant/1.png,x; y\nant/2.png,\nant/3.png,z z\n', {}),
    ('b.csv', 'path;label\nant/1.png;x,y\nant/2.png;\nant/3.png;z\n', {}),
    ('c.csv', 'path,label\nant/1.png,x y\nant/2.png,\nant/3.png,z\n', {'label_separator': ' '}),
    ('d.csv', 'path,label\nant/1.png,"[\'x\', \'y\']"\nant/2.png,[]\nant/3.png,z\n', {}),
    ('e.tsv', 'path\tx\ty\tz\nant/1.png\t1\t1\t0\nant/2.png\t0\t0\t0\nant/3.png\t0\t0.0\t1.0\n',
     {'label_column': ('x', 'y', 'z')}),
    ('f.jsonl', '\n'.join(json.dumps({'path': path, 'labels': labels}) for path, labels in [
      ('ant/1.png', ['y', 'x']), ('ant/2.png', []), ('ant/3.png', 'z')]), {}),
    ('g.ndjson', '{"path": "ant/1.png", "labels": ["x", "y", "x"]}\n{"path": "ant/2.png"}\n'
     '{"path": "ant/3.png", "labels": ["z"]}\n', {}),
  ],
)  # fmt: skip
def test_several_labels(name, content, own, open_table):
  data = open_table(content, name, multi_label=True, **own)
  assert data.num_classes == 3 and data.multi_label
  assert [(path, tuple(sorted(numbers))) for path, numbers in rows(data)] == MULTI


def test_batches_of_several_labels(write, images):
  path = write('path,label\nant/1.png,x|y\nant/2.png,\nant/3.png,z\n')
  own = {'split': 'train', 'images_dir': str(images), 'multi_label': True, 'val_fraction': 0}
  (batch,) = build('table', path, crop='resize', **own).eval_batches(4, 0, 1)
  np.testing.assert_array_equal(batch['label'][:3], [[1, 1, 0], [0, 0, 0], [0, 0, 1]])
  assert batch['label'].dtype == np.uint8
  data = build('table', path, on_bad_image='skip', **own)
  assert next(data.train_batches(0, 0))['label'].shape == (4, 3)


# Errors and warnings


@pytest.mark.parametrize(
  ('name', 'content', 'text'),
  [
    ('a.csv', 'path,label\nant/1.png,a\nant/99.png,b\n',
     '1 of 2 images are not there.*\n  line 3: no file .*/ant/99.png'),
    ('a.csv', 'path,label\nant/1.png,a\n\nant/2.png, \n', "line 4, column 'label': no label"),
    ('a.csv', 'path,label\nant/1.png,a\n,b\n', "line 3, column 'path': '' is no path"),
    ('a.csv', 'path,label,split\nant/1.png,a,train\nant/2.png,b,holdout\n',
     "line 3, column 'split': 'holdout' is no split; use train, val or test"),
    ('a.csv', 'path,label,split\nant/1.png,a,train\nant/2.png,b,\n', "column 'split': '' is no"),
    ('a.csv', 'path,label\nant/1.png,a\nant/2.png,b\n./ant/1.png,b\n',
     r"line 4, column 'label': ant/1.png has \['b'\] here, and \['a'\] on line 2"),
    ('a.csv', 'path,label,split\nant/1.png,a,train\nant/2.png,b,train\nant/1.png,a,test\n',
     "line 4, column 'split': ant/1.png has 'test' here, and 'train' on line 2"),
    ('a.csv', 'path,label\nant/1.png,a\nant/2.png,b,c\n', 'line 3: 3 cells, and 2 columns'),
    ('a.tsv', 'path\tlabel\nant/1.png\n', 'line 2: 1 cells, and 2 columns'),
    ('a.csv', 'path,label\nant/1.png,"a\nant/2.png,b\n', 'line 2: .* Is a quote missing'),
    ('a.csv', b'path,label\nant/1.png,a\nant/2.png,caf\xe9\n', 'line 3: byte 0xe9 is not UTF-8'),
    ('a.csv', 'path,label\nant/1.png,a'.encode('utf-16'), 'line 1: byte 0xff is not UTF-8'),
    ('a.csv', 'photo,kind\nant/1.png,a\n', r"none of the columns .*; it has \['photo', 'kind'\]"),
    ('a.csv', 'ant/1.png,a\nant/2.png,b\n', r"it has \['ant/1.png', 'a'\].*names of the columns"),
    ('a.csv', 'path,image,label\nant/1.png,b,a\n', r"columns \['path', 'image'\]; .* path_column"),
    ('a.csv', 'path,label,label\nant/1.png,b,a\n', "several columns are called 'label'"),
    ('a.csv', 'path,label\n', 'has no rows'),
    ('a.csv', '', 'has no rows'),
    ('a.csv', 'path,label\nant/1.png,a\nant/2.png,a\n', r"labels \['a'\]; at least two"),
    ('a.jsonl', '{"path": "ant/1.png", "label": "a"}\n{"path": ', 'line 2: not JSON'),
    ('a.jsonl', '["ant/1.png", "a"]', 'line 1: .* is no object'),
    ('a.jsonl', '{"path": "ant/1.png", "label": ["a"]}', "line 1, column 'label': .* multi_label"),
    ('a.jsonl', '{"path": 3, "label": "a"}', "line 1, column 'path': 3 is no path"),
    ('a.jsonl', '{"path": "ant/1.png", "label": 0.5}', "line 1, column 'label': 0.5 is no label"),
    ('a.jsonl', '{"path": "a", "label": "a"}\n{"path": "b"}', "line 2, column 'label': no label"),
    ('a.xlsx', 'x', r'is no table; its name must end with .csv, .tsv'),
  ],
)  # fmt: skip
def test_errors_name_file_line_and_column(name, content, text, open_table):
  with pytest.raises(InputError, match=f'(?s){name}.*{text}'):
    open_table(content, name)


@pytest.mark.parametrize(
  ('own', 'text'),
  [
    ({'label_column': 'breed'}, r"no column 'breed', which is the label_column; it has \['path'"),
    ({'split_column': 'fold'}, "no column 'fold', which is the split_column"),
    ({'label_column': ('label', 'x')}, 'needs multi_label=True'),
    ({'label_column': ('label', 'x'), 'multi_label': True},
     "line 2, column 'label': 'a,b|c' is neither 0 nor 1"),
    ({'multi_label': True}, r"labels have \['\|', ','\] in them; .* label_separator"),
    ({'split': 'test'}, "no split 'test': it has no column 'split'"),
    ({'split': 'half'}, "unknown split 'half'"),
    ({'split': 'val'}, "split 'val', is empty with val_fraction=0"),
  ],
)  # fmt: skip
def test_errors_of_options(own, text, open_table):
  with pytest.raises(InputError, match=text):
    open_table('path,label,x\nant/1.png,"a,b|c",1\nant/2.png,d,0\n', **own)


def test_a_table_that_is_not_there_is_missing_data(open_table, tmp_path):
  with pytest.raises(MissingData, match='no file .*gone.csv'):
    table.ImageTable(path=str(tmp_path / 'gone.csv'), split='train')


@pytest.mark.parametrize(
  ('content', 'own', 'text'),
  [
    ('path,label\nant/1.png,a;b\nant/2.png,b\n', {}, "1 labels such as 'a;b' look like several"),
    ('path,label\nant/1.png,Cat\nant/2.png,cat\n', {}, r"such as \['Cat', 'cat'\]"),
    ('path,label\nant/1.png,01\nant/2.png,1\n', {}, r"such as \['01', '1'\]"),
    ('path,label\nant/1.png,a\nant/2.png,b\nant/1.png,a\n', {}, '1 lines repeat other lines'),
    (
      'path,label,split\nant/1.png,a,train\nant/2.png,b,train\n',
      {'val_fraction': 0.3},
      'so val_fraction=0.3 has no effect',
    ),
    ('path,label\nant/1.png,a b\n', {'multi_label': True}, 'label_separator=" " divides it'),
  ],
)
def test_warnings(content, own, text, open_table, caplog):
  with caplog.at_level(logging.WARNING, 'absl'):
    open_table(content, **own)
  assert len(caplog.records) == 1
  assert re.search(text, caplog.text)


def test_a_bad_image_is_named(write, images, tmp_path):
  (tmp_path / 'bad.png').write_bytes(b'no image')
  path = write(f'path,label\n{images}/ant/1.png,a\nbad.png,b\n')
  own = {'split': 'train', 'val_fraction': 0}
  with pytest.raises(InputError, match='1 bad images in one batch(?s:.*)bad.png'):
    list(build('table', path, crop='resize', **own).eval_batches(4, 0, 1))
  data = build('table', path, on_bad_image='skip', **own)
  np.testing.assert_array_equal(next(data.train_batches(0, 0))['label'], 0)
  assert data.bad_images == 1


# Programs


@pytest.mark.parametrize(
  ('header', 'cells', 'expected'),
  [
    ('path,label', ('', '', '', ''), ['val']),
    ('path,label,Split', (',train', ',Testing', ',train', ',Testing'), ['test']),
    ('path;label;split', (';train', ';valid', ';train', ';test'), ['val', 'test']),
  ],
)
def test_a_table_as_the_data_of_a_config(header, cells, expected, write, images, monkeypatch):
  monkeypatch.chdir(ROOT)
  mark = header[4]
  lines = [f'{images}/{n}{mark}{k}{cell}' for n, k, cell in zip(NAMES, 'aabb', cells)]
  path = write('\n'.join([header, *lines]))
  config = config_file.read(
    f'configs/finetune.py:data={path}',
    ['train_input.label_column=label', 'train_input.on_bad_image=skip'],
  )
  evals = {name: section['input'] for name, section in config['evals'].items()}
  assert {name: section['split'] for name, section in evals.items()} == {e: e for e in expected}
  for section in evals.values():
    assert (section['source'], section['path']) == ('table', path)
    assert section['label_column'] == 'label'
  assert input.build(**config['train_input']).num_classes == 2
  few = config_file.read(f'configs/fewshot.py:data={path}')['evals']['table']
  assert few['input']['split'] == expected[-1] and few['train_input']['path'] == path
  opened, _ = input.open_evals({'table': few})
  assert set(opened['table']) == {'data', 'support_set'}


def test_a_config_names_a_table_that_is_not_there(monkeypatch):
  monkeypatch.chdir(ROOT)
  config = config_file.read('configs/finetune.py:data=gone.jsonl')
  with pytest.raises(MissingData, match=r'no file gone.jsonl'):
    input.build(**config['train_input'])


def test_check_reads_the_splits_of_a_table(write, images, tmp_path):
  (tmp_path / 'bad.png').write_bytes(b'')
  path = write(f'path,label,split\n{images}/{NAMES[0]},a,train\nbad.png,b,train\n'
               f'{images}/{NAMES[1]},b,test\n')  # fmt: skip
  found = check.open_table(path, None)
  assert [(name, data.num_examples) for name, data in found.items()] == [('train', 2), ('test', 1)]
  findings = inspection.inspect(found['train'].examples, 'train')
  assert findings.bad == 1 and findings.bad_places[0]['where'] == f'{tmp_path}/bad.png'
  several = write('path,label\n' + f'{images}/{NAMES[0]},a;b\n{images}/{NAMES[1]},\n')
  own = {'split': 'train', 'multi_label': True, 'val_fraction': 0}
  findings = inspection.inspect(build('table', several, **own).examples, 'train')
  assert findings.per_class.tolist() == [1, 1]


def test_a_folder_without_class_folders_points_to_tables(images):
  with pytest.raises(InputError, match='give that file, as source="table"'):
    build('folder', images / 'ant', split='train')


@pytest.mark.parametrize('several', [False, True])
def test_prepare_makes_a_set_of_a_table(several, write, images, tmp_path, capsys):
  (tmp_path / 'bad.png').write_bytes(b'')
  labels = ['a;b', '', 'b', 'a'] if several else ['a', 'b', 'b', 'a']
  paths = [*(f'{images}/{name}' for name in NAMES[:3]), 'bad.png']
  lines = [f'{path},{label},{split}' for path, label, split in zip(
    paths, labels, ['train', 'train', 'dev', 'train'])]  # fmt: skip
  path = write('\n'.join(['path,kind,split', *lines]))
  given = {'split': None, 'data_dir': str(tmp_path), 'file_format': 'tfrecord'}
  given['table'] = {'label_column': 'kind', 'multi_label': several}
  with pytest.raises(InputError, match='1 images cannot be read(?s:.*)bad.png'):
    class_folders.prepare('ours', path, **given)
  class_folders.prepare('ours', path, on_bad_image='skip', **given)
  assert "ours: 2 images of 2 classes in split 'train'" in capsys.readouterr().out
  shape = {'data_dir': str(tmp_path), 'crop': 'resize'}
  data = build('tfds', '', name='ours', split='train', **shape)
  (batch,) = data.eval_batches(4, 0, 1)
  expected = [[0, 0], [1, 1]] if several else [0, 1]
  assert sorted(batch['label'][batch['mask']].tolist()) == expected
  assert data.class_names == ('a', 'b') and data.multi_label == several
