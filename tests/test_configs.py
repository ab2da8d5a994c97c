"""Every config is loaded, shrunk and trained for two steps, through train.py itself."""

import dataclasses
import importlib
import json
import re
from types import SimpleNamespace

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest

from mixer import evaluators, models, pretrained
from mixer.errors import InputError
from mixer.training import plan, train_step
import runs
import sets

SMALL_BIT = {'stage_sizes': (1,), 'width': 8, 'groups': 4}
SMALL_MODEL = {'num_blocks': 2, 'hidden_dim': 16, 'tokens_mlp_dim': 8, 'channels_mlp_dim': 32}
SMALL_VIT = {'num_blocks': 2, 'hidden_dim': 16, 'mlp_dim': 32, 'num_heads': 2}
SMALL = {'Mixer': SMALL_MODEL, 'ViT': SMALL_VIT, 'BiT': SMALL_BIT}
_SLOW = pytest.mark.slow
UPSTREAM = [p.stem for p in sorted((runs.ROOT / 'configs').glob('mixer_*.py'))]
DATA = ('imagenet21k', 'imagenet2012', 'jft')


def load(name: str, *argument: str) -> ConfigDict:
  return importlib.import_module(f'configs.{name}').get_config(*argument)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """Small sets under the real names, with the real splits' names."""
  path = tmp_path_factory.mktemp('sets')
  # Of the versions that TFDS knows, so that the classes have its names for them.
  sets.write(
    path, 'imagenet2012', {'train': 200, 'validation': 13}, num_classes=1000, version='5.1.0'
  )
  sets.write(
    path, 'imagenet_v2', {'test': 11}, num_classes=1000, version='3.0.0', config='matched-frequency'
  )
  sets.write(
    path, 'imagenet2012_real', {'validation': 13}, num_classes=1000,
    label_sequence=True, label_key='real_label',
  )  # fmt: skip
  sets.write(path, 'imagenet21k', {'full': 40}, num_classes=10)
  sets.write(path, 'jft_300m', {'train': 40, 'validation': 13}, label_sequence=True)
  return path


def shrink(config: ConfigDict, data_dir) -> ConfigDict:
  """The same job on little data, with a little model, for two steps."""
  family, _, size = config.model.name.partition('-')
  with config.unlocked():
    config.model.update(SMALL[family])
  config.total_steps = 2
  config.train_input.batch_size = 16
  if config.train_input.source == 'tfds':
    patch = 16 if family == 'BiT' else int(size.split('/')[1])
    config.train_input.data_dir = str(data_dir)
    config.train_input.image_size = 2 * patch
    for section in config.evals.values():
      section.input.resize = 2 * patch + 4
    config.evals.fewshot_imagenet.train_input.resize = 2 * patch + 4
    config.evals.fewshot_imagenet.train_input.split = 'train[:65]'
    config.evals.fewshot_imagenet.images_per_device = 4
    if config.train_input.name == 'imagenet21k':  # the slices begin beyond the few images here
      config.train_input.split = 'full[13:]'
      config.evals.val.input.split = 'full[:13]'
  return config


def train_two_steps(config: ConfigDict, workdir) -> list[dict]:
  runs.train_here(config, workdir)
  rows = runs.rows(workdir)
  assert rows[-1]['step'] == 2
  assert np.isfinite(rows[-1]['train/loss']) and (workdir / 'model.npz').exists()
  return rows


def test_every_file_is_tested():
  files = {p.stem for p in (runs.ROOT / 'configs').glob('*.py')}
  trained = {
    'ablations',
    'digits',
    'cifar10_scratch',
    'fashion_mnist',
    'fashion_transfer',
    'finetune',
    'upstream',
    'vtab',
  }
  # Evaluations only: tests/evaluators/test_evaluation.py runs them.
  evaluated = {'fewshot', 'imagenet'}
  studies = {'permutations', 'bit', 'vit'}
  helpers = {'common'}
  assert files == {*trained, *evaluated, *studies, *UPSTREAM, *helpers}
  assert len(UPSTREAM) == 7


@pytest.mark.parametrize(
  'family', ['Mixer', pytest.param('ViT', marks=_SLOW), pytest.param('BiT', marks=_SLOW)]
)
def test_digits(family, tmp_path):
  config = load('digits', f'model={family}')
  assert config.model.name == family
  assert train_two_steps(shrink(config, None), tmp_path)[-1]['test/n'] == 360
  assert load('digits', 'model=Mixer').to_dict() == load('digits').to_dict()


def test_ablations(tmp_path):
  config = shrink(load('ablations', 'data=digits,change=pyramid'), None)
  config.model.pyramid = ((1, 4),)  # the block that it was for is gone
  assert train_two_steps(config, tmp_path)[-1]['test/n'] == 360
  trained = pretrained.open(tmp_path)
  assert trained.describe().model['pyramid'] == [[1, 4]]
  assert 'pyramid_token_mixing' in trained.params['MixerBlock_1']


@pytest.mark.slow
def test_ablations_of_the_paper(data_dir, tmp_path):
  config = shrink(load('ablations', 'model=S/32,data=jft,change=untied'), data_dir)
  row = train_two_steps(config, tmp_path)[-1]
  assert row['val/n'] + row['val/n_without_labels'] == 13


def test_ablations_change_nothing_else():
  plain, changed = load('mixer_s32', 'jft').to_dict(), load('ablations', 'change=pyramid').to_dict()
  assert changed['model'].pop('pyramid') == ((4, 12),)  # the middle of 8 blocks, 49 tokens
  off = {'untie_tokens': False, 'channel_groups': 1, 'grouping': 'concat'}
  assert changed == {**plain, 'model': {**plain['model'], **off}}


def test_cifar10_from_scratch(tmp_path):
  sets.write(tmp_path / 'sets', 'cifar10', {'train': 40, 'test': 13})
  config = load('cifar10_scratch')
  with config.unlocked():
    config.model.update(SMALL_MODEL)
  config.train_input.data_dir = str(tmp_path / 'sets')
  config.train_input.batch_size = 16
  config.total_steps = 2
  assert train_two_steps(config, tmp_path / 'run')[-1]['test/n'] == 13


def test_fashion_mnist(tmp_path):
  for size in 'SM':
    flops = {}
    for family in SMALL:
      config = load('fashion_mnist', f'model={family},size={size},stage=dev')
      assert config.train_input.split == 'train[:55000]' and list(config.evals) == ['dev']
      assert config.evals.dev.input.split == 'train[55000:]'
      model = models.build(**config.model, num_classes=10)
      flops[family] = models.train_flops(model, config.train_input.image_size, channels=1)
    assert max(flops.values()) < 1.05 * min(flops.values()), flops
  final = load('fashion_mnist')
  assert (final.train_input.split, final.evals.test.input.split) == ('train', 'test')
  assert list(final.evals) == ['test'] and final.get('permutation') is None
  subset = load('fashion_mnist', 'model=ViT,subset=3,kind=global')
  assert list(subset.evals) == ['test', 'val'] and subset.checkpoints.keep_best == 'val/top1'
  assert subset.train_input.split == 'train[:55000]' and subset.permutation.kind == 'global'
  assert subset.train_input.subset_fraction == 0.03

  for part, n in (('train', 40), ('t10k', 13)):
    for kind, array in (('images-idx3', np.zeros((n, 28, 28))), ('labels-idx1', np.zeros(n))):
      header = b''.join(side.to_bytes(4, 'big') for side in array.shape)
      content = bytes([0, 0, 8, array.ndim]) + header + array.astype(np.uint8).tobytes()
      (tmp_path / f'{part}-{kind}-ubyte').write_bytes(content)
  config = shrink(load('fashion_mnist'), None)
  config.train_input.update({'path': str(tmp_path), 'image_size': 16})  # the test has them too
  assert train_two_steps(config, tmp_path / 'run')[-1]['test/n'] == 13


def test_vtab(tmp_path, monkeypatch):
  """A task at 448 pixels with grown weights, shrunk by seven."""
  from mixer.input.sources import vtab

  monkeypatch.setattr(vtab, 'TRAIN', 8)
  monkeypatch.setattr(vtab, 'VAL', 4)
  grey = np.random.default_rng(0).integers(0, 256, (96, 96, 1), np.uint8)
  labels = ('instance', 'label_lighting', 'label_category', 'label_azimuth', 'label_elevation')
  example = {'image': grey, 'image2': grey, **dict.fromkeys(labels, 1)}
  splits = {'train': [example] * 40, 'test': [example] * 26}
  sets.write_registered(tmp_path / 'sets', 'smallnorb', splits)
  model = models.build('Mixer', num_classes=3, patch_size=16, **SMALL_MODEL)
  pretrained.save(tmp_path / 'small.npz', models.init(model, jax.random.key(0), 32))

  config = load('vtab', 'task=smallnorb_azimuth')
  with config.unlocked():
    config.model.update(SMALL_MODEL)
  for section in (config.train_input, config.evals.test.input):
    section.resize = tuple(side // 7 for side in section.resize)
  config.train_input.image_size = tuple(side // 7 for side in config.train_input.image_size)
  config.train_input.data_dir = str(tmp_path / 'sets')
  config.train_input.batch_size = 16
  config.total_steps = 2
  config.init.path = str(tmp_path / 'small.npz')
  row = train_two_steps(config, tmp_path / 'run')[-1]
  assert row['test/n'] == 13
  changes = json.loads((tmp_path / 'run' / 'init.json').read_text())['changes']
  assert 'grown from a grid of (2, 2) patches to (4, 4)' in changes and 'head RESET' in changes


def slow_unless(quick, values):
  """All of the values, of which only those in `quick` are tested each time."""
  return [value if value in quick else pytest.param(value, marks=_SLOW) for value in values]


# One of each patch size; tests/test_settings.py checks the keys and values of all.
@pytest.mark.parametrize('name', slow_unless(('mixer_s32', 'mixer_b16', 'mixer_h14'), UPSTREAM))
def test_upstream(name, data_dir, tmp_path):
  row = train_two_steps(shrink(load(name), data_dir), tmp_path)[-1]
  assert row['val/n'] == 13
  assert row['fewshot_imagenet/n'] == 13 and row['fewshot_imagenet/5shot'] >= 0


def test_upstream_on_plain_record_files(tmp_path):
  """Of JFT's class count, with several labels an image; the first 13 examples are held out."""
  rows = [
    sets.example(**{'image/encoded': file, 'image/class/label': [i, 18_290 - i][: i % 3]})
    for file, i in sets.numbered(40)
  ]
  for part in range(2):
    sets.write_records(tmp_path / f'jft-{part}', rows[20 * part : 20 * part + 20])
  config = load('mixer_b32', 'jft_shards')
  assert config.total_epochs == 7.0 and config.optim.weight_decay == 0.03
  with config.unlocked():
    config.model.update(SMALL_MODEL)
  config.total_steps = 2
  config.train_input.update({'files': str(tmp_path / 'jft-*'), 'first': 13})
  config.train_input.update({'batch_size': 16, 'image_size': 64})
  config.evals.val.input.resize = 68
  row = train_two_steps(config, tmp_path / 'run')[-1]
  assert (row['val/n'], row['val/n_without_labels']) == (8, 5)


def test_upstream_on_plain_record_files_needs_their_names(tmp_path):
  with pytest.raises(
    InputError, match=r'^files is None; give a glob, such as --config\.train_input'
  ):
    train_two_steps(load('mixer_b32', 'jft_shards'), tmp_path)


@pytest.mark.parametrize('data', DATA[1:])
def test_upstream_on_other_data(data, data_dir, tmp_path):
  row = train_two_steps(shrink(load('mixer_b16', data), data_dir), tmp_path)[-1]
  assert row['val/n'] + row.get('val/n_without_labels', 0) == 13
  if data == 'imagenet2012':  # a zero head with the bias -6.9: paper.md 12, one positive class
    assert row['train/loss'] == pytest.approx(7.907, abs=0.01)
    # Every fourth image has no label in this set, beginning with the first.
    assert (row['real/n'], row['real/n_without_labels']) == (9, 4)
    assert row['v2/n'] == 11 and row['minival/n'] == 2


@pytest.mark.parametrize('data', slow_unless(('imagenet2012', 'jft'), DATA))
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
  with pytest.raises(ValueError, match=f'unknown data {argument!r}; use one of .*",synthetic" for'):
    load('mixer_b16', argument)


@pytest.mark.slow
def test_randaugment_on_the_device(data_dir, tmp_path, monkeypatch):
  given, make_step = [], train_step.make_step

  def spy(*, augmentation, **arguments):
    def mark(images, keys):
      given.append(images.shape)
      return augmentation.augment(images, keys)

    marked = dataclasses.replace(augmentation, augment=mark)
    return make_step(augmentation=marked, **arguments)

  monkeypatch.setattr(train_step, 'make_step', spy)
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


# --- ResNets, permutations, subsets ---------------------------------------------------------


# ViT's table 3: learning rate.
VIT_TABLE_3 = {'R50x1': 1e-3, 'R50x2': 1e-3, 'R101x1': 8e-4, 'R152x1': 6e-4, 'R152x2': 6e-4}


@pytest.mark.parametrize('model', VIT_TABLE_3)
def test_bit_recipes(model):
  config = load('bit', model)
  assert config.model.name == f'BiT-{model}' and config.train_input.name == 'jft_300m'
  found = (config.total_epochs, config.optim.learning_rate, config.optim.weight_decay)
  assert found == (7, VIT_TABLE_3[model], 0.1)
  assert config.optim.schedule.decay == 'linear' and config.optim.schedule.warmup_steps == 10_000
  assert config.train_input.batch_size == 4096 and config.mixup == 0


def test_recipes_of_the_largest_resnets():
  config = load('bit', 'R200x3')
  assert (config.total_epochs, config.optim.learning_rate) == (14, 6e-4)
  for data, epochs, boundaries in (
    ('jft', 40, (0.25, 0.575, 0.75, 0.925)), ('imagenet21k', 90, (1 / 3, 2 / 3, 8 / 9))
  ):  # fmt: skip
    config = load('bit', f'R152x4,{data}')
    assert config.optim.optimizer.name == 'sgd' and config.total_epochs == epochs
    assert config.optim.learning_rate == 0.48 and config.optim.schedule.warmup_steps == 5000
    assert config.optim.schedule.boundaries == pytest.approx(boundaries)
  text = "no recipe for 'BiT-R50x1' on 'imagenet21k'; there are those of Mixer-S/32 to H/14, ViT-S"
  with pytest.raises(ValueError, match=text):
    load('bit', 'R50x1,imagenet21k')


# ViT's table 3: epochs, learning rate, weight decay, dropout.
VIT_ROWS = {
  ('B/16', 'jft'): (7, 8e-4, 0.1, 0.0), ('B/32', 'jft'): (7, 8e-4, 0.1, 0.0),
  ('L/32', 'jft'): (7, 6e-4, 0.1, 0.0), ('L/16', 'jft'): (14, 4e-4, 0.1, 0.0),
  ('H/14', 'jft'): (14, 3e-4, 0.1, 0.0), ('S/16', 'jft'): (7, 8e-4, 0.1, 0.0),
  ('B/16', 'imagenet21k'): (90, 1e-3, 0.03, 0.1), ('L/16', 'imagenet21k'): (90, 1e-3, 0.03, 0.1),
  ('L/16', 'imagenet2012'): (300, 3e-3, 0.3, 0.1), ('S/32', 'imagenet2012'): (300, 3e-3, 0.3, 0.1),
}  # fmt: skip


@pytest.mark.parametrize(('size', 'data'), VIT_ROWS)
def test_vit_recipes(size, data):
  config = load('vit', f'{size},{data}')
  assert config.model.name == f'ViT-{size}' and config.train_input.batch_size == 4096
  found = (config.total_epochs, config.optim.learning_rate, config.optim.weight_decay)
  assert (*found, config.model.dropout) == VIT_ROWS[size, data]
  on_imagenet = data == 'imagenet2012'
  assert config.optim.schedule.decay == ('cosine' if on_imagenet else 'linear')
  assert config.optim.clip_norm == (1.0 if on_imagenet else None)
  assert load('vit', size).to_dict() == load('vit', f'{size},jft').to_dict()


@pytest.mark.parametrize(
  ('name', 'argument'),
  [('vit', 'B/32,imagenet21k'), pytest.param('bit', 'R152x4', marks=_SLOW)],
)
def test_upstream_of_the_other_families(name, argument, data_dir, tmp_path):
  train_two_steps(shrink(load(name, argument), data_dir), tmp_path)


@pytest.mark.parametrize('model', ['ViT-B/16', 'BiT-R50x1'])
def test_configs_take_models_of_all_families(model):
  for name, argument in (
    ('finetune', f'model={model},data=cifar10'), ('vtab', f'model={model},task=pets'),
    ('imagenet', f'model={model}'), ('fewshot', f'model={model}'),
    ('permutations', f'model={model}'),
  ):  # fmt: skip
    section = load(name, argument).model.to_dict()
    assert section['name'] == model and 'tiles' not in section
    models.build(**section, num_classes=10)


def test_permutations(data_dir, tmp_path):
  config = shrink(load('permutations', 'model=B/16,kind=patch_pixel'), data_dir)
  train_two_steps(config, tmp_path)
  described = json.loads((tmp_path / 'model.json').read_text())
  assert described['permutation'] == {'kind': 'patch_pixel', 'seed': 0, 'patch_size': 16}


def test_fashion_transfer(tmp_path):
  config = load('fashion_transfer', 'model=Mixer,size=S,stage=dev')
  assert train_two_steps(shrink(config, None), tmp_path)[-1]['dev/n'] == 240
  assert load('fashion_transfer').train_input.split == 'train'
  fewshot = load('fashion_transfer', 'model=BiT,task=fewshot')
  assert list(fewshot.evals) == ['digits'] and fewshot.evals.digits.input.image_size == 28


def test_the_permutation_is_all_that_permutation_configs_change():
  for model, twin in (('B/16', load('mixer_b16', 'jft')), ('R50x1', load('bit', 'R50x1'))):
    for kind in ('original', 'patch_pixel', 'global'):
      config = load('permutations', f'model={model},kind={kind}').to_dict()
      section = config.pop('permutation')
      assert section['kind'] == ('none' if kind == 'original' else kind)
      assert config == twin.to_dict()


@pytest.mark.parametrize(('percent', 'epochs'), [('3', 233), ('10', 70), ('30', 23), ('100', 7)])
def test_subsets(percent, epochs, data_dir):
  """Figure 2 (right) and appendix: as many steps on a part as on all of JFT-300M."""
  config, whole = load('mixer_b32', f'jft,subset={percent}'), load('mixer_b32', 'jft')
  assert int(config.total_epochs) == epochs  # as printed
  assert config.train_input.subset_fraction == int(percent) / 100
  images = 303_000_000
  steps = [
    plan.count_steps(None, c.total_epochs, SimpleNamespace(num_examples=n, batch_size=4096))
    for c, n in ((config, round(images * int(percent) / 100)), (whole, images))
  ]
  assert steps == [517_822, 517_822]
  assert config.checkpoints.keep_best == 'val/top1'
  comparable = evaluators.comparable(config.evals)
  plan.intervals(
    **config.every.to_dict(),
    keep_best='val/top1',
    evals=config.evals,
    comparable=comparable,
    skipped=(),
  )
  changed = {'train_input', 'total_epochs', 'checkpoints'}
  same = [{k: v for k, v in c.to_dict().items() if k not in changed} for c in (config, whole)]
  assert same[0] == same[1]
  for other in ('mixer_l32', 'mixer_l16'):  # of L/16, table 3 has 14 epochs and this figure 7
    assert load(other, f'jft,subset={percent}').total_epochs == config.total_epochs
  on_imagenet = load('mixer_b16', f'imagenet2012,subset={percent}')
  assert on_imagenet.checkpoints.keep_best == 'minival/top1'  # its 'val' is for the result


def test_a_resnet_on_a_subset_of_a_tfds_set(data_dir, tmp_path):
  config = shrink(load('bit', 'R50x1,subset=30'), data_dir)
  config.every.evaluate = config.every.checkpoint = 2
  row = train_two_steps(config, tmp_path)[-1]
  assert row['epoch'] == pytest.approx(2 * 16 / 12)  # 12 of 40 images
  assert (row['val/n'], row['val/n_without_labels']) == (9, 4)


@pytest.mark.parametrize(
  ('name', 'argument', 'text'),
  [
    ('mixer_b16', 'jft,subset=0', 'subset=0: write percent above 0 and up to 100'),
    ('mixer_b16', 'jft,subset=all', 'subset=all: write percent above 0 and up to 100'),
    ('mixer_b16', 'jft,part=3', "unknown data 'jft,part=3'; use one of "),
    ('mixer_b16', 'jft,subset=3,synthetic', "unknown data 'jft,subset=3,synthetic'; use one of "),
    ('permutations', 'kind=pixel', "kind='pixel'; use one of "),
    ('permutations', 'model=B', "no recipe for 'Mixer-B' on 'jft'; there are those of Mixer-S/32"),
    ('permutations', 'models=B/16', "'models=B/16' is not KEY=VALUE with a key of "),
    (
      'fashion_mnist',
      'stage=dev,subset=3',
      'stage=dev with subset=3: subset has a stage of its',
    ),
    ('fashion_mnist', 'model=BiT,size=L', "size='L'; use one of "),
  ],
)
def test_wrong_arguments(name, argument, text):
  with pytest.raises(ValueError, match=f'^{re.escape(text)}'):
    load(name, argument)


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


def test_few_shot_is_evaluated_every_25000_steps():
  for data in DATA:
    section = load('mixer_b16', data).evals.fewshot_imagenet
    assert section.every == 25_000 and section.shots == (5,) and section.l2 == 1024
    assert section.seeds == (0, 1, 2) and section.input.resize == 256
    assert section.train_input.split == 'train[:65000]' and section.input.split == 'validation'


def test_unknown_data():
  with pytest.raises(ValueError, match="unknown data 'cifar'; use one of"):
    load('mixer_b16', 'cifar')


@pytest.mark.slow
def test_b16_itself(data_dir, tmp_path):
  """The command of the README with its real model and image size, on a small set."""
  status, output = runs.run(
    'train.py',
    *runs.train_flags(tmp_path / 'run', config='configs/mixer_b16.py'),
    f'--config.train_input.data_dir={data_dir}',
    '--config.train_input.split=full[13:]',
    '--config.train_input.batch_size=4',
    '--config.evals.val.input.split=full[:13]',
    '--config.evals.fewshot_imagenet.train_input.split=train[:65]',
    '--config.total_steps=2',
    env=runs.optimised(),
  )
  assert status == 0, output
  assert '59,119,162' in output  # parameters with a head of 10
  row = runs.rows(tmp_path / 'run')[-1]
  assert row['step'] == 2 and row['val/n'] == 13 and np.isfinite(row['train/loss'])
