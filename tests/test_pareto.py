"""Figure 3 with what was measured here, and the rows of the paper that it is drawn from."""

import dataclasses
import json
import re
import subprocess
import sys

from matplotlib import figure
import pytest

from benchmarks import pods
from mixer import paper
from mixer.errors import InputError
from mixer.report import document, pareto, run_files
from mixer.visualize import plots
import runs
from test_configs import load

# Table 2 of the paper and table 3's rows for JFT-300M at 224 pixels, typed a second time: model,
# ImageNet, ReaL, average of 5, VTAB-1k, images/s/core, thousands of core-days.
TABLE_2 = """
imagenet21k HaloNet-H4 85.8 - - - 120 0.10
imagenet21k Mixer-L/16 84.15 87.86 93.91 74.95 105 0.41
imagenet21k ViT-L/16 85.30 88.62 94.39 72.72 32 0.18
imagenet21k BiT-R152x4 85.39 - 94.04 70.64 26 0.94
jft_300m NFNet-F4+ 89.2 - - - 46 1.86
jft_300m Mixer-H/14 87.94 90.18 95.71 75.33 40 1.01
jft_300m BiT-R152x4 87.54 90.54 95.33 76.29 26 9.90
jft_300m ViT-H/14 88.55 90.72 95.97 77.63 15 2.30
unlabelled MPL 90.0 91.12 - - - 20.48
web ALIGN 88.64 - - 79.99 15 14.82
"""
TABLE_3 = """
imagenet2012 Mixer-B/16 224 300 76.44 82.36 88.33 1384 0.01
imagenet2012 ViT-B/16 224 300 79.67 84.97 90.79 861 0.02
imagenet2012 Mixer-L/16 224 300 71.76 77.08 87.25 419 0.04
imagenet2012 ViT-L/16 224 300 76.11 80.93 89.66 280 0.05
imagenet21k Mixer-B/16 224 300 80.64 85.80 92.50 1384 0.15
imagenet21k ViT-B/16 224 300 84.59 88.93 94.16 861 0.18
imagenet21k Mixer-L/16 224 300 82.89 87.54 93.63 419 0.41
imagenet21k ViT-L/16 224 300 84.46 88.35 94.49 280 0.55
imagenet21k Mixer-L/16 448 300 83.91 87.75 93.86 105 0.41
jft_300m Mixer-S/32 224 5 68.70 75.83 87.13 11489 0.01
jft_300m Mixer-B/32 224 7 75.53 81.94 90.99 4208 0.05
jft_300m Mixer-S/16 224 5 73.83 80.60 89.50 3994 0.03
jft_300m BiT-R50x1 224 7 73.69 81.92 - 2159 0.08
jft_300m Mixer-B/16 224 7 80.00 85.56 92.60 1384 0.08
jft_300m Mixer-L/32 224 7 80.67 85.62 93.24 1314 0.12
jft_300m BiT-R152x1 224 7 79.12 86.12 - 932 0.14
jft_300m BiT-R50x2 224 7 78.92 86.06 - 890 0.14
jft_300m BiT-R152x2 224 14 83.34 88.90 - 356 0.58
jft_300m Mixer-L/16 224 7 84.05 88.14 94.51 419 0.23
jft_300m Mixer-L/16 224 14 84.82 88.48 94.77 419 0.45
jft_300m ViT-L/16 224 14 85.63 89.16 95.21 280 0.65
jft_300m Mixer-H/14 224 14 86.32 89.14 95.49 194 1.01
jft_300m BiT-R200x3 224 14 84.73 89.58 - 141 1.78
jft_300m Mixer-L/16 448 14 86.78 89.72 95.13 105 0.45
jft_300m ViT-H/14 224 14 86.65 89.56 95.57 87 2.30
jft_300m ViT-L/16 512 14 87.76 90.54 95.63 32 0.65
"""
NAMES = {
  'Mixer': ['S/32', 'S/16', 'B/32', 'B/16', 'L/32', 'L/16 (7)', 'L/16 (14)', 'H/14'],
  'ViT': ['S/32', 'S/16', 'B/32', 'B/16', 'L/32', 'L/16 (7)', 'L/16 (14)', 'H/14'],
  'BiT': ['R50x1', 'R50x2', 'R152x1', 'R152x2 (7)', 'R152x2 (14)', 'R200x3'],
}


def typed(text):
  for line in text.split('\n')[1:-1]:
    data, model, *numbers = line.split()
    yield data, model, *[None if number == '-' else float(number) for number in numbers]


def test_rows_of_the_paper():
  table_2 = [
    (r.data, r.model, r.imagenet, r.real, r.average5, r.vtab, r.images_per_sec_per_core,
     r.kilo_core_days)
    for r in paper.ROWS if r.table == 2
  ]  # fmt: skip
  table_3 = [
    (r.data, r.model, r.resolution, r.epochs, r.imagenet, r.real, r.average5,
     r.images_per_sec_per_core, r.kilo_core_days)
    for r in paper.ROWS if r.table == 3
  ]  # fmt: skip
  assert sorted(table_2, key=str) == sorted(typed(TABLE_2), key=str)
  assert sorted(table_3, key=str) == sorted(typed(TABLE_3), key=str)
  assert {row.data for row in paper.ROWS} == set(paper.DATA_NAMES)


def test_points_of_figure_3():
  points = paper.figure_3()
  assert len(points) == len(set(points)) == 22
  read_off = {  # model, epochs: core-days, images/s/core, ImageNet
    ('ViT-S/32', None): (34, 7440, 71.4),
    ('ViT-S/16', None): (42, 2185, 78.0),
    ('ViT-B/32', 7): (44, 2900, 77.4),
    ('ViT-B/16', 7): (103, 840, 82.4),
    ('ViT-L/32', 7): (133, 920, 81.7),
    ('ViT-L/16', 7): (331, 283, 84.8),
    ('BiT-R152x2', 7): (292, 356, 82.3),
    ('Mixer-S/32', 5): (34, 11489, 68.70),
  }
  for point in points:
    if point[:2] in read_off:
      assert point[2:] == read_off[point[:2]]
    else:
      (row,) = [
        line for line in typed(TABLE_3) if line[:4] == ('jft_300m', point.model, 224, point.epochs)
      ]
      assert point[2:] == (1000 * row[8], row[7], row[4])


def throughput_report(*rows, image_size=224):
  keys = ('model', 'mode', 'images_per_sec', 'runner')
  return {
    'device': {'kind': 'NVIDIA H100'},
    'image_size': image_size,
    'rows': [dict(zip(keys, row, strict=True)) for row in rows],
  }


def test_measured_points_have_the_papers_accuracy():
  report = throughput_report(
    ('Mixer-L/16', 'training', 100.0, 'jax'),
    ('Mixer-L/16', 'training', 300.0, 'jax'),  # the faster dtype
    ('Mixer-L/16', 'training', 900.0, 'timm'),
    ('ViT-S/16', 'training', 50.0, 'jax'),  # the paper has no epochs for it
    ('ViT-S/16', 'inference', 70.0, 'jax'),
    ('BiT-R101x1', 'inference', 70.0, 'jax'),
  )
  report['rows'].append({'model': 'Mixer-H/14', 'mode': 'training', 'runner': 'jax'})  # none fits
  found = pareto.measured(report)
  label = '{}, speed measured on NVIDIA H100, accuracy of the paper'
  (mixer,), (vit,) = found[pareto.COST], found[pareto.SPEED]
  assert mixer.label == label.format('Mixer') and mixer.names == ['L/16 (7)', 'L/16 (14)']
  days = [303e6 * epochs / 300 / 86400 for epochs in (7, 14)]
  assert mixer.points == [(pytest.approx(days[0]), 84.05), (pytest.approx(days[1]), 84.82)]
  assert (vit.label, vit.names, vit.points) == (label.format('ViT'), ['S/16'], [(70.0, 78.0)])
  assert mixer.hollow and vit.hollow


@pytest.mark.parametrize(
  ('report', 'text'),
  [
    (throughput_report(('Mixer-B/8', 'training', 1.0, 'jax')), r"has none of \['Mixer-B/8'\]; it"),
    (throughput_report(('Mixer-B/16', 'training', 1.0, 'jax'), image_size=448), 'have 448 pixels'),
  ],
)
def test_measurements_that_have_no_place_in_the_figure(report, text):
  with pytest.raises(InputError, match=text):
    pareto.measured(report)


@pytest.fixture
def drawn(monkeypatch):
  """The figures that are written, as matplotlib has them."""
  figures, save = [], figure.Figure.savefig

  def record(drawing, *args, **kwargs):
    figures.append(drawing)
    save(drawing, *args, **kwargs)

  monkeypatch.setattr(figure.Figure, 'savefig', record)
  return figures


def test_the_plots_have_the_points_of_all_families(drawn):
  panels = pareto.panels()
  file = plots.scatter(panels, ylabel=pareto.ACCURACY, form='png')
  assert file.startswith(b'\x89PNG')
  (drawing,) = drawn
  assert [axes.get_xlabel() for axes in drawing.axes] == [pareto.COST, pareto.SPEED]
  assert [text.get_text() for text in drawing.legends[0].get_texts()] == [
    'Mixer, paper', 'ViT, paper', 'BiT, paper',
  ]  # fmt: skip
  for axes, column in zip(drawing.axes, ('core_days', 'images_per_sec_per_core'), strict=True):
    assert axes.get_xscale() == 'log' and axes.get_yscale() == 'linear'
    names = sorted(text.get_text() for text in axes.texts)
    assert names == sorted(name for family in NAMES.values() for name in family)
    for family, line in zip(NAMES, axes.lines, strict=True):
      wanted = {(getattr(p, column), p.imagenet) for p in paper.figure_3() if family in p.model}
      assert set(map(tuple, line.get_xydata())) == wanted
    places = {tuple(text.xy) + (text.get_text(),) for text in axes.texts}
    by_name = {(getattr(p, column), p.imagenet, pareto._name(p)) for p in paper.figure_3()}
    assert places == by_name


def write_run(path, changes=(), **metrics):
  """A workdir of Mixer-B/16 trained on ImageNet."""
  config = load('mixer_b16', 'imagenet2012').to_dict() | dict(changes)
  row = {
    'step': 10,
    'core_hours': 48.0,
    'images_per_sec': 800.0,
    'images_per_sec_per_device': 100.0,
    'val/top1': 0.75,
    'val/images_per_sec': 1600.0,
  }
  path.mkdir()
  (path / 'config.json').write_text(json.dumps(config))
  (path / 'metrics.jsonl').write_text(json.dumps({**row, **metrics}) + '\n')
  return str(path)


def test_runs_have_a_point_where_they_have_an_accuracy_on_imagenet(tmp_path):
  scratch = write_run(tmp_path / 'a_$x$_run')
  tuned = write_run(tmp_path / 'tuned', {'init': {'path': 'model.npz'}})
  (tmp_path / 'digits').mkdir()
  (tmp_path / 'digits/config.json').write_text(json.dumps(load('digits').to_dict()))
  read = run_files.read([scratch, tuned, str(tmp_path / 'digits')])
  found = pareto.of_runs(read)
  assert [(m.label, m.points) for m in found[pareto.COST]] == [
    ('a_$x$_run, measured', [(2.0, 75.0)])
  ]
  assert [(m.label, m.points) for m in found[pareto.SPEED]] == [
    ('a_$x$_run, measured', [(200.0, 75.0)]), ('tuned, measured', [(200.0, 75.0)])
  ]  # fmt: skip
  assert [pareto.why_not_drawn(run) for run in read] == [
    '', '', "it has no accuracy on ImageNet's validation split."
  ]  # fmt: skip


def test_a_report_has_the_plots_where_a_run_has_a_point(tmp_path):
  (run,) = run_files.read([write_run(tmp_path / 'a_$x$_run')])
  text = pareto.chart([run])
  assert text.startswith('<svg') and 'a_$x$_run, measured' in text and 'id="pareto-' in text
  assert 'L/16 (14)' in text and not re.search('#1f6fc4(?!\\))', text)  # colours of the page
  assert pareto.chart([run]) == text
  bad = '<script>alert("x")</script>'
  assert '<script' not in pareto.chart([dataclasses.replace(run, label=bad)])
  template = document.template()
  page = {name: [] for name in ('charts', 'scripts', 'details', 'units', 'samples', 'configs')}
  empty = {'head': [], 'rows': [], 'numeric': [], 'highlight_first': False}
  page |= {name: empty for name in ('results', 'cost', 'wall_time', 'differences', 'versions')}
  page |= {'title': 't', 'status': 's', 'paper': ([], []), 'uplot_css': ''}
  assert text in template.render(**page, pareto=text)
  assert 'figure 3 of the paper' not in template.render(**page, pareto='')


def test_the_program_draws_both_formats(tmp_path):
  report = throughput_report(('Mixer-B/16', 'inference', 70.0, 'jax'))
  (tmp_path / 'throughput.json').write_text(json.dumps(report))
  done = program(
    f'--output={tmp_path}/p.svg', f'--measured={tmp_path}/throughput.json',
    f'--runs={write_run(tmp_path / "run")},{write_run(tmp_path / "none", {"evals": {}})}',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines() == [
    "none is not drawn: it has no accuracy on ImageNet's validation split.", f'{tmp_path}/p.svg'
  ]  # fmt: skip
  text = (tmp_path / 'p.svg').read_text()
  for label in ('Mixer, paper', 'ViT, paper', 'BiT, paper', 'run, measured', 'R200x3'):
    assert label in text
  assert 'Mixer, speed measured on NVIDIA H100, accuracy of the paper' in text


@pytest.mark.parametrize(
  ('arguments', 'text'),
  [
    (['--output=p.pdf'], '--output=p.pdf: give a file name that ends in .png or .svg.'),
    (
      ['--output=p.png', '--measured=none.json'],
      '--measured=none.json: give the throughput.json that benchmarks/throughput.py writes',
    ),
  ],
)
def test_wrong_flags(arguments, text):
  done = program(*arguments)
  assert done.returncode == 2 and text in done.stderr and 'Traceback' not in done.stderr


def program(*arguments):
  return subprocess.run(
    [sys.executable, 'benchmarks/pareto.py', *arguments], cwd=runs.ROOT, text=True,
    capture_output=True, timeout=600, check=False,
  )  # fmt: skip


# --- The table of TPU pods -----------------------------------------------------------------------


@pytest.mark.parametrize(
  ('model', 'core_days'),
  [
    ('Mixer-S/32', '10'), ('Mixer-L/16', '450'), ('Mixer-H/14', '1010'), ('ViT-B/16', '103'),
    ('BiT-R50x1', '80'), ('BiT-R152x4', '9900'), ('BiT-R101x1', '-'),
  ],
)  # fmt: skip
def test_pods_core_days_in_the_paper(model, core_days):
  assert pods.in_the_paper(model) == core_days


@pytest.mark.parametrize('model', ['Mixer-S/32', 'Mixer-H/14', 'BiT-R50x1'])
def test_pods_compile_the_config_of_a_model(model):
  family, _, size = model.partition('-')
  file, _, argument = pods.CONFIGS[family](size).partition(':')
  config = load(file.removesuffix('.py'), argument)
  assert config.model.name == model and config.train_input.source == 'synthetic'
  assert config.train_input.batch_size == 4096 and config.model.remat is False
