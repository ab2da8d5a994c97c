"""The checkpoints that Google released, as far as they are known without their bytes.

Sources: the bucket's listing in vision_transformer's notebook, the authors' remarks in
huggingface/pytorch-image-models#651, table 3 of the paper. Nobody published checksums of these
files, so a file is matched by its name, its size and its shapes, never by its content. Of the files
of ViT and BiT, neither sizes nor a listing are known here: only the names decide.
"""

from collections.abc import Mapping
import dataclasses
import re

BUCKET = 'https://storage.googleapis.com/mixer_models/'
LOSS = 'sigmoid'  # of all Mixers, as far as is known
_MIB = 1 << 20
PREPROCESSING = 'pixels in [-1, 1] (not the ImageNet mean and deviation)'
NEVER = (
  'JFT-300M weights, H/14 of any kind and a B/16 or L/16 fine-tuned from ImageNet-21k to ImageNet '
  'were never released'
)


@dataclasses.dataclass(frozen=True)
class Released:
  """One file of the bucket; 224 pixels, float32."""

  path: str  # below BUCKET
  mib: float  # its size, to two decimals
  hidden_dim: int
  num_blocks: int
  patch: int
  num_classes: int
  upstream: str
  expected: str  # accuracy
  note: str = ''

  @property
  def url(self) -> str:
    return BUCKET + self.path


_FROM_SCRATCH = 'ImageNet, from scratch'
_IN21K = 'ImageNet-21k'
_SAM = 'ImageNet, from scratch with SAM (arXiv 2106.01548)'
_GSAM = 'ImageNet, from scratch with GSAM (arXiv 2203.08065)'
_NONE = 'none in the Mixer paper'
_TIMM_TAG = 'timm tags it goog_in21k_ft_in1k; it never saw ImageNet-21k'
_HEAD = 'the head is that of ImageNet-21k: fine-tune before classifying ImageNet; after that, '

RELEASED = (
  Released(
    'imagenet1k/Mixer-B_16.npz', 228.47, 768, 12, 16, 1000, _FROM_SCRATCH,
    'ImageNet top-1 76.44 in the paper, 76.6 in timm', _TIMM_TAG,
  ),
  Released(
    'imagenet1k/Mixer-L_16.npz', 794.29, 1024, 24, 16, 1000, _FROM_SCRATCH,
    'ImageNet top-1 71.76 in the paper, 72.1 in timm', _TIMM_TAG,
  ),
  Released(
    'imagenet21k/Mixer-B_16.npz', 289.61, 768, 12, 16, 21843, _IN21K,
    _HEAD + 'top-1 80.64 at 224 pixels in the paper',
  ),
  Released(
    'imagenet21k/Mixer-L_16.npz', 875.78, 1024, 24, 16, 21843, _IN21K,
    _HEAD + 'top-1 82.89 at 224 pixels and 83.91 at 448 in the paper',
  ),
  Released('sam/Mixer-B_16.npz', 228.47, 768, 12, 16, 1000, _SAM, _NONE),
  Released('sam/Mixer-B_32.npz', 230.04, 768, 12, 32, 1000, _SAM, _NONE),
  Released('gsam/Mixer-B_16.npz', 228.47, 768, 12, 16, 1000, _GSAM, _NONE),
  Released('gsam/Mixer-B_32.npz', 230.04, 768, 12, 32, 1000, _GSAM, _NONE),
  Released('gsam/Mixer-S_16.npz', 70.71, 512, 8, 16, 1000, _GSAM, _NONE),
  Released('gsam/Mixer-S_32.npz', 72.91, 512, 8, 32, 1000, _GSAM, _NONE),
  Released('gsam/Mixer-S_8.npz', 78.79, 512, 8, 8, 1000, _GSAM, _NONE),
)  # fmt: skip
NUM_CLASSES = {entry.num_classes for entry in RELEASED}

_BIT_NAME = re.compile(r'BiT-([SM])-(R\d+x\d+)(-ILSVRC2012)?\.npz')
_BIT_SIZES = ('R50x1', 'R50x3', 'R101x1', 'R101x3', 'R152x2', 'R152x4')
_BIT_DATA = {'S': 'ImageNet', 'M': 'ImageNet-21k'}
_VIT_NAME = re.compile(r'(?:ViT-)?(Ti|S|B|L|H)_(\d+).*\.npz')
_VIT_DATA = {
  'imagenet21k': 'ImageNet-21k (first released with heads of zeros)',
  'imagenet21k+imagenet2012': 'ImageNet-21k, then ImageNet',
  'augreg': 'as its name says (arXiv 2106.10270)',
  'sam': _SAM,
  'gsam': _GSAM,
}


def loss(family: str, num_classes: int) -> str:
  """The training loss to assume of a file: of 'Mixer', 'ViT' or 'BiT', with a released head.

  No file has it. Of ViT and BiT this is not confirmed; it changes the probabilities and not their
  order.
  """
  return LOSS if family == 'Mixer' or num_classes != 1000 else 'softmax'


def match(name: str, folder: str, size: int, found: Mapping) -> list[Released]:
  """The entries with the shapes and the size of a file, to the digits that are known.

  Args:
    name, folder: of the file; an entry with the same ones excludes the others.
    size: in bytes.
    found: 'num_classes', 'num_blocks', 'hidden_dim', 'patch_size' and 'tokens' of a Mixer.
  """
  fits = [
    entry
    for entry in RELEASED
    if abs(size / _MIB - entry.mib) <= 0.0051
    and found['tokens'] == (224 // entry.patch) ** 2
    and (entry.hidden_dim, entry.num_blocks) == (found['hidden_dim'], found['num_blocks'])
    and (entry.patch, entry.patch) == tuple(found['patch_size'])
    and entry.num_classes == found['num_classes']
  ]
  named = [entry for entry in fits if entry.path == f'{folder}/{name}']
  return named or fits


def describe(name: str, folder: str, size: int, found: Mapping) -> str:
  """What `match` finds, as lines of text; of a ViT or BiT, `found` has 'name' and 'size'."""
  if found.get('name') in ('ViT', 'BiT'):
    return _describe_by_name(name, folder, found)
  entries = match(name, folder, size, found)
  if not entries:
    return f'unknown file; {NEVER}'
  if entries[0].path == f'{folder}/{name}':
    lines = ['by name, size and shapes (no checksum was published) the released file']
  else:
    lines = ['unknown file, of the same size and shapes as these released ones:']
  for entry in entries:
    lines += [
      f'  {entry.url}',
      f'    upstream data: {entry.upstream}; head: {entry.num_classes} classes; 224 pixels; '
      f'{PREPROCESSING}',
      f'    expected accuracy: {entry.expected}' + (f'; {entry.note}' if entry.note else ''),
    ]
  return '\n'.join(lines)


def _describe_by_name(name: str, folder: str, found: Mapping) -> str:
  bit, vit = _BIT_NAME.fullmatch(name), _VIT_NAME.fullmatch(name)
  url = 'https://storage.googleapis.com/'
  if found['name'] == 'BiT' and bit and bit[2] in _BIT_SIZES and found['size'] == f'BiT-{bit[2]}':
    url, data = f'{url}bit_models/{name}', _BIT_DATA[bit[1]] + (', then ImageNet' if bit[3] else '')
  elif (
    found['name'] == 'ViT'
    and vit
    and folder in _VIT_DATA
    and found['size'] == f'ViT-{vit[1]}/{vit[2]}'
  ):
    url, data = f'{url}vit_models/{folder}/{name}', _VIT_DATA[folder]
  elif found['name'] == 'BiT':
    return (
      'unknown file; of BiT trained on JFT-300M none was released, and of R50x2, R152x1 and R200x3 '
      'none at all'
    )
  else:
    return f'unknown file; the released ones are in folders named {", ".join(_VIT_DATA)}'
  return (
    f'by name and sizes (no checksum was published) the released file\n  {url}\n'
    f'    upstream data: {data}; {PREPROCESSING}'
  )
