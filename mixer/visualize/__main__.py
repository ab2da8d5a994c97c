"""Draws what the units of a Mixer have learned: figures 5 to 7 of the paper.

  python -m mixer.visualize --checkpoint=FILE_OR_WORKDIR --output=DIR

Writes the token-mixing units of some blocks (block_I) and the patches of the stem (stem) as PNG and
SVG. FILE_OR_WORKDIR is any file of weights, or the workdir of a run. See docs/figures.md.
"""

import re

from absl import flags

from mixer import cli, console, files, pretrained
from mixer.errors import InputError
from mixer.visualize import unit_pictures


def main() -> None:
  blocks, grid = flags.FLAGS.blocks, flags.FLAGS.grid
  if blocks is not None and not all(block.isdecimal() for block in blocks):
    raise InputError(f'--blocks={",".join(blocks)}: give indices of blocks, such as 0,1,2.')
  sides = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', grid or '1x1')
  if sides is None:
    raise InputError(f'--grid={grid}: give ROWSxCOLUMNS of patches, such as 14x14.')
  output = files.absolute(flags.FLAGS.output)
  try:
    output.mkdir(parents=True, exist_ok=True)
  except OSError as fault:
    raise InputError(f'--output={output}: cannot create this directory: {fault}.') from fault
  files.check_writable(output / 'stem.png')
  found = unit_pictures.pictures(
    pretrained.open(
      flags.FLAGS.checkpoint, flags.FLAGS.which, allow_invalid=flags.FLAGS.allow_invalid
    ),
    None if blocks is None else [int(block) for block in blocks],
    flags.FLAGS.units,
    (int(sides[1]), int(sides[2])) if grid else None,
  )
  for name, mosaic in found.items():
    for ending, content in (('png', mosaic.png()), ('svg', mosaic.svg())):
      path = output / f'{name}.{ending}'
      files.write(path, content)
      console.print_line(path)


if __name__ == '__main__':
  flags.DEFINE_string('checkpoint', None, 'A file of weights, or the workdir of a run.')
  flags.DEFINE_string('which', None, pretrained.WHICH_HELP)
  flags.DEFINE_bool('allow_invalid', False, pretrained.ALLOW_INVALID_HELP)
  flags.DEFINE_string('output', None, 'The directory to write to; created if missing.')
  flags.DEFINE_list('blocks', None, 'Indices of blocks; default: the first three. Empty: none.')
  flags.DEFINE_integer(
    'units', 64, 'Units per block, low frequencies first; 0: all.', lower_bound=0
  )
  flags.DEFINE_string('grid', None, 'ROWSxCOLUMNS of patches; default: as recorded, or a square.')
  flags.mark_flags_as_required(['checkpoint', 'output'])
  cli.run(main)
