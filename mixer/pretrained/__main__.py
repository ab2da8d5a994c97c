"""Prints what a file of parameters is: python -m mixer.pretrained FILE"""

from absl import flags
from etils import epath
import jax

from mixer import cli, pretrained
from mixer.pretrained import inference, released, warm_start


def summarize(path: epath.PathLike, *, allow_invalid: bool = False) -> str:
  """What a file of parameters or a workdir is, as lines of 'what  value'."""
  path = pretrained.local(path)
  found = pretrained.open(path, allow_invalid=allow_invalid)
  mixer = inference.infer(found.params, found.source)
  sizes = ('num_blocks', 'hidden_dim', 'tokens_mlp_dim', 'channels_mlp_dim')
  height, width = mixer.model['patch_size']
  pixels = mixer.image_size
  classes = mixer.model['num_classes']
  head = 'none' if classes is None else f'{classes} classes'
  if warm_start.has_zero_head(found.params):
    head += ', ALL ZEROS: it was never trained, and classifies nothing'
  leaves = jax.tree.leaves(found.params)
  count, size = sum(leaf.size for leaf in leaves), found.identity['bytes']
  facts = {**mixer.model, 'tokens': mixer.tokens}
  lines = {
    'file': found.source,
    'kind': found.kind,
    'layout': found.layout,
    'model': inference.size_name(mixer.model) or 'Mixer of another size',
    'sizes': ', '.join(f'{name} {mixer.model[name]}' for name in sizes),
    'patches': f'{height} x {width} pixels, {mixer.channels} channels, {mixer.tokens} tokens'
    + (f', as of images of {pixels[0]} x {pixels[1]}' if pixels else ', which make no square'),
    'head': head,
    'parameters': f'{count:,} in {len(leaves)} arrays of {", ".join(found.dtypes)}',
    'bytes': f'{size:,}',
    'sha256': found.identity['sha256'],
    'known as': released.describe(path.name, path.parent.name, size, facts),
  }
  if found.faults:
    lines['INVALID'] = '\n            '.join(found.faults)
  return '\n'.join(f'{what:<11} {value}' for what, value in lines.items())


def main(path: str) -> None:
  print(summarize(path, allow_invalid=flags.FLAGS.allow_invalid))


if __name__ == '__main__':
  flags.DEFINE_bool('allow_invalid', False, pretrained.ALLOW_INVALID_HELP)
  cli.run(main)
