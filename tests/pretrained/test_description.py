"""What a run records about its model, and the checks of a use against it."""

import json
import re

from etils import epath
import pytest

from mixer import pretrained
from mixer.errors import InputError
from mixer.pretrained import description
from weights import tree

SIZE, PATCH = (12, 10), (3, 5)
SECTIONS = {
  'patch_pixel': {'kind': 'patch_pixel', 'seed': 3, 'patch_size': PATCH},
  'global': {'kind': 'global', 'seed': 3, 'patch_size': PATCH},
}
FACTS = {
  'model': {'name': 'Mixer', 'num_blocks': 3, 'patch_size': PATCH, 'num_classes': 7},
  'image_size': SIZE,
  'channels': 3,
  'permutation': SECTIONS['global'],
  'preprocessing': {'name': 'none', 'value_range': [-1, 1]},
  'loss': 'softmax',
  'class_names': [str(i) for i in range(7)],
  'metrics': {'step': 3},
}


@pytest.fixture
def trained(tmp_path):
  """model.npz and model.json of a run with a global permutation."""
  pretrained.save_model(epath.Path(tmp_path), tree(), FACTS)
  return epath.Path(tmp_path) / 'model.npz'


def opened(path):
  """As `pretrained.open` gives it, without parameters."""
  return pretrained.Pretrained({}, {'source': str(path)}, '', '', (), description.read(path))


def check(path, section, image_size=SIZE):
  opened(path).check_permutation(section, image_size)


# --- Files ---------------------------------------------------------------------------------


def test_a_finished_run(trained):
  found = description.read(trained)
  assert found == description.Description(
    file=trained.with_suffix('.json'),
    model=json.loads(json.dumps(FACTS['model'])),
    image_size=SIZE,
    channels=3,
    preprocessing=FACTS['preprocessing'],
    loss='softmax',
    class_names=tuple('0123456'),
    permutation=json.loads(json.dumps(SECTIONS['global'])),
  )
  assert description.read(trained.parent) == found
  assert description.read_model_file(trained.parent) == json.loads(json.dumps(FACTS))


def test_nothing_recorded(tmp_path):
  for path in (tmp_path, tmp_path / 'model.npz', tmp_path / 'model'):
    assert description.read(epath.Path(path)) == description.Description()
  assert description.read_model_file(epath.Path(tmp_path)) is None


def test_an_old_model_file(trained):
  """Earlier versions had no permutation, and fewer facts."""
  facts = {k: v for k, v in FACTS.items() if k not in ('permutation', 'channels', 'class_names')}
  trained.with_suffix('.json').write_text(json.dumps(facts))
  found = description.read(trained)
  assert (found.permutation, found.channels, found.class_names) == (None, None, None)
  assert (found.image_size, found.loss) == (SIZE, 'softmax')


CROP = {'source': 'tfds', 'image_size': 48, 'crop': 'resize_small', 'resize': [56, 64]}
CONFIG = {
  'train_input': {**CROP, 'crop': 'inception', 'resize': None},
  'evals': {
    'few': {'input': {**CROP, 'resize': 99}, 'train_input': CROP},
    'val': {'input': CROP},
    'test': {'input': {**CROP, 'resize': 77}},
  },
  'model': {'name': 'Mixer-S/16', 'scan': True},
  'loss': 'sigmoid',
}


def write_run(path, config, classes=None):
  (path / 'config.json').write_text(json.dumps(config))
  if classes is not None:
    (path / 'classes.json').write_text(json.dumps(classes))
  return epath.Path(path)


def test_a_run_that_has_not_finished(tmp_path):
  """The preprocessing is that of the first evaluation of the model's own classes."""
  found = description.read(write_run(tmp_path, CONFIG, ['ant', 'bee']))
  assert found == description.Description(
    file=epath.Path(tmp_path / 'config.json'),
    model={'name': 'Mixer-S/16', 'scan': True, 'num_classes': 2},
    image_size=(48, 48),
    preprocessing={
      'name': 'resize_small', 'resize': (56, 64), 'crop': (48, 48), 'value_range': [-1, 1],
    },
    loss='sigmoid',
    class_names=('ant', 'bee'),
  )  # fmt: skip


def test_a_run_that_has_recorded_its_input(tmp_path):
  """input.json is of the data that were opened: it comes before the config."""
  images = {'image_size': [8, 9], 'channels': 1, 'preprocessing': FACTS['preprocessing']}
  (tmp_path / 'input.json').write_text(json.dumps(images))
  found = description.read(write_run(tmp_path, {**CONFIG, 'train_input': {}}, ['ant', 'bee']))
  assert (found.image_size, found.channels) == ((8, 9), 1)
  assert found.preprocessing == FACTS['preprocessing'] and found.class_names == ('ant', 'bee')


def test_a_run_without_evaluations_or_classes(tmp_path):
  found = description.read(write_run(tmp_path, {**CONFIG, 'evals': {}}))
  assert found.model == CONFIG['model'] and found.class_names is None
  assert found.preprocessing['name'] == 'inception' and found.preprocessing['resize'] is None


def test_a_run_of_images_in_memory(tmp_path):
  """They have no crop."""
  digits = {'source': 'digits', 'split': 'test'}
  found = description.read(write_run(tmp_path, {'train_input': digits, 'evals': {}}))
  assert (found.image_size, found.preprocessing) == (None, FACTS['preprocessing'])
  found = description.read(write_run(tmp_path, {'train_input': {**digits, 'image_size': 40}}))
  assert found.image_size == (40, 40)


@pytest.mark.parametrize(
  ('text', 'fault'),
  [
    ('{"permutation": {"kind": "global"}}', "KeyError('patch_size')"),
    ('{"image_size": [8]}', 'InputError'),
  ],
)
@pytest.mark.parametrize('name', ['m.json', 'model.json', 'config.json'])
def test_files_that_describe_no_model(name, text, fault, tmp_path):
  if name == 'config.json':
    text = text.replace('{"image_size": [8]}', '{"train_input": {"image_size": [8]}}')
  file = epath.Path(tmp_path / name)
  file.write_text(text)
  wanted = f'{file} does not describe a model as train.py does: {fault}'
  with pytest.raises(InputError, match=f'^{re.escape(wanted)}') as caught:
    description.read(file.with_suffix('.npz') if name == 'm.json' else file.parent)
  assert str(caught.value).endswith(
    '. If it does not belong to these parameters, move it away, and the model is inferred from '
    'their shapes.'
  )


@pytest.mark.parametrize(
  ('name', 'content', 'fault'),
  [
    ('model.json', '{"class_names": ["a", 7]}', 'class_names'),
    ('model.json', '{"channels": "x"}', 'channels'),
    ('input.json', '{"channels": -1.5}', 'channels'),
    ('input.json', '{"preprocessing": {"name": ["x"]}}', 'preprocessing'),
    ('classes.json', '[{}]', 'class_names'),
  ],
)
def test_facts_of_another_type(name, content, fault, tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  (tmp_path / name).write_text(content)
  with pytest.raises(InputError, match=f'does not describe a model .*{fault} cannot be used'):
    description.read(epath.Path(tmp_path))


# --- Checks --------------------------------------------------------------------------------


def test_parameters_work_with_their_own_permutation_only(trained):
  check(trained, SECTIONS['global'])
  other_patch = {**SECTIONS['global'], 'patch_size': 7}  # does not matter to a global one
  check(trained.parent, other_patch)
  for section, described in (
    (None, 'none'),
    ({**SECTIONS['global'], 'kind': 'none'}, 'none'),
    ({**SECTIONS['global'], 'seed': 4}, "{'kind': 'global', 'seed': 4}"),
    (
      SECTIONS['patch_pixel'],
      "{'kind': 'patch_pixel', 'seed': 3, 'patch_size': (3, 5)}",
    ),
  ):
    text = (
      f"{trained} was trained with the input permutation {{'kind': 'global', 'seed': 3}}, and "
      f'config.permutation is {described}; the parameters work with their own permutation only. '
      'Use the config of that run.'
    )
    with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
      check(trained, section)
  text = (
    f'{trained} was trained on permuted images of (12, 10), and these are of (10, 12); another '
    'size has another permutation. Use the same size.'
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    check(trained, SECTIONS['global'], (10, 12))


def test_parameters_without_a_permutation_refuse_one(trained):
  file = trained.with_suffix('.json')
  for unmoved in (None, {**SECTIONS['global'], 'kind': 'none'}):
    file.write_text(json.dumps({**FACTS, 'permutation': unmoved}))
    check(trained, None)
    check(trained, unmoved)
    with pytest.raises(InputError, match='was trained with the input permutation none, and config'):
      check(trained, SECTIONS['global'])
  trained.unlink()
  file.unlink()
  check(trained, SECTIONS['global'])  # nothing is recorded
  (trained.parent / 'config.json').write_text(json.dumps({'permutation': SECTIONS['global']}))
  with pytest.raises(InputError, match='was trained with the input permutation {'):
    check(trained.parent, None)


def test_a_run_that_has_not_finished_knows_its_image_size(tmp_path):
  config = {'permutation': SECTIONS['global'], 'train_input': {'image_size': SIZE}}
  workdir = write_run(tmp_path, config)
  check(workdir, SECTIONS['global'])
  with pytest.raises(InputError, match=re.escape('on permuted images of (12, 10), and these')):
    check(workdir, SECTIONS['global'], (10, 12))


class Data:
  def __init__(self, class_names):
    self.class_names = class_names


@pytest.mark.parametrize('finished', [True, False])
def test_classes(tmp_path, finished):
  workdir = write_run(tmp_path, CONFIG, ['ant', 'bee'])
  if finished:
    pretrained.save_model(workdir, tree(), {**FACTS, 'class_names': ['ant', 'bee']})
  trained = opened(workdir)
  trained.check_classes({'val': Data(('ant', 'bee'))})
  text = (
    "config.evals.val.input has the classes ['bee', 'ant']..., and the model was trained on "
    f"['ant', 'bee']... ({workdir}/{'model' if finished else 'config'}.json): names and order must "
    'agree.'
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    trained.check_classes({'test': Data(['ant', 'bee']), 'val': Data(['bee', 'ant'])})
  opened(tmp_path / 'x.npz').check_classes({'val': Data(['bee', 'ant'])})
