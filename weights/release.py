"""Makes a folder of weights/ from a finished run: the model, its card and example pictures.

  python train.py --config=configs/fashion_mnist.py:model=Mixer,size=M --workdir=RUN
  python weights/release.py --config=configs/fashion_mnist.py:model=Mixer,size=M --run=RUN \
      --output=weights/fashion_mnist_mixer_m

--config, and changes of it, are those of the training: the card has them as a command. All numbers
of the card are computed here, from the model in the folder. The text is for models of clothes.
"""

from collections.abc import Sequence
import csv
import io
import json
import pathlib
import re
import sys
import tempfile

from absl import flags
from etils import epath
import jax
import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from mixer import cli, config_file, files, pretrained, settings
from mixer import input as inputs
from mixer.errors import InputError
from mixer.pretrained import description
from mixer.run import evaluation
from mixer.visualize import unit_pictures

_CONFUSIONS = 5
_CARD = """\
# A small {family} on Fashion-MNIST

It tells ten kinds of clothing apart. In the root of the clone:

```
python -m mixer.predict --checkpoint={folder} weights/examples
```

| | |
|---|---|
| `model.npz` | {parameters:,} parameters, {identity[bytes]:,} bytes, SHA-256 `{identity[sha256]}` |
| `model.json` | the model, the names of the classes, how images are prepared |
| accuracy on the test images | {calibration[accuracy]:.2%} of {calibration[n]:,} |
| their expected calibration error | {calibration[ece]:.3f} |

## Data

[Fashion-MNIST](https://arxiv.org/abs/1708.07747) (Xiao, Rasul and Vollgraf 2017): grey images of
28 x 28 pixels from the catalogue of a shop, 60,000 for training and 10,000 for the test, with
equally many of each class. Copyright 2017 Zalando SE, MIT license. `weights/examples` has the first
test image of each class.

## Recipe

```
{train}
```

## Accuracy by class

On the test images, of which training has seen none. `accuracy` is the share of the images of the
class that are recognized, `precision` the share of the guesses of the class that are right.

| class | images | accuracy | precision |
|---|---|---|---|
{classes}

The most frequent confusions:

| class | guess | images |
|---|---|---|
{confusions}

These numbers are written by

```
{evaluate}
```

## Limits

- Every picture gets one of the ten classes, whatever it shows.
- The model has learned from single pieces of clothing without a person, in the middle of a
  **black** background and filling the picture. Other pictures are unknown to it.
- `mixer.predict` makes a photo grey and resizes it to 28 x 28 pixels without keeping its shape. It
  does not invert it. For a photo on a white background, do this first:

  ```python
  from PIL import Image, ImageOps

  grey = ImageOps.autocontrast(ImageOps.invert(Image.open('shoe.jpg').convert('L')))
  ImageOps.pad(grey.crop(grey.getbbox()), (28, 28)).save('shoe.png')
  ```

- It is a single run. [docs/small_scale.md](../../docs/small_scale.md) has the spread over seeds.
"""


def main() -> None:
  given = flags.FLAGS
  changes = [word for word in sys.argv[1:] if word.startswith('--config')]
  run, output = files.absolute(given.run), files.absolute(given.output)
  release(run, output, config_file.load(), changes)


def release(run: epath.Path, output: epath.Path, config: dict, changes: Sequence[str]) -> None:
  """Writes the folder `output`, and `examples` beside it.

  Args:
    run: the workdir of a finished run.
    output: the folder; created if missing.
    config: of the run; it has an evaluation `test`.
    changes: the words of the command line that give the config.

  Raises:
    InputError: the run is not finished, or has another config.
  """
  check(run, config)
  output.mkdir(parents=True, exist_ok=True)
  for name in (pretrained.PARAMS_FILE, description.MODEL_FILE):
    files.write(output / name, (run / name).read_bytes())
  with tempfile.TemporaryDirectory() as folder:
    results = epath.Path(folder) / 'results.json'
    checkpoint = str(output / pretrained.PARAMS_FILE)
    evaluation.evaluate(
      evaluation.Options(config, checkpoint, output=str(results), require_evals=True)
    )
    text = card(output, config['model']['name'], changes, results.with_suffix('') / 'test')
  files.write_text(output / 'README.md', text)
  write_examples(inputs.build(**config['evals']['test']['input']), output.parent / 'examples')


def check(run: epath.Path, config: dict) -> None:
  """Raises InputError unless the run is finished and has this config."""
  if not (run / pretrained.PARAMS_FILE).exists():
    raise InputError(f'--run={run} has no {pretrained.PARAMS_FILE}: give a finished run.')
  recorded = settings.flatten(files.read_json(run / files.CONFIG_FILE, advice='Give another run.'))
  wanted = settings.flatten(json.loads(json.dumps(config)))
  differ = sorted(k for k in {**recorded, **wanted} if recorded.get(k) != wanted.get(k))
  if differ:
    raise InputError(
      f'--run={run} has another config than --config: it was trained with '
      + ', '.join(f'{key}={recorded.get(key)!r}' for key in differ)
    )


def card(output: epath.Path, family: str, changes: Sequence[str], results: epath.Path) -> str:
  """The text of README.md.

  Args:
    output: the folder of the model.
    family: of the model.
    changes: the words of the command line that give the config.
    results: the directory of evaluate.py with `per_class.csv` and others.
  """
  trained = pretrained.open(output)
  classes, pairs = (
    list(csv.DictReader(io.StringIO((results / name).read_text())))
    for name in ('per_class.csv', 'confusion.csv')
  )
  calibration = files.read_json(results / 'calibration.json', advice='')
  wrong = [row for row in pairs if row['label'] != row['guess']]
  wrong.sort(key=lambda row: -int(row['n']))
  folder = f'{output.parent.name}/{output.name}'
  return _CARD.format(
    family=family,
    folder=folder,
    parameters=sum(leaf.size for leaf in jax.tree.leaves(trained.params)),
    identity=trained.identity,
    calibration=calibration,
    train=_command('python train.py', *changes, '--workdir=RUN'),
    evaluate=_command('python evaluate.py', *changes, f'--checkpoint={folder}/model.npz'),
    classes='\n'.join(
      f'| {row["name"]} | {row["n"]} | {_percent(row["accuracy"])} | {_percent(row["precision"])} |'
      for row in classes
    ),
    confusions='\n'.join(
      f'| {row["label_name"]} | {row["guess_name"]} | {row["n"]} |' for row in wrong[:_CONFUSIONS]
    ),
  )


def _command(program: str, config: str, *flags: str) -> str:
  """A command line, with a line for each of the flags after the config."""
  return ' \\\n    '.join([f'{program} {config}', *flags])


def _percent(share: str) -> str:
  """A cell of a CSV file; it is empty for a class without guesses."""
  return f'{float(share):.1%}' if share else ''


def write_examples(data: inputs.Input, folder: epath.Path) -> None:
  """Writes the first image of each class as CLASS.png."""
  folder.mkdir(exist_ok=True)
  batches = data.eval_batches(data.batch_size, 0, 1)
  labels = np.concatenate([batch['label'][batch['mask']] for batch in batches])
  for number, name in enumerate(data.class_names):
    pixels = data.image(int(np.argmax(labels == number)))
    file_name = re.sub(r'\W+', '-', name.lower())
    files.write(folder / f'{file_name}.png', unit_pictures.encode(Image.fromarray(pixels[..., 0])))


if __name__ == '__main__':
  config_file.define_flags()
  flags.DEFINE_string('run', None, 'The workdir of a finished run.', required=True)
  flags.DEFINE_string('output', None, 'The folder to write.', required=True)
  cli.run(main)
