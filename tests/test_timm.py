"""Our outputs against timm's model in PyTorch; `make test-timm` has what this needs.

timm computes GELU by erf and the paper's code by tanh: with timm's own activation the gap has a
bound of its own, and with timm's tanh form only rounding is left.
"""

import argparse
import io

from etils import epath
import jax
import numpy as np
from PIL import Image
import pytest

from mixer import convert, models, pretrained
from mixer.errors import InputError
from mixer.input import single_images
from mixer.models import mlp_mixer
from mixer.sizes import pair

pytestmark = pytest.mark.timm

ROUNDING, ERF = 1e-5, 1e-3  # largest difference of logits, in units of the largest logit
# our name, timm's, pixels, timm's ratio of D_S to C
MODELS = [
  ('Mixer-S/32', 'mixer_s32_224', 224, 0.5),
  ('Mixer-B/16', 'mixer_b16_224', 224, 0.5),
  ('Mixer-S/32', 'mixer_s32_224', 448, 2.0),  # grown from 224 to 448: four times the width
]


def random_params(name, pixels, ratio):
  """At the scales of trained weights: unit LayerNorms, kernels of unit gain."""
  width = int(ratio * mlp_mixer.SIZES[name[6]]['hidden_dim'])
  model = models.build(name, 1000, tokens_mlp_dim=width)
  return model, drawn(models.shapes(model, pixels))


def drawn(shapes):
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    values = rng.standard_normal(leaf.shape, np.float32)
    if path[-1].key == 'kernel':
      inputs = leaf.shape[:1] if path[-2].key in ('query', 'key', 'value') else leaf.shape[:-1]
      return values / np.float32(np.sqrt(np.prod(inputs)))
    return np.float32(path[-1].key == 'scale') + np.float32(0.1) * values

  return jax.tree_util.tree_map_with_path(draw, shapes)


def gap(actual, wanted):
  return np.abs(actual - wanted).max() / np.abs(wanted).max()


@pytest.mark.parametrize('name,timm_name,pixels,ratio', MODELS)
def test_logits_equal_timm(tmp_path, name, timm_name, pixels, ratio):
  """timm loads our file by itself, strictly; so do we load what torch.save makes of timm's."""
  timm, torch = pytest.importorskip('timm'), pytest.importorskip('torch')
  assert timm.layers.GELUTanh.__name__ in convert.GELU_NOTE
  model, params = random_params(name, pixels, ratio)
  images = np.float32(np.random.default_rng(1).uniform(-1, 1, (2, pixels, pixels, 3)))
  ours = np.asarray(jax.jit(models.apply_function(model))(params, images))
  pretrained.save(tmp_path / 'a.npz', params)
  convert.convert(tmp_path / 'a.npz', tmp_path / 'a.safetensors')

  for options, bound in (({'act_layer': timm.layers.GELUTanh}, ROUNDING), ({}, ERF)):
    theirs = timm.create_model(
      timm_name, img_size=pixels, mlp_ratio=(ratio, 4.0), **options,
      checkpoint_path=str(tmp_path / 'a.safetensors'),
    ).eval()  # fmt: skip
    with torch.no_grad():
      logits = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    print(f'{name} at {pixels}, {options}: {gap(logits, ours):.2g}')
    assert gap(logits, ours) < bound
  assert gap(logits, ours) > 1e-6  # the two forms of GELU are told apart

  torch.save(theirs.state_dict(), tmp_path / 'a.pth')
  loaded = pretrained.load(tmp_path / 'a.pth')
  assert jax.tree.all(jax.tree.map(np.array_equal, loaded, params))


# our name and options, timm's, timm's options
OTHERS = {
  'ViT, class token': ('ViT-Ti/16', {}, 'vit_tiny_patch16_224', {'img_size': 64}),
  'ViT, mean': (
    'ViT-S/16', {'pool': 'gap'}, 'vit_small_patch16_224',
    {'img_size': 64, 'class_token': False, 'global_pool': 'avg', 'fc_norm': False},
  ),
  'BiT': ('BiT-R50x1', {}, 'resnetv2_50x1_bit', {}),
}  # fmt: skip


@pytest.mark.parametrize('case', OTHERS)
def test_logits_of_other_families_equal_timm(tmp_path, case):
  """timm loads our file by itself, strictly; its state dict and TF's names load as the same."""
  timm, torch = pytest.importorskip('timm'), pytest.importorskip('torch')
  name, options, timm_name, timm_options = OTHERS[case]
  model = models.build(name, 1000, **options)
  params = drawn(models.shapes(model, 64))
  images = np.float32(np.random.default_rng(1).uniform(-1, 1, (2, 64, 64, 3)))
  ours = np.asarray(jax.jit(models.apply_function(model))(params, images))
  pretrained.save(tmp_path / 'a.npz', params)
  line = convert.convert(tmp_path / 'a.npz', tmp_path / 'a.safetensors', image_size=(64, 64))
  assert line.endswith(convert.GELU_NOTE) == (name != 'BiT-R50x1')
  exact = {} if case == 'BiT' else {'act_layer': timm.layers.GELUTanh}
  for more, bound in ((exact, 2 * ROUNDING), ({}, ERF)):
    theirs = timm.create_model(
      timm_name, **timm_options, **more, checkpoint_path=str(tmp_path / 'a.safetensors')
    ).eval()
    with torch.no_grad():
      logits = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    print(f'{case}, {more}: {gap(logits, ours):.2g}')
    assert gap(logits, ours) < bound
  torch.save(theirs.state_dict(), tmp_path / 'a.pth')
  loaded = pretrained.load(tmp_path / 'a.pth')
  assert jax.tree.all(jax.tree.map(np.array_equal, loaded, params))
  if case == 'BiT':  # timm reads BiT's own files too
    convert.convert(tmp_path / 'a.npz', tmp_path / 'tf.npz', image_size=(64, 64), layout='tf')
    torch.nn.init.zeros_(theirs.head.fc.weight)
    theirs.load_pretrained(str(tmp_path / 'tf.npz'))
    with torch.no_grad():
      again = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_array_equal(again, logits)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_files_of_torch(tmp_path, dtype):
  """Half precision, inside a training checkpoint, as parameters; and the format before 1.6."""
  timm, torch = pytest.importorskip('timm'), pytest.importorskip('torch')
  theirs = timm.create_model('mixer_s32_224').to(getattr(torch, dtype))
  state = theirs.state_dict(keep_vars=True)  # torch.nn.Parameter rather than Tensor
  optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1).state_dict()
  torch.save({'epoch': 3, 'state_dict': state, 'optimizer': optimizer}, tmp_path / 'a.pth')
  head = pretrained.load(tmp_path / 'a.pth')['head']['kernel']
  np.testing.assert_array_equal(head, state['head.weight'].detach().float().numpy().T)
  torch.save(state, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
  with pytest.raises(ValueError, match=r'is a \.pth of before PyTorch 1\.6'):
    pretrained.load(tmp_path / 'old.pth')
  wrapped = {f'module._orig_mod.{name}': tensor for name, tensor in state.items()}
  arguments = argparse.Namespace(model='mixer_s32_224', lr=0.1)
  average = {name: tensor + 1 for name, tensor in wrapped.items()}
  torch.save(
    {'arch': 'mixer_s32_224', 'state_dict': wrapped, 'state_dict_ema': average, 'args': arguments,
     'metric': np.float64(0.5), 'rng': torch.get_rng_state(), 'dtype': torch.float16},
    tmp_path / 'training.pth',
  )  # fmt: skip
  head = pretrained.load(tmp_path / 'training.pth')['head']['kernel']
  np.testing.assert_array_equal(head, (state['head.weight'] + 1).detach().float().numpy().T)
  torch.save(theirs, tmp_path / 'whole.pth')
  with pytest.raises(ValueError, match='asks for timm.models.mlp_mixer.MlpMixer, and reading it'):
    pretrained.load(tmp_path / 'whole.pth')


@pytest.mark.parametrize('tag', ['goog_in21k_ft_in1k', 'miil_in21k_ft_in1k'])
def test_a_folder_as_timm_writes_it(tmp_path, tag):
  """Pixels and logits are those of timm's own transform and model, from the file of an image."""
  timm, torch = pytest.importorskip('timm'), pytest.importorskip('torch')
  theirs = timm.create_model(f'mixer_b16_224.{tag}').eval()
  for block in theirs.blocks:
    block.mlp_tokens.act = block.mlp_channels.act = timm.layers.GELUTanh()
  torch.nn.init.normal_(theirs.head.weight, std=0.05)
  timm.models.save_for_hf(theirs, tmp_path)
  image = np.random.default_rng(0).integers(0, 256, (300, 411, 3), np.uint8)
  content = io.BytesIO()
  Image.fromarray(image).save(content, 'PNG')
  facts = timm.data.resolve_data_config(model=theirs)
  transform = timm.data.create_transform(**facts)
  with torch.no_grad():
    wanted = theirs(transform(Image.fromarray(image))[None]).numpy()

  found = pretrained.open(tmp_path)
  described = found.describe()
  decode = single_images.decoder(described.preprocessing, described.image_size, 3)
  pixels = decode(content.getvalue())
  values = pixels / np.float32(255)
  expected = (values - np.float32(facts['mean'])) / np.float32(facts['std'])
  theirs_pixels = transform(Image.fromarray(image)).numpy().transpose(1, 2, 0)
  np.testing.assert_allclose(theirs_pixels, expected, atol=1e-6)
  model = models.build(**described.model)
  ours = np.asarray(models.apply_function(model)(found.params, 2 * values[None] - 1))
  print(f'{tag}: {gap(ours, wanted):.2g}')
  assert gap(ours, wanted) < ROUNDING


@pytest.mark.parametrize(
  ('name', 'called'),
  [
    ('gmixer_24_224', 'gMixer'), ('resmlp_12_224', 'ResMLP'), ('gmlp_ti16_224', 'gMLP'),
    ('convmixer_768_32', 'ConvMixer'), ('beit_base_patch16_224', 'a relative of ViT'),
    ('deit_tiny_distilled_patch16_224', 'a relative of ViT'), ('resnet18', 'ResNet'),
    ('swin_tiny_patch4_window7_224', 'Swin'),
    ('convnext_atto', 'ConvNeXt'), ('poolformer_s12', 'PoolFormer'),
  ],
)  # fmt: skip
def test_other_networks_of_timm(tmp_path, name, called):
  timm, torch = pytest.importorskip('timm'), pytest.importorskip('torch')
  torch.save({'state_dict': timm.create_model(name).state_dict()}, tmp_path / 'a.pth')
  with pytest.raises(InputError, match=f'are the parameters of {called}'):
    pretrained.load(tmp_path / 'a.pth')


# our name, options, size of the images, channels, classes
HUB = {
  **{name: (name, {}, 224, 3, 7) for name in ('Mixer-S/32', 'ViT-Ti/16', 'BiT-R50x1')},
  'Mixer, other': (
    'Mixer-S/32', {'tokens_mlp_dim': 1003, 'channels_mlp_dim': 1000}, (64, 96), 1, None
  ),
  'ViT, mean': ('ViT-S/16', {'pool': 'gap'}, 64, 3, 7),
  'ViT, other': (
    'ViT',
    {'num_blocks': 2, 'hidden_dim': 72, 'num_heads': 6, 'mlp_dim': 101, 'patch_size': (8, 4)},
    (32, 48), 1, 7,
  ),
}  # fmt: skip


@pytest.mark.parametrize('case', HUB)
def test_a_folder_for_a_hub(tmp_path, case):
  """timm builds the model from the folder alone, and its logits are ours; other heads fit too."""
  timm, torch = pytest.importorskip('timm'), pytest.importorskip('torch')
  name, options, size, channels, num_classes = HUB[case]
  names = num_classes and list('abcdefg')
  model = models.build(name, num_classes, **options)
  params = drawn(models.shapes(model, size, channels))
  facts = {
    'model': {'name': name, 'num_classes': num_classes, **options}, 'image_size': pair(size),
    'channels': channels, 'preprocessing': {'name': 'none', 'value_range': [-1, 1]},
    'loss': 'sigmoid', 'class_names': names,
  }  # fmt: skip
  pretrained.save_model(epath.Path(tmp_path), params, facts)
  folder = tmp_path / 'hub'
  convert.convert(tmp_path / 'model.npz', f'{folder}/')
  images = np.float32(np.random.default_rng(1).uniform(-1, 1, (2, *pair(size), channels)))
  ours = np.asarray(jax.jit(models.apply_function(model))(params, images))
  more = {'act_layer': timm.layers.GELUTanh} if name.startswith('Mixer') else {}
  found = pretrained.open(folder)
  assert jax.tree.all(jax.tree.map(np.array_equal, found.params, params))
  described = found.describe()
  assert described.loss == 'sigmoid'
  assert described.classes == (names and [('', name) for name in names])
  assert (described.image_size, described.channels) == (pair(size), channels)
  theirs = timm.create_model(f'local-dir:{folder}', pretrained=True, **more).eval()
  with torch.no_grad():
    logits = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
  print(f'{case}: {gap(logits, ours):.2g}')
  assert gap(logits, ours) < 2 * ROUNDING
  assert theirs.pretrained_cfg.get('label_names') == names
  data = timm.data.resolve_model_data_config(theirs)
  assert tuple(data['input_size']) == (channels, *pair(size)) and set(data['mean']) == {0.5}
  assert theirs.num_features == model.hidden_dim and theirs.num_classes == (num_classes or 0)
  other = timm.create_model(f'local-dir:{folder}', pretrained=True, num_classes=3)
  assert other.get_classifier().weight.shape[0] == 3
