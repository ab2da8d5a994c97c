"""The report of runs: whole, self-contained, with the numbers that are in their files."""

import base64
import csv
import dataclasses
import hashlib
import html
from html.parser import HTMLParser
import importlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys

from etils import epath
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from mixer import input as inputs
from mixer import models, paper, pretrained
from mixer.checkpoints import manager
from mixer.errors import InputError, MissingData
from mixer.models import permutations
from mixer.report import __main__ as program
from mixer.report import curves, details, document, galleries, goodput, run_files, sections
from mixer.training import train_step
from mixer.visualize import plots
import reference
import runs

SIZES = dict(num_blocks=2, hidden_dim=8, tokens_mlp_dim=6, channels_mlp_dim=16)
BROWSERS = (
  'chromium', 'chromium-browser', 'chromium-headless-shell', 'google-chrome', 'chrome',
)  # fmt: skip


def row(step, **more):
  return {
    'step': step, 'epoch': step / 10, 'train/loss': 2.0 / step, 'train/accuracy': 0.5,
    'images_per_sec': 800.0, 'images_per_sec_per_device': 100.0, 'input_wait': 0.25,
    'core_hours': step / 100, **more,
  }  # fmt: skip


def write_run(path, config, rows):
  path.mkdir(parents=True)
  (path / 'config.json').write_text(json.dumps(config))
  (path / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))


def digits_params(seed=0):
  model = models.build('Mixer', 10, patch_size=2, **SIZES)
  rng = np.random.default_rng(seed)
  flat = pretrained.flatten(models.shapes(model, 8, 1))
  return pretrained.nest({k: np.float32(rng.standard_normal(v.shape)) for k, v in flat.items()})


def digits_config(**changes):
  config = importlib.import_module('configs.digits').get_config()
  config.model.update(SIZES)
  config.update(changes)
  return config.to_dict()


@pytest.fixture(scope='module')
def workdirs(tmp_path_factory):
  """A finished run and one that was stopped, whose names need their folders to differ."""
  root = tmp_path_factory.mktemp('runs')
  done, stopped = root / 'first' / 'run', root / 'second' / 'run'
  rows = [row(10, **{'test/top1': 0.5, 'test/n': 360}), row(20), row(30, **{'test/top1': 0.625})]
  write_run(done, digits_config(), rows)
  pretrained.save_model(done, digits_params(), {'image_size': [8, 8], 'versions': {'jax': '9.8.7'}})
  (done / 'evaluation.json').write_text(
    json.dumps({'checkpoint': 'x', 'model': 'Mixer', 'test/top1': 0.75})
  )
  write_run(stopped, digits_config(seed=7, mixup=0.5), [row(10), row(20)])
  saved = manager.Checkpoints(stopped / 'checkpoints')
  state = train_step.TrainState(step=jnp.int32(20), params=digits_params(1), opt_state={})
  saved.save(20, state)
  saved.close()
  return [str(done), str(stopped)]


@pytest.fixture(scope='module')
def written(workdirs, tmp_path_factory):
  output = tmp_path_factory.mktemp('out') / 'report.html'
  document.write(run_files.read(workdirs), output, samples=5)
  return output


class Page(HTMLParser):
  """Records tags that are not closed, addresses, ids, tables and the text."""

  VOID = ('meta', 'img', 'br', 'link', 'input')

  def __init__(self, text):
    super().__init__()
    self.open, self.faults, self.addresses, self.tags, self.rows = [], [], [], [], []
    self.ids, self.images = [], []
    self.text = ''
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    names = [name for name, _ in attrs]
    self.faults += [(tag, names)] if len(set(names)) < len(names) else []
    self.addresses += [
      v for k, v in attrs if k in ('src', 'href', 'xlink:href', 'srcset', 'action', 'data')
    ]
    self.ids += [v for k, v in attrs if k == 'id']
    self.images += [dict(attrs)] if tag == 'img' else []
    if tag not in self.VOID:
      self.open.append(tag)
    if tag == 'tr':
      self.rows.append([])
    if tag in ('td', 'th'):
      self.rows[-1].append('')

  def handle_endtag(self, tag):
    if not self.open or self.open.pop() != tag:
      self.faults.append(tag)

  def handle_data(self, data):
    if not {'style', 'script'} & {*self.open} and data.strip():  # not the line breaks between tags
      self.text += data
    if self.open and self.open[-1] in ('td', 'th'):
      self.rows[-1][-1] += data


def test_page_is_whole_and_loads_nothing(written):
  text = written.read_text()
  found = Page(text)
  assert not found.faults and not found.open
  assert len(set(found.ids)) == len(found.ids)
  assert found.addresses and all(a.startswith('data:image/png;base64,') for a in found.addresses)
  assert not {'link', 'iframe', 'object'} & set(found.tags)
  own = re.sub(r'base64,[A-Za-z0-9+/=]+|/\*! https://github.com/leeoniya/uPlot ', '', text)
  assert not re.search(r'https?:|//[a-z]|url\(|@import', own)
  # Its own scripts are permitted, and no other.
  data, *scripts = re.findall(r'<script[^>]*>(.*?)</script>', text, re.DOTALL)
  hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
  policy = html.unescape(re.search(r'Policy" content="([^"]*)"', text)[1])
  assert policy.split('; ')[0] == "default-src 'none'"
  assert policy.split('; ')[-1] == ' '.join(['script-src', *(f"'sha256-{one}'" for one in hashes)])
  assert 'Copyright (c) 2022 Leon Sorokin' in text and len(json.loads(data)['charts']) == 4
  # Three pictures of each run (two blocks and the stem) and five samples of each; and charts.
  assert found.tags.count('img') == 2 * 3 + 2 * 5 and all(i['alt'] for i in found.images)
  assert sorted(i for i in found.ids if 'line-' in i)[:5] == [
    *('chart-0-line-0', 'chart-0-line-1'),  # loss of both
    *('chart-1-line-0', 'chart-1-line-1', 'chart-1-line-2'),  # accuracy of both, one run's top-1
  ]


def test_tables_have_the_numbers_of_the_files(written):
  found = Page(written.read_text())
  table = {row[0]: row[1:] for row in found.rows}
  assert table['step'] == ['30', '20'] and table['training data'] == ['digits', 'digits']
  assert table['train/loss'] == ['0.06667', '0.1']
  assert table['test/top1 %'] == ['62.50', '-'] and table['test/n'] == ['360', '-']
  assert table['test/top1 % (evaluation)'] == ['75.00', '-']
  assert ['first/run', '8', '0.300', '0.0125', '-', '800', '100', '-', '25 %'] in found.rows
  # 30 steps of 128 images at 800 per second, in a loop of 0.3 core-hours on 8 devices.
  times = ['1', '≥ 0.0375', '≤ 2.7 %', '≤ 0.9 %', '≤ 96.4 %', '-', '-']
  assert ['first/run', *times] in found.rows
  assert table['seed'] == ['0', '7'] and table['mixup'] == ['0.2', '0.5']
  assert 'loss' not in table  # the same in both
  assert table['jax'][:2] == ['9.8.7', '-']
  assert (
    'first/run: finished at step 30; second/run: not finished, last logged step 20' in found.text
  )
  assert 'The paper has no row for first/run: a model of other dimensions on digits.' in found.text


def test_csv(written):
  done, stopped = csv.DictReader(written.with_suffix('.csv').read_text().splitlines())
  assert done['run'] == 'first/run' and done['finished'] == 'True' and done['step'] == '30'
  assert float(done['test/top1']) == 0.625 and float(done['train/loss']) == 2 / 30
  assert float(done['evaluation: test/top1']) == 0.75
  assert stopped['finished'] == 'False' and stopped['test/top1'] == ''


def captions(labels, logits):
  """The text at each sample, by NumPy: its label and the three most probable classes."""
  shares = np.exp(logits - logits.max(axis=1, keepdims=True))
  shares /= shares.sum(axis=1, keepdims=True)
  for label, values in zip(labels, shares):
    best = np.argsort(-values)[:3]
    yield f'true: {label}' + ''.join(f'{i}{100 * values[i]:.1f}\xa0%' for i in best)


def test_samples_are_what_the_newest_weights_say(workdirs, written):
  """By NumPy: of the .npz for the finished run, of the checkpoint for the other."""
  data = inputs.build(source='digits', split='test', batch_size=5)
  batch = next(iter(data.eval_batches(5, 0, 1)))
  text = Page(written.read_text()).text
  for seed in (0, 1):
    _, logits = reference.forward(digits_params(seed), batch['image'] / 127.5 - 1, (2, 2))
    for line in captions(batch['label'], logits):
      assert line in text


def test_a_run_of_the_paper_stands_beside_its_rows(tmp_path):
  config = importlib.import_module('configs.mixer_b16').get_config('imagenet2012').to_dict()
  del config['evals']['minival'], config['evals']['v2'], config['evals']['real']
  config['evals']['val']['input']['source'] = 'gone'  # as if its package were not there
  last = row(50, **{'val/top1': 0.7013, 'val/images_per_sec': 4000.0, 'minival/top1': 0.5})
  write_run(tmp_path / 'b16', config, [last])
  document.write(run_files.read([str(tmp_path / 'b16')]), tmp_path / 'r.html', samples=2)
  found = Page(tmp_path.joinpath('r.html').read_text())
  assert ['b16', 'ImageNet', '224', '5.00', '70.13', '-', '-', '-', '500', '0.0208'] in found.rows
  theirs = ['300', '76.44', '82.36', '88.33', '-', '1,384', '10']
  assert ['paper, table 3', 'ImageNet', '224', *theirs] in found.rows
  assert 'ImageNet-21k' not in [row[1] for row in found.rows if len(row) > 1]
  assert 'a directory without an intact checkpoint' in found.text and 'Not drawn: ' in found.text
  assert "Not made: unknown input source 'gone'" in found.text


@pytest.mark.parametrize(
  'name,change,wanted',
  [
    ('mixer_b16', {}, 'Mixer-B/16'),
    ('mixer_b16', {'hidden_dim': 8}, None),
    ('mixer_b16', {'untie_tokens': False, 'channel_groups': 1, 'pyramid': []}, 'Mixer-B/16'),
    ('mixer_b16', {'untie_tokens': True}, None),
    ('mixer_b16', {'tokens_mlp_dim': 384}, None),
    ('mixer_b16', {'name': 'ViT-B/16'}, 'ViT-B/16'),
    ('mixer_b16', {'name': 'ViT-B/16', 'pool': 'gap'}, None),
    ('mixer_b16', {'pyramid': [[3, 49]]}, None),
    ('digits', {}, None),
    ('bit', {}, 'BiT-R50x1'),
    ('bit', {'width': 32}, None),
    ('bit', {'groups': 16}, None),
  ],
)
def test_paper_model(name, change, wanted):
  config = importlib.import_module(f'configs.{name}').get_config().to_dict()
  config['model'] |= change
  run = run_files.Run('r', None, config, [], None, {})
  assert run.paper_model == wanted


@pytest.mark.parametrize(
  'name,argument,wanted,words',
  [
    ('mixer_b32', 'jft', 'Mixer-B/32', None),
    ('mixer_b32', 'jft,subset=100', 'Mixer-B/32', None),
    ('mixer_b32', 'jft,subset=3', None, 'trained on a subset of the images'),
    ('permutations', 'model=B/16,kind=original', 'Mixer-B/16', None),
    ('permutations', 'model=B/16,kind=global', None, 'trained on permuted images'),
  ],
)
def test_runs_of_the_studies_have_no_row(name, argument, wanted, words, tmp_path):
  config = importlib.import_module(f'configs.{name}').get_config(argument).to_dict()
  assert run_files.Run('r', None, config, [], None, {}).paper_model == wanted
  write_run(tmp_path / 'r', config, [row(10)])
  tables, notes = sections.paper_comparison(run_files.read([str(tmp_path / 'r')]))
  note = f'The paper has no row for r: a model {words} on JFT-300M.'
  assert (note in notes) == (words is not None) == (not tables)


def test_a_fine_tuned_run_has_no_cost_of_pre_training_beside_it(tmp_path):
  for name, path in (('fresh', None), ('tuned', '/m.npz')):
    config = importlib.import_module('configs.mixer_b16').get_config('imagenet2012').to_dict()
    config['init']['path'] = path
    write_run(tmp_path / name, config, [row(10)])
  found = sections.cost(run_files.read([str(tmp_path / 'fresh'), str(tmp_path / 'tuned')]))
  assert found.head[4] == 'in the paper' and [line[4] for line in found.rows] == ['10', '-']


@pytest.mark.parametrize(
  'data, before, rows, why',
  [
    ('imagenet2012', 'jft', 'JFT-300M', None),
    ('imagenet2012', 'imagenet21k', 'ImageNet-21k', None),
    ('imagenet2012', 'jft,subset=3', None, 'what .* was trained on is not recorded beside it'),
    ('imagenet2012', None, None, 'what .* was trained on is not recorded beside it'),
    ('/my/photos', 'jft', None, 'Mixer-B/16 on /my/photos'),
    ('imagenet2012', '/my/photos', None, 'Mixer-B/16, pre-trained on /my/photos'),
  ],
)
@pytest.mark.parametrize('kind', ['file', 'workdir'])
def test_a_fine_tuned_run_stands_beside_rows_of_its_pre_training(
  kind, data, before, rows, why, tmp_path
):
  """By init.json of the run, and model.json or config.json of the one that it started from."""

  def config(argument):
    name = argument if argument and argument[0] != '/' else 'imagenet2012'
    found = importlib.import_module('configs.mixer_b16').get_config(name).to_dict()
    if name != argument:
      found['train_input'] = {'source': 'folder', 'path': argument}
    return found

  start = tmp_path / 'before' / ('model.npz' if kind == 'file' else '')
  if before:
    write_run(tmp_path / 'before', config(before), [])
    if kind == 'file':
      (tmp_path / 'before' / 'config.json').unlink()
      facts = {'config': config(before)}
      (tmp_path / 'before' / 'model.json').write_text(json.dumps(facts))
  tuned = config(data)
  tuned['init'] = {'path': '/moved/away'}
  write_run(tmp_path / 'tuned', tuned, [row(10)])
  (tmp_path / 'tuned' / 'init.json').write_text(json.dumps({'source': str(start)}))
  tables, notes = sections.paper_comparison(run_files.read([str(tmp_path / 'tuned')]))
  if rows:
    ((_, table),) = tables
    assert {line[1] for line in table.rows} == {rows} and len(table.rows) == 2
  else:
    assert not tables and re.fullmatch(f'The paper has no row for tuned: {why}.', notes[0])


def test_few_shot_and_real_are_in_percent_and_their_counts_are_not_drawn(tmp_path):
  found = {
    'few/5shot': 0.5, 'few/5shot_seed0': 0.51, 'few/5shot_seed1': 0.49,
    'few/5shot_best_l2_on_test': 0.625, 'few/5shot_best_l2_on_test_is': 1024.0, 'few/n': 12_345,
    'real/top1': 0.75, 'real/n': 46_837, 'real/n_without_labels': 13_163, 'val/map': 0.25,
  }  # fmt: skip
  write_run(tmp_path / 'r', digits_config(), [row(10, **found), row(20, **found)])
  read = run_files.read([str(tmp_path / 'r')])
  table = {line[0]: line[1] for line in sections.results(read).rows}
  wanted = {
    'few/5shot %': '50.00 ± 1.41 (2 seeds)', 'few/5shot_best_l2_on_test %': '62.50',
    'few/5shot_best_l2_on_test_is': '1024', 'few/n': '12,345', 'real/top1 %': '75.00',
    'real/n_without_labels': '13,163', 'val/map': '0.25',
  }  # fmt: skip
  assert wanted.items() <= table.items() and not [name for name in table if 'seed' in name]
  charts = {chart.title: chart for chart in curves.charts(read)}
  assert list(charts) == [
    'Loss', 'Accuracy, %', 'few, %', 'val/map', 'Images per second',
    'Input wait: share of time, upper bound, %',
  ]  # fmt: skip
  labels = {title: [curve.label for curve in chart.curves] for title, chart in charts.items()}
  assert labels['Loss'] == ['train/loss']
  assert labels['Accuracy, %'] == ['train/accuracy', 'real/top1']
  assert labels['few, %'] == ['few/5shot', 'few/5shot_best_l2_on_test']
  mean, best = charts['few, %'].curves
  np.testing.assert_allclose(mean.band, [[49, 49], [51, 51]])
  assert mean.values.tolist() == [50, 50] and best.band is None
  assert 'FillBetween' in charts['few, %'].svg


def test_samples_are_of_the_first_set_that_is_available(monkeypatch):
  def build(*, source):
    if source == 'gone':
      raise MissingData('this set is not on disk')
    return source

  monkeypatch.setattr(inputs, 'build', build)
  gone, found = {'input': {'source': 'gone'}}, {'input': {'source': 'found'}}
  assert galleries._first_available({'a': gone, 'b': found, 'c': found}) == ('b', 'found')
  with pytest.raises(MissingData, match='this set is not on disk'):
    galleries._first_available({'a': gone})


def test_samples_of_a_run_with_permuted_images(tmp_path):
  """Its predictions are those of permuted images, by NumPy; its weights make no pictures."""
  section = {'kind': 'global', 'seed': 5, 'patch_size': 2}
  config = {**digits_config(), 'permutation': section}
  write_run(tmp_path / 'run', config, [row(10)])
  description = {'image_size': [8, 8], 'versions': {}, 'permutation': section}
  pretrained.save_model(tmp_path / 'run', digits_params(), description)
  document.write(run_files.read([str(tmp_path / 'run')]), tmp_path / 'r.html', samples=5)
  batch = next(iter(inputs.build(source='digits', split='test', batch_size=5).eval_batches(5)))
  moved = batch['image'].reshape(5, 64)[:, permutations.everywhere((8, 8), 2, 5)]
  _, logits = reference.forward(digits_params(), moved.reshape(5, 8, 8, 1) / 127.5 - 1, (2, 2))
  text = Page((tmp_path / 'r.html').read_text()).text
  for line in captions(batch['label'], logits):
    assert line in text
  assert 'Not drawn: ' in text and 'was trained with the input permutation' in text


def test_paper_rows_are_those_of_the_configs():
  """The configs' docstrings have the top-1 of the same table, typed in another hour."""
  kinds = {'imagenet2012': '', 'imagenet21k': '', 'jft': ''}
  checked = 0
  for path in sorted((runs.ROOT / 'configs').glob('mixer_*.py')):
    model = f'Mixer-{path.stem[6].upper()}/{path.stem[7:]}'
    for data in kinds:
      line = re.search(rf'\| {data} +\| (.*?) +\|', path.read_text())
      name = 'jft_300m' if data == 'jft' else data
      printed = re.findall(r'\d\d\.\d\d', line[1])
      if printed:
        checked += 1
        assert float(printed[0]) in [
          r.imagenet for r in paper.rows(model, name) if r.resolution == 224 and r.table == 3
        ]
  assert checked == 11
  assert len(set(paper.ROWS)) == len(paper.ROWS) == 36
  assert [r.vtab for r in paper.rows('Mixer-H/14', 'jft_300m')] == [None, 75.33]


def test_goodput_over_two_starts(tmp_path):
  """By hand: 32 images per step, 2 cores, a kill after the checkpoint of step 20.

  First start at 1000 s; loop from 1010 s; steps take 1 s each, a quarter of it waiting. After step
  10 an evaluation of 5 s, then step 20 at 1035 s; what came after it is lost. Second start at 1100
  s; loop from 1120 s, step 30 at 1130 s.
  """
  one = {'images_per_sec': 32.0, 'images_per_sec_per_device': 16.0, 'input_wait': 0.25}
  loops = ((10, 10, 1020), (20, 25, 1035), (30, 35, 1130))
  rows = [
    {'step': step, 'epoch': step / 10, **one, 'core_hours': 2 * loop / 3600, 'time': time}
    for step, loop, time in loops
  ]
  config = digits_config()
  config['train_input']['batch_size'] = 32
  write_run(tmp_path / 'r', config, rows)
  starts = [{'time': 1000, 'step': 0, 'cores': 2}, {'time': 1100, 'step': 20, 'cores': 2}]
  lines = ''.join(json.dumps(start) + '\n' for start in starts)
  (tmp_path / 'r' / 'starts.jsonl').write_text(lines + '{"ti')
  (run,) = run_files.read([str(tmp_path / 'r')])
  found = goodput.times(run)
  seconds = {name: 3600 * getattr(found, name) for name in ('wall', 'trained', 'waited')}
  assert seconds == pytest.approx({'wall': 130, 'trained': 22.5, 'waited': 7.5})
  seconds = {name: 3600 * getattr(found, name) for name in ('evaluated', 'started', 'lost')}
  assert seconds == pytest.approx({'evaluated': 5, 'started': 10 + 20, 'lost': 65})
  assert goodput.hours(run) == pytest.approx({10: 10 / 3600, 20: 25 / 3600, 30: 35 / 3600})
  shares = ['17.3 %', '5.8 %', '3.8 %', '23.1 %', '50.0 %']
  assert sections.wall_time([run]).rows == [['r', '2', '0.0361', *shares]]


def write_details(directory, names, counts):
  """The files of an evaluation with these counts of (label, guess), as evaluate.py writes them."""
  directory.mkdir(parents=True)
  with (directory / 'per_class.csv').open('w', newline='') as file:
    table = csv.writer(file)
    table.writerow(['class', 'name', 'n', 'correct', 'accuracy', 'guessed', 'precision'])
    for i, name in enumerate(names):
      n, guessed, correct = counts[i].sum(), counts[:, i].sum(), counts[i, i]
      shares = correct / n if n else '', correct / guessed if guessed else ''
      table.writerow([i, name, n, correct, shares[0], guessed, shares[1]])
  with (directory / 'confusion.csv').open('w', newline='') as file:
    table = csv.writer(file)
    table.writerow(['label', 'label_name', 'guess', 'guess_name', 'n'])
    table.writerows([i, names[i], j, names[j], counts[i, j]] for i, j in zip(*np.nonzero(counts)))


def test_evaluations_in_detail(tmp_path):
  names = ['cat, tabby', '<dog>', 'owl']
  counts = np.array([[36, 3, 1], [0, 0, 0], [2, 0, 8]])
  write_run(tmp_path / 'r', digits_config(), [row(10)])
  directory = tmp_path / 'r' / 'evaluation' / 'digits-step_10' / 'test'
  write_details(directory, names, counts)
  colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
  sprite = Image.new('RGB', (128, 128))
  for i, colour in enumerate(colours):
    sprite.paste(colour, (i % 2 * 64, i // 2 * 64, i % 2 * 64 + 64, i // 2 * 64 + 64))
  sprite.save(directory / 'mistakes.jpg', quality=95)
  one = {
    'labels': [0], 'label_names': ['cat, tabby'], 'guess': 1, 'guess_name': '<dog>',
    'probability': 0.9934, 'label_probability': 0.0021,
  }  # fmt: skip
  mistakes = [{**one, 'index': i, 'path': '/a/<b>.jpg' if i else ''} for i in range(3)]
  facts = {'sprite': 'mistakes.jpg', 'tile': 64, 'columns': 2, 'mistakes': mistakes}
  (directory / 'mistakes.json').write_text(json.dumps(facts))
  bins = [
    {'low': 0, 'high': 0.5, 'n': 0, 'accuracy': None, 'confidence': None},
    {'low': 0.5, 'high': 1, 'n': 50, 'accuracy': 0.88, 'confidence': 0.9},
  ]
  facts = {'n': 50, 'accuracy': 0.88, 'confidence': 0.9, 'ece': 0.02, 'nll': None, 'bins': bins}
  (directory / 'calibration.json').write_text(json.dumps(facts))
  older = tmp_path / 'r' / 'evaluation' / 'digits-step_5' / 'test'
  write_details(older, names, counts)
  for path in older.iterdir():
    os.utime(path, (1, 1))

  runs_ = run_files.read([str(tmp_path / 'r')])
  (found,) = details.read(runs_)
  assert (found.label, found.source) == ('r: test', 'evaluation/digits-step_10/test')
  assert found.matrix.names == names and found.matrix.counts == counts.tolist()
  assert found.matrix.shares[0] == [0.9, 0.075, 0.025] and found.matrix_image is None
  assert found.pairs.rows == [
    ['cat, tabby', '<dog>', '3', '7.5'], ['owl', 'cat, tabby', '2', '20.0'],
    ['cat, tabby', 'owl', '1', '2.5'],
  ]  # fmt: skip
  assert found.classes.rows == [
    ['owl', '10', '8', '80.0', '9', '88.9'], ['cat, tabby', '40', '36', '90.0', '38', '94.7'],
    ['<dog>', '0', '0', '-', '3', '0.0'],
  ]  # fmt: skip
  for picture, colour in zip(found.mistakes, colours, strict=True):
    image = np.asarray(Image.open(io.BytesIO(picture.png))).astype(int)
    assert image.shape == (64, 64, 3) and (abs(image[8:-8, 8:-8] - colour) < 4).all()
    assert picture.guesses == [('<dog>', 0.9934, False), ('cat, tabby', 0.0021, True)]
  assert [p.caption.rpartition('; ')[2] for p in found.mistakes] == ['image 0', *['/a/<b>.jpg'] * 2]

  (directory / 'per_class.csv').write_text('class,name\n0,cat\n')
  document.write(runs_, tmp_path / 'r.html', samples=1)
  page = Page((tmp_path / 'r.html').read_text())
  assert not page.faults and ['cat, tabby', '36', '3', '1'] in page.rows
  assert '(ECE, 2 bins) is 2.00 %.' in page.text and 'true: cat, tabby; /a/<b>.jpg' in page.text
  assert "per_class.csv cannot be shown: KeyError('accuracy')." in page.text


def test_confusions_of_many_classes_are_a_picture(tmp_path):
  counts = np.diag(np.full(100, 9))
  counts[3, 97] = 27
  write_details(tmp_path / 'r' / 'evaluation' / 'a' / 'val', [f'c{i}' for i in range(100)], counts)
  run = run_files.Run('r', epath.Path(tmp_path / 'r'), digits_config(), [], None, {})
  (found,) = details.read([run])
  image = np.asarray(Image.open(io.BytesIO(found.matrix_image.png)))
  assert image.shape == (500, 500, 4) and found.matrix is None and found.mistakes is None
  alpha = image[2::5, 2::5, 3]
  assert (np.diag(alpha)[[0, 99]] == 255).all() and alpha[3, 3] == 128  # a quarter, as its root
  assert alpha[3, 97] == 221 and np.count_nonzero(alpha) == 101


# --- Wrong arguments ---------------------------------------------------------------------


def test_what_is_not_a_workdir(workdirs, tmp_path):
  with pytest.raises(InputError, match='none is not a workdir of train.py: it is not a directory'):
    run_files.read([str(tmp_path / 'none')])
  text = r'it has no config.json\. Its subdirectories run are workdirs\.$'
  with pytest.raises(InputError, match=text):
    run_files.read([os.path.dirname(workdirs[0])])
  write_run(tmp_path / 'bad', digits_config(), [])
  assert run_files.read([str(tmp_path / 'bad')])[0].final == {}
  (tmp_path / 'bad' / 'metrics.jsonl').write_text('{"step": 1\n')
  with pytest.raises(InputError, match=r'metrics.jsonl is damaged in line 1: .* Delete this'):
    run_files.read([str(tmp_path / 'bad')])
  (tmp_path / 'bad' / 'metrics.jsonl').unlink()
  (tmp_path / 'bad' / 'config.json').write_text('[]')
  with pytest.raises(InputError, match=r'config.json is damaged'):
    run_files.read([str(tmp_path / 'bad')])


@pytest.mark.parametrize(
  ('config', 'lacking'),
  [
    ({'checkpoint': 'ab12', 'model': 'B/16'}, 'model, train_input, evals'),  # of mixer.vtab
    ({'model': {}, 'train_input': {}, 'evals': {}}, 'model.name'),
    ({}, 'model, train_input, evals'),
  ],
)
def test_the_config_of_something_else(tmp_path, config, lacking):
  write_run(tmp_path / 'other', config, [])
  with pytest.raises(InputError, match=f'not a workdir of train.py: .*config.json lacks {lacking}'):
    run_files.read([str(tmp_path / 'other')])


def test_output_is_checked_first(tmp_path):
  with pytest.raises(InputError, match='give a file name that ends in .html'):
    program.check_output(str(tmp_path / 'report.pdf'))
  with pytest.raises(InputError, match='there is no directory .*none; create it first'):
    program.check_output(str(tmp_path / 'none' / 'report.html'))
  with pytest.raises(InputError, match='no workdir; give one or several: python -m mixer.report'):
    program.main()


def test_rows_that_lack_values(tmp_path):
  """Rows of another version or of a user: what they have is shown."""
  rows = [{'step': 1, 'train/loss': None}, {'step': 2, 'train/loss': 1.5, 'note': 'warm'}]
  write_run(tmp_path / 'bare', digits_config(), rows)
  rates = [{**rows[1], 'images_per_sec': 50, 'input_wait': 0.25}, {'step': 4, 'images_per_sec': 70}]
  write_run(tmp_path / 'some', digits_config(), rates)
  runs_ = run_files.read([str(tmp_path / 'bare'), str(tmp_path / 'some')])
  assert sections.cost(runs_).rows == [
    ['bare', '-', '-', '-', '-', '-', '-', '-', '-'],
    ['some', '-', '-', '-', '-', '60', '-', '-', '25 %'],
  ]
  document.write(runs_, epath.Path(tmp_path / 'report.html'), samples=1)
  assert 'last logged step 4' in (tmp_path / 'report.html').read_text()


def test_a_run_that_has_logged_nothing(tmp_path):
  write_run(tmp_path / 'new', digits_config(), [])
  document.write(run_files.read([str(tmp_path / 'new')]), tmp_path / 'r.html', samples=2)
  found = Page((tmp_path / 'r.html').read_text())
  assert not found.faults and 'not finished, nothing logged yet' in found.text


def test_text_from_outside_is_escaped(tmp_path):
  """Names of runs, metrics and config keys, config values, captions, classes, notes, versions."""
  bad = '<script>alert("x")</script>'
  config = digits_config()
  config['evals'] = {bad: config['evals']['test']}
  config |= {bad: bad}
  run = tmp_path / '<script>alert("x")<' / 'script>'
  write_run(run, config, [row(10, **{f'{bad}/top1': 0.5, f'{bad}/{bad}': 1.0})])
  (run / 'model.json').write_text(json.dumps({'versions': {'jax': bad}}))
  write_run(tmp_path / 'b', digits_config(), [row(10)])
  (read, other) = run_files.read([str(run), str(tmp_path / 'b')])
  read = dataclasses.replace(read, label=bad)
  document.write([read, other], tmp_path / 'r.html', samples=1)
  text = (tmp_path / 'r.html').read_text()
  assert '<script>alert' not in text and 'alert("x")' not in text
  found = Page(text)
  assert not found.faults and found.text.count(bad) > 10
  drawn = json.loads(re.search(r'id="curves">(.*?)</script>', text)[1])
  assert [run['label'] for run in drawn['runs']] == [bad, 'b']

  table = sections.Table([bad], [[bad]])
  gallery = galleries.Gallery(
    bad, bad, [galleries.Picture(f'"{bad}', b'png', guesses=[(bad, 0.5, True)])]
  )
  one = np.ones(1)
  chart = curves.Chart(bad, [curves.Curve(bad, 0, 0, 0, one, one, one)], '', log=False)
  detail = details.Details(
    bad, bad, [bad], matrix=details.Matrix([bad], [[1]], [[1.0]]), pairs=table, classes=table,
    matrix_image=galleries.Picture(bad, b''), mistakes=gallery.pictures,
  )  # fmt: skip
  text = document.template().render(
    title=bad, status=bad, charts=[chart], curves={bad: bad}, scripts=[], uplot_css='',
    details=[detail], wall_time=table, results=table, paper=([(bad, table)], [bad]), cost=table,
    pareto='', units=[gallery], samples=[gallery], differences=table,
    configs=[(bad, {bad: bad})], versions=table,
  )  # fmt: skip
  assert '<script>alert' not in text and 'alert("x")' not in text
  found = Page(text)
  assert not found.faults and found.images[-1]['alt'] == f'"{bad}'


def test_the_program_writes_both_files(workdirs, tmp_path):
  output = tmp_path / 'two.html'
  done = subprocess.run(
    [sys.executable, '-m', 'mixer.report', *workdirs, f'--output={output}', '--samples=1'],
    cwd=runs.ROOT, env=runs.environment(), text=True, capture_output=True, timeout=300,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert done.stdout == f'{output}, {tmp_path}/two.csv\n'
  assert Page(output.read_text()).tags.count('img') == 2 * 3 + 2 * 1
  assert len((tmp_path / 'two.csv').read_text().splitlines()) == 3


# --- Charts --------------------------------------------------------------------------------


def draw(points, *, log=False, **more):
  return plots.svg([plots.Line('a', points, **more)], log=log, prefix='p')


def vertices(text, line=0):
  """The points of a line in the SVG."""
  path = re.search(rf'<g id="p-line-{line}">\s*<path d="([^"]*)"', text)[1]
  return [tuple(map(float, point.split())) for point in re.findall('[ML] ([^\n]*)', path)]


def tick_labels(text):
  """Of the x axis, and of the y axis."""
  x, y = re.split('id="p-matplotlib.axis_2"', text)
  minus = '\N{MINUS SIGN}'
  return [re.findall(r'>([^<>\n]+)</text>', part.replace(minus, '-')) for part in (x, y)]


@pytest.mark.parametrize(
  'xs, ys, log, x_labels, y_labels',
  [
    ((1, 674), (0.2, 1.0), False, '0 200 400 600', '0.2 0.4 0.6 0.8 1'),
    ((1, 674), (0.04, 2.5), True, '0 200 400 600', '0.05 0.1 0.2 0.5 1 2'),
    ((1, 517_822), (-2, 7.7), False, '0 200,000 400,000', '-2 0 2 4 6'),
    ((0, 5), (3, 3), False, '0 1 2 3 4 5', '2.9 3 3.1'),
  ],
)
def test_ticks(xs, ys, log, x_labels, y_labels):
  for found, wanted in zip(tick_labels(draw(list(zip(xs, ys)), log=log)), (x_labels, y_labels)):
    assert set(wanted.split()) <= set(found) and len(found) <= 10


@pytest.mark.parametrize('low, high', [(1e-4, 1e4), (3e-9, 2.0), (0.31, 0.33), (1e-3, 3e-3)])
def test_ticks_of_a_logarithmic_axis(low, high):
  _, found = tick_labels(draw([(0, low), (1, high)], log=True))
  values = [float(label) for label in found]
  assert 2 <= len([v for v in values if low / 1.1 <= v <= high * 1.1]) <= 10
  assert values == sorted(set(values))


def test_lines_are_where_their_points_are():
  (x0, y0), (x1, y1), (x2, y2) = vertices(draw([(0, 0.0), (50, 0.5), (100, 1.5)]))
  assert x0 < x1 < x2 and math.isclose(x1, (x0 + x2) / 2, abs_tol=1e-3)
  assert y0 > y1 > y2 and math.isclose(y1, (2 * y0 + y2) / 3, abs_tol=1e-3)
  (_, y0), (_, y1), (_, y2) = vertices(draw([(0, 0.1), (1, 1.0), (2, 100.0)], log=True))
  assert math.isclose(y1, (2 * y0 + y2) / 3, abs_tol=1e-3)


def test_the_x_axis_starts_at_zero():
  text = draw([(100, 1.0), (200, 2.0)])
  (x100, _), (x200, _) = vertices(text)
  zero = re.search(r'x="([\d.]+)"[^>]*>0</text>', text)[1]
  assert math.isclose(float(zero), 2 * x100 - x200, abs_tol=1e-3)


def test_values_that_cannot_be_drawn(tmp_path):
  """They are left out; a single point is a marker; zero is no value of a logarithmic axis."""
  rows = [row(1, **{'x/a': math.nan}), row(2, **{'x/a': math.inf, 'y/a': 5.0})]
  rows[0]['train/loss'] = math.nan
  write_run(tmp_path / 'r', digits_config(), rows)
  loss, _, y = curves.charts(run_files.read([str(tmp_path / 'r')]))[:3]
  assert loss.curves[0].line.points == [(2, 1.0)] and y.title == 'y/a'
  for chart in (loss, y):
    assert 'nan' not in chart.svg and 'inf' not in chart.svg
    found = Page(chart.svg)
    (address,) = found.addresses  # of the marker's shape
    assert address[0] == '#' and address[1:] in found.ids and len(set(found.ids)) == len(found.ids)
  text = draw([(0, 0.0), (1, 1.0), (2, 4.0)], log=True)
  (_, y0), (_, y1), (_, y2) = vertices(text)
  assert math.isclose(y1, (3 * y0 + y2) / 4, abs_tol=1e-3) and '<use' not in text


def test_a_line_of_many_points_is_small_and_keeps_its_peaks():
  rng = np.random.default_rng(0)
  ys = rng.random(100_000)
  ys[54_321] = 30.0
  text = draw(list(enumerate(ys)))
  found = vertices(text)
  assert len(text) < 60_000 and len(found) < 2000
  whole = draw([(0, ys[0]), (54_321, 30.0), (99_999, ys[-1])])
  for point in vertices(whole):
    assert min(math.dist(point, other) for other in found) < 1.5  # pixels of 560


def test_a_curve_of_many_rows_keeps_its_extremes(tmp_path):
  rng = np.random.default_rng(0)
  values = rng.random(100_000)
  values[54_321], values[99_000] = 30.0, -5.0
  rows = [{'step': i + 1, 'epoch': (i + 1) / 10, 'train/loss': v} for i, v in enumerate(values)]
  run = run_files.Run('r', tmp_path, digits_config(), rows, None, {})
  (chart,) = curves.charts([run])
  (curve,) = chart.curves
  assert 1900 < len(curve.steps) <= 2000 and list(curve.steps[[0, -1]]) == [1, 100_000]
  assert {54_322, 99_001} <= set(curve.steps.tolist())
  np.testing.assert_array_equal(curve.values, values[curve.steps - 1])
  for part in np.array_split(values, 500):  # every stretch keeps about its extremes
    kept = np.isin(part, curve.values)
    assert part[kept].max() > np.quantile(part, 0.97) and part[kept].min() < np.quantile(part, 0.03)
  assert len(json.dumps(curves.to_json([run], [chart]))) < 60_000


def test_lines_have_the_colours_of_the_page_and_their_dashes():
  lines = [plots.Line('a', [(0, 1.0), (1, 2.0)], colour=i, dash=i) for i in range(9)]
  text = plots.svg(lines, log=False, prefix='p')
  styles = re.findall(r'<g id="p-line-\d">\s*<path [^>]*style="([^"]*)"', text)
  for i, (line, style) in enumerate(zip(lines, styles, strict=True)):
    assert f'stroke: var(--c{i % 8}, #' in style and line.stroke in style
    dashes = re.search('stroke-dasharray: ([^;]+)', style)
    assert tuple(map(float, dashes[1].split(','))) == line.dashes if dashes else not line.dashes
  assert [len(line.dashes) for line in lines] == [0, 2, 2, 4, 0, 2, 2, 4, 0]
  assert not re.findall(r'(?<!, )#[0-9a-f]{6}', text)  # no colour that the theme cannot change
  assert text == plots.svg(lines, log=False, prefix='p')


# --- In a browser ----------------------------------------------------------------------------

MEASURE = """
addEventListener('load', () => {
  const broken = [...document.images].filter(image => !image.naturalWidth).length;
  const wide = [...document.querySelectorAll('body *')].filter(node =>
    !node.closest('.scroll, .tall, pre, svg, .u-wrap') &&
    node.getBoundingClientRect().right > innerWidth + 1);
  const fetched = performance.getEntriesByType('resource').map(entry => entry.name);
  const change = (node, value) => { node.value = value; node.dispatchEvent(new Event(
    node.type === 'range' ? 'input' : 'change')); };
  const legend = () => [...document.querySelectorAll('.u-legend')[0].rows]
    .filter(row => !row.classList.contains('aside'))
    .map(row => [...row.cells].map(cell => cell.textContent).join(': '));
  const found = {
    images: document.images.length, broken, wide: wide.map(node => node.outerHTML.slice(0, 80)),
    overflow: document.documentElement.scrollWidth - innerWidth, width: innerWidth,
    requests: fetched.filter(name => !name.startsWith('data:')).length,
    canvases: document.querySelectorAll('.curves canvas').length,
    right: getComputedStyle(document.querySelector('td.num')).textAlign, before: legend() };
  change(document.querySelector('#controls select'), 'hours');
  change(document.querySelector('#controls input[type=range]'), '10');
  found.smoothing = document.querySelector('#controls output').value;
  setTimeout(() => {  // uPlot draws later
    const over = document.querySelector('.u-over'), place = over.getBoundingClientRect();
    const at = {bubbles: true, clientX: place.right - 2, clientY: place.top + place.height / 2};
    for (const kind of ['mouseenter', 'mousemove']) over.dispatchEvent(new MouseEvent(kind, at));
  }, 100);
  setTimeout(() => {
    found.hover = legend();
    document.querySelectorAll('#controls input[type=checkbox]')[1].click();
    found.alone = legend();
    document.title = JSON.stringify(found);
  }, 300);
});
"""


@pytest.mark.parametrize('width', [1280, 500])
def test_in_a_browser(width, written, tmp_path):
  """Under its policy, the scripts run; every picture is shown, and nothing is too wide."""
  browser = os.environ.get('BROWSER_FOR_TESTS') or next(
    filter(None, map(shutil.which, BROWSERS)), ''
  )
  if not browser:
    pytest.skip(f'no browser: none of {", ".join(BROWSERS)} is installed')
  digest = base64.b64encode(hashlib.sha256(MEASURE.encode()).digest()).decode()
  page = written.read_text().replace('script-src ', f"script-src 'sha256-{digest}' ")
  page = page.replace('</body>', f'<script>{MEASURE}</script></body>')
  (tmp_path / 'page.html').write_text(page)
  done = subprocess.run(
    [browser, '--headless', '--no-sandbox', '--disable-gpu', f'--window-size={width},900',
     f'--user-data-dir={tmp_path}/profile', '--virtual-time-budget=3000', '--dump-dom',
     f'file://{tmp_path}/page.html'],
    capture_output=True, text=True, timeout=120,
  )  # fmt: skip
  found = json.loads(html.unescape(re.search(r'<title>(.*?)</title>', done.stdout)[1]))
  assert found['images'] == 16 and found['broken'] == 0 and found['requests'] == 0
  assert found['overflow'] <= 0 and not found['wide'] and found['width'] == width
  assert found['canvases'] == 4 and found['right'] == 'right'
  assert found['before'] == ['step: -', 'first/run: train/loss: -', 'second/run: train/loss: -']
  # The mean with weights of a tenth of the axis; the second run ends earlier.
  kept = math.exp(-(1 / 3) / 0.1)
  smooth = {1: 0.2}
  for step, loss in ((2, 0.1), (3, 2 / 30)):
    weight = 1 - kept**step
    before = smooth[step - 1] * (1 - kept ** (step - 1))
    smooth[step] = (before * kept + loss * (1 - kept)) / weight
  assert found['smoothing'] == '10 % of the axis'
  assert found['hover'][0] == 'hours in the training loop: 0.0375'
  assert found['hover'][1:] == [
    f'first/run: train/loss: {float(f"{smooth[3]:.5g}")}',
    f'second/run: train/loss: {float(f"{smooth[2]:.5g}")}',
  ]
  assert [line.rstrip(' -') for line in found['alone'][1:]] == ['first/run: train/loss:']
