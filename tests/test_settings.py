"""What a config may hold, and how it is read and changed from the command line."""

import inspect
import json
import re
from typing import Annotated

from absl import flags
from ml_collections import ConfigDict
import pytest

from configs import common
from mixer import config_file, sweep, values
from mixer import input as inputs
from mixer.errors import InputError
from mixer.run import build, workdirs
import runs

CONFIGS = sorted(
  path.stem
  for path in (runs.ROOT / 'configs').glob('*.py')
  if path.stem not in ('common', 'upstream')
)
FOLDER = 'finetune.py:model=S/32,data=/some/photos'


def read(name: str, *changes: str) -> dict:
  return config_file.read(f'{runs.ROOT}/configs/{name}', changes)


def check(config: dict) -> None:
  (build.check if 'train_input' in config else build.check_evaluation)(config)


def refused(name: str, *changes: str) -> str:
  with pytest.raises(InputError) as error:
    check(read(name, *changes))
  return str(error.value)


# --- Values ---------------------------------------------------------------------------------------

BAD = [
  ('optim.clip_norm', '0', 'a number above 0, or None'),
  ('optim.clip_norm', '-1', 'a number above 0, or None'),
  ('optim.learning_rate', '-0.1', 'a number above 0'),
  ('optim.learning_rate', 'fast', 'a number above 0'),
  ('optim.learning_rate', 'True', 'a number above 0'),
  ('optim.weight_decay', '-1e-4', 'a number of at least 0'),
  ('optim.learning_rate', '1e-60', 'a number above 0'),  # 0 in float32
  ('optim.clip_norm', '1e-50', 'a number above 0, or None'),
  ('mixup', '1e60', 'a number of at least 0'),
  ('model.head_bias', '-1e39', 'a number'),
  ('optim.weight_decay_mode', 'l2', "one of ['adamw', 'independent']"),
  ('optim.optimizer', '3', 'a section'),
  ('optim.optimizer.b1', '-0.1', 'a number of at least 0 and below 1'),
  ('optim.optimizer.b2', '1.5', 'a number of at least 0 and below 1'),
  ('optim.optimizer.eps', '0.0', 'a number above 0 and up to 1'),
  ('optim.optimizer.eps', '1e8', 'a number above 0 and up to 1'),
  ('optim.optimizer.moment_dtype', 'int8', "one of ['bfloat16', 'float16', 'float32']"),
  ('optim.schedule.linear_end', '2', 'a number from 0 to 1'),
  ('optim.schedule.warmup_steps', '10.5', 'an int from 0 to 2**31 - 1'),
  ('optim.schedule.decay', 'rsqrt', "one of ['cosine', 'linear', 'step']"),
  ('seed', str(2**127), 'an int from -2**63 to 2**63 - 1'),
  ('mixup', '-0.2', 'a number of at least 0'),
  ('mixup', 'inf', 'a number of at least 0'),
  ('loss', 'hinge', "one of ['sigmoid', 'softmax']"),
  ('total_epochs', 'nan', 'a number of at least 0, or None'),
  ('total_epochs', '1e999', 'a number of at least 0, or None'),
  ('total_steps', '500.5', 'an int from 1 to 2**31 - 1, or None'),
  ('total_steps', 'abc', 'an int from 1 to 2**31 - 1, or None'),
  ('total_steps', str(10**30), 'an int from 1 to 2**31 - 1, or None'),
  ('microbatches', '0', 'an int from 1 to 2**31 - 1'),
  ('mesh.data', '0', 'a positive int, or -1 for the rest'),
  ('mesh.fsdp', '1.0', 'an int from 1 to 2**31 - 1'),
  ('every.log', '-1', 'an int from 0 to 2**31 - 1'),
  ('every.evaluate', 'never', 'an int from 0 to 2**31 - 1'),
  ('every.checkpoint', 'None', 'an int from 0 to 2**31 - 1'),
  ('checkpoints.keep_last', '0', 'an int from 1 to 2**31 - 1'),
  ('model.dropout', '1.5', 'a number of at least 0 and below 1'),
  ('model.num_blocks', '2.0', 'an int from 1 to 2**31 - 1'),
  ('model.dtype', 'float8', "one of ['bfloat16', 'float32']"),
  ('model.remat', 'maybe', 'True or False'),
  ('model.patch_size', '0', 'a positive int or a tuple (height, width)'),
  ('train_input.batch_size', 'True', 'an int from 1 to 2**31 - 1'),
  ('train_input.subset_fraction', '0', 'a number above 0 and up to 1'),
  ('evals.test.input.batch_size', '-8', 'an int from 1 to 2**31 - 1'),
  ('evals.test.every', '-200', 'an int from 0 to 2**31 - 1'),
  ('init.head', 'drop', "one of ['auto', 'keep', 'reset']"),
]


@pytest.mark.parametrize(('key', 'value', 'wanted'), BAD)
def test_a_value_that_means_nothing(key, value, wanted):
  found = refused('digits.py', f'{key}={value}')
  assert re.fullmatch(rf'config\.{re.escape(key)} is .*; use {re.escape(wanted)}\.', found)


@pytest.mark.parametrize(
  ('key', 'value', 'wanted'),
  [
    ('train_input.image_size', '0', 'a positive int or a tuple (height, width)'),
    ('train_input.image_size', '(224,)', 'a positive int or a tuple (height, width)'),
    ('train_input.randaugment_layers', '-2', 'an int from 0 to 2**31 - 1'),
    ('train_input.randaugment_magnitude', '1e30', 'a number from 0 to 100'),
    ('train_input.crop', 'centre', "one of ['direct', "),
    ('train_input.on_bad_image', 'ignore', "one of ['fail', 'skip']"),
    ('train_input.val_fraction', 'half', 'a number from 0 to 1'),
    ('train_input.val_fraction', '1.5', 'a number from 0 to 1'),
    ('train_input.path', 'None', 'text'),
    ('optim.optimizer.momentum', '1', 'a number of at least 0 and below 1'),
    ('init.from_size', '(0, 7)', 'a positive int or a tuple (height, width), or an empty tuple'),
    ('permutation.seed', '0.5', 'an int from '),
  ],
)
def test_a_value_that_means_nothing_for_image_files(key, value, wanted):
  assert f'config.{key} is ' in (found := refused(FOLDER, f'{key}={value}'))
  assert f'; use {wanted}' in found


def test_a_number_that_float32_cannot_hold_says_so():
  assert 'learning_rate is 1e-60, 0 in float32; use' in refused(
    'digits.py', 'optim.learning_rate=1e-60'
  )
  assert 'mixup is 1e+60, infinite in float32; use' in refused('digits.py', 'mixup=1e60')


@pytest.mark.parametrize(
  ('mode', 'decay', 'limit'), [('independent', '1', '1'), ('adamw', '400', '333.333')]
)
def test_a_weight_decay_that_removes_all_of_a_kernel(mode, decay, limit):
  found = refused('digits.py', f'optim.weight_decay_mode={mode}', f'optim.weight_decay={decay}')
  assert found.startswith(f'config.optim.weight_decay is {decay} in mode {mode!r}: ')
  assert found.endswith(f'use less than {limit}.')


def test_all_faults_are_told_at_once():
  found = refused('digits.py', 'mixup=-1', 'optim.optimizer.b3=1', 'model.dropout=2', 'mesh.data=x')
  assert [line.split(' ')[0] for line in found.splitlines()] == [
    'config.mixup', 'config.mesh.data', 'config.model.dropout', 'config.optim.optimizer:',
  ]  # fmt: skip


@pytest.mark.parametrize(
  ('key', 'told'),
  [
    ('optim.weigth_decay', "config.optim: nothing reads 'weigth_decay' (did you mean 'weight_de"),
    ('model.stochastic_dept', "Mixer has no option 'stochastic_dept'; it has "),
    ('train_input.batchsize', "config.train_input: nothing reads 'batchsize' (did you mean 'bat"),
    ('evals.test.input.flop', "config.evals.test.input: nothing reads 'flop' (did you mean 'fli"),
    ('evals.tests.input', 'config.evals.tests.input is 1; use a section.'),
    ('optm.clip_norm', "the config has no 'optm' (did you mean 'optim'?); it has ['checkpoints'"),
    ('total_step', "the config has no 'total_step' (did you mean 'total_steps'?); it has "),
    ('seed.value', '--config.seed.value: config.seed is 0, which has no keys.'),
  ],
)
def test_a_key_that_nothing_reads(key, told):
  assert told in refused('digits.py', f'{key}=1')
  if 'the config has no' not in told:
    return
  with pytest.raises(InputError, match='the config has no'):  # of evaluations alone
    read('fewshot.py', f'{key}=1')


def test_more_pixels_than_the_image_has():
  section = {**read('digits.py')['train_input'], 'shift_pixels': 100}
  with pytest.raises(InputError, match=r'^shift_pixels is 100 and the images have 8 x 8 pixels'):
    inputs.build(**section)
  assert inputs.build(**{**section, 'shift_pixels': 7}).num_examples == 1437


def test_batches_that_do_not_fit_into_the_memory():
  section = {**read('digits.py')['train_input'], 'batch_size': 2_000_000_000}
  trained = inputs.build(**section)
  with pytest.raises(InputError, match=r'^config\.train_input\.batch_size=2000000000: the batches'):
    inputs.check_batches({}, 1, trained)
  with pytest.raises(InputError, match=r'^config\.evals\.a\.input\.batch_size=2000000000: the '):
    inputs.check_batches({'a': {'data': trained}}, 1)
  inputs.check_batches({'a': {'data': inputs.build(**{**section, 'batch_size': 64})}}, 1)


@pytest.mark.parametrize(
  ('changes', 'told'),
  [
    (['model.name=Mixer-B/16'],
     'config.model.name=Mixer-B/16 stands for num_blocks=12, hidden_dim=768, tokens_mlp_dim=384, '
     'channels_mlp_dim=3072, patch_size=16, but the config has num_blocks=4, '),
    (['model.num_blocks=1'], 'config.model.stochastic_depth=0.1 has no effect on one block.'),
    (['model.stochastic_depth=0', 'model.rescale_drop_path=True'],
     'config.model.rescale_drop_path has no effect without stochastic_depth.'),
    (['model.grouping=views'], 'config.model.grouping=views has no effect with one group.'),
    (['train_input.subset_seed=3'], 'subset_seed=3 has no effect with subset_fraction=1.'),
    (['train_input.batch_size=1'], 'config.mixup=0.2 has no effect with a batch of 1'),
    (['init.resample=True'], 'config.init.resample=True has no effect without config.init.path'),
    (['init.head=reset'], "config.init.head='reset' has no effect without config.init.path"),
    (['init.from_size=(8, 8)'], 'config.init.from_size=(8, 8) has no effect without config.init'),
    (['evals.test.input.shift_pixels=1'], 'config.evals.test.input.shift_pixels has no effect'),
  ],
)  # fmt: skip
def test_a_setting_without_effect(caplog, changes, told):
  check(read('digits.py', *changes))
  assert len(caplog.messages) == 1 and told in caplog.messages[0]


def test_resampling_is_for_a_mixer(caplog):
  check(read('digits.py:model=ViT', 'init.path=x.npz', 'init.resample=True'))
  assert caplog.messages == [
    'config.init.resample has no effect: only a Mixer has token-mixing MLPs.'
  ]


def test_an_evaluation_that_is_told_to_augment(caplog):
  check(read('fewshot.py:data=digits', 'evals.digits.train_input.flip=True'))
  told = 'config.evals.digits.train_input.flip has no effect: evaluations take images as they are.'
  assert caplog.messages == [told]


def test_a_named_model_from_the_command_line(caplog):
  config = read('digits.py', "model={'name': 'Mixer-S/2'}")
  check(config)
  assert config['model'] == {'name': 'Mixer-S/2'} and not caplog.messages


def test_randaugment_without_layers(caplog):
  off = ['train_input.randaugment_layers=0', 'train_input.randaugment_on=device']
  check(read('mixer_b16.py:imagenet2012', *off))
  assert [message.split(' ')[0] for message in caplog.messages] == [
    'config.train_input.randaugment_magnitude=15', 'config.train_input.randaugment_on=device',
  ]  # fmt: skip


# --- Every shipped config -------------------------------------------------------------------------


@pytest.mark.parametrize('name', CONFIGS)
def test_every_key_can_be_given(name, caplog):
  """Also those that the config does not set, such as subset_fraction, on_bad_image or init.path."""
  config = read(f'{name}.py')
  check(config)
  unset = 'without config.init.path' if name == 'vtab' else ''
  assert all(unset and unset in message for message in caplog.messages)
  given = []
  for path, functions, computed in sections(config):
    for function in functions:
      for key, p in inspect.signature(function).parameters.items():
        if p.default is not p.empty and p.kind is p.KEYWORD_ONLY and key not in computed:
          given.append(f'{path}.{key}={p.default}')
  assert given or 'train_input' not in config
  check(read(f'{name}.py', *given))
  for change in given:
    assert refused(f'{name}.py', change.replace('=', 'x=')).count(' nothing reads ') == 1


def sections(config):
  """(path, functions that take its keys, arguments that they are not given there)."""
  for name, section in config['evals'].items():
    for key in ('input', 'train_input'):
      if key in section:
        yield f'evals.{name}.{key}', inputs._functions(section[key]['source']), ('batch_size',)
  if 'train_input' in config:
    yield 'train_input', inputs._functions(config['train_input']['source']), ()


@pytest.mark.parametrize('name', CONFIGS)
def test_none_can_be_given(name):
  config = read(f'{name}.py')
  optional = {
    'total_steps', 'total_epochs', 'optim.clip_norm', 'checkpoints.keep_best', 'init.path',
    'init.from_size', 'init', 'permutation', 'data_dir', 'cache_dir', 'train_input.data_dir',
  }  # fmt: skip
  for key in optional:
    *path, last = key.split('.')
    holder = config
    for part in path:
      holder = holder.get(part, {})
    if last in holder:
      changed = read(f'{name}.py', f'{key}=None')
      check(changed)
      for part in path:
        changed = changed[part]
      assert changed[last] is None


def test_a_key_given_in_its_own_words():
  config = read(
    'fewshot.py:data=pets', 'data_dir=None', 'cache_dir=/tmp/a b,c=d', 'evals.pets.shots=5',
    'evals.pets.l2=64',
  )  # fmt: skip
  pets = config['evals']['pets']
  assert pets['shots'] == (5,) and pets['l2'] == 64.0 and isinstance(pets['l2'], float)
  assert pets['cache_dir'] == '/tmp/a b,c=d' and pets['input']['data_dir'] is None
  config = read(FOLDER, 'train_input.path=None', 'train_input.val_fraction=0.3')
  assert config['train_input']['path'] is None and config['train_input']['val_fraction'] == 0.3
  changed = read('digits.py', "optim.optimizer={'name': 'sgd'}", 'optim.optimizer.momentum=0')
  check(changed)
  assert changed['optim']['optimizer'] == {'name': 'sgd', 'momentum': 0}
  moved = read(
    'digits.py', 'permutation.kind=patch_pixel', 'permutation.seed=1', 'permutation.patch_size=2'
  )
  check(moved)
  assert moved['permutation'] == {'kind': 'patch_pixel', 'seed': 1, 'patch_size': 2}


@pytest.mark.parametrize('name', [FOLDER, 'mixer_s32.py:jft', 'cifar10_scratch.py', 'vtab.py'])
@pytest.mark.parametrize('text', ['48', '48,64', '(48,64)', '[48, 64]'])
def test_image_sizes(name, text):
  config = read(name, f'train_input.image_size={text}', 'train_input.resize=None')
  size = config['train_input']['image_size']
  assert size == ((48, 64) if ',' in text else size if size == 48 else (48, 48))
  test = next(iter(config['evals'].values()))['input']['image_size']
  assert test == size or name == 'cifar10_scratch.py'  # whose test images have a size of their own


def test_the_optional_sections():
  parameters = inspect.signature(build.TrainConfig).parameters.values()
  optional = [p.name for p in parameters if p.default is not p.empty]
  assert tuple(optional) == config_file.OPTIONAL_KEYS


# --- The length of a run --------------------------------------------------------------------------


def test_a_length_in_epochs_where_the_config_has_steps():
  with pytest.raises(InputError) as error:
    read(FOLDER, 'total_epochs=3')
  assert str(error.value) == (
    "--config.total_epochs=3.0 has no effect, because the config's total_steps is 500: both give "
    'the length of a run. Add --config.total_steps=None, or leave out --config.total_epochs.'
  )
  changed = read(FOLDER, 'total_steps=None', 'total_epochs=3')
  assert changed['total_steps'] is None and changed['total_epochs'] == 3.0
  with pytest.raises(InputError, match='because --config.total_steps is 20: both give the length'):
    read('digits.py', 'total_epochs=3', 'total_steps=20')
  assert read('digits.py', 'total_steps=20')['total_epochs'] == 60.0  # the config's default


def test_a_file_that_gives_the_length_twice(tmp_path):
  path = tmp_path / 'twice.py'
  path.write_text(
    'from configs import digits\n'
    'def get_config():\n'
    '  config = digits.get_config()\n'
    '  config.total_steps = 20\n'
    '  return config\n'
  )
  with pytest.raises(InputError, match=r'total_steps=20 and total_epochs=60\.0, which both give'):
    config_file.read(str(path))
  # A run that was started so goes on when one of them is removed.
  old = read('digits.py', 'total_steps=20')
  workdirs.claim(tmp_path, old, started=False)
  workdirs.claim(tmp_path, read('digits.py', 'total_steps=20', 'total_epochs=None'), started=True)
  with pytest.raises(InputError, match='total_steps: 20 in the workdir, 30 now'):
    workdirs.claim(tmp_path, {**old, 'total_steps': 30}, started=True)


def test_a_run_without_a_length():
  config = build.check(read('digits.py', 'total_epochs=None'))
  with pytest.raises(InputError, match=r'^config\.total_steps and config\.total_epochs are None'):
    build.build(config, inputs.build(**config.train_input), [])


# --- Files and command lines ----------------------------------------------------------------------


@pytest.mark.parametrize(
  ('text', 'argument', 'told'),
  [
    ('def get_config(:', '', r'{file}, line 1: SyntaxError: .*: def get_config\(:'),
    ('import no_such_package', '', '{file}, line 1: ModuleNotFoundError: No module named '),
    ('\n1 / 0', '', '{file}, line 2: ZeroDivisionError: division by zero'),
    ('x = 1', '', '--config={file}: {file} has no function get_config.'),
    ('def get_config():\n  return unknown', '', "{file}, line 2: NameError: name 'unknown' is "),
    ('def get_config():\n  return {}', '', '--config={file}: get_config returned a dict; return'),
    ('def get_config():\n  pass', '', '--config={file}: get_config returned a NoneType; return'),
    ('def get_config():\n  pass', ':a', r'--config={file}:a: get_config\(\) of {file} takes no a'),
    ('def get_config(a):\n  pass', '', r'--config={file}: get_config\(a\) of {file} needs an arg'),
    ('def get_config(a):\n  raise ValueError("no " + a)', ':b,c:d', 'no b,c:d$'),
  ],
)
def test_a_config_file_that_is_none(tmp_path, text, argument, told):
  path = tmp_path / 'a:b, c.py'
  path.write_text(text)
  with pytest.raises(InputError, match='^' + told.replace('{file}', re.escape(str(path)))):
    config_file.read(f'{path}{argument}')


def test_a_config_file_that_does_not_exist():
  with pytest.raises(InputError, match=r'digit\.py: there is no such file\. Did you mean .*digits'):
    read('digit.py')
  with pytest.raises(InputError, match='^--config=FILE is missing, as in --config=configs/digits'):
    config_file.read(None)


def test_another_optimizer_has_its_own_defaults():
  name, b2, whole = (
    f'optim.optimizer{end}' for end in ('.name=lion', '.b2=0.98', "={'name': 'sgd', 'momentum': 0}")
  )
  for changes, wanted in (
    ([name], {}), ([name, b2], {'b2': 0.98}), ([b2, name], {'b2': 0.98}), ([whole, name], {}),
  ):  # fmt: skip
    config = read('digits.py', *changes)
    check(config)
    assert config['optim']['optimizer'] == {'name': 'lion', **wanted}
  same = read('digits.py', 'optim.optimizer.name=adam')
  assert same == read('digits.py')


def test_a_section_that_is_replaced_after_its_key():
  with pytest.raises(InputError, match=r'^--config\.mesh replaces the whole section, and with it '):
    read('digits.py', 'mesh.data=2', "mesh={'data': 1}")
  assert read('digits.py', "mesh={'data': 1}", 'mesh.data=2')['mesh'] == {'data': 2}


@pytest.mark.parametrize(
  ('argument', 'path'),
  [
    ('data=/a,b/c,model=S/32', '/a,b/c'),
    ('data=/a=1/b:c d,e,model=S/32', '/a=1/b:c d,e'),
    ('model=S/32,data=/a,b=c/d', '/a,b=c/d'),
    ('data=/a/,model=S/32,', '/a/'),
  ],
)
def test_a_path_in_an_argument(argument, path):
  config = read(f'finetune.py:{argument}')
  assert config['train_input']['path'] == path and config['model']['name'] == 'Mixer-S/32'


@pytest.mark.parametrize('part', ['modle=S/32', 'x'])
def test_a_mistyped_part_of_an_argument(part):
  where = '/a' if '=' in part else 'cifar10'
  with pytest.raises(ValueError, match=f"^'{part}' is not KEY=VALUE with a key of "):
    common.parse(f'data={where},{part}', {'data': '', 'model': ''}, {})


@pytest.mark.parametrize('resolution', ['abc', '0', '224x', '1x2x3', '-224'])
def test_a_resolution_that_is_none(resolution):
  with pytest.raises(InputError, match=f'^resolution={resolution!r}; write pixels, as in 224'):
    read(f'finetune.py:resolution={resolution}')


def test_command_lines(monkeypatch, tmp_path):
  monkeypatch.setattr(flags, 'FLAGS', flags.FlagValues())
  flags.DEFINE_string('workdir', None, '', flag_values=flags.FLAGS)
  argv = ['train.py', '--config.seed=1', '--workdir=w']
  assert config_file.rewrite(argv) == argv  # of a program that hands them on
  flags.DEFINE_multi_string('config.KEY', [], '', flag_values=flags.FLAGS)
  (tmp_path / 'flags').write_text('--config.mixup=0.5\n')
  argv = [
    'train.py', '--config.seed', '-1', '-config.a.b=x=y', '--config.remat', '--workdir=w',
    '--noconfig.scan', f'--flagfile={tmp_path}/flags', '--config.c', 'd', '--', '--config.e=f',
  ]  # fmt: skip
  given = ['seed=-1', 'a.b=x=y', 'remat=True', 'scan=False', 'mixup=0.5', 'c=d']
  rewritten = config_file.rewrite(argv)
  assert [part for part in rewritten if part.startswith('--config.KEY=')] == [
    f'--config.KEY={part}' for part in given
  ]
  assert rewritten[0] == 'train.py' and rewritten[-2:] == ['--', '--config.e=f']


def test_values_of_all_kinds():
  positive = Annotated[float, values.Range(above=0)] | None
  for value, is_one in ((1, True), (1e-9, True), (None, True), (0, False), ('1', False)):
    assert values.accepts(positive, value) == is_one
  for value in (float('nan'), float('inf'), 10**400, True):
    assert not values.accepts(float, value)
  assert values.accepts(ConfigDict, 3) and values.accepts(inspect.Parameter.empty, 'x')


def test_programs_end_with_status_2_or_help(tmp_path):
  config = f'--config={runs.ROOT}/configs/digits.py'
  env = runs.environment(JAX_PLATFORMS='bogus')
  status, output = runs.run('train.py', config, f'--workdir={tmp_path}/run', env=env)
  assert status == 2 and 'Traceback' not in output
  assert 'error: JAX finds no devices, and JAX_PLATFORMS=bogus: Unable to initialize' in output
  status, output = runs.run('evaluate.py', '--help', env=env)
  assert status == 0 and '--config.KEY: VALUE: changes a key, as in --config.optim' in output, (
    output
  )


def test_a_flag_that_would_undo_a_sweep(tmp_path):
  with pytest.raises(
    InputError, match=r'^--config\.optim\.learning_rate would be the same in all '
  ):
    sweep.sweep('configs/finetune.py', tmp_path, ['0.1'], ['--config.optim.learning_rate=1'])
  sweep.refuse(['--config.seeds=1', '--config.train_input.seed=3'], 'config.seed', instead='it')


def test_an_old_workdir_goes_on(tmp_path):
  """The shipped configs are those that older runs were started with."""
  config = read('digits.py', 'total_epochs=5')
  workdirs.claim(tmp_path, config, started=False)
  assert json.loads((tmp_path / 'config.json').read_text())['total_epochs'] == 5.0
  workdirs.claim(tmp_path, read('digits.py', 'total_epochs=5.0'), started=True)


@pytest.mark.parametrize(
  ('key', 'default', 'other'),
  [
    ('cutmix', '0.0', '1.0'),
    ('export', 'latest', 'latest'),
    ('random_erasing', 'None', "{'probability': 0.5}"),
    ('optim.optimizer.nesterov', 'False', 'True'),
    ('optim.freeze', '()', "('stem',)"),
    ('model.tiles', '1', '2'),
    ('init.resample', 'False', 'True'),
    ('evals.test.input.flip', 'False', 'True'),
  ],
)
def test_a_key_at_its_default_is_a_key_that_is_left_out(tmp_path, key, default, other):
  plain, given = read('digits.py'), read('digits.py', f'{key}={default}')
  assert plain != given
  for then, now in ((plain, given), (given, plain)):
    workdirs.claim(tmp_path, then, started=False)
    workdirs.claim(tmp_path, now, started=True)
  if other != default:
    with pytest.raises(InputError, match=rf'\n  {re.escape(key)}[.\w]*: .* in the workdir, .* now'):
      workdirs.claim(tmp_path, read('digits.py', f'{key}={other}'), started=True)


def test_the_class_weights_of_other_images(tmp_path, caplog):
  then, now = ({'config.train_input': text} for text in 'ab')
  for weights in ('None', 'balanced'):
    config = read('digits.py', f'class_weights={weights}')
    workdirs.claim(tmp_path, config, started=False, data=then)
    workdirs.claim(tmp_path, config, started=True, data=now)
  ends = [message.partition('; now b. ')[2] for message in caplog.messages]
  assert ends == [
    'It goes on with the new ones.',
    "It goes on with the new ones, and with their weights for config.class_weights='balanced'.",
  ]


def test_a_named_size_is_the_same_as_its_dimensions(tmp_path):
  named = ("model={'name': 'Mixer-S/2'}",)
  workdirs.claim(tmp_path, read('digits.py', *named), started=False)
  size = ('model.num_blocks=8', 'model.hidden_dim=512')
  workdirs.claim(tmp_path, read('digits.py', *named, *size), started=True)
