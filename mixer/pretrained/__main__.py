"""Prints what a file of parameters is: python -m mixer.pretrained FILE"""

from absl import flags
from etils import epath
import jax

from mixer import cli, pretrained
from mixer.pretrained import dimensions, released, warm_start


def summarize(path: epath.PathLike, *, allow_invalid: bool = False) -> str:
  """What a file of parameters or a workdir is, as lines of 'what  value'."""
  path = pretrained.local(path)
  found = pretrained.open(path, allow_invalid=allow_invalid)
  of = dimensions.infer(found.params, found.source)
  classes = of.model['num_classes']
  head = 'none' if classes is None else f'{classes} classes'
  if warm_start.has_zero_head(found.params):
    head += ', ALL ZEROS: it was never trained, and classifies nothing'
  leaves = jax.tree.leaves(found.params)
  count, size = sum(leaf.size for leaf in leaves), found.identity['bytes']
  name = dimensions.size_name(of.model)
  facts = {**of.model, 'tokens': of.tokens, 'size': name}
  shown = [key for key in of.model if key not in ('name', 'num_classes', 'patch_size')]
  lines = {
    'file': found.source,
    'kind': found.kind,
    'layout': found.layout,
    'model': name or f'{of.model["name"]} of another size',
    'sizes': ', '.join(f'{key} {of.model[key]}' for key in shown),
    **({'patches': _patches(of)} if of.tokens else {'images': f'{of.channels} channels'}),
    'head': head,
    'parameters': f'{count:,} in {len(leaves)} arrays of {", ".join(found.dtypes)}',
    'bytes': f'{size:,}',
    'sha256': found.identity['sha256'],
    'known as': released.describe(path.name, path.parent.name, size, facts),
  }
  if found.faults:
    lines['INVALID'] = '\n            '.join(found.faults)
  return '\n'.join(f'{what:<11} {value}' for what, value in lines.items())


def _patches(of: dimensions.Inferred) -> str:
  height, width = of.model['patch_size']
  pixels = of.image_size
  shape = f', as of images of {pixels[0]} x {pixels[1]}' if pixels else ', which make no square'
  return f'{height} x {width} pixels, {of.channels} channels, {of.tokens} tokens{shape}'


def main(path: str) -> None:
  print(summarize(path, allow_invalid=flags.FLAGS.allow_invalid))


if __name__ == '__main__':
  flags.DEFINE_bool('allow_invalid', False, pretrained.ALLOW_INVALID_HELP)
  cli.run(main)
