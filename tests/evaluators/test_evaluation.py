"""Which evaluations are run, left out or refused; evaluate.py with the configs made for it."""

import json
import re

import numpy as np
import pytest

from mixer import errors, evaluators, pretrained
from mixer import input as inputs
from mixer.pretrained import warm_start
from mixer.training import sharding
import runs
import sets
import weights


def folder(path, split='val', **more):
  section = {'source': 'folder', 'path': str(path), 'split': split, 'batch_size': 4}
  return {**section, 'image_size': 16, 'crop': 'resize', 'resize': 16, **more}


def tfds(path, name='oxford_iiit_pet', split='test'):
  section = {'source': 'tfds', 'name': name, 'data_dir': str(path), 'split': split}
  return {**section, 'batch_size': 4, 'image_size': 16, 'crop': 'resize', 'resize': 16}


DIGITS = {'source': 'digits', 'split': 'test', 'batch_size': 64}


def test_what_is_not_on_disk_is_left_out(tmp_path):
  sections = {
    'here': {'kind': 'classification', 'input': DIGITS},
    'nowhere': {'kind': 'classification', 'input': folder(tmp_path / 'photos')},
    'pets': {'kind': 'classification', 'input': tfds(tmp_path)},
    'pets_too': {'kind': 'classification', 'input': tfds(tmp_path)},
  }
  opened, skipped = inputs.open_evals(sections)
  assert list(opened) == ['here'] and opened['here']['data'].num_examples == 360
  assert list(skipped) == ['nowhere', 'pets', 'pets_too']
  text = inputs.describe_skipped(skipped)
  assert f'nowhere: no folder {tmp_path / "photos"}.\npets, pets_too: no prepared data set' in text
  assert text.count('To prepare it') == 1 and 'oxford_iiit_pet' in text
  with pytest.raises(errors.MissingData, match=r'^config.evals.nowhere, and --require_evals is se'):
    inputs.open_evals(sections, require=True)


def test_nothing_else_is_left_out(tmp_path):
  sets.write(tmp_path, 'oxford_iiit_pet', {'train': 5}, version='4.0.0')
  (tmp_path / 'photos' / 'cat').mkdir(parents=True)
  for wrong, text in (
    (tfds(tmp_path), "has no split 'test'"),
    (folder(tmp_path / 'photos'), 'must hold one folder per class'),
    (tfds(tmp_path, split='train') | {'crop': 'inception', 'resize': None}, 'without randomness'),
    ({'source': 'nothing'}, "unknown input source 'nothing'"),
  ):
    with pytest.raises(errors.InputError, match=re.escape(text)) as raised:
      inputs.open_evals({'one': {'kind': 'classification', 'input': wrong}})
    assert not isinstance(raised.value, errors.MissingData)
  file = next((tmp_path / 'oxford_iiit_pet' / '4.0.0').glob('*.tfrecord*'))
  file.unlink()  # half a set is a fault, and not a set that was never prepared
  with pytest.raises(errors.InputError, match='1 of 1 files are missing') as raised:
    inputs.open_evals({'one': {'input': tfds(tmp_path, split='train')}})
  assert not isinstance(raised.value, errors.MissingData)


def test_a_set_is_not_given_two_batch_sizes():
  text = 'config.evals.few has images_per_device, so input takes no batch_size.'
  with pytest.raises(errors.InputError, match=f'^{text}$'):
    inputs.open_evals({'few': {'images_per_device': 4, 'input': DIGITS}})


@pytest.mark.parametrize(
  ('section', 'text'),
  [
    ({'kind': 'fewshot'}, "kind='fewshot' takes an input and a train_input."),
    ({'kind': 'classification', 'train_input': DIGITS}, 'takes an input and no train_input.'),
    ({'kind': 'linear'}, "kind is 'linear'; use one of ['classification', 'fewshot', 'real']."),
    ({'kind': 'classification', 'l2': 1.0}, "nothing reads 'l2'"),
  ],
)
def test_a_section_that_is_not_its_kinds_is_refused(section, text, tmp_path):
  sections = {'one': {**section, 'input': DIGITS}}
  opened, _ = inputs.open_evals(sections)
  with pytest.raises(errors.InputError, match=r'^config\.evals\.one.*' + re.escape(text)):
    evaluators.build(
      sections, opened, apply=None, features=None, loss='softmax',
      mesh=sharding.make_mesh(), records=tmp_path / 'evals',
    )  # fmt: skip


def short_run(path):
  from configs import digits

  config = digits.get_config()
  config.model.update({'num_blocks': 1, 'hidden_dim': 8})
  config.evals.photos = {'kind': 'classification', 'input': folder(path)}
  config.total_steps = 1
  return config


def test_training_prints_which_evaluations_it_skips(tmp_path, capsys):
  config = short_run(tmp_path / 'photos')
  runs.train_here(config, tmp_path / 'run')
  printed = capsys.readouterr().out
  assert '--- evaluations SKIPPED ---\nphotos: no folder' in printed
  assert printed.index('SKIPPED') < printed.index('--- parameters ---')
  row = runs.rows(tmp_path / 'run')[-1]
  assert row['test/n'] == 360 and not any(key.startswith('photos') for key in row)

  config.checkpoints.keep_best = 'photos/top1'
  with pytest.raises(errors.InputError, match="keep_best='photos/top1', but the data of that eva"):
    runs.train_here(config, tmp_path / 'other')
  with pytest.raises(errors.MissingData, match=r'^config.evals.photos, and --require_evals is set'):
    runs.train_here(config, tmp_path / 'other', require_evals=True)


def test_a_head_of_other_classes_is_refused():
  tests = {'val': inputs.build(**DIGITS)}
  for head, told in (
    (21843, 'M.npz has a head of 21843 classes, and config.evals.val.input has 10: '),
    (None, 'M.npz has no head, so it classifies nothing: '),
  ):
    params = weights.tree(num_classes=head)
    with pytest.raises(errors.InputError, match=f'^{told}fine-tune it first .*configs/fewshot.py'):
      warm_start.check_head(params, 'M.npz', tests)
    assert warm_start.check_head(params, 'M.npz', {}) is None
  zero = {'head': {'kernel': np.zeros((8, 10)), 'bias': np.ones(10)}}
  with pytest.raises(errors.InputError, match='^the head of M.npz is all zeros'):
    warm_start.check_head(zero, 'M.npz', tests)
  assert warm_start.check_head(weights.tree(num_classes=10), 'M.npz', tests) == 10


# The shipped configs, with a small model and small images.
SMALL = """
from configs import fewshot, imagenet


def get_config(crop):
  config = imagenet.get_config()
  sides = {'image_size': (16, 16), 'resize': (18, 18)}
  for name in imagenet.TESTS:
    config.evals[name] = imagenet.section(name, config, crop=crop, **sides)
  for name in set(fewshot.DATA) - {'imagenet'}:  # whose training images are not there
    config.evals[name] = fewshot.section(name, config, **sides)
  config.model = {
    'name': 'Mixer', 'num_blocks': 2, 'hidden_dim': 16, 'tokens_mlp_dim': 8,
    'channels_mlp_dim': 32, 'patch_size': 8,
  }
  return config
"""


@pytest.mark.slow
def test_the_sets_of_the_paper(tmp_path):
  """evaluate.py over ImageNet, ReaL and UC Merced, without the sets that are not there."""
  data_dir, env = tmp_path / 'sets', runs.environment()
  sides = {'sides': (16, 24)}
  sets.write(
    data_dir, 'imagenet2012', {'validation': 13}, num_classes=1000, version='5.1.0', **sides
  )
  sets.write(
    data_dir, 'imagenet2012_real', {'validation': 13}, num_classes=1000,
    label_sequence=True, label_key='real_label', **sides,
  )  # fmt: skip
  sets.write(data_dir, 'uc_merced', {'train': 1100}, num_classes=21, **sides)
  (tmp_path / 'small.py').write_text(SMALL)
  sizes = {'hidden_dim': 16, 'tokens_mlp_dim': 8, 'channels_mlp_dim': 32, 'patch_size': 8}
  params = weights.tree(blocks=2, image_size=16, num_classes=1000, **sizes)
  pretrained.save(tmp_path / 'model.npz', params)
  status, output = runs.run(
    'evaluate.py',
    f'--config={tmp_path}/small.py:resize',
    f'--checkpoint={tmp_path}/model.npz',
    f'--config.data_dir={data_dir}',
    f'--per_image={tmp_path}/images.jsonl',
    env=env,
  )
  assert status == 0, output
  lines = list(map(json.loads, (tmp_path / 'images.jsonl').read_text().splitlines()))
  for name in ('val', 'real'):
    own = [line for line in lines if line['evaluation'] == name]
    assert [line['index'] for line in own] == list(range(13))
    assert own[7]['path'].endswith("split 'validation', example 7")
    assert {bool(line['labels']) for line in own} == {True, name == 'val'}
    details = tmp_path / 'model.evaluation' / 'small' / name
    found = json.loads((details / 'mistakes.json').read_text())
    assert found['mistakes'] and (details / found['sprite']).exists()
  assert len(lines) == 26
  result = json.loads((tmp_path / 'model.evaluation' / 'small.json').read_text())
  assert result['val/n'] == 13 and (result['real/n'], result['real/n_without_labels']) == (9, 4)
  assert result['uc_merced/n'] == 100 and 0 <= result['uc_merced/25shot'] <= 1
  assert result['left_out'] == ['caltech', 'cars', 'cifar100', 'dtd', 'pets', 'v2']
  for name in ('caltech101', 'cars196:2.1.0', 'oxford_iiit_pet', 'imagenet_v2/matched-frequency'):
    assert f'no prepared data set {name!r} in {data_dir}' in output
  facts = json.loads((tmp_path / 'model.evaluation' / 'small.uc_merced.json').read_text())
  assert facts['l2'] == 1024 and facts['preprocessing']['resize'] == [18, 18]
  assert all(max(of) < 1000 for of in facts['ids']['0'])
