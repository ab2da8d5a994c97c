"""Train steps compiled for machines that are not there."""

import dataclasses
import importlib.util
import json

import pytest

from configs import digits
from mixer import hardware
from mixer.cost import dry_run
from mixer.errors import InputError
from mixer.training import sharding
import runs

with_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='needs requirements-tpu.txt'
)
CONFIG = '--config=configs/digits.py'
SMALL = (
  '--config.model.num_blocks=2',
  '--config.model.hidden_dim=512',  # large enough to be sharded
  '--config.model.tokens_mlp_dim=256',
  '--config.model.channels_mlp_dim=2048',
  '--config.train_input.batch_size=64',
  '--dry_run',
)


def test_on_the_devices_there_are(tmp_path):
  env = runs.environment()
  status, text = runs.run(
    'train.py', CONFIG, *SMALL, f'--dry_run_output={tmp_path}/out/found.json', env=env
  )
  assert status == 0, text
  assert '1 x cpu in 1 processes' in text
  assert 'the rates of this device are not known' in text
  found = json.loads((tmp_path / 'out' / 'found.json').read_text())
  assert found['fits'] is None and not found['collectives']  # a CPU does not tell its memory
  assert found['flops'] == pytest.approx(found['compiled_flops'], rel=0.06)
  assert found['memory'] > 12 * 2 * 2 * 512 * 2048  # parameters and Adam's moments
  assert found['seconds'] == {} and found['core_days'] is None
  assert [path.name for path in tmp_path.iterdir()] == ['out']


@pytest.mark.parametrize('topology', ['v9:2x2', 'v3', 'v3:0x4', 'v3:axb', 'TPU v3'])
def test_a_topology_that_is_none(topology):
  with pytest.raises(InputError, match=r'GENERATION:SIDES.*v5e:16x16'):
    dry_run.topology_devices(topology)


@pytest.mark.parametrize(
  'topology, text',
  [
    ('v3:2', '2 sides and up to 1024 chips'),
    ('v4:4x4', '3 sides'),
    ('v5e:4x4x4', '2 sides'),
    ('v5e:32x32', '2 sides and up to 256 chips'),
  ],
)
def test_a_slice_that_there_is_not(topology, text):
  with pytest.raises(InputError, match=f'slices of {topology[:2]}.* have {text}'):
    dry_run.topology_devices(topology)


def test_data_that_are_not_there():
  section = dict(
    source='folder', path='/nowhere', split='train', batch_size=8, image_size=8, crop='inception'
  )
  with pytest.raises(InputError, match='a dry run needs no data: put ",synthetic" after its'):
    dry_run.run(dry_run.Options({**digits.get_config().to_dict(), 'train_input': section}))


FOUND = dry_run.Report(
  devices=256, cores=256, device_kind='TPU v5 lite', processes=64, fits=True, memory=2**30,
  temporaries=2**29,
  memory_limit=16 * 2**30, flops=1.97e12, compiled_flops=1e12, bytes_accessed=819 * 10**7,
  collectives={'all-gather': {'count': 1, 'bytes': 9, 'sent': 10**9},
               'all-reduce': {'count': 1, 'bytes': 9, 'sent': 10**9}},
)  # fmt: skip


def test_a_compiler_that_reports_nothing():
  """Backends may return None for both analyses."""

  class Silent:
    def as_text(self):
      return ''

    def memory_analysis(self):
      return None

    def cost_analysis(self):
      return None

  found = dry_run.report(Silent(), sharding.make_mesh(), flops=8e9)
  assert found.fits is None and found.memory is None and found.compiled_flops is None
  assert 'whether it fits is unknown' in dry_run.describe(found, steps=3)


def test_times_at_the_published_rates():
  """197 TFLOP/s, 819 GB/s, and the 51.2 TB/s of a pod of 256."""
  expected = {'matmuls': 0.01, 'memory': 0.01, 'network': 0.01, 'step': 0.01}
  assert FOUND.times() == pytest.approx(expected)
  in_groups = dataclasses.replace(FOUND, sent_in_groups=10**9)  # along one of two dimensions
  assert in_groups.times() == pytest.approx({**expected, 'network': 0.015, 'step': 0.015})
  recomputed = dataclasses.replace(FOUND, compiled_flops=3.94e12)
  assert recomputed.times() == pytest.approx({**expected, 'matmuls': 0.02, 'step': 0.02})
  assert recomputed.core_days(86_400) == pytest.approx(0.02 * 256)
  gpu = dataclasses.replace(FOUND, device_kind='NVIDIA H100', flops=989e9)
  assert gpu.times() == pytest.approx({'matmuls': 1e12 / 989e12, 'step': 1e12 / 989e12})
  for other in ({'device_kind': 'cpu'}, {'bytes_accessed': None}):
    assert dataclasses.replace(FOUND, **other).times() == {}


def test_the_report_in_words():
  text = dry_run.describe(FOUND, steps=86_400)
  assert '256 x TPU v5 lite in 64 processes' in text
  assert 'memory per device: 1.00 of 16 GiB: 0.50 of temporaries, it fits' in text
  assert 'matmuls 10.0, memory 10.0, network 10.0, step 10.0' in text
  assert 'at least 2.56 core-days of TPU v5 lite (256 cores), 0.24 hours' in text
  large = dataclasses.replace(FOUND, fits=False, memory=18 * 2**30, temporaries=None)
  assert 'per device: 18.00 of 16 GiB: MORE THAN THE DEVICE HAS' in dry_run.describe(large, steps=1)
  unknown = dataclasses.replace(
    FOUND, fits=None, memory=None, temporaries=None, memory_limit=None, compiled_flops=None,
    bytes_accessed=None,
  )  # fmt: skip
  text = dry_run.describe(unknown, steps=1)
  assert 'memory per device: unknown GiB: whether it fits is unknown' in text
  assert 'the compiler counts nothing' in text and 'unknown GiB accessed' in text
  refused = dataclasses.replace(FOUND, fits=False, memory=None, bytes_accessed=None, refusal='No.')
  assert 'DOES NOT FIT: No.' in dry_run.describe(refused, steps=1)


def test_what_the_paper_needed():
  assert dry_run.describe_paper('Mixer-B/16') == (
    'core-days of TPU v3 for Mixer-B/16: 10 (ImageNet, 300 epochs), '
    '150 (ImageNet-21k, 300 epochs), 80 (JFT-300M, 7 epochs)'
  )
  assert dry_run.describe_paper('Mixer-S/8') == 'nothing of Mixer-S/8'


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('libtpu') is not None, reason='libtpu is there')
def test_without_libtpu(tmp_path):
  env = runs.environment()
  status, text = runs.run('train.py', CONFIG, *SMALL, '--topology=v5e:2x2', env=env)
  assert status == 2
  assert 'pip install -r requirements-tpu.txt' in text and 'Traceback' not in text


@with_libtpu
@pytest.mark.parametrize(
  'topology, devices, cores',
  [('v3:2x2', 8, 8), ('v4:2x2x1', 4, 8), ('v5e:2x2', 4, 4), ('v5p:2x2x1', 4, 8), ('v6e:2x2', 4, 4)],
)
def test_slices(topology, devices, cores):
  """In a process of its own: tests elsewhere have started JAX already."""
  dry_run.configure()
  found = dry_run.topology_devices(topology)
  assert len(found) == devices
  assert sum(one.num_cores for one in found) == cores
  kind = found[0].device_kind
  sides = dry_run.GENERATIONS[topology.partition(':')[0]].sides
  assert hardware.peak_flops(kind) and hardware.memory(kind).dimensions == sides


@with_libtpu
@pytest.mark.parametrize('topology', ['v4:4x4x4', 'v5e:4x4', 'v5e:16x16'])
@pytest.mark.parametrize('fsdp', [1, 4, 8])
def test_each_process_has_a_block_of_rows(topology, fsdp):
  """`sharding.put` gives process i the i-th block, as the input does."""
  dry_run.configure()
  mesh = sharding.make_mesh(fsdp=fsdp, devices=dry_run.topology_devices(topology))
  processes = [one.process_index for one in mesh.devices.flat]
  assert len(set(processes)) == mesh.size // 4 and processes == sorted(processes)


@with_libtpu
@pytest.mark.slow
def test_compiles_for_a_slice_data_parallel_and_fsdp(tmp_path):
  env = runs.optimised()
  found = {}
  for fsdp in (1, 4):
    path = tmp_path / f'{fsdp}.json'
    flags = ('--topology=v5e:2x2', f'--config.mesh.fsdp={fsdp}', f'--dry_run_output={path}')
    status, text = runs.run('train.py', CONFIG, *SMALL, *flags, env=env)
    assert status == 0, text
    assert 'it fits' in text and 'core-days' in text
    found[fsdp] = json.loads(path.read_text())
  gradients = 2 * 2 * 512 * 2048  # of the channel-mixing kernels alone, in two blocks
  assert found[1]['collectives']['all-reduce']['bytes'] > 4 * gradients  # float32
  assert found[4]['memory'] < found[1]['memory']


@with_libtpu
@pytest.mark.slow
def test_what_does_not_fit_is_said(tmp_path):
  status, text = runs.run(
    'train.py', CONFIG, *SMALL, '--topology=v5e:2x2', '--config.train_input.batch_size=4194304',
    '--config.total_steps=5', env=runs.optimised(),
  )  # fmt: skip
  assert status == 0
  assert 'DOES NOT FIT' in text and 'config.model.remat=True' in text
