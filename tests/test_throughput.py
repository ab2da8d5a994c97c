"""The throughput benchmark: its search, its turns, its arithmetic, and tiny real measurements.

timm and torch are replaced by stubs here, which record how they are used.
"""

import json
import signal
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import throughput, throughput_table, throughput_workers
from benchmarks.throughput_table import Case, Row
from mixer import hardware, models
from mixer.errors import InputError
from mixer.timm_names import ARCHITECTURES
import runs

# Multiply-adds of the stem, of both MLPs of 12 blocks and of the head, twice.
B16_FLOPS = 2 * (196 * 768 * 768 + 12 * 2 * 196 * 768 * (384 + 3072) + 768 * 1000)
FULL = {'does_not_fit': 'out of memory'}


def device(memory, per_image=0.01, overhead=0.1):
  """A device: batch size -> what measuring it gives; larger batches are faster per image."""
  tried = []

  def measure(size):
    tried.append(size)
    return {'seconds': overhead + per_image * size} if size <= memory else FULL

  return measure, tried


# --- The search for the best batch size ------------------------------------------------------


def test_batch_sizes_double_until_the_memory_is_full():
  measure, tried = device(memory=40)
  found, refusal = throughput.sweep(measure, first=8)
  assert tried == [8, 16, 32, 64] and list(found) == [8, 16, 32] and refusal == ''
  assert Row(Case('Mixer-B/16', 'training', 'float32'), found).batch_size == 32


def test_batch_sizes_double_until_a_step_is_long_or_the_batch_is_the_papers():
  measure, tried = device(memory=10**6)
  throughput.sweep(measure, first=8, longest_step=0.3)
  assert tried == [8, 16, 32]  # 0.18, 0.26 and 0.42 s
  measure, tried = device(memory=10**6, per_image=0.0)
  throughput.sweep(measure, first=1024)
  assert tried == [1024, 2048, 4096]


def test_batch_sizes_are_halved_where_the_first_does_not_fit():
  measure, tried = device(memory=5)
  assert throughput.sweep(measure, first=64) == ({4: {'seconds': 0.14}}, '')
  assert tried == [64, 32, 16, 8, 4]
  measure, tried = device(memory=0)
  assert throughput.sweep(measure, first=4) == ({}, 'out of memory') and tried == [4, 2, 1]


def test_given_batch_sizes_are_tried_up_to_the_first_that_does_not_fit():
  measure, tried = device(memory=20)
  found, _ = throughput.sweep(measure, [64, 4, 16, 32], longest_step=0.0)
  assert tried == [4, 16, 32] and list(found) == [4, 16]
  assert throughput.sweep(device(memory=0)[0], [4]) == ({}, 'out of memory')


def test_the_best_batch_size_is_not_the_largest_but_the_fastest():
  sweep = {8: {'seconds': 0.8}, 16: {'seconds': 1.0}, 32: {'seconds': 3.0}}
  row = Row(Case('Mixer-B/16', 'training', 'float32'), sweep, rates=[16.0])
  assert row.batch_size == 16
  row.drop(16, why='full')
  assert (row.batch_size, row.rates, row.refusal) == (32, [], '')
  row.drop(8, 32, why='full')
  assert row.batch_size is None and row.refusal == 'only alone: full'


# --- The rounds --------------------------------------------------------------------------------


def test_models_take_turns_and_one_that_does_not_fit_beside_them_gets_smaller():
  asked, factor = [], iter(range(1, 100))

  def ask(what, **request):
    asked.append((what, request.get('model'), request.get('batch_size'), request['seconds']))
    if what == 'product':
      return {'side': 1024, 'flops': 1e9 * next(factor)}
    return FULL if request['batch_size'] > 32 else {'seconds': 0.5}

  sweeps = {64: {'seconds': 1.0}, 32: {'seconds': 0.6}}
  rows = [Row(Case(m, 'training', 'float32'), dict(sweeps)) for m in ('Mixer-B/16', 'ViT-B/16')]
  rows[1].sweep = {8: {'seconds': 0.5}}
  none = Row(Case('Mixer-H/14', 'training', 'float32'), {}, 'out of memory')
  sizes = {'image_size': 224, 'num_classes': 10}
  products = throughput.take_turns([*rows, none], {'jax': ask}, sizes, rounds=2, seconds=3.0)
  first = [
    ('model', 'Mixer-B/16', 64, 0), ('model', 'Mixer-B/16', 32, 0), ('model', 'ViT-B/16', 8, 0),
  ]  # fmt: skip
  turn = [
    ('product', None, None, 3.0), ('model', 'Mixer-B/16', 32, 3.0), ('model', 'ViT-B/16', 8, 3.0),
  ]  # fmt: skip
  assert asked == first + 2 * turn
  assert products == {'float32': {'side': 1024, 'rates': [1e9, 2e9]}}
  assert [row.rates for row in rows] == [[64.0, 64.0], [16.0, 16.0]] and none.rates == []


def test_a_model_that_no_longer_fits_in_a_round_becomes_a_row_that_says_so():
  answers = iter([{'seconds': 1.0}, {'seconds': 1.0}, FULL])

  def ask(what, **_):
    return {'side': 1024, 'flops': 1e9} if what == 'product' else next(answers)

  row = Row(Case('Mixer-B/16', 'training', 'float32'), {8: {'seconds': 1.0}})
  sizes = {'image_size': 224, 'num_classes': 10}
  throughput.take_turns([row], {'jax': ask}, sizes, rounds=3, seconds=1.0)
  assert row.batch_size is None and row.rates == []
  assert row.refusal == 'only alone: out of memory'


# --- What follows ------------------------------------------------------------------------------


def measured(model, rates, mode='inference', dtype='bfloat16', runner='jax'):
  answer = {
    'seconds': 8 / rates[0], 'memory': 2**31, 'memory_source': 'allocator', 'compile_seconds': 12.34
  }  # fmt: skip
  return Row(Case(model, mode, dtype, runner), {8: answer}, rates=rates)


def facts(row, rows, rates, kind='NVIDIA H100'):
  return throughput_table.facts(row, rows, {'side': 8192, 'rates': rates}, kind, 224, 1000)


def test_ratios_are_medians_of_those_in_each_round():
  mixer = measured('Mixer-B/16', [1000.0, 100.0, 1100.0])  # the machine was slow in round 2
  vit = measured('ViT-B/16', [600.0, 70.0, 500.0])
  found = facts(vit, [mixer, vit], [1e12, 1e11, 1e12])
  assert found['images_per_sec'] == 500 and found['seconds'] == 8 / 500
  assert found['ratio_to_mixer'] == 0.6 and found['mixer'] == 'Mixer-B/16'
  assert found['ratio_in_paper'] == 861 / 1384
  flops = sum(models.vit.matmul_flops(models.build('ViT-B/16', 1000), 224).values())
  assert found['flops_per_image'] == flops
  np.testing.assert_allclose(found['mfu_of_product'], flops * 600 / 1e12)
  np.testing.assert_allclose(found['mfu_of_peak'], flops * 500 / 989e12)
  assert facts(mixer, [mixer, vit], [1e12] * 3)['flops_per_image'] == B16_FLOPS


def test_the_published_peak_is_of_bfloat16_and_of_known_devices():
  row = measured('Mixer-B/16', [10.0], dtype='float32', mode='training')
  found = facts(row, [row], [1e12])
  assert found['mfu_of_peak'] is None
  assert found['flops_per_image'] == models.train_flops(models.build('Mixer-B/16', 1000), 224)
  row = measured('Mixer-B/16', [10.0])
  assert facts(row, [row], [1e12], kind='cpu')['mfu_of_peak'] is None


@pytest.mark.parametrize(
  ('model', 'among', 'wanted'),
  [
    ('ViT-L/16', ['Mixer-B/16', 'Mixer-L/16'], 'Mixer-L/16'),
    ('ViT-Ti/16', ['Mixer-B/16', 'Mixer-L/16'], 'Mixer-B/16'),
    ('BiT-R50x1', ['Mixer-S/16', 'Mixer-L/16'], 'Mixer-S/16'),
    ('Mixer-L/16', ['Mixer-B/16', 'Mixer-L/16'], 'Mixer-L/16'),
    ('ViT-B/16', ['BiT-R50x1'], None),
  ],
)
def test_the_mixer_that_a_model_is_compared_with(model, among, wanted):
  row = measured(model, [1.0])
  others = [measured(name, [1.0]) for name in among]
  others += [measured(f'Mixer-{model[4:]}', [1.0], mode='training')]  # not of the same table
  others += [measured(f'Mixer-{model[4:]}', [1.0], runner='timm')] if '/' in model else []
  found = throughput_table.reference(row, [*others, row])
  assert (found and found.case.model) == wanted and (not found or found.case.runner == 'jax')


@pytest.mark.parametrize(
  ('model', 'mixer', 'mode', 'size', 'wanted'),
  [
    ('ViT-B/16', 'Mixer-B/16', 'inference', 224, 861 / 1384),
    ('ViT-L/16', 'Mixer-L/16', 'inference', 224, 280 / 419),
    ('ViT-H/14', 'Mixer-H/14', 'inference', 224, 87 / 194),
    ('BiT-R50x1', 'Mixer-B/16', 'inference', 224, 2159 / 1384),
    ('Mixer-L/16', 'Mixer-L/16', 'inference', 448, 1.0),
    ('ViT-L/16', 'Mixer-L/16', 'inference', 448, None),
    ('ViT-S/16', 'Mixer-S/16', 'inference', 224, None),
    ('ViT-B/16', 'Mixer-B/16', 'training', 224, 0.15 / 0.18),
    ('ViT-L/16', 'Mixer-L/16', 'training', 224, 0.45 / 0.65),
    ('ViT-H/14', 'Mixer-H/14', 'training', 224, 1.01 / 2.30),
    ('BiT-R50x1', 'Mixer-B/16', 'training', 224, 1.0),
    ('BiT-R50x1', 'Mixer-L/16', 'training', 224, (0.45 / 14) / (0.08 / 7)),
    ('Mixer-L/16', 'Mixer-L/16', 'training', 448, None),
  ],
)
def test_ratios_in_the_paper(model, mixer, mode, size, wanted):
  found = throughput_table.ratio_in_paper(model, mixer, mode, size)
  assert found == (wanted if wanted is None else pytest.approx(wanted, rel=1e-12))


def test_tables():
  rows = [
    measured('Mixer-B/16', [1000.0, 1100.0]),
    measured('ViT-B/16', [50.0, 66.0]),
    measured('Mixer-B/16', [2000.0, 2000.0], runner='timm compiled'),
    Row(Case('Mixer-H/14', 'inference', 'bfloat16'), {}, 'out of memory'),
    measured('Mixer-B/16', [300.0, 300.0], mode='training'),
  ]
  product = {'side': 8192, 'rates': [750e12, 770e12]}
  report = {
    'device': {'line': 'gpu: 1 x NVIDIA H100', 'kind': 'NVIDIA H100'},
    'image_size': 224,
    'products': {'bfloat16': product},
    'rows': [facts(row, rows, product['rates']) for row in rows],
    'notes': ['timm has no Mixer-H/14.'],
  }
  report = json.loads(json.dumps(report))
  lines = throughput_table.tables(report).splitlines()
  assert (
    lines[0] == 'gpu: 1 x NVIDIA H100; images of 224 pixels.' and lines[-1] == report['notes'][0]
  )
  assert lines[2] == (
    '**Training, bfloat16.** The product of two matrices of 8192 x 8192: 760 TFLOP/s (750 to 770).'
  )
  head = [cell.strip() for cell in lines[4].strip('|').split('|')]
  table = {
    cells[0]: dict(zip(head, cells, strict=True))
    for cells in ([cell.strip() for cell in line.strip('|').split('|')] for line in lines[12:16])
  }
  assert table['Mixer-B/16'] == {
    'model': 'Mixer-B/16', 'batch': '8', 'ms': '7.62', 'images/s': '1,050',
    'least to most': '1,000 to 1,100', 'of product': '3%', 'of peak': '3%',
    'GiB': '2.00 (allocator)', 'compile, s': '12.3', 'times the Mixer': '1', 'in the paper': '1',
  }  # fmt: skip
  assert table['ViT-B/16']['images/s'] == '58' and table['ViT-B/16']['least to most'] == '50 to 66'
  assert table['ViT-B/16']['times the Mixer'] == '0.06 (Mixer-B/16)'
  assert table['ViT-B/16']['in the paper'] == '0.62'
  assert table['Mixer-B/16, timm compiled']['times the Mixer'] == '1'
  assert table['Mixer-H/14']['batch'] == 'none fits: out of memory'


# --- Flags -------------------------------------------------------------------------------------


def test_cases():
  cases, notes = throughput.make_cases(
    ['Mixer-S/32', 'Mixer-S/32', 'ViT-B/16'], ['training', 'inference'], ['float32']
  )
  assert [str(case) for case in cases] == [
    'Mixer-S/32 training float32 (jax)', 'ViT-B/16 training float32 (jax)',
    'Mixer-S/32 inference float32 (jax)', 'ViT-B/16 inference float32 (jax)',
  ]  # fmt: skip
  assert notes == []


@pytest.mark.parametrize(
  ('arguments', 'text'),
  [
    ((['B/16'], ['training'], ['float32']), r"unknown model 'B/16'; write one of Mixer-S/<patch>"),
    (([], ['training'], ['float32']), '--models is empty; write names such as Mixer-B/16'),
    ((['Mixer-B/16'], ['train'], ['float32']), '--modes=train; use some of training,inference.'),
    ((['Mixer-B/16'], ['training'], []), '--dtypes=; use some of float32,bfloat16.'),
  ],
)
def test_wrong_flags(arguments, text):
  with pytest.raises(InputError, match=text):
    throughput.make_cases(*arguments)


@pytest.mark.parametrize('sizes', [['x'], ['0'], ['4', '-1']])
def test_wrong_batch_sizes(sizes):
  with pytest.raises(InputError, match='write whole numbers from 1 on, as in 4,8'):
    throughput.whole_numbers(sizes)


def test_peers_need_their_packages(monkeypatch):
  arguments = ['Mixer-B/16', 'BiT-R50x2'], ['inference'], ['float32'], 'timm'
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(InputError, match='--peers=timm needs torch and timm: pip install -r req'):
    throughput.make_cases(*arguments)
  monkeypatch.setattr('importlib.util.find_spec', lambda name: name)
  cases, notes = throughput.make_cases(*arguments)
  assert [(c.model, c.runner) for c in cases] == [
    ('Mixer-B/16', 'jax'), ('Mixer-B/16', 'timm'), ('Mixer-B/16', 'timm compiled'),
    ('BiT-R50x2', 'jax'),
  ]  # fmt: skip
  assert notes == ['timm has no BiT-R50x2.']
  sizes = {'image_size': 224, 'num_classes': 1000}
  assert throughput.arguments(cases[2], sizes) == {
    'model': 'Mixer-B/16', 'mode': 'inference', 'dtype': 'float32', **sizes, 'compiled': True,
  }  # fmt: skip
  assert 'compiled' not in throughput.arguments(cases[0], sizes)


def test_peers_run_on_the_same_kind_of_device():
  gpu, cpu = {'line': 'an H100', 'platform': 'gpu'}, {'line': 'torch: cpu', 'platform': 'cpu'}
  assert throughput.check_peer(cpu, {'line': 'cpu: 1', 'platform': 'cpu'}) == 'torch: cpu.'
  with pytest.raises(InputError, match='JAX runs on an H100, but PyTorch on torch: cpu; install'):
    throughput.check_peer(cpu, gpu)


# --- Workers -----------------------------------------------------------------------------------

WORKER = """
import json, os, signal, sys
print('a line of some library')
for number, line in enumerate(sys.stdin):
  request = json.loads(line)
  if request['what'] == 'killed':
    os.kill(os.getpid(), signal.SIGKILL)
  if request['what'] == 'failed':
    sys.exit(7)
  answer = {'number': number, 'kind': sys.argv[1]} | request.get('answer', {})
  print('@' + json.dumps(answer), flush=True)
"""


def test_a_worker_is_started_again_after_what_did_not_fit(tmp_path):
  (tmp_path / 'worker.py').write_text(WORKER)
  worker = throughput.Worker('jax', str(tmp_path / 'worker.py'))
  assert worker.ask('a') == {'number': 0, 'kind': 'jax'} and worker.ask('a')['number'] == 1
  assert worker.ask('a', answer=FULL)['does_not_fit'] == 'out of memory'
  assert worker.ask('a')['number'] == 0
  assert worker.ask('killed') == {
    'does_not_fit': f'the process was killed ({signal.SIGKILL.name}), as if for lack of memory'
  }
  with pytest.raises(InputError, match='^no such model$'):
    worker.ask('a', answer={'error': 'no such model'})
  with pytest.raises(RuntimeError, match=r"ended with status 7 on failed {'dtype': 'float32'}"):
    worker.ask('failed', dtype='float32')
  worker.close()


CASE = {
  'model': 'Mixer-S/16', 'dtype': 'float32', 'batch_size': 2, 'image_size': 16, 'num_classes': 10
}  # fmt: skip


def test_steps_are_timed_after_one_to_warm_up(monkeypatch):
  clock, ran = [0.0], []

  def run(steps):
    ran.append(steps)
    clock[0] += 10.0 if len(ran) == 1 else 0.1 * steps  # the first step compiles

  monkeypatch.setattr(throughput_workers.time, 'perf_counter', lambda: clock[0])
  assert throughput_workers.seconds_per_step(run, 2.0)[0] == pytest.approx(0.1)
  assert ran == [1, 1, 20]
  del ran[:]
  assert throughput_workers.seconds_per_step(run, 0.05)[0] == pytest.approx(0.1)
  assert ran == [1, 1]


def variables(function):
  """Those of the enclosing function that `function` uses."""
  return dict(
    zip(function.__code__.co_freevars, (cell.cell_contents for cell in function.__closure__))
  )


@pytest.mark.slow
def test_training_runs_the_papers_train_step():
  start, compile_seconds, size = throughput_workers.training_program(jax.devices()[0], **CASE)
  run = start()
  before = jax.tree.map(np.asarray, variables(run)['state'].params)
  run(1)
  run(2)
  state, batch = (variables(run)[name] for name in ('state', 'batch'))
  assert int(state.step) == 3 and batch['image'].shape == (2, 16, 16, 3)
  assert batch['image'].dtype == np.uint8 and batch['label'].shape == (2,)
  adam = next(x for x in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(x))
  assert int(adam.count) == 3
  # Warm-up from 0 to 0.003 in 10,000 steps; a step of Adam changes a value by about its rate.
  change = np.abs(np.asarray(state.params['head']['bias']) - before['head']['bias']).max()
  np.testing.assert_allclose(change, 0.003 * (0 + 1 + 2) / 10_000, rtol=0.01)
  assert compile_seconds > 0 and size > 3 * 4 * 17_000_000


def is_adam(node):
  return isinstance(node, optax.ScaleByAdamState)


@pytest.mark.slow
def test_a_worker_keeps_programs_and_measures_the_models_logits(monkeypatch):
  init, made, program = models.init, [], throughput_workers.inference_program

  def init_with_head(*args):  # its kernel is all zeros otherwise
    params = init(*args)
    waves = jax.tree.map(lambda x: jnp.sin(jnp.arange(x.size)).reshape(x.shape), params)
    return jax.tree.map(lambda x, y: x + 0.1 * y, params, waves)

  def make(*args, **kwargs):
    made.append(program(*args, **kwargs))
    return made[-1]

  monkeypatch.setattr(models, 'init', init_with_head)
  monkeypatch.setattr(throughput_workers, 'inference_program', make)
  worker = throughput_workers.JaxWorker()
  for _ in range(2):
    found = worker.model(mode='inference', seconds=0.0, **CASE)
  ((start, compile_seconds, size),) = made
  assert found['seconds'] > 0 and found['compile_seconds'] == compile_seconds > 0
  assert found['memory_source'] == 'compiler' and found['memory'] == size > 4 * 17_000_000

  run = start()
  run(2)
  inside, model = variables(run), models.build('Mixer-S/16', 10)
  images = inside['images'].astype(jnp.float32) / 127.5 - 1
  wanted = models.apply_function(model)(inside['params'], images)
  assert np.std(wanted) > 0.1
  np.testing.assert_allclose(inside['logits'], wanted, rtol=1e-4, atol=1e-5)

  monkeypatch.setattr(hardware, 'host_memory', lambda: 2**20)
  with pytest.raises(throughput_workers.DoesNotFit, match=r'^0\.\d GiB of 0\.0$'):
    worker.model(mode='inference', seconds=0.0, **CASE)


@pytest.mark.parametrize(
  ('fault', 'kind', 'text'),
  [
    (
      jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: no 1 GiB\nmore'),
      None,
      'EXHAUSTED: no 1 GiB$',
    ),
    (jax.errors.JaxRuntimeError('INTERNAL: a bug'), jax.errors.JaxRuntimeError, 'INTERNAL'),
    (MemoryError(), None, 'the memory of the host'),
  ],
)
def test_what_counts_as_not_fitting(fault, kind, text, monkeypatch):
  def fail(*args, **kwargs):
    raise fault

  monkeypatch.setattr(throughput_workers, 'training_program', fail)
  with pytest.raises(kind or throughput_workers.DoesNotFit, match=text):
    throughput_workers.JaxWorker().model(mode='training', seconds=0.0, **CASE)


def test_the_product_is_measured_at_its_fastest_side(monkeypatch):
  worker, asked = throughput_workers.JaxWorker(), []
  rates = {1024: 1e12, 2048: 3e12, 4096: 2e12, 8192: 1.9e12, 16384: 0}

  def rate(side, dtype, seconds):
    asked.append((side, seconds))
    return rates[side]

  monkeypatch.setattr(worker, '_product_rate', rate)
  assert worker.product(dtype='float32', seconds=1.0) == {'side': 2048, 'flops': 3e12}
  assert worker.product(dtype='float32', seconds=2.0) == {'side': 2048, 'flops': 3e12}
  # 2 * 8192**3 FLOP take 0.58 s, so the next side is not tried; 4096 takes 0.07 s.
  assert asked == [(1024, 0.1), (2048, 0.1), (4096, 0.1), (2048, 1.0), (2048, 2.0)]


# --- timm, by stubs ----------------------------------------------------------------------------


@pytest.fixture
def stubs(monkeypatch):
  """(torch, timm) that record what is called."""
  torch, timm = mock.MagicMock(name='torch'), mock.MagicMock(name='timm')
  torch.__version__, timm.__version__ = '2.13', '1.0.31'
  torch.OutOfMemoryError = type('OutOfMemoryError', (RuntimeError,), {})
  torch.cuda.is_available.return_value = False
  monkeypatch.setitem(sys.modules, 'torch', torch)
  monkeypatch.setitem(sys.modules, 'timm', timm)
  return torch, timm


def net_of(timm):
  return timm.create_model.return_value.to.return_value.train.return_value


def test_timm_trains(stubs):
  torch, timm = stubs
  worker = throughput_workers.TimmWorker()
  assert worker.device() == {'line': 'torch 2.13, timm 1.0.31: cpu', 'platform': 'cpu'}
  request = {**CASE, 'mode': 'training', 'dtype': 'bfloat16'}
  found = worker.model(seconds=0.0, compiled=True, **request)
  timm.create_model.assert_called_once_with('mixer_s16_224', num_classes=10, img_size=16)
  net = net_of(timm)
  timm.create_model.return_value.to.return_value.train.assert_called_once_with(True)
  torch.compile.assert_called_once_with(net, dynamic=False)
  assert torch.compile.return_value.call_count == 3  # compiling, warming up, measuring
  torch.autocast.assert_called_with('cpu', torch.bfloat16, enabled=True)
  assert torch.randint.call_args_list[0] == mock.call(
    256, (2, 3, 16, 16), dtype=torch.uint8, device='cpu'
  )
  optimizer = torch.optim.AdamW.return_value
  assert torch.optim.AdamW.call_args == mock.call(
    net.parameters(), lr=1e-3, weight_decay=0.1, fused=False
  )
  assert [call[0] for call in optimizer.method_calls] == 3 * ['zero_grad', 'step']
  loss = torch.nn.functional.binary_cross_entropy_with_logits
  assert loss.call_args.kwargs == {'reduction': 'sum'}
  assert (loss.return_value / 2).backward.call_count == 3
  torch.nn.utils.clip_grad_norm_.assert_called_with(net.parameters(), 1.0)
  assert found['compile_seconds'] > 0 and found['seconds'] > 0
  assert found['memory'] is found['memory_source'] is None
  torch.cuda.synchronize.assert_not_called()


def test_timm_classifies_on_a_gpu(stubs):
  torch, timm = stubs
  torch.cuda.is_available.return_value = True
  torch.cuda.get_device_name.return_value = 'NVIDIA H100'
  torch.cuda.max_memory_allocated.return_value = 2**30
  worker = throughput_workers.TimmWorker()
  torch.cuda.set_per_process_memory_fraction.assert_called_once_with(0.45)
  assert worker.device()['platform'] == 'gpu'
  request = {**CASE, 'model': 'BiT-R50x1', 'mode': 'inference', 'compiled': False}
  found = worker.model(seconds=0.0, **request)
  timm.create_model.assert_called_once_with('resnetv2_50x1_bit', num_classes=10)
  timm.create_model.return_value.to.assert_called_once_with(
    'cuda', memory_format=torch.channels_last
  )
  timm.create_model.return_value.to.return_value.train.assert_called_once_with(False)
  torch.compile.assert_not_called()
  torch.optim.AdamW.assert_not_called()
  torch.autocast.assert_called_with('cuda', torch.bfloat16, enabled=False)
  assert net_of(timm).call_count == torch.cuda.synchronize.call_count == 3
  assert torch.inference_mode.call_count == 3
  assert (found['memory'], found['memory_source'], found['compile_seconds']) == (
    2**30, 'allocator', None
  )  # fmt: skip
  worker.model(seconds=0.0, **request)
  assert timm.create_model.call_count == 1
  worker.model(seconds=0.0, **{**request, 'batch_size': 4})
  assert timm.create_model.call_count == 2 and len(worker._programs) == 1


def test_timm_does_not_fit(stubs):
  torch, timm = stubs
  request = {**CASE, 'mode': 'inference', 'compiled': False, 'seconds': 0.0}
  worker = throughput_workers.TimmWorker()
  for fault in (torch.OutOfMemoryError('no 1 GiB'), RuntimeError("you can't allocate memory: 1")):
    net_of(timm).side_effect = fault
    with pytest.raises(throughput_workers.DoesNotFit, match='no 1 GiB|allocate memory'):
      worker.model(**request)
  net_of(timm).side_effect = RuntimeError('a bug')
  with pytest.raises(RuntimeError, match='a bug'):
    worker.model(**request)


def test_requests_are_answered_line_by_line(stubs, monkeypatch, capsys):
  requests = [
    {'what': 'device'},
    {'what': 'model', 'seconds': 0.0, 'mode': 'inference', 'compiled': False, **CASE},
    {'what': 'model', 'seconds': 0.0, 'mode': 'inference', 'compiled': True, **CASE},
  ]
  torch, timm = stubs
  net_of(timm).side_effect = torch.OutOfMemoryError('no 1 GiB')
  torch.compile.side_effect = InputError('not so')
  monkeypatch.setattr(sys, 'stdin', [json.dumps(request) for request in requests])
  throughput_workers.main('timm')
  lines = [json.loads(line.removeprefix('@')) for line in capsys.readouterr().out.splitlines()]
  assert lines[0]['platform'] == 'cpu'
  assert lines[1:] == [{'does_not_fit': 'no 1 GiB'}, {'error': 'not so'}]


def test_timm_has_models_of_the_same_names():
  assert ARCHITECTURES['ViT-L/32'] == 'vit_large_patch32_224'
  assert ARCHITECTURES['Mixer-L/16'] == 'mixer_l16_224'
  assert len(ARCHITECTURES) == 6 + 11 + 6
  for name in ARCHITECTURES:
    models.build(name, 1000)


# --- All of it ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_program_measures_a_model(tmp_path):
  command = [
    sys.executable, 'benchmarks/throughput.py', '--models=Mixer-S/16', '--image_size=16',
    '--num_classes=10', '--batch_sizes=2', '--dtypes=float32', '--modes=inference', '--rounds=2',
    '--seconds=0.01', f'--output={tmp_path}/out',
  ]  # fmt: skip
  environment = runs.optimised()
  done = subprocess.run(
    command,
    cwd=runs.ROOT,
    env=environment,
    text=True,
    capture_output=True,
    timeout=600,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.startswith('cpu: 1 x cpu') and '| Mixer-S/16 | 2 |' in done.stdout
  assert 'Mixer-S/16 inference float32 (jax), batch of 2: ' in done.stderr
  report = json.loads((tmp_path / 'out/throughput.json').read_text())
  assert (tmp_path / 'out/throughput.md').read_text().strip() in done.stdout
  (row,) = report['rows']
  assert len(row['images_per_sec_of_rounds']) == 2 and row['batch_size'] == 2
  assert row['flops_per_image'] == 2 * (768 * 512 + 8 * 2 * 512 * (256 + 2048) + 512 * 10)
  assert row['memory_source'] == 'compiler' and row['memory'] > 4 * 17_000_000
  assert row['compile_seconds'] > 0 and 0 < row['mfu_of_product'] < 1
