"""A run on a folder that moves, and evaluations of its model on others."""

import json
import shutil

import numpy as np
import pytest

from mixer import input as inputs
from mixer.errors import InputError
from mixer.run import evaluation, other_images, workdirs
import runs
import sets
from test_configs import load

pytest.importorskip('tensorflow', reason='reads image files')


def photos(root, classes, count):
  rng = np.random.default_rng(count)
  for name in classes:
    (root / name).mkdir(parents=True)
    for i in range(count):
      (root / name / f'{i}.jpg').write_bytes(sets.encode(sets.smooth(rng, 20, 24), 'JPEG'))
  return root


def config_of(root, **more):
  config = load('digits')
  section = {'source': 'folder', 'path': str(root), 'batch_size': 8, 'image_size': 16, **more}
  with config.unlocked():
    config.train_input = {**section, 'split': 'train', 'crop': 'direct'}
    config.evals = {
      'val': {'kind': 'classification', 'input': {**section, 'split': 'val', 'crop': 'direct'}}
    }
    config.checkpoints.keep_best = None
  config.model.update(num_blocks=1, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=16)
  config.total_steps = 2
  return config


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(a finished run, its images)."""
  root = tmp_path_factory.mktemp('trained')
  images = photos(root / 'photos', ('ant', 'bee', 'cow'), 20)
  runs.train_here(config_of(images), root / 'run')
  return root / 'run', images


def count(config, checkpoint):
  options = evaluation.Options(
    config=config.to_dict(), checkpoint=str(checkpoint), output=str(checkpoint.with_suffix('.out'))
  )
  return evaluation.evaluate(options)['val/n']


def test_all_images_of_another_folder_count(trained, tmp_path, capsys):
  workdir, images = trained
  assert count(config_of(images), workdir) == 6
  assert 'all of its images' not in capsys.readouterr().out
  moved = shutil.copytree(images, tmp_path / 'moved')
  assert count(config_of(f'{moved}/'), workdir) == 6
  fewer = photos(tmp_path / 'fewer', ('bee', 'cow'), 5)
  for checkpoint in (workdir, workdir / 'model.npz'):
    assert count(config_of(fewer), checkpoint) == 10
    told = f'config.evals.val: the model was not trained on {fewer}, so all of its images are '
    assert told in capsys.readouterr().out


def test_data_of_a_run_without_a_record_that_are_gone(trained, tmp_path, caplog):
  """No training image is taken for a new one."""
  workdir, images = shutil.copytree(trained[0], tmp_path / 'run'), trained[1]
  (workdir / 'data.json').unlink()
  config = json.loads((workdir / 'config.json').read_text())
  config['train_input']['path'] = '/gone'
  (workdir / 'config.json').write_text(json.dumps(config))
  (workdir / 'model.json').unlink()
  opened, _ = inputs.open_evals(other_images.adapt(config_of(images).evals.to_dict(), workdir))
  assert opened['val']['data'].num_examples == 6
  assert f'/gone is no longer there: {images} is taken for it.' in caplog.text


def test_a_run_evaluates_all_images_of_another_folder(trained, tmp_path):
  images = trained[1]
  config = config_of(images)
  fewer = photos(tmp_path / 'fewer', ('bee', 'cow'), 5)
  with config.unlocked():
    config.evals.new = config_of(fewer).evals.val
  evals, section = config.evals.to_dict(), config.train_input.to_dict()
  data = inputs.build(**section)
  opened, _ = inputs.open_evals(other_images.adapt_to_run(evals, section, data), data)
  assert {name: of['data'].num_examples for name, of in opened.items()} == {'val': 6, 'new': 10}


def test_the_class_numbers_are_those_of_the_model(trained, tmp_path):
  workdir, images = trained
  fewer = photos(tmp_path / 'fewer', ('cow',), 4)
  divided = photos(tmp_path / 'divided/test', ('bee', 'cow'), 3).parent
  for root, split, numbers in (
    (fewer, 'val', [2] * 4),
    (fewer, 'test', [2] * 4),
    (divided, 'test', [1] * 3 + [2] * 3),
  ):
    evals = config_of(root).evals.to_dict()
    evals['val']['input']['split'] = split
    opened, _ = inputs.open_evals(other_images.adapt(evals, workdir))
    data = opened['val']['data']
    assert data.class_names == ('ant', 'bee', 'cow')
    (batch,) = data.eval_batches(data.num_examples)
    assert batch['label'].tolist() == numbers
  more = photos(tmp_path / 'more', ('bee', 'dog'), 2)
  with pytest.raises(InputError, match="has classes that the model does not have: \\['dog'\\]"):
    count(config_of(more), workdir)


def test_of_a_file_without_a_record_the_held_out_part_counts(trained, tmp_path, caplog):
  workdir, images = trained
  shutil.copy(workdir / 'model.npz', tmp_path / 'lone.npz')
  assert count(config_of(images), tmp_path / 'lone.npz') == 6
  assert 'it is not recorded on which images the model was trained' in caplog.text
  assert count(config_of(images, val_fraction=1.0), tmp_path / 'lone.npz') == 60


def test_a_run_goes_on_with_data_that_moved_and_with_no_others(trained, tmp_path, caplog):
  workdir, images = shutil.copytree(trained[0], tmp_path / 'run'), trained[1]
  moved = shutil.copytree(images, tmp_path / 'renamed')
  link = tmp_path / 'link'
  link.symlink_to(images)
  for path in (f'{images}/', link, moved, images, f'{moved}/'):
    runs.train_here(config_of(path), workdir)  # it is finished, and says so
  config = config_of(f'{moved}/')
  config.evals.test = config.evals.val  # an evaluation may be added,
  del config.evals.val  # or renamed
  runs.train_here(config, workdir)
  other = shutil.copytree(images, tmp_path / 'other')
  (other / 'ant' / '0.jpg').rename(other / 'ant' / 'new.jpg')
  with pytest.raises(InputError, match="train_input.path: '.*' in the workdir, '.*' now"):
    runs.train_here(config_of(other), workdir)
  (moved / 'ant' / '0.jpg').unlink()
  runs.train_here(config, workdir)
  assert 'config.train_input: THE IMAGES ARE NOT THOSE OF THE RUN SO FAR: 54 images' in caplog.text


def test_a_run_of_an_older_config_goes_on(tmp_path):
  """Without keys that have a default, and without a record of its data."""
  old = config_of(tmp_path / 'a').to_dict()
  workdirs.claim(tmp_path, old, started=False)
  new = config_of(tmp_path / 'a', val_fraction=0.1).to_dict()
  workdirs.claim(tmp_path, new, started=True)
  changed = config_of(tmp_path / 'a', val_fraction=0.2).to_dict()
  with pytest.raises(InputError, match=r'train_input.val_fraction: 0.1 in the workdir, 0.2 now'):
    workdirs.claim(tmp_path, changed, started=True)
  with pytest.raises(InputError, match=r'train_input.path: '):
    workdirs.claim(tmp_path, config_of(tmp_path / 'b').to_dict(), started=True)
  assert json.loads((tmp_path / 'config.json').read_text()) == workdirs.jsonable(new)


@pytest.mark.parametrize('source', ['arrays', 'shards'])
def test_other_sources_move_too(tmp_path, source):
  """What is the same anywhere, and what is not."""
  for name, seed in (('one', 1), ('two', 1), ('other', 2)):
    (tmp_path / name).mkdir()
    if source == 'arrays':
      images = np.random.default_rng(seed).integers(0, 256, (40, 8, 8, 1), np.uint8)
      np.savez(tmp_path / name / 'set.npz', images=images, labels=np.arange(40) % 4)
    else:
      sets.write(tmp_path / name, 'ours', {'train': 10 * seed}, num_classes=4)

  def known(name):
    if source == 'arrays':
      given = {'images': str(tmp_path / name / 'set.npz'), 'num_classes': 4}
    else:
      given = {'files': f'{tmp_path}/{name}/ours/1.0.0/*.tfrecord*', 'num_classes': 4}
      given |= {'image_key': 'image', 'label_key': 'label', 'image_size': 16, 'crop': 'direct'}
    data = inputs.build(source=source, batch_size=4, **given)
    return inputs.movable({}, data)['config.train_input']

  assert known('one') == known('two') != known('other')


def listed(path, names, labels, images):
  lines = [f'{images}/{name},{label}' for name, label in zip(names, labels, strict=True)]
  path.write_text('\n'.join(['image,kinds', *lines]))
  return path


def test_a_table_is_trained_on_and_others_are_evaluated(trained, tmp_path, capsys):
  """With several labels; images without one are counted apart."""
  _, images = trained
  names = [f'{name}/{i}.jpg' for name in ('ant', 'bee', 'cow') for i in range(20)]
  labels = ['a;b', 'b;c', '', 'c'] * 15
  own = {'source': 'table', 'label_column': 'kinds', 'multi_label': True}
  table = listed(tmp_path / 'all.csv', names, labels, images)
  workdir = tmp_path / 'run'
  runs.train_here(config_of(table, **own), workdir)
  row = json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[-1])
  assert row['val/n'] + row['val/n_without_labels'] == 6
  assert 0 < row['val/mean_average_precision'] <= 1 and 'val/top5' not in row
  assert json.loads((workdir / 'classes.json').read_text()) == ['a', 'b', 'c']
  moved = shutil.copy(table, tmp_path / 'moved.csv')
  assert count(config_of(moved, **own), workdir) == row['val/n']
  assert 'all of its images' not in capsys.readouterr().out
  fewer = listed(tmp_path / 'fewer.csv', names[:5], ['c', 'c', 'c', 'b', ''], images)
  assert count(config_of(fewer, **own), workdir) == 4
  assert f'the model was not trained on {fewer}, so all' in capsys.readouterr().out
