"""Every config is loaded, shrunk and trained for two steps, through train.py itself."""

import importlib

from absl import flags
from ml_collections import ConfigDict
import numpy as np
import pytest

import runs
import sets
import train

SMALL_MODEL = {'num_blocks': 2, 'hidden_dim': 16, 'tokens_mlp_dim': 8, 'channels_mlp_dim': 32}
UPSTREAM = [p.stem for p in sorted((runs.ROOT / 'configs').glob('mixer_*.py'))]
DATA = ('imagenet21k', 'imagenet2012', 'jft')


def load(name: str, *argument: str) -> ConfigDict:
  return importlib.import_module(f'configs.{name}').get_config(*argument)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """Small sets under the real names, with the real splits' names."""
  path = tmp_path_factory.mktemp('sets')
  sets.write(path, 'imagenet2012', {'train': 200, 'validation': 13}, num_classes=1000)
  sets.write(path, 'imagenet21k', {'full': 40}, num_classes=10)
  sets.write(path, 'jft_300m', {'train': 40, 'validation': 13}, label_sequence=True)
  return path


def shrink(config: ConfigDict, data_dir) -> ConfigDict:
  """The same job on little data, with a little model, for two steps."""
  with config.unlocked():
    config.model.update(SMALL_MODEL)
  config.total_steps = 2
  config.train_input.batch_size = 16
  if config.train_input.source == 'tfds':
    patch = int(config.model.name.split('/')[1])
    config.train_input.data_dir = str(data_dir)
    config.train_input.image_size = 2 * patch
    for section in config.evals.values():
      section.input.resize = 2 * patch + 4
    if config.train_input.name == 'imagenet21k':  # the slices begin beyond the few images here
      config.train_input.split = 'full[13:]'
      config.evals.val.input.split = 'full[:13]'
  return config


def train_two_steps(config: ConfigDict, workdir) -> list[dict]:
  flags.FLAGS.mark_as_parsed()
  flags.FLAGS.tensorboard = False
  train.start(config.to_dict(), str(workdir))
  rows = runs.rows(workdir)
  assert rows[-1]['step'] == 2
  assert np.isfinite(rows[-1]['train/loss']) and (workdir / 'model.npz').exists()
  return rows


def test_every_file_is_tested():
  files = {p.stem for p in (runs.ROOT / 'configs').glob('*.py')}
  assert (
    files == {'digits', 'cifar10_scratch', 'finetune', 'upstream', *UPSTREAM} and len(UPSTREAM) == 7
  )


def test_digits(tmp_path):
  assert train_two_steps(shrink(load('digits'), None), tmp_path)[-1]['test/n'] == 360


def test_cifar10_from_scratch(tmp_path):
  sets.write(tmp_path / 'sets', 'cifar10', {'train': 40, 'test': 13})
  config = load('cifar10_scratch')
  with config.unlocked():
    config.model.update(SMALL_MODEL)
  config.train_input.data_dir = str(tmp_path / 'sets')
  config.train_input.batch_size = 16
  config.total_steps = 2
  assert train_two_steps(config, tmp_path / 'run')[-1]['test/n'] == 13


@pytest.mark.parametrize('name', UPSTREAM)
def test_upstream(name, data_dir, tmp_path):
  rows = train_two_steps(shrink(load(name), data_dir), tmp_path)
  assert rows[-1]['val/n'] == 13


@pytest.mark.parametrize('data', DATA[1:])
def test_upstream_on_other_data(data, data_dir, tmp_path):
  row = train_two_steps(shrink(load('mixer_b16', data), data_dir), tmp_path)[-1]
  assert row['val/n'] == 13
  if data == 'imagenet2012':  # a zero head with the bias -6.9: paper.md 12, one positive class
    assert row['train/loss'] == pytest.approx(7.907, abs=0.01)


@pytest.mark.parametrize('data', DATA)
def test_synthetic_data(data, tmp_path):
  """The recipe's model, optimiser and classes without any data."""
  real, config = load('mixer_b16', data), load('mixer_b16', f'{data},synthetic')
  changed = {key for key in real if real[key].__eq__(config[key]) is not True}
  assert changed == {'train_input', 'evals'} and not config.evals
  for key in ('batch_size', 'image_size'):
    assert config.train_input[key] == real.train_input[key]
  if data == 'jft':
    assert config.train_input.num_classes == 18_291 and config.train_input.multi_label
    return
  config = shrink(config, None)
  config.train_input.image_size = 32
  row = train_two_steps(config, tmp_path)[-1]
  assert row['train/loss'] == pytest.approx(
    {'imagenet2012': 7.907, 'imagenet21k': 11.0}[data], 0.01
  )


@pytest.mark.parametrize('argument', ['imagenet2012,fast', 'synthetic', 'jft,synthetic,synthetic'])
def test_an_argument_that_is_not_known(argument):
  with pytest.raises(ValueError, match=f'unknown data {argument!r}; use one of .*",synthetic"'):
    load('mixer_b16', argument)


def test_randaugment_on_the_device(data_dir, tmp_path, monkeypatch):
  given, make_step = [], train.training.make_step

  def spy(*, augment, **arguments):
    def mark(images, keys):
      given.append(images.shape)
      return augment(images, keys)

    return make_step(augment=mark, **arguments)

  monkeypatch.setattr(train.training, 'make_step', spy)
  config = shrink(load('mixer_b16', 'imagenet2012'), data_dir)
  assert config.train_input.randaugment_on == 'host'
  config.train_input.randaugment_on = 'device'
  assert train_two_steps(config, tmp_path)[-1]['val/n'] == 13
  assert set(given) == {(2, 32, 32, 3)}  # of 16 images, on each of 8 devices


# Table 4 of the paper, typed again: epochs, learning rate, weight decay, RandAugment magnitude,
# mixup p, stochastic depth; of S and H off JFT, the values that the config says it borrows.
TABLE_4 = {
  ('b16', 'imagenet2012'): (300, 0.001, 0.1, 15, 0.5, 0.1),
  ('l16', 'imagenet2012'): (300, 0.001, 0.1, 15, 0.5, 0.1),
  ('b16', 'imagenet21k'): (300, 0.001, 0.1, 10, 0.2, 0.1),
  ('l16', 'imagenet21k'): (300, 0.001, 0.1, 20, 0.5, 0.1),
  ('s16', 'imagenet21k'): (300, 0.001, 0.1, 10, 0.2, 0.1),
  ('h14', 'imagenet21k'): (300, 0.001, 0.1, 20, 0.5, 0.1),
  ('s32', 'jft'): (5, 0.003, 0.03, 0, 0.0, 0.0),
  ('s16', 'jft'): (5, 0.003, 0.03, 0, 0.0, 0.0),
  ('b32', 'jft'): (7, 0.003, 0.03, 0, 0.0, 0.0),
  ('b16', 'jft'): (7, 0.003, 0.03, 0, 0.0, 0.0),
  ('l32', 'jft'): (7, 0.001, 0.03, 0, 0.0, 0.0),
  ('l16', 'jft'): (14, 0.001, 0.03, 0, 0.0, 0.0),
  ('h14', 'jft'): (14, 0.001, 0.03, 0, 0.0, 0.0),
}


@pytest.mark.parametrize(('model', 'data'), TABLE_4)
def test_table_4(model, data):
  config = load(f'mixer_{model}', data)
  assert config.model.name == f'Mixer-{model[0].upper()}/{model[1:]}'
  found = (
    config.total_epochs,
    config.optim.learning_rate,
    config.optim.weight_decay,
    config.train_input.randaugment_magnitude,
    config.mixup,
    config.model.stochastic_depth,
  )
  assert found == TABLE_4[model, data]
  assert config.optim.weight_decay_mode == 'adamw' and config.loss == 'sigmoid'
  assert config.train_input.batch_size == 4096 and config.train_input.image_size == 224
  assert config.optim.clip_norm == 1.0 and config.optim.schedule.warmup_steps == 10_000
  assert config.train_input.randaugment_layers == (2 if found[3] else 0)


def test_unknown_data():
  with pytest.raises(ValueError, match="unknown data 'cifar'; use one of"):
    load('mixer_b16', 'cifar')


def test_b16_itself(data_dir, tmp_path):
  """The command of the README with its real model and image size, on a small set."""
  status, output = runs.run(
    'train.py',
    *runs.train_flags(tmp_path / 'run', config='configs/mixer_b16.py'),
    f'--config.train_input.data_dir={data_dir}',
    '--config.train_input.split=full[13:]',
    '--config.train_input.batch_size=4',
    '--config.evals.val.input.split=full[:13]',
    '--config.total_steps=2',
    env=runs.environment(tmp_path / 'cache'),
  )
  assert status == 0, output
  assert '59,119,162' in output  # parameters with a head of 10
  row = runs.rows(tmp_path / 'run')[-1]
  assert row['step'] == 2 and row['val/n'] == 13 and np.isfinite(row['train/loss'])
