"""Changes to token mixing that did not help (appendix A of the paper), on its own recipes.

  python train.py --config=configs/ablations.py:model=S/32,data=jft,change=views --workdir=DIR
  python train.py --config=configs/ablations.py:data=digits,change=untied --workdir=/tmp/untied

The argument is a list of KEY=VALUE:

  model   S/32 ... H/14; not with data=digits, which has its own small model
  data    imagenet21k, imagenet2012, jft (configs/upstream.py) or digits (configs/digits.py)
  change  none     the recipe without a change
          untied   a separate token-mixing MLP for each channel
          concat   G neighboring channels are joined: a table of (S*G) x (C/G)
          views    the same table, made by G trainable linear maps of the channels
          pyramid  the token-mixing MLP of the middle block reduces the tokens to a quarter

docs/reproduction.md has the results on digits.

The paper (Mixers of several scales on JFT-300M) reports: untied, no noticeable gain; concat, less
than 1-2 % of ImageNet 5-shot top-1; views, 3-4 % of ImageNet top-5 for S/32 and nothing for larger
models; pyramid, much less training time for little loss, which does not carry over to ImageNet and
ImageNet-21k. It does not give G (here 2, `config.model.channel_groups`), or where the number of
tokens is reduced (here `config.model.pyramid`).
"""

from ml_collections import ConfigDict

from configs import common, digits, upstream

# change -> options of the model; the pyramid depends on the model.
CHANGES = {
  'none': {},
  'untied': {'untie_tokens': True},
  'concat': {'channel_groups': 2, 'grouping': 'concat'},
  'views': {'channel_groups': 2, 'grouping': 'views'},
  'pyramid': {},
}
_BLOCKS = {'S': 8, 'B': 12, 'L': 24, 'H': 32}
_DEFAULTS = {'model': 'S/32', 'data': 'jft', 'change': 'none'}


def get_config(argument: str = '') -> ConfigDict:
  options = _parse(argument)
  config, blocks, tokens = _recipe(options['model'], options['data'])
  pyramid = ((blocks // 2, tokens // 4),) if options['change'] == 'pyramid' else ()
  config.model.update({'untie_tokens': False, 'channel_groups': 1, 'grouping': 'concat'})
  config.model.update({'pyramid': pyramid, **CHANGES[options['change']]})
  return config


def _recipe(model: str, data: str) -> tuple[ConfigDict, int, int]:
  """(the config to change, its number of blocks, its number of tokens)."""
  if data == 'digits':
    config = digits.get_config()
    return config, config.model.num_blocks, (8 // config.model.patch_size) ** 2
  config = upstream.get_config(f'Mixer-{model}', data)
  size, patch = model.split('/')
  return config, _BLOCKS[size], (upstream.IMAGE_SIZE // int(patch)) ** 2


def _parse(argument: str) -> dict[str, str]:
  choices = {'change': sorted(CHANGES), 'data': ['digits', *sorted(upstream.TABLE_4)]}
  options = common.parse(argument, _DEFAULTS, choices)
  if options['data'] == 'digits' and 'model=' in argument:
    raise ValueError('data=digits has its own small model; leave out model=.')
  size, slash, patch = options['model'].partition('/')
  if size not in _BLOCKS or not slash or not patch.isdecimal():
    raise ValueError(f'model={options["model"]!r}; write one as S/32, with a size of S, B, L, H.')
  return options
