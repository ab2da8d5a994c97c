"""Few-shot evaluation: against scikit-learn's Ridge, its samples, its bits on other meshes."""

import json
import re

import jax
from jax.sharding import AxisType
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from mixer import input as inputs
from mixer import models
from mixer.errors import InputError
from mixer.evaluators import features as extraction
from mixer.evaluators import fewshot
from mixer.input.sources import arrays
from mixer.training import sharding
import runs
import weights


def ridge_of_sklearn(x, labels, num_classes, l2):
  """(weights (C + 1, classes), a function that whitens), by scikit-learn and NumPy alone."""
  x = np.asarray(x, np.float64)
  mean = sum(x) / len(x)
  std = np.sqrt(sum((row - mean) ** 2 for row in x) / len(x)) + 1e-5

  def whiten(some):
    return np.hstack([(some - mean) / std, np.full((len(some), 1), 100.0)])

  targets = -np.ones((len(x), num_classes))
  targets[np.arange(len(x)), labels] = 1
  model = Ridge(alpha=l2, fit_intercept=False, solver='cholesky').fit(whiten(x), targets)
  return model.coef_.T, whiten


@pytest.mark.parametrize('l2', [2.0**10, 0.5])
@pytest.mark.parametrize(
  ('n', 'c'), [(200, 24), (25, 24), (24, 24), (30, 60)], ids=['many', 'square', 'one less', 'few']
)
def test_equals_ridge_of_sklearn(n, c, l2):
  """In both branches, which meet at n = c + 1."""
  rng = np.random.default_rng(n)
  labels = np.arange(n) % 5
  centres = rng.normal(size=(5, c))
  scale, shift = rng.uniform(0.1, 10.0, c), rng.normal(0.0, 3.0, c)

  def draw(of):
    return np.float32((centres[of] + rng.normal(0, 3.0, (len(of), c))) * scale + shift)

  x, tests = draw(labels), np.arange(300) % 5
  values = draw(tests)
  wanted, whiten = ridge_of_sklearn(x, labels, 5, l2)
  found = fewshot.fit(x, labels, 5)
  np.testing.assert_allclose(found.weights(l2), wanted, rtol=0, atol=1e-6 * abs(wanted).max())
  np.testing.assert_allclose(
    found.whiten(values) @ found.weights(l2), whiten(values) @ wanted, rtol=0, atol=1e-6
  )
  hits = int(sum(np.argmax(whiten(values) @ wanted, axis=1) == tests))
  assert 60 < hits <= 300 and fewshot.count_hits(found, l2, values, tests) == hits


def test_a_feature_that_never_varies_does_no_harm():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(40, 6)).astype(np.float32)
  x[:, 2] = 0.1  # 1e-5 is added to its deviation of 0
  labels = np.arange(40) % 2
  wanted, _ = ridge_of_sklearn(x, labels, 2, 1.0)
  np.testing.assert_allclose(fewshot.fit(x, labels, 2).weights(1.0), wanted, rtol=0, atol=1e-6)


def test_samples():
  labels = np.array([2, 0, 1, 0, 2, 2, 0, 1, 2, 0], np.int32)
  found = [index.tolist() for index in fewshot.sample(labels, 4, seed=0)]
  # One generator goes through the classes in order, and shuffles each one's places.
  rng = np.random.default_rng(0)
  for c, index in enumerate(found):
    places = [i for i, label in enumerate(labels) if label == c]
    assert index == [places[j] for j in rng.permutation(len(places))]
  assert found == [[6, 1, 3, 9], [7, 2], [5, 0, 8, 4], []]  # no version of NumPy may change it
  assert found != [index.tolist() for index in fewshot.sample(labels, 4, seed=1)]


def digits(split):
  return arrays.Arrays(lambda: arrays.digits(split=split), batch_size=64)


@pytest.fixture(scope='module')
def net():
  return models.build('Mixer', 10, **{**weights.SIZES, 'num_blocks': 2, 'hidden_dim': 32})


@pytest.fixture(scope='module')
def params(net):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: np.float32(rng.standard_normal(x.shape) * 0.3), models.shapes(net, 8, 1)
  )


def mesh_of(count):
  shape, axes = (count, 1), sharding.BATCH_AXES
  return jax.make_mesh(shape, axes, (AxisType.Auto,) * 2, devices=jax.devices()[:count])


def evaluator(net, *, devices=8, records=None, **more):
  section = {'shots': (1, 5), 'seeds': (0, 1), 'l2': 1024.0, 'images_per_device': 16} | more
  return fewshot.make(
    features=models.features_function(net),
    data=digits('test'),
    support_set=digits('train'),
    mesh=mesh_of(devices),
    sources={'data': {'split': 'test'}, 'support_set': {'split': 'train'}},
    record=lambda facts, line: records.append((facts, line)) if records is not None else None,
    **section,
  )


def test_the_same_on_1_and_8_devices_to_the_bit(net, params):
  found = []
  for count in (1, 8):
    extract = extraction.extractor(
      models.features_function(net), images_per_device=16, mesh=mesh_of(count)
    )
    found.append(extract(params, digits('test'), source={}))
  for values, labels in found:
    assert values.shape == (360, 32) and values.dtype == np.float32
    np.testing.assert_array_equal(labels, digits('test')._labels)
  assert found[0][0].tobytes() == found[1][0].tobytes()
  direct = models.apply_function(net.clone(num_classes=None))(
    {name: leaf for name, leaf in params.items() if name != 'head'},
    digits('test')._images[:40] * (2 / 255) - 1,
  )
  np.testing.assert_allclose(found[0][0][:40], direct, rtol=0, atol=1e-5)


def test_results_against_sklearn_and_what_is_recorded(net, params):
  records = []
  evaluate = evaluator(net, records=records, l2_sweep=(1e-3, 1.0, 1024.0))
  results = evaluate(params)
  assert evaluate(params) == results and len(records) == 1  # told once
  facts, line = records[0]
  assert 'l2 1024, seeds (0, 1)' in line and facts['sha256'][:16] in line
  assert json.loads(json.dumps(facts))['ids'].keys() == {'0', '1'}

  features = models.features_function(net)
  values, tested = (
    np.asarray(features(params, digits(split)._images * np.float32(2 / 255) - 1))
    for split in ('train', 'test')
  )
  labels, wanted_labels = digits('train')._labels, digits('test')._labels
  for k in (1, 5):
    hits = []
    for seed in (0, 1):
      ids = facts['ids'][seed]
      assert [len(of) for of in ids] == [5] * 10
      assert all(labels[i] == c for c, of in enumerate(ids) for i in of)
      chosen = [i for of in ids for i in of[:k]]
      model, whiten = ridge_of_sklearn(values[chosen], labels[chosen], 10, 1024.0)
      hits.append(int(sum(np.argmax(whiten(tested) @ model, axis=1) == wanted_labels)))
      assert results[f'{k}shot_seed{seed}'] == hits[-1] / 360
    assert results[f'{k}shot'] == pytest.approx(sum(hits) / 720, abs=1e-12)
    assert results[f'{k}shot_best_l2_on_test'] >= results[f'{k}shot'] > 0.2
    assert results[f'{k}shot_best_l2_on_test_is'] in (1e-3, 1.0, 1024.0)
  assert results['n'] == 360


def test_a_class_with_fewer_images_gives_all_it_has_and_this_is_told(net, params):
  records = []
  evaluator(net, records=records, shots=(1, 140))(params)
  facts, line = records[0]
  counts = np.bincount(digits('train')._labels)
  assert 0 < len(facts['fewer_images']) < 10
  assert facts['fewer_images'] == {str(c): n for c, n in enumerate(counts.tolist()) if n < 140}
  assert f'of 10 classes have fewer than 140 images, the least {min(counts)}: of these' in line


def test_cache(net, params, tmp_path, monkeypatch, caplog):
  batches = []
  original = arrays.Arrays.eval_batches

  def counted(self, *args, **kwargs):
    for batch in original(self, *args, **kwargs):
      batches.append(len(batch['mask']))
      yield batch

  monkeypatch.setattr(arrays.Arrays, 'eval_batches', counted)

  def run(net=net, params=params):
    batches.clear()
    return evaluator(net, cache_dir=str(tmp_path / 'cache'))(params), len(batches)

  whole = -(-360 // 128) + -(-1437 // 128)
  first, taken = run()
  assert taken == whole and len(list((tmp_path / 'cache').iterdir())) == 2
  for again in (params, {k: v for k, v in params.items() if k != 'head'}):
    results, taken = run(params=again)
    assert results == first and taken <= 4  # a batch of each to compare, and one looked ahead
  files = sorted((tmp_path / 'cache').iterdir())
  content = files[0].read_bytes()
  for damaged in (
    content[:-500],
    content[:2000] + bytes([content[2000] ^ 1]) + content[2001:],
    b'',
  ):
    files[0].write_bytes(damaged)
    caplog.clear()
    assert run()[0] == first and 'is damaged' in caplog.text
    assert files[0].read_bytes() == content
  # Of the same parameters in another model: not in the file's name, seen by its first batch.
  other, taken = run(net=net.clone(dtype='bfloat16'))
  assert taken > whole and 'is of another model or of other images' in caplog.text
  assert other == evaluator(net.clone(dtype='bfloat16'))(params)
  run(params={**params, 'stem': jax.tree.map(lambda x: x + 1, params['stem'])})
  assert len(list((tmp_path / 'cache').iterdir())) == 4


@pytest.mark.parametrize(
  ('wrong', 'text'),
  [
    ({'shots': ()}, 'few-shot: shots=(), seeds=(0, 1), images_per_device=16; give at least'),
    ({'shots': (5, 5)}, 'few-shot: shots=(5, 5)'),
    ({'seeds': (1, 1)}, 'few-shot: shots=(1, 5), seeds=(1, 1)'),
    ({'seeds': (-1,)}, 'few-shot: shots=(1, 5), seeds=(-1,)'),
    ({'cache_dir': '/dev/null/x'}, 'cannot make cache_dir=/dev/null/x: '),
    ({'shots': (0,)}, 'few-shot: shots=(0,)'),
    ({'images_per_device': 0}, 'few-shot: shots=(1, 5), seeds=(0, 1), images_per_device=0'),
    ({'l2': 0.0}, 'few-shot: the l2 penalties are [0.0]; each is above 0.'),
    ({'l2_sweep': (1.0, -1.0)}, 'few-shot: the l2 penalties are [1024.0, 1.0, -1.0]'),
  ],
)
def test_refuses_arguments_out_of_range(net, wrong, text):
  with pytest.raises(InputError, match='^' + re.escape(text)):
    evaluator(net, **wrong)


def test_refuses_several_labels_and_features_that_are_not_finite(net, params, monkeypatch):
  broken = {**params, 'stem': jax.tree.map(lambda x: x * np.nan, params['stem'])}
  with pytest.raises(InputError, match='^the features are not finite'):
    evaluator(net)(broken)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(InputError, match='^cache_dir works with one process only'):
    evaluator(net, cache_dir='/tmp')
  monkeypatch.undo()
  data = digits('train')
  data.multi_label = True
  monkeypatch.setitem(globals(), 'digits', lambda split: data)
  with pytest.raises(InputError, match='^few-shot needs one label for each image'):
    evaluator(net)


FEW = """
from configs import digits


def get_config():
  config = digits.get_config()
  config.evals.few = {
    'kind': 'fewshot', 'shots': (1, 5), 'seeds': (0, 1, 2), 'l2': 1024.0, 'images_per_device': 32,
    'every': 20, 'input': {'source': 'digits', 'split': 'test'},
    'train_input': {'source': 'digits', 'split': 'train'},
  }
  config.every.evaluate = 10
  return config
"""


@pytest.mark.slow
def test_while_training_and_afterwards_on_8_devices_without_a_head(tmp_path):
  """train.py and evaluate.py count the same hits on the same samples, on 1 device and on 8."""
  (tmp_path / 'few.py').write_text(FEW)
  env, workdir = runs.environment(), tmp_path / 'run'
  small = [flag for flag in runs.TINY if 'every' not in flag]
  status, output = runs.run(
    'train.py', *runs.train_flags(workdir, *small, config=tmp_path / 'few.py'),
    '--config.total_steps=30', '--config.every.checkpoint=10', '--config.every.log=10', env=env,
  )  # fmt: skip
  assert status == 0, output
  rows = runs.rows(workdir)
  assert [row['step'] for row in rows if 'few/5shot' in row] == [20, 30]  # every 20, and the last
  assert [row['step'] for row in rows if 'test/top1' in row] == [10, 20, 30]
  assert output.count('few: l2 1024, seeds (0, 1, 2)') == 1

  with np.load(workdir / 'model.npz') as arrays_there:
    headless = {name: arrays_there[name] for name in arrays_there if not name.startswith('head')}
  np.savez(tmp_path / 'headless.npz', **headless)
  status, output = runs.run(
    'evaluate.py',
    f'--config={runs.ROOT}/configs/fewshot.py:data=digits',
    f'--checkpoint={tmp_path / "headless.npz"}',
    *(flag for flag in runs.TINY if 'model' in flag),
    '--config.evals.digits.images_per_device=32',
    env={**env, 'XLA_FLAGS': f'{env["XLA_FLAGS"]} --xla_force_host_platform_device_count=8'},
  )
  assert status == 0, output
  result = json.loads((tmp_path / 'headless.evaluation' / 'fewshot.json').read_text())
  for k in (1, 5):
    for name in (f'{k}shot', *(f'{k}shot_seed{seed}' for seed in range(3))):
      assert result[f'digits/{name}'] == rows[-1][f'few/{name}']
  there = json.loads((workdir / 'evals.few.json').read_text())
  later = json.loads((tmp_path / 'headless.evaluation' / 'fewshot.digits.json').read_text())
  for seed in '012':  # 25 shots there, of which the first five are the same
    assert there['ids'][seed] == [of[:5] for of in later['ids'][seed]]
  assert 0.3 < rows[-1]['few/5shot'] <= 1


def test_training_images_of_other_classes_are_refused(monkeypatch):
  four = np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, int), ['a', 'b']
  small = arrays.Arrays(lambda: four, batch_size=4)
  monkeypatch.setattr(
    inputs, 'build', lambda source, **_: small if source == 'small' else digits('test')
  )
  section = {'input': {'source': 'digits'}, 'train_input': {'source': 'small'}}
  text = 'config.evals.few.input and config.evals.few.train_input differ in num_classes: 10 and 2.'
  with pytest.raises(InputError, match=f'^{text}$'):
    inputs.open_evals({'few': section})
