"""Trains a model: python train.py --config=configs/digits.py --workdir=/tmp/digits"""

from absl import flags, logging

from mixer import cli, config_file, runtime
from mixer.cluster import coordination
from mixer.cost import dry_run
from mixer.errors import InputError
from mixer.run import session, show_batch, trackers

config_file.define_flags()
flags.DEFINE_string('workdir', None, 'Directory for everything that the run writes.')
flags.DEFINE_enum('require', None, ['cpu', 'gpu', 'tpu'], 'Fail on any other backend.')
flags.DEFINE_bool(
  'require_evals', False, 'Fail if evaluation data are missing, instead of skipping.'
)
flags.DEFINE_bool('deterministic', False, runtime.DETERMINISM_SCOPE)
flags.DEFINE_bool('tensorboard', True, 'Also write WORKDIR/tensorboard.')
flags.DEFINE_enum(
  'track', None, sorted(trackers.TRACKERS), 'Also write to this tracker (docs/training.md).'
)
flags.DEFINE_bool('verbose', False, 'Also print the config and the table of parameters.')
flags.DEFINE_string('compilation_cache', None, 'Directory for compiled programs.')
flags.DEFINE_string('profile_steps', None, 'FIRST:LAST, traced into WORKDIR/profile.')
flags.DEFINE_float(
  'stall_seconds',
  600.0,
  'Report a step that takes longer, with the stacks of all threads; 0 for never.',
  lower_bound=0.0,
)
flags.DEFINE_string(
  'finish',
  None,
  'Train no further: write model.npz, model.json and curves.png from a checkpoint of the workdir, '
  'latest, best or the number of its step.',
)
flags.DEFINE_string(
  'show_batch', None, 'Write the first 32 images as the model sees them to this PNG, and stop.'
)
flags.DEFINE_bool(
  'dry_run', False, 'Compile the train step, print what it needs and its least time, and stop.'
)
flags.DEFINE_string('topology', None, 'With --dry_run: a TPU slice to compile for: v5e:16x16.')
flags.DEFINE_string('dry_run_output', None, 'With --dry_run: a JSON file for what it prints.')
coordination.define_flags()


def main() -> None:
  given = flags.FLAGS
  if (given.topology or given.dry_run_output) and not given.dry_run:
    raise InputError('--topology and --dry_run_output go with --dry_run.')
  if not (given.workdir or given.dry_run or given.show_batch):
    raise InputError('--workdir=DIR is missing: the directory for everything that the run writes.')
  runtime.configure(deterministic=given.deterministic, compilation_cache=given.compilation_cache)
  config = config_file.load()
  if given.dry_run and given.show_batch:
    raise InputError('--dry_run and --show_batch are two programs; give one of them.')
  if given.dry_run or given.show_batch:
    of_runs = ('finish', 'profile_steps', 'require', 'require_evals', 'track')
    unused = [name for name in of_runs if given[name].present]
    if unused:
      program = '--dry_run' if given.dry_run else '--show_batch'
      logging.warning('%s runs nothing, so --%s has no effect.', program, ', --'.join(unused))
  if given.show_batch:
    show_batch.write(config, given.show_batch)
    return
  if given.dry_run:
    dry_run.run(
      dry_run.Options(config=config, topology=given.topology, output=given.dry_run_output)
    )
    return
  session.train(
    session.Options(
      config=config,
      workdir=given.workdir,
      require=given.require,
      require_evals=given.require_evals,
      tensorboard=given.tensorboard,
      track=given.track,
      verbose=given.verbose,
      profile_steps=given.profile_steps,
      stall_seconds=given.stall_seconds,
      finish=given.finish,
      exit_early=True,
      cluster=coordination.options_from_flags(),
    )
  )


if __name__ == '__main__':
  cli.run(main)
