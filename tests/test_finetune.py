"""Fine-tuning: the config in all its variants, the sweep, and the whole story on a folder."""

import json
import re
import signal
import sys

from etils import epath
import jax
import numpy as np
import pytest

from configs import common, fewshot, finetune
from mixer import errors, models, pretrained, progressive, sweep
from mixer.input import folders
import runs
import sets

SMALL_MODEL = {'num_blocks': 2, 'hidden_dim': 16, 'tokens_mlp_dim': 8, 'channels_mlp_dim': 32}


def small_file(path, num_classes=10):
  """An .npz of a small Mixer with patches of 16, trained (as it were) at 32 pixels."""
  model = models.build('Mixer', num_classes=num_classes, patch_size=16, **SMALL_MODEL)
  pretrained.save(path, models.init(model, jax.random.key(0), 32))
  return str(path)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp('sets')
  sets.write(path, 'cifar10', {'train': 50, 'test': 13})
  return str(path)


@pytest.mark.parametrize(
  ('argument', 'tiles'),
  [
    ('', 1),
    ('stage=dev,crop=resize', 1),
    ('resolution=448', 2),
    ('resolution=224x448', (1, 2)),
    ('recipe=vision_transformer', 1),
    ('train=head', 1),
  ],
)
def test_every_variant_trains(argument, tiles, data_dir, tmp_path, capsys):
  """Shrunk to 32 pixels for 224; right after growing, the logits are those of the head: zero."""
  config = finetune.get_config(argument)
  assert config.model.tiles == ((tiles, tiles) if isinstance(tiles, int) else tiles)
  with config.unlocked():
    config.model.update(SMALL_MODEL)
    for section in (config.train_input, *(one.input for one in config.evals.values())):
      if 'resize' in section:
        section.resize = tuple(side // 7 for side in section.resize)
  config.train_input.image_size = tuple(side // 7 for side in config.train_input.image_size)
  config.train_input.data_dir = data_dir
  config.train_input.batch_size = 8 * config.microbatches
  config.total_steps = 2
  config.init.path = small_file(tmp_path / 'small.npz')
  runs.train_here(config, tmp_path / 'run')
  row = runs.rows(tmp_path / 'run')[-1]
  held_out = 'dev' if 'dev' in argument else 'test'
  assert row['step'] == 2 and row[f'{held_out}/n'] == (1 if held_out == 'dev' else 13)
  source = json.loads((tmp_path / 'run' / 'init.json').read_text())
  assert source['source'] == config.init.path and len(source['sha256']) == 64
  assert ('grown from a grid' in source['changes']) == (tiles != 1)
  assert 'head kept: 10 classes (all zeros' in source['changes']
  frozen = '170 of 14,930 parameters; the other 14,760 are frozen' in capsys.readouterr().out
  assert frozen == (argument == 'train=head')


# The paper's protocol, typed again: steps, share of the training split for choosing the rate.
PROTOCOL = {
  'imagenet2012': (20_000, 'train[:99%]', 'train[99%:]', 'train', 'validation'),
  'cifar10': (10_000, 'train[:98%]', 'train[98%:]', 'train', 'test'),
  'cifar100': (10_000, 'train[:98%]', 'train[98%:]', 'train', 'test'),
  'oxford_iiit_pet': (500, 'train[:90%]', 'train[90%:]', 'train', 'test'),
  'oxford_flowers102': (500, 'train[:90%]', 'train[90%:]', 'train', 'test'),
}


@pytest.mark.parametrize('data', PROTOCOL)
def test_the_protocol(data):
  steps, dev_train, dev, whole, test = PROTOCOL[data]
  choosing = finetune.get_config(f'data={data},stage=dev')
  final = finetune.get_config(f'data={data}')
  assert choosing.train_input.split == dev_train and choosing.evals.dev.input.split == dev
  assert final.train_input.split == whole and final.evals.test.input.split == test
  for config in (choosing, final):
    assert config.total_steps == steps and config.train_input.batch_size == 512
    assert config.optim.optimizer.name == 'sgd' and config.optim.optimizer.momentum == 0.9
    assert config.optim.clip_norm == 1.0 and config.optim.weight_decay == 0.0
    assert config.optim.schedule.decay == 'cosine' and config.loss == 'softmax'
    assert config.mixup == 0.0 and config.model.stochastic_depth == 0.0
    assert config.train_input.image_size == (224, 224) and config.train_input.resize == (256, 256)


def test_overrides_reach_the_evaluation():
  config = finetune.get_config('data=/a/folder')
  config.train_input.path = '/another'
  config.train_input.batch_size = 7
  config.train_input.val_fraction = 0.3
  val = config.evals.val.input
  assert val.path == '/another' and val.batch_size == 7 and val.val_fraction == 0.3
  assert (config.train_input.split, val.split) == ('train', 'val')


def folder_of(root, *names):
  for name in names:
    (root / name).mkdir(parents=True)
  return root


@pytest.mark.parametrize(
  ('names', 'final', 'dev'),
  [
    (['cat', 'dog'], {'val': 'val'}, ('train[:90%]', 'train[90%:]')),
    (['train/cat', 'val/cat'], {'val': 'val'}, ('train[:90%]', 'train[90%:]')),
    (['Train/cat', 'Test/cat'], {'test': 'test'}, ('train[:90%]', 'train[90%:]')),
    (['training_set/cat', 'test_set/cat', 'dev/cat'], {'val': 'val', 'test': 'test'},
     ('train', 'val')),
    (['test/cat'], {'test': 'test'}, ('train[:90%]', 'train[90%:]')),
  ],
)  # fmt: skip
@pytest.mark.parametrize('recipe', ['paper', 'vision_transformer'])
def test_three_parts_of_a_folder(tmp_path, names, final, dev, recipe):
  """No learning rate is chosen on the images of the last report."""
  root = folder_of(tmp_path / 'photos', *names)
  config = finetune.get_config(f'data={root},recipe={recipe}')
  assert {name: section.input.split for name, section in config.evals.items()} == final
  assert config.train_input.split == 'train'
  choosing = finetune.get_config(f'data={root},stage=dev,recipe={recipe}')
  assert (choosing.train_input.split, choosing.evals.dev.input.split) == dev
  assert list(choosing.evals) == ['dev']


def test_a_config_and_the_source_know_the_same_folders_of_splits(tmp_path):
  words = 'val valid validate validation dev devel development eval evaluation test testing train'
  names = [f'{word}{end}' for word in words.split() for end in ('', '_set', 'Data', ' images', 's')]
  for name in (*names, 'VAL', 'Test-Split', 'cat', 'latest', 'evil', 'training_set'):
    root = folder_of(tmp_path / name, f'{name}/a', f'{name}/b')
    found = [split for split in ('val', 'test') if split in folders.split_folders(str(root))]
    assert common.held_out(str(root)) == (found or ['val']), name
  assert common.held_out(f'{tmp_path}/absent') == ['val']


def test_the_other_recipe_chooses_on_training_images_too():
  config = finetune.get_config('data=cifar10,stage=dev,recipe=vision_transformer')
  assert config.train_input.split == 'train[:98%]' and config.evals.dev.input.split == 'train[98%:]'


def test_a_folder_here_without_a_slash(tmp_path, monkeypatch):
  folder_of(tmp_path, 'photos/cat', 'photos/dog', 'cifar10/cat')
  monkeypatch.chdir(tmp_path)
  assert finetune.get_config('data=photos').train_input.path == 'photos'
  assert finetune.get_config('data=cifar10').train_input.source == 'tfds'
  section = fewshot.get_config('data=photos').evals.folder
  assert section.input.split == 'val' and section.train_input.split == 'train'
  section.train_input.path, section.train_input.val_fraction = 'other', 0.5
  assert section.input.path == 'other' and section.input.val_fraction == 0.5
  with pytest.raises(ValueError, match="^data='absent'; use one of .*, or a folder: "):
    fewshot.get_config('data=absent')


@pytest.mark.parametrize(
  ('argument', 'text'),
  [
    ('modle=B/16', "'modle=B/16' is not KEY=VALUE with a key of"),
    ('data=mnist', "data='mnist' is none of .* write a folder as a path"),
    ('stage=first', "stage='first'; use one of"),
  ],
)
def test_arguments_that_are_wrong(argument, text):
  with pytest.raises(ValueError, match=text):
    finetune.get_config(argument)


@pytest.mark.parametrize(
  ('resolution', 'tiles'), [('256', 1), ('160', 1), ('512x256', 1), ('448', 2)]
)
def test_resampling_by_argument(resolution, tiles):
  config = finetune.get_config(f'model=B/16,resolution={resolution},resample=True')
  assert config.init.resample is True and config.model.tiles == (tiles, tiles)
  assert 'resample' not in finetune.get_config(f'resolution={resolution}').init


FAKE_TRAIN = """
import json, pathlib, re, sys
flags = dict(re.fullmatch('--([^=]+)=(.*)', word).groups() for word in sys.argv[1:])
rate, workdir = float(flags['config.optim.learning_rate']), pathlib.Path(flags['workdir'])
workdir.mkdir(parents=True, exist_ok=True)
stage = re.search('stage=(.*)', flags['config'])[1]
name = 'dev' if stage == 'dev' else 'test'
row = {'step': 1, name + '/top1': 1 - abs(rate - 0.03), 'flags': sys.argv[1:]}
(workdir / 'metrics.jsonl').write_text(json.dumps(row) + '\\n')
sys.exit(2 if rate > 1 else 0)
"""


def test_the_sweep_takes_the_best_rate(tmp_path, monkeypatch):
  (tmp_path / 'fake.py').write_text(FAKE_TRAIN)
  monkeypatch.setattr(sweep, 'TRAIN', tmp_path / 'fake.py')
  config, workdir = 'configs/finetune.py:model=B/16', epath.Path(tmp_path / 'sweep')
  rates = ['0.003', '0.01', '0.03', '0.06']
  result = sweep.sweep(config, workdir, rates, ['--config.init.path=x.npz'])
  assert result['learning_rate'] == '0.03' and list(result['dev']) == rates
  assert result['final']['flags'] == [
    f'--config={config},stage=final', f'--workdir={workdir}/final-0.03',
    '--config.optim.learning_rate=0.03', '--config.init.path=x.npz',
  ]  # fmt: skip
  with pytest.raises(errors.InputError, match='the run in .*dev-2 ended with status 2'):
    sweep.sweep(config, workdir, ['2'], [])
  with pytest.raises(errors.InputError, match='the sweep sets the stage itself'):
    sweep.sweep(config + ',stage=dev', workdir, rates, [])


FAKE_STAGE = """
import json, pathlib, sys
workdir = pathlib.Path(next(w for w in sys.argv if w.startswith('--workdir=')).partition('=')[2])
workdir.mkdir(parents=True, exist_ok=True)
row = {'step': 1, 'test/top1': 0.5, 'flags': sys.argv[1:]}
(workdir / 'metrics.jsonl').write_text(json.dumps(row) + '\\n')
"""


def test_progressive_resolution(tmp_path, monkeypatch):
  (tmp_path / 'fake.py').write_text(FAKE_STAGE)
  monkeypatch.setattr(sweep, 'TRAIN', tmp_path / 'fake.py')
  workdir = epath.Path(tmp_path / 'run')

  def run(*stages, rest=()):
    return progressive.progress('digits.py', workdir, stages, rest)

  found = run('init.path=x.npz', "model.tiles='(2, 1)' total_steps=3", rest=['--config.seed=1'])
  assert [row['flags'] for row in found] == [
    ['--config=digits.py', f'--workdir={workdir}/stage1', '--config.init.path=x.npz',
     '--config.seed=1'],
    ['--config=digits.py', f'--workdir={workdir}/stage2', f'--config.init.path={workdir}/stage1',
     '--config.model.tiles=(2, 1)', '--config.total_steps=3', '--config.seed=1'],
  ]  # fmt: skip
  for stages, rest, text in (
    (['--x=1'], [], r"--stage=--x=1: \['--x=1'\] is not KEY=VALUE of a config"),
    ([''], [], '--stage=: nothing is not KEY=VALUE'),
    (["a='1"], [], "--stage=a='1: No closing quotation."),
    (['seed=1', 'init.path=x'], [], '--stage=init.path=x: init.path is the stage before'),
    (['seed=1'], ['--config.seed=2'], '--config.seed would be the same in all runs; give --stage'),
    (['seed=1'], ['--config.init.path=x'], '--config.init.path would be the same in all runs'),
  ):
    with pytest.raises(errors.InputError, match=text):
      run(*stages, rest=rest)


@pytest.mark.slow
def test_the_sweep_as_a_command(data_dir, tmp_path):
  """It finds train.py, and train.py's message comes through."""
  status, output = runs.run(
    'mixer/sweep.py',
    '--config=configs/finetune.py:data=cifar10',
    f'--workdir={tmp_path}/sweep',
    '--config.init.path=/nowhere.npz',
    f'--config.train_input.data_dir={data_dir}',
    '--config.train_input.batch_size=8',
    env=runs.environment(PYTHONPATH=str(runs.ROOT)),
  )
  assert status == 2
  assert 'error: no file /nowhere.npz' in output and 'dev-0.003 ended with status 2' in output


@pytest.mark.slow
def test_a_folder_from_start_to_end(tmp_path):
  """README's commands on generated photographs, with a kill on the way: S/32 at full size."""
  env = runs.optimised()
  rng = np.random.default_rng(0)
  for name, colour in {'red': (200, 40, 40), 'green': (40, 200, 40), 'blue': (40, 40, 200)}.items():
    (tmp_path / 'photos' / name).mkdir(parents=True)
    for i in range(30):
      noise = rng.normal(0, 60, (*rng.integers(120, 300, 2), 3))
      image = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
      (tmp_path / 'photos' / name / f'{i}.jpg').write_bytes(sets.encode(image, 'JPEG'))
  model = models.build('Mixer-S/32', num_classes=1000)
  pretrained.save(tmp_path / 'Mixer-S_32.npz', models.init(model, jax.random.key(0), 224))

  workdir = tmp_path / 'run'
  config = f'--config={runs.ROOT}/configs/finetune.py:model=S/32,data={tmp_path}/photos'
  command = (
    config, f'--workdir={workdir}', f'--config.init.path={tmp_path}/Mixer-S_32.npz',
    '--config.train_input.batch_size=8', '--config.total_steps=24', '--config.every.log=1',
    '--config.optim.schedule.warmup_steps=5', '--config.every.checkpoint=6', '--notensorboard',
  )  # fmt: skip
  process = runs.start('train.py', *command, env=env)
  assert runs.wait_for(lambda: (workdir / 'checkpoints' / '6').is_dir(), process)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  status, output = runs.run('train.py', *command, env=env)
  assert status == 0, output
  assert re.search(r'the checkpoint of step (6|12|18); step', output)
  last = runs.rows(workdir)[-1]
  assert last['val/top1'] > 0.95 and last['val/n'] == 9

  status, output = runs.run('evaluate.py', config, f'--checkpoint={workdir}/model.npz', env=env)
  assert status == 0, output
  result = json.loads((workdir / 'model.evaluation' / 'finetune.json').read_text())
  assert result['val/top1'] == last['val/top1'] and result['val/n'] == 9

  status, output = runs.run(
    'mixer/predict.py', f'--checkpoint={workdir}', '--json', f'{tmp_path}/photos/green/0.jpg',
    env={**env, 'PYTHONPATH': str(runs.ROOT)},
  )  # fmt: skip
  assert status == 0, output
  found = [json.loads(line) for line in output.splitlines() if line.startswith('{')]
  assert 'green' in json.dumps(found[0]['top'][0] if 'top' in found[0] else found[0])
  assert sys.version_info >= (3, 11)
