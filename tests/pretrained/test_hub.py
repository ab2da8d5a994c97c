"""Folders of a model hub: their config.json is obeyed, and their normalisation folded exactly."""

import io
import json
import re

from etils import epath
import jax
import numpy as np
from PIL import Image
import pytest
import yaml

from mixer import convert, models, pretrained
from mixer.errors import InputError
from mixer.input import single_images, timm_images
from mixer.pretrained import __main__ as program
from mixer.pretrained import dimensions, hub_folder
import weights
from weights import equal, tree

USUAL = {
  'input_size': [3, 8, 8], 'interpolation': 'bicubic', 'crop_pct': 0.875, 'crop_mode': 'center',
  'mean': [0.5, 0.5, 0.5], 'std': [0.5, 0.5, 0.5], 'num_classes': 5, 'first_conv': 'stem.proj',
}  # fmt: skip
IMAGENET = {'mean': [0.485, 0.456, 0.406], 'std': [0.229, 0.224, 0.225]}


def make(folder, changes=None, name='model.safetensors', params=None, top=None):
  """A folder as timm's push_to_hf_hub writes it."""
  folder.mkdir(exist_ok=True)
  write = weights.safetensors_bytes if name.endswith('.safetensors') else weights.pth
  (folder / name).write_bytes(write(weights.timm(params or tree())))
  config = {'architecture': 'mixer_b16_224', 'num_classes': 5, **(top or {})}
  config['pretrained_cfg'] = {**USUAL, **(changes or {})}
  (folder / 'config.json').write_text(json.dumps(config))
  return folder


def logits_of(params, images):
  model = models.build(**dimensions.infer(params, 'x').model)
  return np.asarray(models.apply_function(model)(params, images))


@pytest.mark.parametrize('name', ['model.safetensors', 'pytorch_model.bin', 'weights.pth'])
def test_a_folder(tmp_path, name, caplog):
  folder = make(tmp_path / 'hub', name=name)
  for path in (folder, folder / name):
    found = pretrained.open(path)
    equal(found.params, tree())  # to the bit
    assert found.identity['source'] == str(folder / name) == found.source
    described = found.describe()
    assert (described.image_size, described.channels) == ((8, 8), 3)
    assert described.model['num_classes'] == 5 and described.loss is None
    assert described.preprocessing == {
      'name': 'timm', 'resize': (9, 9), 'crop': (8, 8), 'interpolation': 'bicubic',
      'mode': 'center', 'value_range': [-1, 1],
    }  # fmt: skip
    assert found.describe(loss='sigmoid').loss == 'sigmoid'
  assert not caplog.messages
  equal(pretrained.load(folder), tree())
  assert f'file        {folder / name}\n' in program.summarize(folder)
  convert.convert(folder, tmp_path / 'a.npz')
  equal(pretrained.load(tmp_path / 'a.npz'), tree())


@pytest.mark.parametrize(
  'normalisation',
  [
    {'mean': [0, 0, 0], 'std': [1, 1, 1]},
    {'mean': [0.0], 'std': [1.0]},
    IMAGENET,
    {'mean': [0.5, 0.4, 0.3], 'std': 0.5},
  ],
)
def test_another_normalisation(tmp_path, normalisation, caplog):
  """Pixels in [-1, 1] give what the file's parameters give of pixels that are normalised so."""
  folder = make(tmp_path / 'hub', normalisation)
  found = pretrained.open(folder)
  pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.float64) / 255
  mean, std = (np.asarray(normalisation[name], np.float64) for name in ('mean', 'std'))
  wanted = logits_of(tree(), np.float32((pixels - mean) / std))
  actual = logits_of(found.params, np.float32(2 * pixels - 1))
  np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
  plain = logits_of(tree(), np.float32(2 * pixels - 1))
  assert np.abs(plain - wanted).max() > 0.05 * np.abs(wanted).max()
  assert 'config.json: its normalisation by mean [0' in caplog.text
  described = found.describe()
  assert described.loss == 'softmax' and 'loss: softmax' in described.assumed
  assert found.describe(loss='sigmoid').loss == 'sigmoid'
  if normalisation['mean'] == [0, 0, 0]:
    np.testing.assert_array_equal(found.params['stem']['kernel'], tree()['stem']['kernel'] / 2)
    total = tree()['stem']['bias'] + tree()['stem']['kernel'].sum((0, 1, 2)) / 2
    np.testing.assert_allclose(found.params['stem']['bias'], total, rtol=1e-6)
  convert.convert(folder, tmp_path / 'a.npz')
  equal(pretrained.load(tmp_path / 'a.npz'), found.params)


def test_an_older_config_has_all_side_by_side(tmp_path):
  folder = make(tmp_path / 'hub')
  older = {**USUAL, 'architecture': 'mixer_b16_224', 'mean': [0, 0, 0], 'std': [1, 1, 1]}
  (folder / 'config.json').write_text(json.dumps({**older, 'input_size': [3, 8, 8]}))
  found = pretrained.open(folder)
  np.testing.assert_array_equal(found.params['stem']['kernel'], tree()['stem']['kernel'] / 2)


def test_names_of_classes(tmp_path):
  top = {'label_names': list('abcde'), 'label_descriptions': {'b': 'a bee'}}
  described = pretrained.open(make(tmp_path / 'hub', top=top)).describe(loss='softmax')
  assert described.classes == [('', name) for name in ('a', 'a bee', 'c', 'd', 'e')]
  folder = make(tmp_path / 'hub', top={'label_names': ['a']})
  with pytest.raises(InputError, match='has the names of 1 classes, and the head in .* has 5'):
    pretrained.open(folder)


@pytest.mark.parametrize(
  ('changes', 'top', 'text'),
  [
    ({}, {'num_classes': 7}, 'has 7 classes, and the head in model.safetensors 5; give the files'),
    ({'std': [1, 0, 1]}, {}, r'mean \[0.5, 0.5, 0.5\], std \[1.0, 0.0, 1.0\]'),
    ({'mean': [0, 0, 0, 0]}, {}, 'and the stem takes 3 channels'),
    ({'input_size': [3, 8]}, {}, 'does not describe a model as timm does: ValueError'),
    ({'crop_pct': 8}, {}, r"does not describe a model as timm does: ValueError\('crop_pct 8.0'\)"),
    ({'mean': 'grey'}, {}, 'does not describe a model as timm does'),
  ],
)
def test_a_config_that_does_not_fit(tmp_path, changes, top, text):
  folder = make(tmp_path / 'hub', changes, top=top)
  with pytest.raises(InputError, match=f'^{folder}/config.json.*{text}'):
    pretrained.open(folder)


@pytest.mark.parametrize('content', ['', '{"pretrained_cfg": {', '\xff'])
def test_a_damaged_config(tmp_path, content):
  """It is not ignored, since the weights may need it."""
  folder = make(tmp_path / 'hub')
  (folder / 'config.json').write_text(content, encoding='latin-1')
  for path in (folder, folder / 'model.safetensors'):
    with pytest.raises(InputError, match=f'^{folder}/config.json is damaged: .* fetch it again, '):
      pretrained.open(path)
  pretrained.save(folder / 'mine.npz', tree(seed=3))
  equal(pretrained.load(folder / 'mine.npz'), tree(seed=3))


def test_another_size_than_that_of_the_parameters(tmp_path):
  found = pretrained.open(make(tmp_path / 'hub', {'input_size': [3, 16, 16]}))
  with pytest.raises(InputError, match='does not fit the model in 9 of 42 parameters'):
    found.describe(loss='softmax')


def test_several_files_of_weights(tmp_path, caplog):
  folder = make(tmp_path / 'hub')
  make(folder, name='pytorch_model.bin', params=tree(seed=1))
  equal(pretrained.load(folder), tree())
  assert caplog.messages == [f'{folder}: model.safetensors is read, and not pytorch_model.bin.']
  equal(pretrained.load(folder / 'pytorch_model.bin'), tree(seed=1))
  (folder / 'model.safetensors').rename(folder / 'a.safetensors')
  (folder / 'pytorch_model.bin').rename(folder / 'b.pth')
  text = (
    f'{folder} has the config.json of a hub, and several files of weights, a.safetensors, b.pth; '
    'give one file.'
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    pretrained.load(folder)
  for path in folder.glob('*.*'):
    if path.name != 'config.json':
      path.unlink()
  with pytest.raises(InputError, match='and no file of weights; give one file'):
    pretrained.load(folder)


def test_a_folder_without_a_config(tmp_path):
  """Nothing says that its files belong together."""
  folder = make(tmp_path / 'hub')
  (folder / 'config.json').unlink()
  with pytest.raises(InputError, match=r'or one of its files, model\.safetensors\.$'):
    pretrained.load(folder)


def test_a_folder_has_no_checkpoints(tmp_path):
  with pytest.raises(InputError, match='^--which=best is for the workdir of a run, and .* is a fi'):
    pretrained.open(make(tmp_path / 'hub'), which='best')


@pytest.mark.parametrize('name', ['mixer_b16_224_miil-9229a591.pth', 'MIIL.safetensors'])
def test_a_name_of_another_normalisation(tmp_path, name, caplog):
  """The config that the warning proposes is obeyed."""
  make(tmp_path, name=name)
  (tmp_path / 'config.json').unlink()
  equal(pretrained.load(tmp_path / name), tree())
  (message,) = caplog.messages
  assert message.startswith(f'{tmp_path}/{name} is named like weights of timm (miil) for pixels of')
  proposed = re.search(r'\{.*\}', message)[0]
  (tmp_path / 'config.json').write_text(proposed)
  found = pretrained.load(tmp_path / name)
  np.testing.assert_array_equal(found['stem']['kernel'], tree()['stem']['kernel'] / 2)


def test_a_lone_file_is_not_told_by_another_ones_config(tmp_path):
  """In a folder of several files, the config belongs to the one that a hub names so."""
  make(tmp_path, {'mean': [0, 0, 0], 'std': [1, 1, 1]})
  pretrained.save(tmp_path / 'mine.npz', tree(seed=3))
  equal(pretrained.load(tmp_path / 'mine.npz'), tree(seed=3))


# --- Folders that are written; tests/test_timm.py loads them with timm ---------------------------


VIT = {'num_blocks': 2, 'hidden_dim': 12, 'mlp_dim': 8, 'num_heads': 3, 'patch_size': 4}


def run_of(workdir, model, classes=5, **facts):
  """(the module, its parameters) of a finished run, as it records them."""
  net = models.build(**model, num_classes=classes)
  params = jax.tree.map(
    lambda leaf: np.random.default_rng(0).normal(0, 0.1, leaf.shape).astype(np.float32),
    models.shapes(net, (32, 64)),
  )
  crop = {'name': 'resize_small', 'resize': (48, 96), 'crop': (32, 64), 'value_range': [-1, 1]}
  known = {
    'model': {**model, 'num_classes': classes}, 'image_size': (32, 64), 'channels': 3,
    'preprocessing': crop, 'loss': 'sigmoid', 'class_names': None, **facts,
  }  # fmt: skip
  pretrained.save_model(epath.Path(workdir), params, known)
  return net, params


@pytest.mark.parametrize('model', [{'name': 'Mixer-S/32', 'tokens_mlp_dim': 7}, VIT])
def test_a_folder_that_is_written(tmp_path, model):
  """Read back: the bits, sizes, classes and loss; a model card of which the user's part is kept."""
  names = ['n01440764', 'n01443537', 'mine', 'other', 'last']
  _, params = run_of(tmp_path / 'run', {'name': 'ViT', **model}, class_names=names)
  folder = tmp_path / 'hub.v1'
  line = convert.convert(tmp_path / 'run', f'{folder}/')
  assert line.endswith(convert.GELU_NOTE) == ('tokens_mlp_dim' in model)
  assert sorted(path.name for path in folder.iterdir()) == [
    'README.md', 'config.json', 'model.safetensors'
  ]  # fmt: skip
  found, source = (pretrained.open(path).describe() for path in (folder, tmp_path / 'run'))
  equal(pretrained.load(folder), params)
  assert (found.image_size, found.channels, found.loss) == ((32, 64), 3, 'sigmoid')
  assert found.classes == source.classes and found.classes[0] == ('n01440764', 'tench, Tinca tinca')
  assert {**source.model, 'name': ''}.items() >= {**model, 'name': ''}.items()
  assert found.preprocessing == {
    'name': 'timm', 'resize': (48, 96), 'crop': (32, 64), 'interpolation': 'bilinear',
    'mode': 'center', 'value_range': [-1, 1],
  }  # fmt: skip
  card = (folder / 'README.md').read_text()
  metadata = yaml.safe_load(card.split('---')[1])
  assert metadata['library_name'] == 'timm' and 'license' not in metadata
  assert metadata['pipeline_tag'] == 'image-classification'
  assert 'logits of 5 classes; trained with the sigmoid loss' in card and '32 x 64 pixels' in card
  (folder / 'README.md').write_text('mine')
  convert.convert(tmp_path / 'run', folder)
  assert (folder / 'README.md').read_text() == 'mine'
  with pytest.raises(InputError, match='is the input too; give the output another name'):
    convert.convert(folder / 'model.safetensors', folder)
  (folder / 'notes.txt').touch()
  with pytest.raises(InputError, match=r'v1/: it has files of something else \(notes\.txt\); give'):
    convert.convert(tmp_path / 'run', folder)


@pytest.mark.parametrize(
  ('model', 'text'),
  [
    (
      {'name': 'Mixer', 'num_blocks': 1, **weights.SIZES},
      'a Mixer of 1 .* is not in timm, which has Mixer-S/32, ',
    ),
    ({'name': 'Mixer', 'num_blocks': 1, **weights.SIZES, 'untie_tokens': True}, 'of appendix A'),
    ({'name': 'BiT', 'stage_sizes': (1,), 'width': 8, 'groups': 4}, '32 groups, and this one 4;'),
    ({'name': 'ViT', **VIT, 'representation_layer': True}, 'no representation layer'),
  ],
)
def test_models_that_timm_lacks(tmp_path, model, text):
  net, params = run_of(tmp_path / 'run', model)
  with pytest.raises(InputError, match=text):
    hub_folder.write(
      epath.Path(tmp_path / 'hub'), net, params, pretrained.open(tmp_path / 'run').describe()
    )
  assert not (tmp_path / 'hub').exists()


def test_a_workdir_is_no_folder_of_a_hub(tmp_path):
  run_of(tmp_path / 'run', {'name': 'ViT', **VIT})
  (tmp_path / 'new').mkdir()
  (tmp_path / 'new' / 'config.json').write_text('{"model": {}}')
  (tmp_path / 'weights').mkdir()
  (tmp_path / 'weights' / 'model.safetensors').touch()
  (tmp_path / 'folder' / 'model.safetensors').mkdir(parents=True)
  (tmp_path / 'folder' / 'config.json').write_text('{"architecture": ""}')
  for target, text in (
    ('run', r'model\.json, model\.npz'), ('new', r'config\.json'),
    ('weights', r'model\.safetensors'), ('folder', r'model\.safetensors'),
  ):  # fmt: skip
    with pytest.raises(InputError, match=rf'files of something else \({text}\)'):
      convert.convert(tmp_path / 'run', tmp_path / target)


# --- Pixels --------------------------------------------------------------------------------


def png(height, width):
  image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
  content = io.BytesIO()
  Image.fromarray(image).save(content, 'PNG')
  return content.getvalue(), Image.fromarray(image)


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic', 'lanczos'])
@pytest.mark.parametrize('shape', [(61, 47), (47, 61), (40, 40), (9, 100)])
def test_pixels_are_those_of_timm(shape, interpolation):
  """By hand: torchvision's Resize of the shorter side, its CenterCrop, both by Pillow."""
  preprocessing = {
    'name': 'timm', 'resize': (36, 36), 'crop': (32, 32), 'interpolation': interpolation,
    'mode': 'center', 'value_range': [-1, 1],
  }  # fmt: skip
  content, image = png(*shape)
  actual = single_images.decoder(preprocessing, (32, 32), 3)(content)
  height, width = shape
  size = (36, int(36 * height / width)) if width < height else (int(36 * width / height), 36)
  resized = image.resize(size, getattr(Image.Resampling, interpolation.upper()))
  left, top = round((size[0] - 32) / 2), round((size[1] - 32) / 2)
  np.testing.assert_array_equal(actual, resized.crop((left, top, left + 32, top + 32)))


def test_rectangles_and_squashed_images():
  content, image = png(50, 30)
  common = {'interpolation': 'bicubic', 'resize': (40, 20)}
  squashed = timm_images.decoder({**common, 'mode': 'squash'}, (32, 16), 3)(content)
  wanted = image.resize((20, 40), Image.Resampling.BICUBIC).crop((2, 4, 18, 36))
  np.testing.assert_array_equal(squashed, wanted)
  covered = timm_images.decoder({**common, 'mode': 'center'}, (32, 16), 3)(content)
  wanted = image.resize((24, 40), Image.Resampling.BICUBIC).crop((4, 4, 20, 36))
  np.testing.assert_array_equal(covered, wanted)
  assert timm_images.decoder({**common, 'mode': 'center'}, (32, 16), 1)(content).shape[-1] == 1
  with pytest.raises(InputError, match="preprocessing of timm by 'random', 'border' for 3"):
    timm_images.decoder({**common, 'interpolation': 'random', 'mode': 'border'}, (32, 16), 3)
  with pytest.raises(InputError, match='cannot identify image file'):
    timm_images.decoder({**common, 'mode': 'center'}, (32, 16), 3)(b'no image')


class Data:
  def __init__(self, **preprocessing):
    self.preprocessing = preprocessing


def test_an_evaluation_that_prepares_images_in_another_way(tmp_path, caplog):
  found = pretrained.open(make(tmp_path / 'hub'))
  found.check_preprocessing({'val': Data(name='resize_small', resize=(8, 8), crop=(8, 8))})
  assert caplog.messages == [
    f'{tmp_path}/hub/config.json asks for images prepared by name timm, resize (9, 9), crop (8, 8),'
    ' interpolation bicubic, mode center, and config.evals.val.input has name resize_small, resize '
    '(8, 8), crop (8, 8). Results may differ by some tenths of a percent; mixer.predict does as '
    'the file says.'
  ]
