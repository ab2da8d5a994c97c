"""Units as pictures: planted gratings come out in order, for any checkpoint that is a Mixer's."""

import io
import json
import re
import subprocess
import sys
from xml.etree import ElementTree

import jax
import numpy as np
from PIL import Image
import pytest

from mixer import models, pretrained
from mixer.checkpoints import manager
from mixer.errors import InputError
from mixer.visualize import __main__ as program
from mixer.visualize import unit_pictures, units
import runs
import weights

GRID = (8, 12)


def grating(cycles_y, cycles_x, phase=0.0):
  rows, columns = np.mgrid[: GRID[0], : GRID[1]]
  return np.cos(2 * np.pi * (cycles_y * rows / GRID[0] + cycles_x * columns / GRID[1]) + phase)


# From low to high frequency, in cycles per step along rows and columns.
WAVES = [(0, 0), (0, 1), (1, 0), (1, 2), (2, 1), (0, 4), (3, 3), (4, 6)]
RADII = [np.hypot(y / GRID[0], x / GRID[1]) for y, x in WAVES]


def planted(seed=0):
  """Units (16, 8, 12) of the gratings and their inverses, shuffled; where each has gone."""
  rng = np.random.default_rng(seed)
  stack = np.stack([sign * grating(*wave) for wave in WAVES for sign in (1.0, -1.0)])
  stack *= rng.uniform(0.5, 2.0, (len(stack), 1, 1))
  shuffle = rng.permutation(len(stack))
  return np.float32(stack[shuffle]), np.argsort(shuffle)


def test_frequency_of_a_grating_is_its_radius():
  stack = np.stack([grating(*wave, phase=0.3) for wave in WAVES[:-1]])
  np.testing.assert_allclose(units.frequencies(stack), RADII[:-1], atol=1e-6)
  mixture = (grating(0, 3) + 2 * grating(0, 6))[None]  # the second has, at Nyquist, 8 x the power
  np.testing.assert_allclose(units.frequencies(mixture), (0.25 + 8 * 0.5) / 9, atol=1e-6)
  assert units.frequencies(np.zeros((1, 3, 3)))[0] == np.inf
  colours = np.stack([grating(0, 3), grating(0, 3), 0 * grating(0, 3)], axis=-1)[None]
  np.testing.assert_allclose(units.frequencies(colours), 0.25, atol=1e-6)


def test_planted_units_come_out_in_pairs_low_frequencies_first():
  stack, places = planted()
  order = units.in_pairs(stack)
  wanted = [{int(places[2 * k]), int(places[2 * k + 1])} for k in range(len(WAVES))]
  assert [set(order[i : i + 2]) for i in range(0, 16, 2)] == wanted


def test_the_best_pair_is_made_first():
  """Unit 0 is rather the opposite of unit 2, but unit 1 is exactly."""
  down, up = grating(1, 0), -grating(1, 0)
  stack = np.stack([down + 0.5 * grating(2, 1), down, up, -down + 0.5 * grating(2, 1)])
  assert {frozenset(pair) for pair in units.pairs(stack)} == {frozenset((1, 2)), frozenset((0, 3))}


def test_a_unit_without_a_partner_comes_last():
  stack, _ = planted()
  order = units.in_pairs(stack[:5])
  assert sorted(order) == list(range(5))
  dead = np.concatenate([np.zeros((1, *GRID), np.float32), stack])
  assert 0 in units.in_pairs(dead)[-2:]


def test_colours():
  tiles = units.red_and_blue(np.float32([[[2.0, 0.0, -2.0, 1.0]], [[0.0, 0.0, 0.0, 0.0]]]))
  assert tiles.dtype == np.uint8 and tiles.shape == (2, 1, 4, 3)
  red, white, blue, half = tiles[0, 0].tolist()
  assert white == [255] * 3 and red[0] > red[2] and blue[2] > blue[0]
  np.testing.assert_allclose(half, (np.array(red) + 255) / 2, atol=1)
  assert (tiles[1] == 255).all()
  grey = units.as_colours(np.float32([[[[-1.0], [0.0], [1.0]]]]))
  assert grey[0, 0].tolist() == [[0] * 3, [128] * 3, [255] * 3]
  colour = units.as_colours(np.float32([[[[1.0, 0.0, -1.0]]]]))
  assert colour[0, 0, 0].tolist() == [255, 128, 0]


@pytest.mark.parametrize('count', [1, 2, 3, 64, 384, 768])
@pytest.mark.parametrize('paired', [True, False])
def test_pictures_have_a_tile_for_each_unit(count, paired):
  tiles = np.zeros((count, 16, 12, 3), np.uint8)  # black, on grey
  of = [unit_pictures.Unit(number, 0.25, 1.5) for number in range(count)]
  bar = np.full((9, 3), 255, np.uint8)
  mosaic = unit_pictures.Mosaic('a <b> & c', tiles, of, bar, paired)
  image = np.asarray(Image.open(io.BytesIO(mosaic.png())))
  runs_of_black = [
    ((line == 0) & (np.append(255, line[:-1]) != 0)).sum()
    for line in (image[60, :, 0], image[:, 20, 0])
  ]
  across, down = runs_of_black
  assert (across - 1) * down < count <= across * down and (count < 2 or across % 2 == 0)
  assert (image == 0).all(axis=2).sum() == count * 64 * 48
  assert (image == 255).all(axis=2).sum() == 96 * 12  # the scale of colours
  drawn = ElementTree.fromstring(mosaic.svg())
  images = drawn.findall('{*}image')
  assert [one.findtext('{*}title') for one in images[:-1]] == [
    f'unit {i}, frequency 0.250 cycles per step, largest absolute weight 1.5' for i in range(count)
  ]
  assert len({(one.get('x'), one.get('y')) for one in images}) == count + 1
  texts = [one.text for one in drawn.findall('{*}text')]
  assert texts[0] == 'a <b> & c' and texts[-4:-1] == ['-w', '0', 'w']
  assert texts[1:-4] == [text for i in range(count) for text in (str(i), '1.5')]
  if count == 64:
    assert across == 8 and down == 8  # as in figure 5


@pytest.fixture(scope='module')
def model():
  """A Mixer on 8 x 12 patches whose second block has the planted units."""
  params = weights.tree(blocks=4, image_size=(32, 48), tokens_mlp_dim=16)
  params['MixerBlock_1']['token_mixing']['Dense_0']['kernel'] = planted()[0].reshape(16, -1).T
  return params


def pictures(path, *arguments, **options):
  opened = pretrained.open(path, allow_invalid=True)
  return unit_pictures.pictures(opened, *arguments, **options)


@pytest.mark.parametrize('layout', ['released', 'older', 'scanned', 'timm'])
def test_any_layout_gives_the_same_pictures(layout, model, tmp_path):
  if layout == 'timm':
    (tmp_path / 'm.safetensors').write_bytes(weights.safetensors_bytes(weights.timm(model)))
  else:
    write = {'released': weights.flat, 'older': weights.older, 'scanned': weights.scanned}[layout]
    (tmp_path / 'm.npz').write_bytes(weights.npz(write(model)))
  (path,) = tmp_path.glob('m.*')
  found = pictures(path, grid=GRID)
  assert list(found) == ['block_0', 'block_1', 'block_2', 'stem']
  tiles, of = found['block_1'].tiles, found['block_1'].units
  stack, places = planted()
  first_two = stack[sorted((places[0], places[1]))]
  np.testing.assert_array_equal(tiles[:2], units.red_and_blue(first_two))
  assert len(tiles) == 16 and tiles.shape[1:] == (*GRID, 3)
  assert found['block_1'].paired and not found['stem'].paired
  assert {of[0].number, of[1].number} == {places[0], places[1]} and of[0].frequency < 1e-6
  np.testing.assert_allclose(of[0].largest, np.abs(stack[of[0].number]).max(), rtol=1e-6)
  assert found['block_1'].title == 'Block 1: all 16 token-mixing units on the grid of patches'
  assert found['stem'].tiles.shape == (8, 4, 4, 3)


@pytest.mark.parametrize('name', ['ViT', 'BiT'])
def test_the_stem_of_other_models(name, tmp_path):
  sizes = {
    'ViT': {'num_blocks': 1, 'hidden_dim': 12, 'mlp_dim': 8, 'num_heads': 2, 'patch_size': 4},
    'BiT': {'stage_sizes': (1,), 'width': 8, 'groups': 4},
  }[name]
  net = models.build(name, 5, **sizes)
  params = jax.tree.map(
    lambda x: np.random.default_rng(0).standard_normal(x.shape).astype(np.float32),
    models.shapes(net, 32, 1),
  )
  pretrained.save(tmp_path / 'm.npz', params)
  (tmp_path / 'm.json').write_text(json.dumps({'image_size': [32, 32]}))
  found = pictures(tmp_path / 'm.npz')
  side, units_ = {'ViT': (4, 12), 'BiT': (7, 8)}[name]
  assert list(found) == ['stem'] and found['stem'].tiles.shape == (units_, side, side, 3)
  with pytest.raises(InputError, match='has no blocks of a Mixer; leave out --blocks to draw its'):
    pictures(tmp_path / 'm.npz', [0])


def run_main(monkeypatch, **flags):
  values = {
    'blocks': None, 'units': 64, 'grid': None, 'which': None, 'allow_invalid': False, **flags
  }  # fmt: skip
  monkeypatch.setattr(program.flags, 'FLAGS', type('Flags', (), values))
  program.main()


def test_files_of_chosen_blocks_and_units(model, tmp_path, monkeypatch, capsys):
  pretrained.save(tmp_path / 'm.npz', model)
  flags = {'blocks': ['3'], 'units': 6, 'grid': '8x12', 'output': str(tmp_path / 'out')}
  run_main(monkeypatch, checkpoint=str(tmp_path / 'm.npz'), **flags)
  names = ['block_3.png', 'block_3.svg', 'stem.png', 'stem.svg']
  assert capsys.readouterr().out.split() == [f'{tmp_path}/out/{name}' for name in names]
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == names
  assert (tmp_path / 'out' / 'block_3.svg').read_text().count('<title>') == 6
  assert (tmp_path / 'out' / 'stem.svg').read_text().count('<title>') == 8
  assert (tmp_path / 'out' / 'block_3.png').read_bytes().startswith(b'\x89PNG')
  assert len(pictures(tmp_path / 'm.npz', [1], 0, GRID)['block_1'].tiles) == 16


def test_the_grid_is_that_of_the_description_or_a_square(model, tmp_path):
  pretrained.save(tmp_path / 'm.npz', model)
  with pytest.raises(InputError, match=r'its 96 tokens make no square; .*--grid=ROWSxCOLUMNS'):
    pictures(tmp_path / 'm.npz')
  assert list(pictures(tmp_path / 'm.npz', [])) == ['stem']
  (tmp_path / 'm.json').write_text(json.dumps({'image_size': [32, 48]}))
  assert pictures(tmp_path / 'm.npz')['block_0'].tiles.shape[1:3] == GRID
  (tmp_path / 'm.json').write_text(json.dumps({'size': 3}))
  with pytest.raises(InputError, match=r'its 96 tokens make no square; .*--grid=ROWSxCOLUMNS'):
    pictures(tmp_path / 'm.npz')
  (tmp_path / 'm.json').write_text('[]')
  with pytest.raises(InputError, match='m.json is damaged in line 1: a JSON object is expected'):
    pictures(tmp_path / 'm.npz')
  grown = weights.tree(image_size=16, tokens_mlp_dim=24)
  grown['stem']['kernel'] = grown['stem']['kernel'][:, :, :1]  # of grey images
  pretrained.save(tmp_path / 'grown.npz', grown)
  found = pictures(tmp_path / 'grown.npz')
  assert found['block_0'].tiles.shape == (24, 4, 4, 3)
  assert found['stem'].tiles.shape == (8, 4, 4, 3)


def test_the_grid_of_a_run_that_goes_on_is_that_of_its_config(model, tmp_path):
  """96 patches of 4 x 4: 8 x 12, and with others as many make 16 x 6."""
  saved = manager.Checkpoints(tmp_path / 'checkpoints')
  saved.save(1, {'params': model})
  saved.close()
  for size, grid in (([32, 48], (8, 12)), ([64, 24], (16, 6))):
    (tmp_path / 'config.json').write_text(json.dumps({'train_input': {'image_size': size}}))
    assert pictures(tmp_path)['block_0'].tiles.shape[1:3] == grid


def test_weights_of_permuted_images_make_no_pictures(model, tmp_path):
  pretrained.save(tmp_path / 'm.npz', model)
  section = {'kind': 'patch_pixel', 'seed': 0, 'patch_size': 4}
  facts = {'image_size': [32, 48], 'permutation': section}
  (tmp_path / 'm.json').write_text(json.dumps(facts))
  for blocks in (None, []):
    with pytest.raises(InputError, match='was trained with the input permutation {.*no pictures'):
      pictures(tmp_path / 'm.npz', blocks)
  (tmp_path / 'm.json').write_text(
    json.dumps({**facts, 'permutation': {**section, 'kind': 'none'}})
  )
  assert pictures(tmp_path / 'm.npz')


@pytest.mark.parametrize(
  'change,blocks,words',
  [
    ({}, [4], r'has the blocks 0 to 3; there is no block 4'),
    ({'MixerBlock_0/token_mixing/Dense_0/kernel': np.ones((9, 4))}, [0], 'mixes 9 tokens, and'),
    ({'MixerBlock_0/token_mixing/Dense_0/kernel': np.ones((9, 4, 2))}, [0], 'is (9, 4, 2)'),
    ({'MixerBlock_0/untied_token_mixing/Dense_0/kernel': np.ones((9, 4, 2))}, [0],
     'block 0 has untied_token_mixing, a variant of appendix A'),
    ({'stem/kernel': np.ones((4, 4, 2, 8))}, [], 'only those of grey and colour images'),
    ({'stem/kernel': np.full((4, 4, 3, 8), np.nan)}, [], 'values that are not finite'),
    ({'stem/kernel': None}, [], 'has no stem/kernel, so it is not a Mixer in the released layout'),
  ],
)  # fmt: skip
def test_what_cannot_be_drawn(change, blocks, words, model, tmp_path):
  flat = {k: v for k, v in {**weights.flat(model), **change}.items() if v is not None}
  (tmp_path / 'm.npz').write_bytes(weights.npz(flat))
  with pytest.raises(InputError, match=re.escape(words)):
    pictures(tmp_path / 'm.npz', blocks, grid=GRID)


def test_invalid_parameters_are_drawn_on_request(model, tmp_path, monkeypatch, capsys):
  """Those that are finite, of a file whose head is not."""
  (tmp_path / 'm.npz').write_bytes(
    weights.npz({**weights.flat(model), 'head/bias': np.full(5, np.nan, np.float32)})
  )
  given = {'checkpoint': str(tmp_path / 'm.npz'), 'output': str(tmp_path), 'blocks': []}
  with pytest.raises(InputError, match='has 1 invalid parameters:\n  head/bias: 5 NaN of 5\n'):
    run_main(monkeypatch, **given)
  run_main(monkeypatch, **given, allow_invalid=True)
  assert capsys.readouterr().out.split() == [f'{tmp_path}/stem.png', f'{tmp_path}/stem.svg']


def test_command(model, tmp_path):
  pretrained.save(tmp_path / 'm.npz', model)
  done = subprocess.run(
    [sys.executable, '-m', 'mixer.visualize', f'--checkpoint={tmp_path}/m.npz', '--grid=8x12',
     f'--output={tmp_path}/new/pictures', '--blocks=1', '--units=4'],
    cwd=runs.ROOT, env=runs.environment(), text=True, capture_output=True, timeout=300,
  )  # fmt: skip
  assert done.returncode == 0 and done.stdout.split() == [
    f'{tmp_path}/new/pictures/{name}.{ending}'
    for name in ('block_1', 'stem') for ending in ('png', 'svg')
  ]  # fmt: skip


@pytest.mark.parametrize(
  'flags,words',
  [
    (dict(grid='8,12'), '--grid=8,12: give ROWSxCOLUMNS of patches, such as 14x14.'),
    (dict(blocks=['a']), '--blocks=a: give indices of blocks, such as 0,1,2.'),
    (dict(output='{tmp}/file'), '--output={tmp}/file: cannot create this directory'),
    (dict(checkpoint='{tmp}/file'), 'is empty'),
    (dict(checkpoint='{tmp}/none.npz'), 'none.npz'),
  ],
)
def test_wrong_flags(flags, words, monkeypatch, tmp_path):
  (tmp_path / 'file').touch()
  values = {'output': '{tmp}/out', 'checkpoint': '{tmp}/m.npz', **flags}
  values = {k: v.format(tmp=tmp_path) if isinstance(v, str) else v for k, v in values.items()}
  with pytest.raises(InputError, match=re.escape(words.format(tmp=tmp_path))):
    run_main(monkeypatch, **values)
