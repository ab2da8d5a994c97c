"""Pictures of what the units of a Mixer have learned.

python -m mixer.visualize --checkpoint=FILE_OR_WORKDIR --output=DIR draws the token-mixing units of
some blocks and the patches of the stem (figures 5 to 7 of the paper), as PNG and SVG, of whatever
`mixer.pretrained.load` reads. See docs/figures.md.
"""

import re

from absl import flags

from mixer import cli, files
from mixer.errors import InputError
from mixer.visualize.unit_pictures import draw_units


def main() -> None:
  blocks, grid = flags.FLAGS.blocks, flags.FLAGS.grid
  if blocks is not None and not all(block.isdecimal() for block in blocks):
    raise InputError(f'--blocks={",".join(blocks)}: give numbers from 0 on, as in 0,1,2.')
  sides = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', grid or '1x1')
  if sides is None:
    raise InputError(f'--grid={grid}: give ROWSxCOLUMNS of patches, as in 14x14.')
  output = files.absolute(flags.FLAGS.output)
  try:
    output.mkdir(parents=True, exist_ok=True)
  except OSError as fault:
    raise InputError(f'--output={output}: cannot be made a directory: {fault}.') from fault
  written = draw_units(
    flags.FLAGS.checkpoint,
    output,
    blocks=None if blocks is None else [int(block) for block in blocks],
    count=flags.FLAGS.units,
    grid=(int(sides[1]), int(sides[2])) if grid else None,
  )
  print('\n'.join(map(str, written)))


if __name__ == '__main__':
  flags.DEFINE_string('checkpoint', None, 'A file of parameters, or the workdir of a run.')
  flags.DEFINE_string('output', None, 'A directory for the pictures.')
  flags.DEFINE_list('blocks', None, 'Which blocks, from 0 on; by default 0,1,2 as far as there.')
  flags.DEFINE_integer('units', 64, 'Of each block, low frequencies first; 0: all.', lower_bound=0)
  flags.DEFINE_string('grid', None, 'ROWSxCOLUMNS of patches, where neither file nor square tells.')
  flags.mark_flags_as_required(['checkpoint', 'output'])
  cli.run(main)
