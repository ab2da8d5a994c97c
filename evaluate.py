"""Evaluates a checkpoint: python evaluate.py --config=configs/digits.py --checkpoint=/tmp/digits

The checkpoint is the workdir of a run, or a file of parameters: .npz, .safetensors or .pth in any
layout that docs/weights.md lists. Every evaluation of the config is run; the results are printed
and written as JSON.
"""

from absl import flags

from mixer import cli, config_file
from mixer.cluster import coordination
from mixer.run import evaluation

config_file.define_flags()
flags.DEFINE_string('checkpoint', None, 'A file of parameters, or the workdir of a run.')
flags.DEFINE_string(
  'which',
  'newest',
  'Of a workdir: the latest (newest) or best checkpoint, or its step. With config.ema also '
  'latest:raw, latest:ema and so on.',
)
flags.DEFINE_string(
  'output',
  None,
  'JSON file for the results; by default WORKDIR/evaluation/CONFIG-step_STEP.json, or '
  'FILE.evaluation/CONFIG.json beside a file.',
)
flags.DEFINE_string(
  'per_image',
  None,
  'CSV or JSON-lines file (.csv, .jsonl) for the place, label and five most probable classes of '
  'each image.',
)
flags.DEFINE_bool(
  'require_evals', False, 'Fail if evaluation data are missing, instead of skipping.'
)
flags.DEFINE_enum('require', None, ['cpu', 'gpu', 'tpu'], 'Fail on any other backend.')
coordination.define_flags()
flags.mark_flags_as_required(['checkpoint'])


def main() -> None:
  given = flags.FLAGS
  evaluation.evaluate(
    evaluation.Options(
      config=config_file.load(),
      checkpoint=given.checkpoint,
      which=given.which,
      name=config_file.name(given.config),
      output=given.output,
      per_image=given.per_image,
      require=given.require,
      require_evals=given.require_evals,
      cluster=coordination.options_from_flags(),
    )
  )


if __name__ == '__main__':
  cli.run(main)
