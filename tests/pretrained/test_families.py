"""ViT and BiT: files as other programs write them, and what their shapes determine."""

import json

from etils import epath
from family_weights import (
  bit_big_vision,
  bit_tf,
  bit_timm,
  vit_big_vision,
  vit_numbered,
  vit_scanned,
  vit_timm,
)  # fmt: skip
import jax
import numpy as np
import pytest

from mixer import convert, models, pretrained
from mixer.errors import InputError
from mixer.models import scanning
from mixer.pretrained import __main__ as program
from mixer.pretrained import dimensions, layouts, released, warm_start
import weights
from weights import equal, flat

WIDTH = 64  # one head, as the width tells
VIT = dict(num_blocks=11, hidden_dim=WIDTH, mlp_dim=6, num_heads=1, patch_size=4)
BIT = dict(stage_sizes=(11, 2), width=32)


def vit(pool='token', representation=False, num_classes=5, image_size=12, **changes):
  options = {**VIT, 'pool': pool, 'representation_layer': representation, **changes}
  return random(models.build('ViT', num_classes, **options), image_size)


def bit(num_classes=5, **changes):
  return random(models.build('BiT', num_classes, **{**BIT, **changes}), 32)


def random(model, image_size):
  rng = np.random.default_rng(0)
  shapes = models.shapes(model, image_size)
  return jax.tree.map(lambda x: np.float32(rng.normal(0, 0.3, x.shape)), shapes)


def same(actual, wanted):
  """The same names and bytes."""
  assert actual.keys() == wanted.keys()
  for name, array in wanted.items():
    assert actual[name].shape == array.shape and actual[name].dtype == array.dtype, name
    assert np.ascontiguousarray(actual[name]).tobytes() == array.tobytes(), name


# --- Layouts -------------------------------------------------------------------------------


@pytest.mark.parametrize('num_classes', [5, None])
@pytest.mark.parametrize('pool,representation', [('token', False), ('token', True), ('gap', False)])
def test_layouts_of_vit(pool, representation, num_classes):
  """Eleven blocks: 10 comes after 2. Each is written back to the byte where it can be written."""
  params = vit(pool, representation, num_classes)
  for prefix in ('', 'params/', 'opt/target/'):
    wrapped = {prefix + name: array for name, array in flat(params).items()}
    converted, layout, *_ = layouts.to_released(wrapped)
    same(converted, flat(params))
    assert layout.split()[0] == 'vit'
  converted, layout, dropped, _ = layouts.to_released(vit_numbered(params))
  same(converted, flat(params))
  assert (layout, dropped) == ('vit_big_vision', [])
  state = vit_timm(params)
  same(layouts.to_timm(flat(params)), state)
  converted, layout, _, words = layouts.to_released(state)
  same(converted, flat(params))
  assert layout == 'vit_timm'
  assert words == 'the number of attention heads is taken to be 1, by the width 64'

  theirs = vit_big_vision(params)
  same(layouts.written('big_vision', flat(params)), theirs)
  for content, name in ((theirs, 'vit_big_vision'), (vit_scanned(params), 'vit_scanned')):
    converted, layout, *_ = layouts.to_released(content)
    assert layout == name
    same(layouts.written('big_vision', converted), theirs)
    table = converted['Transformer/posembed_input/pos_embedding']
    assert table.shape == (1, 9 + (pool == 'token'), WIDTH)
    assert not table[:, :-9].any()


def test_the_position_table_of_earlier_files_of_big_vision():
  """Within the encoder, or of all tokens: the class token's row stays."""
  params = vit()
  table = 'Transformer/posembed_input/pos_embedding'
  for place in ('pos_embedding', 'Transformer/pos_embedding'):
    found = vit_numbered(params)
    found[place] = found.pop(table)
    same(layouts.to_released(found)[0], flat(params))


def test_our_own_stacked_blocks():
  params = vit()
  stacked = flat(jax.tree.map(np.asarray, scanning.stack_blocks(params)))
  same(layouts.to_released(stacked)[0], flat(params))


@pytest.mark.parametrize('num_classes', [5, None])
def test_layouts_of_bit(num_classes):
  params = bit(num_classes)
  own = flat(params)
  theirs = bit_tf(params)
  same(layouts.written('tf', own), theirs)
  for content in (
    theirs, bit_tf(params, numbered=True), bit_tf(params, axes=3), bit_tf(params, axes=1),
  ):  # fmt: skip
    converted, layout, dropped, _ = layouts.to_released(content)
    same(converted, own)
    assert (layout, dropped) == ('bit_tf', [])
  state = bit_timm(params)
  same(layouts.to_timm(own), state)
  for content, name in ((state, 'bit_timm'), (bit_big_vision(params), 'bit'), (own, 'bit')):
    converted, layout, *_ = layouts.to_released(content)
    same(converted, own)
    assert layout == name


def test_nothing_is_left_out():
  """What has no place stays for the check against the model."""
  surplus = {
    'vit_timm': (vit_timm(vit()), ('norm.x', 'blocks.0.attn.proj', 'blocks.0.surplus.weight')),
    'bit_timm': (bit_timm(bit()), ('stem.norm.weight', 'stages.0.blocks.0.norm1.running_mean')),
    'bit_tf': (bit_tf(bit()), ('resnet/block1/unit01/a/bias', 'resnet/head/conv2d/gamma/x')),
    'vit': (flat(vit()), ('MAPHead_0/probe', 'Transformer/encoderblock_0/surplus')),
  }
  for content, names in surplus.values():
    converted, *_ = layouts.to_released(content | {name: np.ones(2) for name in names})
    assert set(names) < converted.keys()
  for family, name in (('ViT', vit()), ('BiT', bit())):
    with pytest.raises(InputError, match=rf"^timm's {family} has no place for a/b\.$"):
      layouts.to_timm({**flat(name), 'a/b': np.ones(2)})
  with pytest.raises(InputError, match=r"^the layout 'tf' is for BiT alone\.$"):
    layouts.written('tf', flat(vit()))
  incomplete = flat(vit())
  del incomplete['Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/kernel']
  with pytest.raises(InputError, match='no place for Transformer/encoderblock_1/Multi.*query/ker'):
    layouts.to_timm(incomplete)


@pytest.mark.parametrize(
  'name', ['fc_norm.weight', 'blocks.0.ls1.gamma', 'dist_token', 'blocks.0.attn.q_bias']
)
def test_relatives_of_vit(name):
  """Their blocks have the names of a ViT's, and they compute something else."""
  text = rf'^these are the parameters of a relative of ViT .*: ViT has no {name}\. This code has'
  with pytest.raises(InputError, match=text):
    layouts.to_released(vit_timm(vit(num_blocks=1)) | {name: np.ones(2)})


def test_the_attention_heads_of_timm():
  """By the paper's size of the width; from the record beside the file where that is not enough."""
  for width, heads in ((192, 3), (1280, 16), (128, 2)):
    params = vit(num_blocks=1, hidden_dim=width, num_heads=heads)
    converted, *_ = layouts.to_released(vit_timm(params))
    same(converted, flat(params))
  params = vit(num_blocks=1, hidden_dim=12, num_heads=3)
  with pytest.raises(
    InputError, match='does not tell the number of attention heads, and the width'
  ):
    layouts.to_released(vit_timm(params))
  same(layouts.to_released(vit_timm(params), num_heads=3)[0], flat(params))
  with pytest.raises(InputError, match='the width 12 is no multiple of the 5 attention heads'):
    layouts.to_released(vit_timm(params), num_heads=5)


# --- Shapes --------------------------------------------------------------------------------


SIZES = {'ViT': models.FAMILIES['ViT'].sizes, 'BiT': ('R50x1', 'R50x3', 'R101x1')}


@pytest.mark.parametrize('family', ['ViT', 'BiT'])
def test_the_shapes_determine_the_model(family):
  for size in SIZES[family]:
    name = f'{family}-{size}' + ('/16' if family == 'ViT' else '')
    net = models.build(name, 21843)
    shapes = models.shapes(net, 224)
    found = dimensions.infer(shapes, 'x')
    assert dimensions.size_name(found.model) == dimensions.called(found.model) == name
    assert found.image_size == ((224, 224) if family == 'ViT' else None)
    assert {**dimensions.of_model(net), 'num_classes': 21843} == found.model
    pretrained.check(shapes, models.shapes(models.build(**found.model), 224), 'x')


def test_what_a_name_does_not_say(tmp_path):
  """Pooling and representation layer are used as they are in the file; rectangles are given."""
  for pool, representation in (('gap', False), ('token', True)):
    pretrained.save(tmp_path / 'a.npz', vit(pool, representation, 1000))
    found = pretrained.open(tmp_path / 'a.npz').describe()
    assert (found.model['pool'], found.model['representation_layer']) == (pool, representation)
    assert (found.image_size, found.loss) == ((12, 12), 'softmax')
    models.build(**found.model)
  pretrained.save(tmp_path / 'a.npz', vit(image_size=(8, 12)))
  opened = pretrained.open(tmp_path / 'a.npz')
  with pytest.raises(InputError, match=r'give --image_size=HEIGHT,WIDTH\.$'):
    opened.describe()
  assert opened.describe(image_size=(8, 12)).image_size == (8, 12)


def test_programs_from_the_file_alone(tmp_path):
  """Identified, converted there and back, for both families."""
  for params, write, first in (
    (vit(num_blocks=2), weights.safetensors_bytes, 'vit_timm'),
    (bit(stage_sizes=(1, 1)), weights.npz, 'bit_tf'),
  ):  # fmt: skip
    other = vit_timm(params) if first == 'vit_timm' else bit_tf(params)
    (tmp_path / 'in').write_bytes(write(other))
    described = program.summarize(tmp_path / 'in')
    assert f'layout      {first}\n' in described and 'head        5 classes\n' in described
    size = None if first == 'vit_timm' else (8, 16)
    convert.convert(tmp_path / 'in', tmp_path / 'out.npz', image_size=size)
    equal(pretrained.load(tmp_path / 'out.npz'), params)
    convert.convert(tmp_path / 'out.npz', tmp_path / 'b.safetensors', image_size=size)
    equal(pretrained.load(tmp_path / 'b.safetensors'), params)
    layout = 'big_vision' if first == 'vit_timm' else 'tf'
    line = convert.convert(tmp_path / 'out.npz', tmp_path / 'c.npz', image_size=size, layout=layout)
    assert 'logits of 3 random images differ by' in line
    with np.load(tmp_path / 'c.npz') as found:
      same(dict(found), layouts.written(layout, flat(params)))


def test_known_files():
  def describe(family, size, name, folder=''):
    return released.describe(name, folder, 1, {'name': family, 'size': f'{family}-{size}'})

  text = describe('BiT', 'R101x3', 'BiT-M-R101x3-ILSVRC2012.npz')
  assert 'bit_models/BiT-M-R101x3-ILSVRC2012.npz' in text and 'ImageNet-21k, then ImageNet;' in text
  assert 'upstream data: ImageNet;' in describe('BiT', 'R50x1', 'BiT-S-R50x1.npz')
  for size, name in (('R50x1', 'BiT-S-R50x3.npz'), ('R50x2', 'BiT-M-R50x2.npz'), ('R50x1', 'a')):
    assert describe('BiT', size, name).startswith('unknown file; of BiT trained on JFT-300M none')
  name = 'B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz'
  assert f'vit_models/augreg/{name}' in describe('ViT', 'B/16', name, 'augreg')
  assert 'heads of zeros' in describe('ViT', 'L/32', 'ViT-L_32.npz', 'imagenet21k')
  assert describe('ViT', 'B/16', name, 'Downloads').startswith('unknown file;')


# --- Training from them --------------------------------------------------------------------


def start(params, model, size, head='auto'):
  return warm_start.start_from(params, model, source='FILE', image_size=size, channels=3, head=head)


def test_a_representation_layer_is_for_its_own_head():
  """ViT's fine-tuning removes both (its section 3.2)."""
  params = vit(representation=True, num_blocks=1)
  options = {**VIT, 'num_blocks': 1}
  started, changes = start(params, models.build('ViT', 7, **options), 12)
  assert 'pre_logits' not in started and 'representation layer left out' in changes
  with pytest.raises(InputError, match=r'use config.model.representation_layer=True, or .*=reset'):
    start(params, models.build('ViT', 5, **options), 12)
  started, changes = start(params, models.build('ViT', 5, **options, representation_layer=True), 12)
  equal(started, params)


def test_another_size_of_the_same_family():
  params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), vit(num_blocks=1))
  with pytest.raises(
    InputError, match=r"with pool='token', and .* pool='gap': use --config.model.pool=token"
  ):
    start(params, models.build('ViT', 5, **{**VIT, 'num_blocks': 1}, pool='gap'), 12)
  shapes = models.shapes(models.build('ViT-S/16', 5), 224)
  text = 'weights are ViT-S/16, and the config builds ViT-B/16: use --config=FILE:model=ViT-S/16.'
  with pytest.raises(InputError, match=text):
    warm_start.check_network(shapes, models.build('ViT-B/16', 5), 'FILE')
  shapes = models.shapes(models.build('BiT-R50x1', 5), 224)
  text = 'weights are BiT-R50x1, and the config builds BiT-R50x3: use --config=FILE:model=BiT-R50x'
  with pytest.raises(InputError, match=text):
    warm_start.check_network(shapes, models.build('BiT-R50x3', 5), 'FILE')


def test_the_mean_and_deviation_of_a_hub_are_folded_into_a_vit(tmp_path):
  params = vit(num_blocks=1)
  (tmp_path / 'model.safetensors').write_bytes(weights.safetensors_bytes(vit_timm(params)))
  own = {'mean': [0, 0.2, 0.4], 'std': [1, 0.5, 0.2], 'num_classes': 5}
  (tmp_path / 'config.json').write_text(json.dumps({'architecture': 'x', 'pretrained_cfg': own}))
  pixels = np.float32(np.random.default_rng(0).uniform(0, 1, (2, 12, 12, 3)))
  model = models.build('ViT', 5, **{**VIT, 'num_blocks': 1})
  apply = models.apply_function(model)
  folded = pretrained.open(epath.Path(tmp_path)).params
  wanted = apply(params, (pixels - np.float32(own['mean'])) / np.float32(own['std']))
  np.testing.assert_allclose(apply(folded, 2 * pixels - 1), wanted, atol=1e-5)
