"""One page about runs: python -m mixer.report WORKDIR... --output=report.html

Writes a web page that is one file and loads nothing from elsewhere, with the curves of all runs,
their results beside the paper's, pictures of weights, sample predictions and cost; and beside it a
.csv with the last value of every metric, a line a run. Runs need not have ended. See
docs/figures.md.
"""

from collections.abc import Mapping, Sequence
import csv
import io

from etils import epath
import jax
import numpy as np
from PIL import Image

from mixer import files, labels, models, pretrained
from mixer import input as inputs
from mixer.errors import InputError, MissingData
from mixer.models import permutations
from mixer.report import page, sections
from mixer.report.run_files import Run
from mixer.training import batch_ops
from mixer.visualize import unit_pictures

_SMALL = 64  # pixels; smaller images are shown with visible pixels
PROBABILITIES = {'sigmoid': jax.nn.sigmoid, 'softmax': jax.nn.softmax}


def write(runs: Sequence[Run], output: epath.Path, samples: int) -> None:
  """Writes the page to `output` and the table of numbers to the .csv beside it."""
  title = f'Report on {runs[0].label}' if len(runs) == 1 else f'Report on {len(runs)} runs'
  body = [
    page.paragraph('; '.join(sections.status(run) for run in runs), soft=True),
    page.heading('Curves'),
    page.group('charts', sections.curves(runs))
    if any(run.rows for run in runs)
    else sections.nothing_logged(),
    page.heading('Results'),
    sections.results(runs),
    page.heading('Beside the paper'),
    *sections.beside_the_paper(runs),
    page.heading('Cost'),
    sections.cost(runs),
    page.heading('What the units have learned'),
    *(piece for run in runs for piece in weight_figures(run)),
    page.heading('Sample predictions'),
    *(piece for run in runs for piece in predictions(run, samples)),
    page.heading('Settings'),
    *sections.configs(runs),
    page.heading('Versions'),
    sections.versions(runs),
  ]
  files.write(output, page.document(title, body).encode())
  files.write(output.with_suffix('.csv'), table_of_metrics(runs).encode())


def weight_figures(run: Run) -> list[str]:
  """Token-mixing units of the first blocks and the stem, as pictures, or why not."""
  title = page.heading(run.label, 3)
  notes, found = [], {}
  for blocks in (None, ()):  # if not the first blocks, then the stem alone
    try:
      found = unit_pictures.pictures(run.weights, blocks)
      break
    except InputError as fault:
      notes.append(page.paragraph(f'Not drawn: {fault}'))
  names = {name: f'block {name.removeprefix("block_")}, token mixing' for name in found}
  captions = {**names, 'stem': 'stem, all units'}
  pictures = [
    page.figure(captions[name], page.image(unit_pictures.png(*drawn[:2], paired=drawn[2]), name))
    for name, drawn in found.items()
  ]
  return [title, *notes[:1], page.group('units', pictures)]


def predictions(run: Run, count: int) -> list[str]:
  """The first images of a classification set with the likeliest classes, or why not.

  The set is the first that is there.
  """
  title = page.heading(run.label, 3)
  kinds = {k: v for k, v in run.config['evals'].items() if v.get('kind') == 'classification'}
  if not kinds:
    return [title, page.paragraph('Not made: the config has no classification among its evals.')]
  try:
    name, data = _first_there(kinds)
    pictures, probabilities = _predict(run, data, count)
  except InputError as fault:
    return [title, page.paragraph(f'Not made: {fault}')]
  words = [word for _, word in labels.describe(data.class_names, data.num_classes, name)]
  cards = [_card(*row, words) for row in zip(pictures['image'], pictures['label'], probabilities)]
  note = f'The first {len(cards)} images of {name} ({data.num_examples:,} in all).'
  return [title, page.paragraph(note, soft=True), page.group('samples', cards)]


def _first_there(sections: Mapping[str, Mapping]) -> tuple[str, inputs.Input]:
  """(name, opened input) of the first of the sections whose data are on disk."""
  missing = []
  for name, section in sections.items():
    try:
      return name, inputs.build(**section['input'])
    except MissingData as fault:
      missing.append(fault)
  raise missing[0]


def table_of_metrics(runs: Sequence[Run]) -> str:
  """CSV: a line a run, with the last value of every metric that any of them has."""
  names = sorted({name for run in runs for name in run.final})
  evaluated = sorted({name for run in runs for name in run.evaluation})
  buffer = io.StringIO()
  lines = csv.writer(buffer, lineterminator='\n')
  head = ['run', 'workdir', 'model', 'training_data', 'finished']
  lines.writerow([*head, *names, *(f'evaluate.py: {name}' for name in evaluated)])
  for run in runs:
    facts = [run.label, run.path, run.config['model']['name'], run.data, bool(run.description)]
    values = [run.final.get(name, '') for name in names]
    lines.writerow([*facts, *values, *(run.evaluation.get(name, '') for name in evaluated)])
  return buffer.getvalue()


def _predict(run: Run, data, count: int) -> tuple[dict, np.ndarray]:
  """(a batch of `count` examples or fewer, the probabilities of their classes)."""
  batch = next(iter(data.eval_batches(count, 0, 1)))
  batch = {key: value[batch['mask']] for key, value in batch.items()}
  params = pretrained.load(run.weights)
  model = dict(run.config['model'])
  model |= {name: False for name in ('scan', 'remat') if name in model}
  net = models.build(**model, num_classes=data.num_classes)
  expected = models.shapes(net, data.image_size, data.channels)
  pretrained.check(params, expected, str(run.weights))
  permutation = run.config.get('permutation')
  apply = permutations.before(models.apply_function(net), permutation, data.image_size)
  apply = jax.jit(apply)
  logits = apply(params, batch_ops.normalize(batch['image']))
  return batch, np.asarray(PROBABILITIES[run.config['loss']](logits))


def _card(image: np.ndarray, label, probabilities: np.ndarray, words: Sequence[str]) -> str:
  """An image (height, width, channels) with its true classes and the three likeliest."""
  true = set(np.flatnonzero(label) if np.ndim(label) else [label])
  buffer = io.BytesIO()
  Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, 'PNG')
  guesses = np.argsort(-probabilities, kind='stable')[:3]
  caption = ', '.join(words[i] for i in sorted(true)) or 'no label'
  small = 'small' if max(image.shape[:2]) <= _SMALL else ''
  bars = [(words[i], float(probabilities[i]), i in true) for i in guesses]
  return page.card(page.image(buffer.getvalue(), caption, small), caption, bars)
