"""Our outputs against timm's model in PyTorch; `make test-timm` has what this needs.

timm computes GELU by erf and the paper's code by tanh: with timm's own activation the gap has a
bound of its own, and with timm's tanh form only rounding is left.
"""

import jax
import numpy as np
import pytest

from mixer import convert, models, pretrained
from mixer.models import mlp_mixer

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
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    values = rng.standard_normal(leaf.shape, np.float32)
    if path[-1].key == 'kernel':
      return values / np.float32(np.sqrt(np.prod(leaf.shape[:-1])))
    return np.float32(path[-1].key == 'scale') + np.float32(0.1) * values

  return model, jax.tree_util.tree_map_with_path(draw, models.shapes(model, pixels))


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
  torch.save(theirs, tmp_path / 'whole.pth')
  with pytest.raises(ValueError, match='asks for timm.models.mlp_mixer.MlpMixer, and reading it'):
    pretrained.load(tmp_path / 'whole.pth')
