"""What the train step of each shipped config costs, at its true widths and two blocks.

  python tests/step_costs.py                      # writes tests/step_costs.json
  python tests/step_costs.py digits:model=Mixer   # prints those of a config or more

The tests compare with the file. Write it after a change that is meant to make a step heavier or
lighter, and say so in the commit.
"""

import importlib
import json
import os
import pathlib
import sys

if __name__ == '__main__':
  os.environ['JAX_PLATFORMS'] = 'cpu'
  sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax

from mixer import input as inputs
from mixer.cost import dry_run
from mixer.run import build
from mixer.training import train_step

GOLDEN = pathlib.Path(__file__).with_suffix('.json')
BATCH_SIZE = 8
SHALLOW = {'Mixer': {'num_blocks': 2}, 'ViT': {'num_blocks': 2}, 'BiT': {'stage_sizes': (1, 1)}}
CONFIGS = (
  'mixer_s16:jft', 'mixer_s32:jft', 'mixer_b16:imagenet2012', 'mixer_b16:imagenet21k',
  'vit:B/16,imagenet21k', 'bit:R50x1,jft', 'finetune:model=B/16',
  'finetune:model=B/16,recipe=vision_transformer', 'digits:model=Mixer', 'digits:model=ViT',
  'digits:model=BiT', 'fashion_mnist:model=Mixer', 'fashion_mnist:model=ViT',
  'fashion_mnist:model=BiT',
)  # fmt: skip
# Of other inputs, which the step does not see: the classes.
_CLASSES = {
  'imagenet2012': 1000, 'imagenet21k': 21_843, 'jft': 18_291, 'finetune': 10, 'fashion_mnist': 10
}  # fmt: skip


def program(name: str) -> tuple[build.Program, dict]:
  """(the program of a config 'FILE:ARGUMENT' for one device, the shapes of a batch)."""
  file, _, argument = name.partition(':')
  config = importlib.import_module(f'configs.{file}').get_config(argument).to_dict()
  config['model'] |= SHALLOW[config['model']['name'].partition('-')[0]]
  section = config['train_input']
  if section['source'] == 'digits':
    section['batch_size'] = BATCH_SIZE
  else:
    config['train_input'] = {
      'source': 'synthetic', 'num_examples': 10**7, 'batch_size': BATCH_SIZE,
      'image_size': section['image_size'], 'channels': 1 if file == 'fashion_mnist' else 3,
      'num_classes': _CLASSES.get(argument.rpartition(',')[2]) or _CLASSES[file],
      'multi_label': 'jft' in argument,
    }  # fmt: skip
  if config['optim'].get('freeze'):
    config['init'] = {'path': 'file.npz'}  # which nobody reads here
  config |= {'evals': {}, 'checkpoints': {**config['checkpoints'], 'keep_best': None}}
  config = build.check(config)
  data = inputs.build(**config.train_input)
  made = build.build(config, data, jax.devices()[:1])
  return made, dry_run.abstract_batch(data, made.mesh)


def lowered_cost(name: str) -> dict[str, int]:
  """Before XLA fuses anything: FLOPs, and the bytes of all operands and results."""
  made, batch = program(name)
  with jax.set_mesh(made.mesh):
    return _cost(jax.jit(made.step_fn, donate_argnums=0).lower(made.like, batch))


def compiled_cost(name: str) -> dict[str, int]:
  """The same of the program that runs, and the bytes of its temporaries."""
  made, batch = program(name)
  compiled = train_step.compile_step(made.step_fn, made.like, batch, made.mesh)
  return {**_cost(compiled), 'temporaries': compiled.memory_analysis().temp_size_in_bytes}


def _cost(stage: jax.stages.Lowered | jax.stages.Compiled) -> dict[str, int]:
  cost = stage.cost_analysis()
  return {'flops': round(cost['flops']), 'bytes accessed': round(cost['bytes accessed'])}


def versions() -> dict[str, str]:
  return {'jax': jax.__version__, 'jaxlib': jax.lib.__version__}


def main(names: list[str]) -> None:
  found = {}
  for name in names or CONFIGS:
    found[name] = {'lowered': lowered_cost(name), 'compiled': compiled_cost(name)}
    print(json.dumps({name: found[name]}), flush=True)
  if not names:
    report = {'versions': versions(), 'costs': found}
    GOLDEN.write_text(json.dumps(report, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
  main(sys.argv[1:])
