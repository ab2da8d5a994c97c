"""Writes a folder as timm puts it on a model hub: config.json, model.safetensors, README.md.

`mixer.pretrained.hub` reads it, and so does timm.create_model('local-dir:FOLDER', pretrained=True).
"""

from collections.abc import Mapping
import json
import math

from etils import epath
import jax
import numpy as np
import safetensors.numpy

from mixer import files, models
from mixer.errors import InputError
from mixer.input import describe_preprocessing
from mixer.pretrained import dimensions, layouts, trees
from mixer.pretrained.description import Description
from mixer.timm_names import ARCHITECTURES

WEIGHTS_FILE, CARD_FILE = 'model.safetensors', 'README.md'
# What the name of a timm model stands for. Arguments can replace these of a ViT, and no others.
_NAMED = {
  'Mixer': ('num_blocks', 'hidden_dim', 'patch_size'),
  'ViT': ('num_blocks', 'hidden_dim', 'mlp_dim', 'num_heads', 'patch_size'),
  'BiT': ('stage_sizes', 'width'),
}
# family -> (first convolution, head, whether the size of the images is fixed, tag of the card)
_PARTS = {
  'Mixer': ('stem.proj', 'head', True, 'mlp-mixer'),
  'ViT': ('patch_embed.proj', 'head', True, 'vision-transformer'),
  'BiT': ('stem.conv', 'head.fc', False, 'big-transfer'),
}
# Evaluation crops -> timm's crop_mode and interpolation. Of Pillow's filters bilinear is nearest to
# the area filter of resize_small: pixels of two photos of 640 x 427 differ by 3 and 6 of 255.
_CROPS = {
  'resize_small': ('center', 'bilinear'),
  'resize': ('squash', 'bilinear'),
  'direct': ('squash', 'bilinear'),
  'none': ('center', 'bicubic'),
}


def check(folder: epath.Path) -> None:
  """Raises InputError if the folder has files that `write` does not write; hidden ones may be."""
  if not folder.exists():
    return
  if not folder.is_dir():
    raise InputError(f'cannot write {folder}/: it is a file; give the name of a folder.')
  own = {files.CONFIG_FILE, WEIGHTS_FILE, CARD_FILE}
  there = {path.name: path for path in folder.iterdir() if path.name[0] != '.'}
  others = sorted(name for name, path in there.items() if name not in own or not path.is_file())
  if not others and there.keys() - {CARD_FILE}:  # files of a model: of one that timm has recorded?
    config = there.get(files.CONFIG_FILE)
    if config is None or '"architecture"' not in config.read_text():
      others = sorted(there.keys() - {CARD_FILE})
  if others:
    raise InputError(
      f'cannot write {folder}/: it has files of something else ({", ".join(others[:3])}); give a '
      'new or an empty folder.'
    )


def write(folder: epath.Path, model, params: Mapping, description: Description) -> None:
  """Writes the three files; a README.md that is there is kept.

  Args:
    folder: made if it is missing; see `check`.
    model: of `mixer.models`.
    params: of the model, in the released layout.
    description: of the model; without `classes` and `loss` if they are not recorded.

  Raises:
    InputError: timm has no such model.
  """
  config = _config(model, params, description)
  # The config comes first: `check` knows by it what it may replace after a kill.
  files.write(folder / files.CONFIG_FILE, json.dumps(config, indent=2).encode())
  files.write(folder / WEIGHTS_FILE, weights(params))
  if not (folder / CARD_FILE).exists():
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    tag = _PARTS[dimensions.family(params)][-1]
    card = _card(files.absolute(str(folder)).name, tag, config, description, count)
    files.write_text(folder / CARD_FILE, card)


def weights(params: Mapping) -> bytes:
  """The content of a .safetensors file with the state dict of timm's model."""
  state = layouts.to_timm(trees.flatten(params))
  return safetensors.numpy.save(state, metadata={'format': 'pt'})


def _config(model, params: Mapping, description: Description) -> dict:
  architecture, arguments = _architecture(model, params)
  family = dimensions.family(params)
  first_conv, classifier, is_fixed, _ = _PARTS[family]
  channels = description.channels
  if channels != 3:
    arguments['in_chans'] = channels
  is_token = getattr(model, 'pool', 'gap') == 'token'
  config = {
    'architecture': architecture,
    'num_classes': model.num_classes or 0,
    'num_features': model.hidden_dim,
    'global_pool': 'token' if is_token else 'avg',
  }
  if description.classes:
    config['label_names'] = [synset or name for synset, name in description.classes]
    named = {synset: name for synset, name in description.classes if synset}
    config |= {'label_descriptions': named} if named else {}
  config |= {'model_args': arguments} if arguments else {}
  config |= {'loss': description.loss} if description.loss else {}  # not a key of timm
  config['pretrained_cfg'] = {
    'num_classes': model.num_classes or 0,
    'input_size': [channels, *description.image_size],
    'fixed_input_size': is_fixed,
    **_preprocessing(description.preprocessing, description.image_size),
    'mean': [0.5] * channels,
    'std': [0.5] * channels,
    'first_conv': first_conv,
    'classifier': classifier,
  }
  return config


def _architecture(model, params: Mapping) -> tuple[str, dict]:
  """(timm's name, the arguments by which the model differs from the named one)."""
  if dimensions.is_changed(params):
    raise InputError('timm has no Mixer with the token mixing of appendix A; write an .npz.')
  found = dimensions.infer(params, 'the model').model
  family = found['name']
  name = _named(found)
  if getattr(model, 'groups', 32) != 32:
    raise InputError(f"timm's BiT has 32 groups, and this one {model.groups}; write an .npz.")
  if name is None and family != 'ViT':
    known = [ours for ours in ARCHITECTURES if ours.startswith(family)]
    raise InputError(
      f'{dimensions.called(found)} is not in timm, which has {", ".join(known)}. Write an .npz '
      'or, for its names alone, a .safetensors.'
    )
  if family == 'Mixer':
    widths = found['tokens_mlp_dim'], found['channels_mlp_dim']
    ratios = [_ratio(width, found['hidden_dim']) for width in widths]
    return name, {} if ratios == [0.5, 4] else {'mlp_ratio': ratios}
  return (name, {}) if family == 'BiT' else _vit_architecture(name, found)


def _named(found: Mapping) -> str | None:
  """timm's name of a model, whatever its arguments can replace; None if there is none."""
  for ours, theirs in ARCHITECTURES.items():
    if ours.startswith(f'{found["name"]}-'):
      preset = dimensions.of_model(models.build(ours, None))
      if all(preset[key] == found[key] for key in _NAMED[found['name']]):
        return theirs
  return None


def _vit_architecture(name: str | None, found: Mapping) -> tuple[str, dict]:
  if found['representation_layer']:
    raise InputError("timm's ViT has no representation layer before the head; write an .npz.")
  arguments = {'act_layer': 'gelu_tanh'}
  if found['pool'] == 'gap':
    arguments |= {'class_token': False, 'global_pool': 'avg', 'fc_norm': False}
  if name is None:
    name = 'vit_base_patch16_224'
    arguments |= {
      'patch_size': list(found['patch_size']),
      'embed_dim': found['hidden_dim'],
      'depth': found['num_blocks'],
      'num_heads': found['num_heads'],
      'mlp_ratio': _ratio(found['mlp_dim'], found['hidden_dim']),
    }
  return name, arguments


def _ratio(width: int, of: int) -> float:
  """A ratio of which timm's int(ratio * of) is `width`, whatever the rounding."""
  exact = width / of
  return exact if int(exact * of) == width else (width + 0.5) / of


def _preprocessing(own: Mapping, size: tuple[int, int]) -> dict:
  """timm's keys for the evaluation that is nearest to ours."""
  mode, interpolation = _CROPS.get(own['name']) or (own['mode'], own['interpolation'])
  resize = own.get('resize') or size
  share = min(1.0, *(crop / side for crop, side in zip(size, resize, strict=True)))
  while math.floor(size[0] / share) < resize[0]:  # timm rounds down
    share = float(np.nextafter(share, 0))
  return {'interpolation': interpolation, 'crop_pct': share, 'crop_mode': mode}


_CARD = """---
library_name: timm
pipeline_tag: {pipeline}
tags:
- {pipeline}
- timm
- {tag}
---
# Model card for {title}

No license is stated: add `license:` to the metadata above.

- **Architecture:** `{architecture}` of timm, {count:.1f} M parameters
- **Images:** {height} x {width} pixels, {channels} channels, values (pixel / 255 - 0.5) / 0.5
- **Preprocessing:** {preprocessing}
- **Outputs:** {outputs}

```python
import timm

name = 'hf-hub:OWNER/NAME'  # or local-dir:FOLDER
model = timm.create_model(name, pretrained=True{option}).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
{use}
```
{gelu}"""
_GELU = """
The code that wrote these files computes GELU in its tanh form. `act_layer` gives it to timm's
Mixer, which has the form by erf otherwise, and no key in `config.json` for it.
"""
_PROBABILITIES = {
  'sigmoid': 'logits.sigmoid()  # a probability for each class on its own',
  'softmax': 'logits.softmax(-1)',
}


def _card(title: str, tag: str, config: Mapping, description: Description, count: int) -> str:
  own = description.preprocessing
  channels, height, width = config['pretrained_cfg']['input_size']
  is_mixer = config['architecture'].startswith('mixer')
  classes, loss = config['num_classes'], description.loss
  outputs, use = f'{config["num_features"]} features', 'features = model(transform(image)[None])'
  if classes:
    trained = f'trained with the {loss} loss' if loss else 'the training loss is not recorded'
    outputs = f'logits of {classes} classes; {trained}'
    use = 'logits = model(transform(image)[None])'
    use += f'\nprobabilities = {_PROBABILITIES[loss]}' if loss in _PROBABILITIES else ''
  return _CARD.format(
    pipeline='image-classification' if classes else 'image-feature-extraction',
    tag=tag,
    title=title,
    architecture=config['architecture'],
    count=count / 1e6,
    height=height,
    width=width,
    channels=channels,
    preprocessing='as in `config.json`' if own['name'] == 'timm' else describe_preprocessing(own),
    outputs=outputs,
    option=', act_layer=timm.layers.GELUTanh' if is_mixer else '',
    use=use,
    gelu=_GELU if is_mixer else '',
  )
