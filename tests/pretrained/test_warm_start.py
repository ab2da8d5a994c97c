"""Growing to a higher resolution, and what becomes of the head."""

import hashlib
import json
import re

import jax
import numpy as np
from PIL import Image
import pytest

from mixer import labels, models, pretrained
from mixer.errors import InputError
from mixer.models import position_tables
from mixer.pretrained import growth, warm_start

SMALL = {'num_blocks': 3, 'hidden_dim': 32, 'tokens_mlp_dim': 16, 'channels_mlp_dim': 64}


def build(num_classes=5, patch_size=4, **options):
  return models.build('Mixer', num_classes=num_classes, patch_size=patch_size, **SMALL, **options)


def noise(tree, seed: int = 0):
  """The same tree with every leaf random, biases and the head too."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: rng.normal(0.0, 0.2, x.shape).astype(np.float32), tree)


def weights(model, size):
  return noise(models.shapes(model, size))


def start(params, model, size, head='auto', from_size=None, **more):
  return warm_start.start_from(
    params,
    model,
    source='FILE',
    image_size=size,
    channels=3,
    head=head,
    from_size=from_size,
    **more,
  )


def pair(size):
  return (size, size) if isinstance(size, int) else size


@pytest.mark.parametrize(
  ('old', 'new', 'tiles', 'patch'),
  [
    (16, 32, 2, 4),
    (16, 48, 3, 4),
    (16, (16, 32), (1, 2), 4),
    ((16, 24), (32, 72), (2, 3), (4, 8)),
  ],
)
def test_logits_are_the_mean_over_the_tiles(old, new, tiles, patch):
  """The paper's scheme keeps every tile to itself until fine-tuning (appendix C)."""
  small, large = build(patch_size=patch), build(patch_size=patch, tiles=tiles)
  params = weights(small, old)
  grown, words = start(params, large, new, from_size=old)
  assert 'grown from a grid of' in words and 'head kept: 5 classes' in words
  (height, width), (tall, wide) = pair(old), pair(new)
  images = np.random.default_rng(1).normal(size=(2, tall, wide, 3)).astype(np.float32)
  each = [
    small.apply({'params': params}, images[:, top : top + height, left : left + width])
    for top in range(0, tall, height)
    for left in range(0, wide, width)
  ]
  assert len(each) > 1 and np.ptp(each, axis=0).max() > 1e-3
  found = large.apply({'params': grown}, images)
  np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-5)


def test_parameter_counts_at_448():
  """paper.md 1.3: headless parameters at 448 pixels."""
  for name, count in {
    'S/32': 21_609_504, 'S/16': 30_068_352, 'B/32': 66_313_776, 'B/16': 86_227_392,
    'L/32': 224_018_016, 'L/16': 279_475_584, 'H/14': 588_442_368,
  }.items():  # fmt: skip
    model = models.build(f'Mixer-{name}', num_classes=None, tiles=2)
    leaves = jax.tree.leaves(models.shapes(model, 448))
    assert sum(leaf.size for leaf in leaves) == count


def test_gflops_at_448():
  for name, gflops in {'S/32': 10.48, 'B/16': 134.10, 'L/16': 474.76, 'H/14': 1290.03}.items():
    model = models.build(f'Mixer-{name}', num_classes=1000, tiles=2)
    total = sum(models.mlp_mixer.matmul_flops(model, 448).values())
    assert round(total / 1e9, 2) == gflops


def test_tile_major_order():
  """A 4 x 4 grid of 2 x 2 tiles, numbered by hand."""
  expected = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
  assert growth.tile_major((2, 2), (2, 2)).tolist() == expected


def test_sizes_that_do_not_grow():
  params = weights(build(), 16)
  with pytest.raises(
    InputError, match=r'grid of \(4, 4\) patches cannot grow to \(5, 6\)'
  ) as fault:
    start(params, build(), (20, 24))
  assert '5 rows are no multiple of 4: use 4 or 8' in str(fault.value)
  assert '6 columns are no multiple of 4: use 4 or 8' in str(fault.value)
  with pytest.raises(InputError, match=r'cannot grow to \(2, 2\): .*: use 4; .*: use 4\.'):
    start(params, build(), 8)
  with pytest.raises(InputError, match=r'set config.model.tiles=\(2, 2\), so that'):
    start(params, build(), 32)


def resized(tokens, old, new):
  """Tokens (old tokens, C) on another grid, by Pillow."""
  channels = [
    Image.fromarray(one.reshape(old)).resize(new[::-1], Image.Resampling.BILINEAR)
    for one in np.float32(tokens).T
  ]
  return np.stack([np.asarray(channel).ravel() for channel in channels], axis=1)


@pytest.mark.parametrize(
  ('old', 'new'), [((4, 4), (5, 6)), ((7, 7), (5, 5)), ((3, 5), (6, 2)), ((4, 4), (8, 8))]
)
def test_resampled_mixing_is_that_of_resized_tokens(old, new):
  small, size = build(), tuple(4 * side for side in new)
  from_size = tuple(4 * side for side in old)
  params = weights(small, from_size)
  found, words = start(params, small, size, from_size=from_size, resample=True)
  assert words.startswith(f'RESAMPLED, an approximation, from a grid of {old} patches to {new}, ')
  mlp, had = (p['MixerBlock_1']['token_mixing'] for p in (found, params))
  tokens = np.random.default_rng(2).normal(size=(new[0] * new[1], 6)).astype(np.float32)
  hidden = had['Dense_0']['kernel'].T @ resized(tokens, new, old)
  np.testing.assert_allclose(mlp['Dense_0']['kernel'].T @ tokens, hidden, atol=2e-6)
  out = had['Dense_1']['kernel'].T @ hidden + had['Dense_1']['bias'][:, None]
  again = mlp['Dense_1']['kernel'].T @ hidden + mlp['Dense_1']['bias'][:, None]
  np.testing.assert_allclose(again, resized(out, old, new), atol=1e-5)
  np.testing.assert_array_equal(mlp['Dense_0']['bias'], had['Dense_0']['bias'])

  sums = had['Dense_0']['kernel'].sum(axis=0)  # all that tokens which are equal meet
  np.testing.assert_allclose(mlp['Dense_0']['kernel'].sum(axis=0), sums, atol=1e-5)
  same = growth.resample(params, old, old)
  jax.tree.map(np.testing.assert_array_equal, same, params)


def test_a_multiple_with_tiles_grows_exactly_with_and_without_resample():
  params, large = weights(build(), 16), build(tiles=2)
  grown, words = start(params, large, 32, resample=True)
  assert words.startswith('grown from a grid of (4, 4) patches to (8, 8)')
  jax.tree.map(np.testing.assert_array_equal, grown, start(params, large, 32)[0])
  with pytest.raises(InputError, match=r'config.init.resample=True, without config.model.tiles'):
    start(params, build(), 20)


def test_a_rectangle_has_to_be_named():
  params = weights(build(), (16, 24))
  with pytest.raises(InputError, match='was made for 24 patches, .* give the size of the images'):
    start(params, build(), (16, 24))
  start(params, build(), (16, 24), from_size=(16, 24))


def head_of(params, policy, num_classes):
  model = build(num_classes, head_bias=-3.0)
  grown, words = start(params, model, 16, head=policy)
  return grown['head'], words


@pytest.mark.parametrize('policy', ['auto', 'keep', 'reset'])
@pytest.mark.parametrize('num_classes', [5, 7])
def test_head_policies(policy, num_classes):
  params = weights(build(5), 16)
  if policy == 'keep' and num_classes == 7:
    with pytest.raises(InputError, match='head=keep, but the file has 5 classes and the data 7'):
      head_of(params, policy, num_classes)
    return
  head, words = head_of(params, policy, num_classes)
  if policy == 'reset' or num_classes == 7:
    assert f'head RESET to zeros for {num_classes} classes (the file has 5 classes)' in words
    assert not head['kernel'].any() and head['kernel'].shape == (32, num_classes)
    assert (head['bias'] == -3.0).all()
  else:
    assert words == 'head kept: 5 classes'
    np.testing.assert_array_equal(head['kernel'], params['head']['kernel'])


def test_a_file_without_a_head():
  params = weights(build(None), 16)
  head, words = head_of(params, 'auto', 5)
  assert 'the file has none' in words and not head['kernel'].any()
  with pytest.raises(InputError, match='the file has no classes'):
    head_of(params, 'keep', 5)


def test_a_head_of_zeros_is_noticed():
  params = weights(build(), 16)
  params['head']['kernel'][:] = 0
  assert warm_start.has_zero_head(params)
  assert 'all zeros: it was never trained' in head_of(params, 'auto', 5)[1]


def test_an_unknown_policy():
  with pytest.raises(InputError, match="head is 'kep'; use one of"):
    head_of(weights(build(), 16), 'kep', 5)


def test_what_does_not_fit_is_listed():
  params = weights(build(), 16)
  del params['MixerBlock_1']
  with pytest.raises(InputError, match='missing   MixerBlock_1/LayerNorm_0/bias'):
    start(params, build(), 16)


def shapes_of(name, size=224):
  return jax.tree.map(
    lambda x: np.zeros(x.shape, np.float32), models.shapes(models.build(name, 5), size)
  )


@pytest.mark.parametrize(
  ('weights_of', 'size', 'built', 'image_size'),
  [
    ('Mixer-S/16', 224, 'Mixer-S/32', 224),
    ('Mixer-S/32', 224, 'Mixer-B/32', 224),
    ('Mixer-S/32', 224, 'Mixer-S/16', 448),
    ('Mixer-S/32', 64, 'Mixer-L/16', 96),
  ],
)
def test_weights_of_another_size(weights_of, size, built, image_size):
  """No advice on tiles, which cannot help."""
  text = (
    f'FILE: these weights are {weights_of}, and the config builds {built}: use '
    f'--config=FILE:model={weights_of.removeprefix("Mixer-")}.'
  )
  with pytest.raises(InputError, match=f'^{text}$'):
    start(shapes_of(weights_of, size), models.build(built, 5), image_size)


def test_weights_of_sizes_that_have_no_name():
  params = weights(build(patch_size=8), 16)
  text = (
    'FILE: these weights are a Mixer of 3 blocks of width 32 (MLPs 64) on patches of 8 x 8, and '
    'the config builds a Mixer of 3 blocks of width 32 (MLPs 64) on patches of 4 x 4: use '
    "'--config.model.patch_size=(8, 8)'."
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    start(params, build(), 16)


def test_all_that_differs_from_a_named_size_is_told_at_once():
  params = weights(build(), 16)
  text = (
    'builds Mixer-S/32: use --config.model.name=Mixer --config.model.num_blocks=3 '
    '--config.model.hidden_dim=32 --config.model.tokens_mlp_dim=16 '
    "--config.model.channels_mlp_dim=64 '--config.model.patch_size=(4, 4)'. Also, these weights "
    'are for images of 3 channels, and the images have 1; take weights and images of the same kind.'
  )
  with pytest.raises(InputError, match=f'{re.escape(text)}$'):
    warm_start.check_network(params, models.build('Mixer-S/32', 5), 'FILE', channels=1)
  with pytest.raises(InputError, match=r'^FILE: these weights are for images of 3 channels, and '):
    warm_start.check_network(params, build(), 'FILE', channels=1)


OTHER_NETWORKS = {
  'ViT': {'num_blocks': 1, 'hidden_dim': 8, 'mlp_dim': 16, 'num_heads': 2, 'patch_size': 4},
  'BiT': {'stage_sizes': (1,), 'width': 8, 'groups': 4},
}


@pytest.mark.parametrize('kind', OTHER_NETWORKS)
def test_weights_of_another_network(kind):
  other = models.build(kind, 5, **OTHER_NETWORKS[kind])
  params = noise(models.shapes(other, 16))
  mixer = r'a Mixer of 3 blocks of width 32 \(MLPs 64\) on patches of 4 x 4'
  cure = r'use a config of the same network\.$'
  text = f'^FILE: these weights are a {kind} of .+, and the config builds {mixer}; {cure}'
  with pytest.raises(InputError, match=text):
    start(params, build(), 16)
  text = f'^FILE: these weights are {mixer}, and the config builds a {kind} of .+; {cure}'
  with pytest.raises(InputError, match=text):
    start(weights(build(), 16), other, 16)


def test_weights_of_another_family_by_name():
  for weights_of, built, cure in (
    ('ViT-B/16', 'Mixer-B/16', 'ViT-B/16'),
    ('BiT-R50x1', 'ViT-S/32', 'BiT-R50x1'),
    ('Mixer-S/16', 'BiT-R101x3', 'S/16'),
  ):
    params = models.shapes(models.build(weights_of, 5), 224)
    text = (
      f'FILE: these weights are {weights_of}, and the config builds {built}; use '
      f'--config=FILE:model={cure}.'
    )
    with pytest.raises(InputError, match=f'^{text}$'):
      warm_start.check_family(params, models.build(built, 5), 'FILE')


def test_load_lays_out_for_scanned_blocks(tmp_path):
  params = weights(build(), 16)
  pretrained.save(tmp_path / 'model.npz', params)
  common = {
    'head': 'auto', 'from_size': (), 'image_size': (16, 16), 'channels': 3, 'permutation': None,
  }  # fmt: skip
  model = build(scan=True)
  found, facts = warm_start.load(path=str(tmp_path / 'model.npz'), model=model, **common)
  content = (tmp_path / 'model.npz').read_bytes()
  assert facts == {
    'source': f'{tmp_path}/model.npz',
    'bytes': len(content),
    'sha256': hashlib.sha256(content).hexdigest(),
    'changes': 'head kept: 5 classes',
  }
  images = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype(np.float32)
  np.testing.assert_allclose(
    model.apply({'params': found}, images), build().apply({'params': params}, images), atol=1e-5
  )


@pytest.mark.parametrize(
  ('head', 'now', 'warning'),
  [
    ('auto', 'abcde', None),
    ('auto', '01234', None),  # numbers of unnamed classes
    ('auto', 'abcdx', "OF OTHER NAMES: 1 of 5 differ, such as 'e' in the file and 'x' in the data"),
    (
      'auto',
      'bacde',
      "IN ANOTHER ORDER: 2 of 5 differ, such as 'a' in the file and 'b' in the data",
    ),
    ('keep', 'bacde', None),
    ('reset', 'bacde', None),
  ],
)
def test_a_head_of_as_many_other_classes(head, now, warning, tmp_path, caplog):
  facts = {'class_names': list('abcde')}
  (tmp_path / 'model.json').write_text(json.dumps(facts))
  params = weights(build(), 16)
  pretrained.save(tmp_path / 'model.npz', params)
  with caplog.at_level('WARNING', 'absl'):
    warm_start.load(
      path=str(tmp_path / 'model.npz'), model=build(), head=head, from_size=(),
      image_size=(16, 16), channels=3, permutation=None, class_names=tuple(now),
    )  # fmt: skip
  assert ('THE HEAD' in caplog.text) == (warning is not None) and (warning or '') in caplog.text


def test_a_released_head_of_1000_other_classes(tmp_path, caplog):
  params = weights(build(num_classes=1000), 16)
  pretrained.save(tmp_path / 'model.npz', params)
  synsets = [synset for synset, _ in labels.load('imagenet1k', 1000)]
  for names, warns in ((synsets, False), ([f'breed {i}' for i in range(1000)], True)):
    caplog.clear()
    with caplog.at_level('WARNING', 'absl'):
      warm_start.load(
        path=str(tmp_path / 'model.npz'), model=build(num_classes=1000), head='auto', from_size=(),
        image_size=(16, 16), channels=3, permutation=None, class_names=tuple(names),
      )  # fmt: skip
    assert ("such as 'n01440764' in the file and 'breed 0' in the data" in caplog.text) == warns


@pytest.mark.parametrize('size,from_size', [((16, 24), None), ((8, 12), (16, 12)), ((8, 8), None)])
def test_a_vit_at_another_image_size(size, from_size):
  """Its position table is interpolated, also between rectangles; nothing else changes."""
  model = models.build('ViT', 5, num_blocks=1, hidden_dim=8, mlp_dim=16, num_heads=2, patch_size=4)
  trained_size = from_size or (8, 8)
  params = noise(models.shapes(model, trained_size))
  started, changes = start(params, model, size, from_size=from_size)
  before, after = pretrained.flatten(params), pretrained.flatten(started)
  name = 'Transformer/posembed_input/pos_embedding'
  old, new = (tuple(side // 4 for side in pair(one)) for one in (trained_size, size))
  np.testing.assert_array_equal(after[name], position_tables.resize(before[name], new, old))
  assert after[name].shape == (1, 1 + new[0] * new[1], 8)
  assert (f'position table resized to a grid of {new}' in changes) == (old != new)
  assert all(np.array_equal(before[key], after[key]) for key in before if key != name)
