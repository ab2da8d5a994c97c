"""How to use parameters: by the record of their run, or by their shapes."""

import json
import re

from etils import epath
import jax
import numpy as np
import pytest

from mixer import models, pretrained
from mixer.errors import InputError
from mixer.models import mlp_mixer
from mixer.pretrained import dimensions
from weights import SIZES, equal, tree

SMALL = dict(num_blocks=2, hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=24, patch_size=16)
FACTS = {
  'model': {'name': 'Mixer', 'num_blocks': 3, **SIZES, 'num_classes': 5, 'remat': True},
  'image_size': [8, 8],
  'channels': 3,
  'permutation': {'kind': 'patch_pixel', 'seed': 1, 'patch_size': 4},
  'preprocessing': {'name': 'none', 'value_range': [-1, 1]},
  'loss': 'softmax',
  'class_names': ['n02123045', *'bcde'],
}


def random_params(image_size, num_classes=1000):
  return tree(2, num_classes=num_classes, image_size=image_size, **{**SMALL, 'num_blocks': 2})


def describe(path, **given):
  return pretrained.open(path).describe(**given)


@pytest.fixture
def workdir(tmp_path):
  """A finished run, of which model.npz and model.json are left."""
  path = epath.Path(tmp_path / 'run')
  path.mkdir()
  pretrained.save_model(path, tree(), FACTS)
  return path


# --- Shapes --------------------------------------------------------------------------------


def test_infer():
  params = tree(image_size=(8, 12), patch_size=(4, 2))
  assert dimensions.infer(params, 'x') == dimensions.Inferred(
    model={
      'name': 'Mixer', 'num_classes': 5, 'num_blocks': 3, 'hidden_dim': 8, 'tokens_mlp_dim': 6,
      'channels_mlp_dim': 16, 'patch_size': (4, 2),
    },
    tokens=12,
    channels=3,
    image_size=None,
  )  # fmt: skip
  found = dimensions.infer(tree(num_classes=None, image_size=16), 'x')
  assert (found.model['num_classes'], found.tokens, found.image_size) == (None, 16, (16, 16))
  broken = tree()
  broken['head']['kernel'] = np.ones(3)
  del broken['stem']['kernel']
  text = (
    'x: the shapes are not those of a Mixer: stem/kernel is missing; head/kernel is of shape (3,).'
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    dimensions.infer(broken, 'x')


@pytest.mark.parametrize('patch', [16, 32])
@pytest.mark.parametrize('size', mlp_mixer.SIZES)
def test_the_shapes_determine_the_model(size, patch):
  net = models.build(f'Mixer-{size}/{patch}', 21843)
  found = dimensions.infer(models.shapes(net, 224), 'x')
  again = models.build(**found.model)
  for name in ('num_classes', 'patch_size', *mlp_mixer.SIZES[size]):
    wanted = getattr(net, name)
    assert getattr(again, name) == ((wanted, wanted) if name == 'patch_size' else wanted)
  assert found.image_size == (224, 224)
  assert dimensions.size_name(found.model) == f'Mixer-{size}/{patch}'
  assert dimensions.size_name({**found.model, 'patch_size': (patch, 8)}) is None
  assert dimensions.size_name({**found.model, 'num_blocks': 7}) is None


# --- Parameters without a record -----------------------------------------------------------


def test_size_crop_and_classes_follow_the_file(tmp_path):
  pretrained.save(tmp_path / 'x.npz', random_params(448, None))
  found = describe(tmp_path / 'x.npz')
  assert found.image_size == (448, 448) and found.channels == 3
  assert found.preprocessing == {
    'name': 'resize_small', 'resize': (512, 512), 'crop': (448, 448), 'value_range': [-1, 1],
  }  # fmt: skip
  assert found.model['num_classes'] is None and (found.loss, found.classes) == (None, None)
  assert found.permutation is None
  pretrained.save(tmp_path / 'y.npz', random_params(32, 21843))
  found = describe(tmp_path / 'y.npz')
  assert found.loss == 'sigmoid' and found.classes[9205][0] == 'n03931044'
  assert found.classes[15027] == ('n09859684', 'bleacher')


def test_what_is_given_is_not_assumed(tmp_path):
  pretrained.save(tmp_path / 'x.npz', random_params((32, 64), 3))
  (tmp_path / 'names.txt').write_text('a\nb\nc\n')
  found = describe(
    tmp_path / 'x.npz', image_size=(64, 32), loss='softmax', label_map=str(tmp_path / 'names.txt')
  )
  assert found.image_size == (64, 32) and found.loss == 'softmax'
  assert found.classes == [('', 'a'), ('', 'b'), ('', 'c')]
  assert [fact.partition(' of')[0] for fact in found.assumed] == [
    'the model is a Mixer', 'preprocessing: shorter side to 73 x 37, centre crop',
  ]  # fmt: skip


def test_a_released_size_is_named(tmp_path):
  net = models.build('Mixer-S/32', 1000)
  params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), models.shapes(net, 224))
  pretrained.save(tmp_path / 'x.npz', params)
  assumed = describe(tmp_path / 'x.npz').assumed
  assert assumed[0] == 'the model is Mixer-S/32 with a head of 1000 classes'


@pytest.mark.parametrize(
  ('image_size', 'options', 'message'),
  [
    ((32, 64), {}, 'PATH: its parameters do not determine the size of the images; give --image_si'),
    (32, {'loss': 'hinge'}, "--loss: unknown loss 'hinge'; use one of ['sigmoid', 'softmax']."),
    (32, {'label_map': 'imagenet21k'}, "the label map 'imagenet21k' has 21843 classes, and the"),
    (32, {'image_size': (64, 64)}, 'PATH does not fit the model in 6 of 30 parameters:'),
    (32, {'image_size': (30, 32)}, 'image size (30, 32), patch size (16, 16): height 30 is not a'),
    (32, {'model': 'Mixer-S/16'}, 'PATH does not fit the model in'),
    (32, {'model': 'Mixer-X/16'}, "unknown model 'Mixer-X/16'; write one of"),
  ],
)
def test_a_foreign_file_that_does_not_fit(tmp_path, image_size, options, message):
  path = tmp_path / 'x.npz'
  pretrained.save(path, random_params(image_size))
  with pytest.raises(InputError) as caught:
    describe(path, **options)
  assert str(caught.value).startswith(message.replace('PATH', str(path)))


# --- Parameters of a run -------------------------------------------------------------------


def test_a_finished_run(workdir):
  """TFDS calls the classes of ImageNet by their WordNet ids."""
  found = describe(workdir)
  assert found == describe(workdir / 'model.npz')
  assert found.model == {k: v for k, v in FACTS['model'].items() if k != 'remat'}
  assert (found.image_size, found.channels, found.loss) == ((8, 8), 3, 'softmax')
  assert found.classes[:2] == [('n02123045', 'tabby, tabby cat'), ('', 'b')]
  assert (found.preprocessing, found.permutation) == (FACTS['preprocessing'], FACTS['permutation'])
  assert found.assumed == ()


def test_a_run_without_evaluations(workdir):
  preprocessing = {'name': 'inception', 'resize': None, 'value_range': [-1, 1]}
  (workdir / 'model.json').write_text(json.dumps({**FACTS, 'preprocessing': preprocessing}))
  found = describe(workdir)
  assert found.preprocessing['name'] == 'resize_small'
  assert found.assumed == (
    'preprocessing, as the run had no evaluation: shorter side to 9, centre crop of 8, values in '
    '[-1, 1]',
  )


def test_an_old_model_file(workdir):
  """Without what earlier versions did not write; the parameters have some of it."""
  facts = {k: FACTS[k] for k in ('model', 'image_size', 'preprocessing', 'loss')}
  facts['model'] = {k: v for k, v in facts['model'].items() if k != 'num_classes'}
  (workdir / 'model.json').write_text(json.dumps(facts))
  found = describe(workdir)
  assert (found.channels, found.model['num_classes']) == (3, 5)
  assert (found.classes, found.permutation, found.assumed) == (None, None, ())


def test_an_unknown_image_size(workdir):
  """Of a config of images in memory: the parameters of a Mixer have it, if it is a square."""
  facts = {k: v for k, v in FACTS.items() if k not in ('image_size', 'permutation')}
  (workdir / 'model.json').write_text(json.dumps(facts))
  found = describe(workdir)
  assert found.image_size == (8, 8) and found.assumed == ('images of 8 x 8 pixels',)
  pretrained.save(workdir / 'model.npz', tree(image_size=(8, 12)))
  text = (
    f'{workdir}/model.npz: its parameters do not determine the size of the images; give '
    '--image_size=HEIGHT,WIDTH.'
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    describe(workdir)
  found = describe(workdir, image_size=(8, 12))
  assert found.image_size == (8, 12) and found.assumed == ()


OTHERS = {
  'bit': {'name': 'BiT', 'stage_sizes': [1], 'width': 8, 'groups': 4},
  'vit': {
    'name': 'ViT', 'patch_size': 4, 'num_blocks': 2, 'hidden_dim': 8, 'mlp_dim': 12, 'num_heads': 2,
  },
}  # fmt: skip


@pytest.mark.parametrize('layout', OTHERS)
def test_other_models(tmp_path, layout):
  """The parameters have the channels and the classes."""
  model = OTHERS[layout]
  net = models.build(**model, num_classes=5)
  params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), models.shapes(net, 8, 1))
  facts = {**FACTS, 'model': model, 'permutation': None}
  del facts['channels']
  pretrained.save_model(epath.Path(tmp_path), params, facts)
  opened = pretrained.open(tmp_path)
  equal(opened.params, params)
  found = opened.describe()
  assert (opened.layout, found.channels, found.image_size) == (layout, 1, (8, 8))
  assert found.model == {**model, 'num_classes': 5}
  del facts['image_size']
  (tmp_path / 'model.json').write_text(json.dumps(facts))
  found = describe(tmp_path)  # a position table tells it, and BiT takes any size
  assert found.image_size == ((8, 8) if layout == 'vit' else (224, 224))
  assert found.assumed == ('images of {} x {} pixels'.format(*found.image_size),)
  assert describe(tmp_path, image_size=(8, 8)).image_size == (8, 8)


def test_the_record_of_a_run_is_believed(workdir):
  with pytest.raises(InputError) as caught:
    describe(workdir, loss='sigmoid', model='Mixer-S/2', image_size=(8, 9))
  assert str(caught.value) == (
    f'{workdir}/model.json describes {workdir}/model.npz; '
    "leave out ['--model', '--image_size', '--loss']."
  )
  assert describe(workdir, loss='softmax', image_size=(8, 8)) == describe(workdir)
  with pytest.raises(
    InputError, match=r"the label map 'imagenet1k' has 1000 classes, and the head"
  ):
    describe(workdir, label_map='imagenet1k')


@pytest.mark.parametrize(
  ('changes', 'fault'),
  [
    ({'model': None, 'loss': None}, "it lacks ['model', 'loss']"),
    ({'preprocessing': {}}, "it lacks ['preprocessing']"),
    ({'model': 'Mixer-S/2, by name'}, "it lacks ['model']"),
  ],
)
def test_an_incomplete_record(workdir, changes, fault):
  (workdir / 'model.json').write_text(json.dumps({**FACTS, **changes}))
  with pytest.raises(InputError) as caught:
    describe(workdir)
  message = str(caught.value)
  assert message.startswith(
    f'{workdir}/model.json does not describe a model as train.py does: {fault}'
  )
  assert message.endswith('move it away, and the model is inferred from their shapes.')


def test_an_unknown_loss(workdir):
  (workdir / 'model.json').write_text(json.dumps({**FACTS, 'loss': 'hinge'}))
  text = f"{workdir}/model.json: unknown loss 'hinge'; use one of ['sigmoid', 'softmax']."
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    describe(workdir)
