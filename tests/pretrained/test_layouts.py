"""Names of parameters: from every layout to the released one, and to timm's."""

import re

import numpy as np
import pytest

from mixer.errors import InputError
from mixer.pretrained import layouts
import weights
from weights import tree

LAYOUTS = {
  'released': weights.flat,
  'older': weights.older,
  'scanned': weights.scanned,
  'timm': weights.timm,
}


def same(actual, wanted):
  assert actual.keys() == wanted.keys()
  for name, array in wanted.items():
    np.testing.assert_array_equal(actual[name], array, err_msg=name)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('num_classes', [5, None])
def test_to_released(layout, num_classes):
  """Twelve blocks: 10 comes after 2, and so does LayerNorm_10 after LayerNorm_2."""
  params = tree(blocks=12, num_classes=num_classes)
  converted, found, dropped, _ = layouts.to_released(LAYOUTS[layout](params))
  same(converted, weights.flat(params))
  assert (found, dropped) == (layout, [])


@pytest.mark.parametrize('wrapper', ['params/', 'opt/target/', 'opt/target/params/'])
@pytest.mark.parametrize('layout', ['released', 'older', 'scanned'])
def test_wrapped(layout, wrapper):
  inside = LAYOUTS[layout](tree())
  wrapped = {wrapper + name: array for name, array in inside.items()}
  beside = {'step': np.int64(3), 'opt/state/step': np.int64(3), 'extra/a/b': np.ones(2)}
  converted, found, dropped, _ = layouts.to_released(wrapped | beside)
  same(converted, weights.flat(tree()))
  assert found == f"{layout} under '{wrapper}'"
  assert dropped == list(beside)


def test_what_is_no_optimizer_state_stays():
  """Nothing else disappears: the check against a model must see it."""
  wrapped = weights.flat(tree(), 'params/') | {'batch_stats/mean': np.ones(2)}
  converted, _, dropped, _ = layouts.to_released(wrapped)
  assert 'batch_stats/mean' in converted and not dropped
  plain, _, dropped, _ = layouts.to_released(weights.flat(tree()) | {'opt/mu': np.ones(2)})
  assert 'opt/mu' in plain and not dropped
  for layout in ('older', 'timm', 'scanned'):
    converted, *_ = layouts.to_released(LAYOUTS[layout](tree()) | {'surplus': np.ones(2)})
    assert converted.keys() - weights.flat(tree()).keys() == {'surplus'}
  state = weights.timm(tree()) | {'blocks.0.ls1.weight': np.ones(2), 'stem.norm.weight': np.ones(2)}
  converted, *_ = layouts.to_released(state)
  assert {'blocks.0.ls1.weight', 'stem.norm.weight'} < converted.keys()


def test_axes_of_older_files():
  """Singleton axes go wherever they stand; a wrong shape stays wrong."""
  older = weights.older(tree())
  prefix = 'Mixer/encoderblock_0/token_mixing_phase_0/'
  older[prefix + 'kernel1'] = older[prefix + 'kernel1'].reshape(4, 1, 1, 6)
  older[prefix + 'bias1'] = older[prefix + 'bias1'].reshape(1, 6, 1)
  same(layouts.to_released(older)[0], weights.flat(tree()))
  older[prefix + 'kernel2'] = np.zeros((2, 3, 4))
  converted, *_ = layouts.to_released(older)
  assert converted['MixerBlock_0/token_mixing/Dense_1/kernel'].shape == (2, 3, 4)


def test_to_timm():
  params = tree(blocks=12)
  state = layouts.to_timm(weights.flat(params))
  same(state, weights.timm(params))
  assert all(array.flags.c_contiguous for array in state.values())
  same(layouts.to_released(state)[0], weights.flat(params))
  text = re.escape("timm's Mixer has no place for pre_logits/kernel, a.")
  with pytest.raises(InputError, match=f'^{text}$'):
    layouts.to_timm({'head/bias': np.ones(2), 'pre_logits/kernel': np.ones(2), 'a': np.ones(2)})


def test_unknown_layouts():
  text = (
    'the 5 parameters are in no known layout: a, b, c, d, .... Known are\n'
    '  released       MixerBlock_0/token_mixing/Dense_0/kernel\n'
    '  scanned        MixerBlocks/token_mixing/Dense_0/kernel\n'
    '  older          Mixer/encoderblock_0/token_mixing_phase_0/kernel1\n'
    '  timm           blocks.0.mlp_tokens.fc1.weight\n'
    '  bit            block1/unit01/conv1/kernel\n'
    '  bit_tf         resnet/block1/unit01/a/standardized_conv2d/kernel\n'
    '  bit_timm       stages.0.blocks.0.conv1.weight\n'
    '  vit            Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel\n'
    '  vit_big_vision Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel\n'
    '  vit_scanned    Transformer/encoderblock/MlpBlock_0/Dense_0/kernel\n'
    '  vit_timm       blocks.0.attn.qkv.weight\n'
    "each also under 'params/', 'opt/target/', 'module.', 'model.' and the like. Rename the "
    'parameters to one of them.'
  )
  with pytest.raises(InputError, match=f'^{re.escape(text)}$'):
    layouts.to_released({name: np.ones(1) for name in 'abcde'})
  mixed = weights.flat(tree()) | weights.timm(tree())
  text = "the 84 parameters are names of the layouts ['released', 'timm'] mixed: "
  with pytest.raises(InputError, match=f'^{re.escape(text)}'):
    layouts.to_released(mixed)


def test_two_arrays_for_one_parameter():
  older = weights.older(tree())
  with pytest.raises(InputError, match='^two arrays for stem/kernel: the names mix layouts, '):
    layouts.to_released(older | {'stem/kernel': older['embedding/kernel']})
