"""train.py and evaluate.py as a user meets them."""

import json
import os
import re
import struct

import jax
import numpy as np
import pytest

from mixer import errors, files
from mixer.run import metrics_log, workdirs
import runs

SHORT = (*runs.TINY, '--config.total_steps=20')


@pytest.fixture(scope='module')
def env():
  return runs.environment()


@pytest.fixture(scope='module')
def finished(tmp_path_factory, env):
  """(workdir, output) of a whole short run, started with a relative --workdir."""
  parent = tmp_path_factory.mktemp('parent')
  flags = runs.train_flags('runs/short', *SHORT, tensorboard=True)
  status, output = runs.run('train.py', *flags, env=env, cwd=parent)
  assert status == 0, output
  return parent / 'runs' / 'short', output


def test_what_a_run_leaves_behind(finished):
  workdir, output = finished
  row = runs.rows(workdir)[-1]
  assert row['step'] == 20
  for name in ('loss', 'accuracy', 'grad_norm', 'update_norm', 'param_norm', 'learning_rate'):
    assert np.isfinite(row[f'train/{name}'])
  for name in ('images_per_sec', 'images_per_sec_per_device', 'tflops_per_device', 'core_hours'):
    assert row[name] > 0
  assert 0 <= row['input_wait'] <= 1
  assert row['test/n'] == 360
  assert (workdir / 'curves.png').read_bytes().startswith(b'\x89PNG')
  assert list((workdir / 'tensorboard').iterdir())
  model = json.loads((workdir / 'model.json').read_text())
  assert model['model']['name'] == 'Mixer' and model['model']['num_classes'] == 10
  assert model['image_size'] == [8, 8] and model['channels'] == 1 and model['loss'] == 'softmax'
  assert model['class_names'] == [str(i) for i in range(10)]
  assert model['preprocessing']['value_range'] == [-1, 1]
  assert model['metrics'] == row and model['config']['total_steps'] == 20
  with np.load(workdir / 'model.npz') as params:
    assert 'MixerBlock_1/token_mixing/Dense_0/kernel' in params.files
    assert {params[name].dtype for name in params.files} == {np.dtype('float32')}


@pytest.mark.slow
def test_make_train_reaches_its_accuracy(tmp_path, env):
  status, output = runs.run('train.py', *runs.train_flags(tmp_path), env=env)
  assert status == 0, output
  assert runs.rows(tmp_path)[-1]['test/top1'] >= 0.97


def test_the_banner(finished):
  workdir, output = finished
  lines = output.splitlines()
  assert next(i for i, line in enumerate(lines) if line.startswith('step ')) <= 24
  assert '| MixerBlock_1/token_mixing/Dense_0/bias' in (workdir / 'parameters.txt').read_text()
  assert '"total_steps": 20' in (workdir / 'config.json').read_text()
  for text in (
    'cpu: 1 x cpu', f'jax {jax.__version__}', 'bytes, each in parameters.txt; the config is in con',
    'a step needs about 0.0 GiB, and this machine has ',
    'weight decay on kernels: 0.0003 times the schedule (big_vision, "independent") = 0.1 times '
    'the learning rate (AdamW, "adamw")', '1437 images of 10 classes; 20 steps of 64 are 0.89',
    'config.optim.schedule.warmup_steps=100: the run ends within its warm-up',
    'of the compiled step: ', 'step 20/20 eta 0:00:00',
  ):  # fmt: skip
    assert text in output


def test_tensorboard_has_the_rows(finished):
  event_accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
  workdir, _ = finished
  events = event_accumulator.EventAccumulator(str(workdir / 'tensorboard'), {'tensors': 0})
  events.Reload()
  found = [
    (event.step, struct.unpack('<f', event.tensor_proto.tensor_content)[0])
    for event in events.Tensors('train/loss')
  ]
  expected = [(row['step'], np.float32(row['train/loss'])) for row in runs.rows(workdir)]
  assert found == expected


def test_a_finished_run_says_so(finished, env):
  workdir, _ = finished
  before = (workdir / 'metrics.jsonl').read_bytes()
  status, output = runs.run('train.py', *runs.train_flags(workdir, *SHORT), env=env)
  assert status == 0 and f'{workdir} is finished: 20 of 20 steps' in output
  assert (workdir / 'metrics.jsonl').read_bytes() == before


def test_another_config_is_refused(finished, env):
  workdir, _ = finished
  flags = runs.train_flags(workdir, *SHORT, '--config.mixup=0.7', '--config.optim.clip_norm=2.0')
  status, output = runs.run('train.py', *flags, env=env)
  assert status == 2
  assert f'{workdir} belongs to a run with another config:' in output
  assert 'mixup: 0.2 in the workdir, 0.7 now' in output and (
    'optim.clip_norm: 1.0 in the workdir, 2.0 now' in output
  )
  assert 'Traceback' not in output


@pytest.mark.parametrize('which', ['workdir', 'npz'])
def test_evaluate_finds_what_training_found(finished, env, tmp_path, which):
  workdir, _ = finished
  checkpoint = workdir.name if which == 'workdir' else workdir / 'model.npz'
  output = tmp_path / 'result.json'
  status, printed = runs.run(
    'evaluate.py',
    f'--config={runs.ROOT}/configs/digits.py',
    f'--checkpoint={checkpoint}',
    f'--output={output}',
    '--config.evals.test.input.batch_size=77',  # 360 is not a multiple
    *(flag for flag in runs.TINY if 'model' in flag),
    env={**env, 'XLA_FLAGS': '--xla_force_host_platform_device_count=8'},
    cwd=workdir.parent,  # a relative --checkpoint
  )
  assert status == 0, printed
  result, row = json.loads(output.read_text()), runs.rows(workdir)[-1]
  assert result['test/n'] == 360
  assert result['test/top1'] == row['test/top1'] and result['test/top5'] == row['test/top5']
  assert result['test/loss'] == pytest.approx(row['test/loss'], rel=1e-5)
  assert re.search(r'test/top1 +0\.\d+', printed) and 'RUNNING ON THE CPU' in printed


def test_evaluate_refuses_what_does_not_fit(finished, env):
  workdir, _ = finished
  status, output = runs.run(
    'evaluate.py',
    f'--config={runs.ROOT}/configs/digits.py',
    f'--checkpoint={workdir}',
    '--require=cpu',
    env=env,
  )
  assert status == 2
  assert 'does not fit the model in' in output
  assert 'missing   MixerBlock_2/LayerNorm_0/bias' in output
  assert 'mismatch  stem/kernel has (2, 2, 1, 16), the model needs (2, 2, 1, 64)' in output


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, env):
  flags = runs.train_flags(
    tmp_path,
    *SHORT,
    '--config.optim.learning_rate=1e25',
    '--config.optim.weight_decay=0.0',
    '--config.every.checkpoint=1',
  )
  status, output = runs.run('train.py', *flags, '--config.total_steps=300', env=env)
  assert status == 3, output
  found = re.search(r'error: step (\d+): .*The last good checkpoint is of step (\d+), in', output)
  step, good = int(found[1]), int(found[2])
  assert good == step - 1 and (tmp_path / 'checkpoints' / str(good)).is_dir()
  rows = runs.rows(tmp_path)
  assert rows[-1]['step'] == good and np.isfinite(rows[-1]['train/loss'])
  assert not (tmp_path / 'model.npz').exists()


def test_runs_where_tensorflow_is_not_installed(tmp_path, env):
  (tmp_path / 'sitecustomize.py').write_text(
    'import sys\n'
    "for name in ('tensorflow', 'tensorflow_datasets', 'tensorboard'):\n"
    '  sys.modules[name] = None\n'
  )
  without = {**env, 'PYTHONPATH': str(tmp_path)}
  flags = runs.train_flags(tmp_path / 'run', *SHORT, tensorboard=True)
  status, output = runs.run('train.py', *flags, env=without)
  assert status == 0, output
  assert 'no TensorBoard output' in output and (tmp_path / 'run' / 'model.npz').exists()
  flags = runs.train_flags(tmp_path / 'tfds', config='configs/mixer_b16.py')
  status, output = runs.run('train.py', *flags, env=without)
  assert status == 2 and "the input source 'tfds' needs a package that is not installed" in output


def test_missing_data(tmp_path, env):
  where = tmp_path / 'sets'
  status, output = runs.run(
    'train.py',
    *runs.train_flags(tmp_path / 'run', config='configs/mixer_b16.py'),
    env={**env, 'TFDS_DATA_DIR': str(where)},
  )
  assert status == 2 and 'Traceback' not in output
  assert f"no prepared data set 'imagenet21k' in {where}, which does not exist." in output
  assert f'python -m mixer.input.prepare --name=imagenet21k --data_dir={where}' in output
  assert 'python train.py --config=configs/digits.py --workdir=' in output


def test_require_gpu(tmp_path, env):
  flags = [f for f in runs.train_flags(tmp_path, *SHORT) if not f.startswith('--require')]
  status, output = runs.run('train.py', *flags, '--require=gpu', env=env)
  assert status == 2 and 'error: --require=gpu, but JAX found only cpu devices.' in output


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--workdr=x', "error: Unknown command line flag 'workdr'. Did you mean: workdir ?"),
    ('--stall_seconds=-1', 'error: flag --stall_seconds=-1: -1.0 is not a non-negative number'),
    (
      '--config=configs/mixer_b16.py:cifar',
      "error: unknown data 'cifar'; use one of ['imagenet2012'",
    ),
    ('--compilation_cache=/proc/nope', 'error: --compilation_cache=/proc/nope cannot be made: '),
  ],
)
def test_mistyped_flags(tmp_path, env, flag, message):
  """None is an unforeseen error, after which a supervisor would start again."""
  status, output = runs.run('train.py', *runs.train_flags(tmp_path), flag, env=env)
  assert status == 2 and message in output and 'Traceback' not in output, output


def test_a_mistyped_key(tmp_path, env):
  flags = runs.train_flags(tmp_path, *SHORT, '--config.optim.weigth_decay=1.0')
  status, output = runs.run('train.py', *flags, env=env)
  assert status != 0 and 'weigth_decay' in output and 'weight_decay' in output


def digits_config() -> dict:
  from configs import digits

  return digits.get_config().to_dict()


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ((), "config: nothing reads 'surprise'"),
    (('optim',), "config.optim: nothing reads 'surprise'"),
    (('optim', 'optimizer'), "config.optim.optimizer: nothing reads 'surprise'"),
    (('optim', 'schedule'), "config.optim.schedule: nothing reads 'surprise'"),
    (('model',), "config.model: Mixer has no option 'surprise'"),
    (('train_input',), "config.train_input: nothing reads 'surprise'"),
    (('evals', 'test'), "config.evals.test: nothing reads 'surprise'"),
    (('evals', 'test', 'input'), "config.evals.test.input: nothing reads 'surprise'"),
    (('mesh',), "config.mesh: nothing reads 'surprise'"),
    (('every',), "config.every: nothing reads 'surprise'"),
    (('checkpoints',), "config.checkpoints: nothing reads 'surprise'"),
  ],
)
def test_a_key_that_nobody_reads(tmp_path, path, message):
  config = digits_config()
  section = config
  for name in path:
    section = section[name]
  section['surprise'] = 1
  with pytest.raises(errors.InputError, match=re.escape(message)):
    runs.train_here(config, tmp_path)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'evals.train': {}}, "config.evals: the names ['train'] would mix with the training metrics"),
    ({'checkpoints.keep_best': 'test/n'}, "keep_best='test/n'; use one of ['test/top1',"),
    ({'every.log': -1}, 'config.every.log is -1; use an int from 0 to 2**31 - 1.'),
    ({'mixup': -1.0}, 'config.mixup is -1.0; use a number of at least 0.'),
    ({'train_input.batch_size': 0}, 'config.train_input.batch_size is 0; use an int from 1 to '),
    ({'train_input.shift_pixels': -1}, 'config.train_input.shift_pixels is -1; use an int from 0'),
    ({'model.stochastic_depth': 2.0}, 'config.model.stochastic_depth is 2.0; use a number of at '),
    ({'model.num_blocks': 0}, 'config.model.num_blocks is 0; use an int from 1 to 2**31 - 1.'),
  ],
)
def test_values_that_make_no_sense(tmp_path, change, message):
  config = digits_config()
  for path, value in change.items():
    *sections, key = path.split('.')
    section = config
    for name in sections:
      section = section[name]
    section[key] = {**config['evals']['test']} if value == {} else value
  with pytest.raises(errors.InputError, match=re.escape(message)):
    runs.train_here(config, tmp_path)


def test_what_may_change_when_a_run_goes_on(tmp_path):
  config = {
    'mixup': 0.2, 'every': {'log': 1}, 'checkpoints': {'keep_last': 1}, 'microbatches': 1,
    'model': {'remat': False, 'scan': False},
  }  # fmt: skip
  workdirs.claim(tmp_path, config, started=False)
  other = {
    'mixup': 0.2, 'every': {'log': 5}, 'checkpoints': {'keep_last': 2}, 'microbatches': 4,
    'model': {'remat': True, 'scan': False},
  }  # fmt: skip
  workdirs.claim(tmp_path, other, started=True)
  assert json.loads((tmp_path / 'config.json').read_text()) == other
  with pytest.raises(errors.InputError, match='mixup: 0.2 in the workdir, 0.7 now'):
    workdirs.claim(tmp_path, {**config, 'mixup': 0.7}, started=True)
  with pytest.raises(errors.InputError, match='model.scan: False in the workdir, True now'):
    workdirs.claim(tmp_path, {**other, 'model': {'remat': True, 'scan': True}}, started=True)


def test_what_happens_at_a_bad_image_may_change_when_a_run_goes_on(tmp_path):
  config = {'train_input': {'on_bad_image': 'fail'}, 'mixup': 0.2}
  workdirs.claim(tmp_path, config, started=False)
  workdirs.claim(tmp_path, {**config, 'train_input': {'on_bad_image': 'skip'}}, started=True)


@pytest.mark.parametrize(
  ('now', 'difference'),
  [
    (['ant', 'bee', 'cat', 'cow'], '3 there, 4 now; 1 new (cat)'),
    (['bee', 'cow'], '3 there, 2 now; 1 missing (ant)'),
    (['ant', 'bee', 'dog'], '3 there, 3 now; 1 new (dog), 1 missing (cow)'),
    (['ant', 'cow', 'bee'],
     '3 there, 3 now; the order differs from number 1 on (bee there, cow now)'),
    (['ant', 'bee', 'cow', *(f'{i:02}' for i in range(11))],
     '3 there, 14 now; 11 new (00, 01, 02, 03, 04, 05, 06, 07, 08, 09, ...)'),
  ],
)  # fmt: skip
def test_classes_that_change_while_a_run_is_stopped(tmp_path, now, difference):
  workdirs.claim_classes(tmp_path, ('ant', 'bee', 'cow'), started=False)
  assert json.loads((tmp_path / 'classes.json').read_text()) == ['ant', 'bee', 'cow']
  workdirs.claim_classes(tmp_path, ('ant', 'bee', 'cow'), started=True)
  with pytest.raises(errors.InputError) as error:
    workdirs.claim_classes(tmp_path, now, started=True)
  assert str(error.value) == (
    f'{tmp_path} belongs to a run with other classes: {difference}. Restore the training '
    'data, or give the new ones their own --workdir.'
  )
  workdirs.claim_classes(tmp_path, now, started=False)  # nothing has been trained there
  assert json.loads((tmp_path / 'classes.json').read_text()) == now


def test_a_workdir_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.InputError, match='cannot write in --workdir=.*Give a directory'):
    workdirs.prepare(str(tmp_path / 'file' / 'run'))


def test_a_disk_that_is_too_full(tmp_path):
  with pytest.raises(errors.InputError, match='MB are free, and the checkpoints to keep take up'):
    workdirs.check_space(workdirs.prepare(str(tmp_path)), 10**18)


def test_one_run_in_a_workdir(tmp_path):
  directory = workdirs.prepare(str(tmp_path))
  with (
    workdirs.locked(directory),
    pytest.raises(errors.InputError, match=f'is locked by another run: process {os.getpid()} '),
    workdirs.locked(directory),
  ):
    pytest.fail('two runs')
  with workdirs.locked(directory):
    pass


def test_a_filesystem_without_locks(tmp_path, monkeypatch, caplog):
  def flock(*_):
    raise OSError(37, 'No locks available')

  monkeypatch.setattr(files.fcntl, 'flock', flock)
  with workdirs.locked(workdirs.prepare(str(tmp_path))):
    assert 'No locks available' in caplog.text and 'no other run uses' in caplog.text


def test_rows_cut_short_by_a_kill_are_left_out(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n{"step": 2}\n{"st')
  assert metrics_log.read_rows(tmp_path) == [{'step': 1}, {'step': 2}]


def test_deterministic_is_set_before_jax_starts(monkeypatch):
  from mixer import runtime

  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=false')
  runtime.configure(deterministic=False)
  assert os.environ['XLA_FLAGS'] == '--xla_cpu_enable_fast_math=false'
  runtime.configure(deterministic=True)
  assert os.environ['XLA_FLAGS'].endswith('=false --xla_gpu_deterministic_ops=true')
