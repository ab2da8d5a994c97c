"""Training, evaluation and plots that start from files of ViT and BiT, as others write them."""

import json

from family_weights import bit_tf, vit_timm
import jax
import numpy as np
import pytest

from configs import digits, fewshot
from mixer import models, pretrained
from mixer.errors import InputError
from mixer.run import evaluation
from mixer.visualize import unit_pictures
import runs
import weights

SIZES = {
  'ViT': dict(num_blocks=2, hidden_dim=64, mlp_dim=16, num_heads=1),
  'BiT': dict(stage_sizes=(1, 1), width=32, groups=8),
}


def params_of(family, size, num_classes=10, **options):
  options = {**SIZES[family], **({'patch_size': 2} if family == 'ViT' else {}), **options}
  model = models.build(family, num_classes, **options)
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: np.float32(rng.normal(0, 0.2, x.shape)), models.shapes(model, size, 1)
  )


def write(path, params):
  """A ViT as timm's .safetensors, a BiT as its own .npz."""
  if 'Transformer' in params:
    path.write_bytes(weights.safetensors_bytes(vit_timm(params)))
  else:
    path.write_bytes(weights.npz(bit_tf(params, numbered=True, axes=3)))


def config_of(family, path, **init):
  config = digits.get_config(f'model={family}')
  config.model.update(SIZES[family])
  config.init.update({'path': str(path), **init})
  config.update_from_flattened_dict(
    {'total_steps': 2, 'train_input.batch_size': 16, 'every.evaluate': 2, 'every.log': 1,
     'every.checkpoint': 2, 'optim.schedule.warmup_steps': 1}
  )  # fmt: skip
  config.total_epochs = 0.0
  return config


@pytest.mark.parametrize(
  'family,size,init,changes',
  [
    (
      'ViT', (4, 12), {'from_size': (4, 12), 'head': 'reset'},
      'position table resized to a grid of (4, 4), head RESET to zeros for 10 classes (the file '
      'has 10 classes)',
    ),
    ('BiT', (8, 8), {}, 'head kept: 10 classes'),
  ],
)  # fmt: skip
def test_training_from_a_file(tmp_path, family, size, init, changes):
  write(tmp_path / 'in', params_of(family, size))
  runs.train_here(config_of(family, tmp_path / 'in', **init), tmp_path / 'run')
  assert json.loads((tmp_path / 'run' / 'init.json').read_text())['changes'] == changes
  assert [row['step'] for row in runs.rows(tmp_path / 'run')][-1] == 2
  trained = pretrained.open(tmp_path / 'run').describe()
  assert trained.model['name'] == family and trained.image_size == (8, 8)


def evaluate(config, path):
  options = evaluation.Options(
    config=config.to_dict(), checkpoint=str(path), output=f'{path}.results'
  )
  return evaluation.evaluate(options)


@pytest.mark.parametrize('family', SIZES)
def test_evaluation_few_shot_and_the_stem(tmp_path, family):
  """Of the file as it is: a ViT has the pooling and the representation layer of the file."""
  own = {'pool': 'gap', 'representation_layer': True} if family == 'ViT' else {}
  params = params_of(family, (8, 8), **own)
  path = tmp_path / 'in'
  if family == 'BiT':  # groups of 8 are in the config
    write(path, params)
  else:
    pretrained.save(tmp_path / 'in.npz', params)
    path = tmp_path / 'in.npz'
  config = config_of(family, path)
  results = evaluate(config, path)
  assert 0 <= results['test/top1'] < 0.5
  shots = fewshot.get_config('data=digits')
  shots.model = config.model
  assert evaluate(shots, path)['digits/25shot'] > 0.2
  assert list(unit_pictures.pictures(pretrained.open(path))) == ['stem']
  other = digits.get_config(f'model={"BiT" if family == "ViT" else "ViT"}')
  with pytest.raises(
    InputError, match=f'these weights are a {family} of .*, and the config builds'
  ):
    evaluate(other, path)
