"""The VTAB-1k protocol for one checkpoint: nineteen tasks of 1,000 training images each.

  python -m mixer.vtab --checkpoint=Mixer-B_16.npz --model=B/16 --workdir=DIR

For each task, runs train.py with configs/vtab.py: on 800 images with each learning rate of the
paper, evaluated on 200 others, then on all 1,000 with the best, evaluated on the test set. Tasks
whose data are not prepared are listed and skipped. Other flags are passed to train.py. An
interrupted program continues with the same command. See docs/vtab.md.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import re
import statistics

from absl import flags
from etils import epath
import jax

from mixer import cli, console, files, paper, pretrained, shipped, sweep
from mixer.errors import InputError, MissingData
from mixer.run import workdirs

CONFIG = shipped.CONFIGS / 'vtab.py'
RATES = ('0.003', '0.01', '0.03')  # appendix C
# Flags of train.py that the protocol sets.
_OWN = re.compile(
  r'--?config(\.(init\.path|optim\.learning_rate|seed|train_input\.(task|split|data_dir)))?(=.*)?'
)

Runner = Callable[[str, str, str, int], float]  # (task, stage, learning rate, seed) -> top-1


def protocol(
  run: Runner,
  tasks: Sequence[str],
  *,
  rates: Sequence[str],
  seeds: int,
  one_learning_rate: bool,
  report: Callable[[dict], None],
) -> dict[str, dict]:
  """{task: {'learning_rate', 'dev': {rate: top-1}, 'test': [top-1 for each seed]}}.

  Args:
    run: trains and evaluates; returns at once for a finished run.
    tasks: names of tasks.
    rates: the learning rates. Each task takes the one with the best accuracy on its 200 images, the
      first of equal ones; with `one_learning_rate` all take that with the best mean.
    seeds: final runs of each task.
    report: called with the results so far after each task.
  """

  def dev(task: str) -> dict[str, float]:
    return {rate: run(task, 'dev', rate, 0) for rate in rates}

  shared = None
  if one_learning_rate:
    of_tasks = [dev(task) for task in tasks]
    shared = max(rates, key=lambda rate: statistics.fmean(each[rate] for each in of_tasks))
  results = {}
  for task in tasks:
    accuracies = dev(task)
    rate = shared or max(rates, key=accuracies.get)
    test = [run(task, 'final', rate, seed) for seed in range(seeds)]
    results[task] = {'learning_rate': rate, 'dev': accuracies, 'test': test}
    report(results)
  return results


def runner(model: str, directory: epath.Path, rest: Sequence[str]) -> Runner:
  """Runs train.py in DIRECTORY/TASK/STAGE-RATE, where the result is kept too."""

  def run(task: str, stage: str, rate: str, seed: int) -> float:
    workdir = directory / task / (f'{stage}-{rate}' + (f'-seed{seed}' if seed else ''))
    result = workdir / 'result.json'
    if not result.exists():
      config = f'{CONFIG}:task={task},model={model}'
      row = sweep.train_stage(config, stage, rate, workdir, [*rest, f'--config.seed={seed}'])
      files.write(result, json.dumps(row, indent=1).encode())
    if stage == 'dev':  # only its accuracy is needed
      (workdir / 'checkpoints').rmtree(missing_ok=True)
      (workdir / 'model.npz').unlink(missing_ok=True)
    row = files.read_json(result, advice=f'Delete {workdir}, and start again.')
    return row['dev/top1' if stage == 'dev' else 'test/top1']

  return run


def summary(
  results: Mapping[str, dict], groups: Mapping[str, str], model: str, overrides: Mapping[str, str]
) -> dict:
  """The results with their means; `groups` is {task: its group} of all nineteen tasks."""
  tasks = {
    task: {
      'group': groups[task],
      **one,
      'val_top1': one['dev'][one['learning_rate']],
      'test_top1': statistics.fmean(one['test']),
      'test_std': statistics.pstdev(one['test']),
    }
    for task, one in results.items()
  }
  facts = {
    'tasks': tasks,
    'groups': {},
    'complete': set(tasks) == set(groups),
    'model': model,
    'overrides': overrides,
    'mean': statistics.fmean(one['test_top1'] for one in tasks.values()),
  }
  for group in dict.fromkeys(groups.values()):
    found = [one['test_top1'] for one in tasks.values() if one['group'] == group]
    mean, of = statistics.fmean(found) if found else None, list(groups.values()).count(group)
    facts['groups'][group] = {'mean': mean, 'tasks': len(found), 'of': of}
  for row in paper.rows(f'Mixer-{model}'):
    if row.vtab is not None:
      data = paper.DATA_NAMES[row.data]
      facts['paper'] = {'pretrained_on': data, 'vtab_1k': row.vtab / 100}
  return facts


def markdown(facts: Mapping) -> str:
  """The table of a `summary`, in percent."""
  lines = ['| task | group | learning rate | val | test |', '|---|---|---|---|---|']
  for task, one in facts['tasks'].items():
    spread = f' ± {100 * one["test_std"]:.2f}' if len(one['test']) > 1 else ''
    lines.append(
      f'| {task} | {one["group"]} | {one["learning_rate"]} | {100 * one["val_top1"]:.2f} '
      f'| {100 * one["test_top1"]:.2f}{spread} |'
    )
  means = {
    f'**{group}**, mean of {one["tasks"]}'
    + (f' of {one["of"]}' if one['tasks'] < one['of'] else ''): one['mean']
    for group, one in facts['groups'].items()
    if one['tasks']
  }
  some = f'**mean of {len(facts["tasks"])} tasks, not VTAB-1k**'
  means['**VTAB-1k, mean of all 19 tasks**' if facts['complete'] else some] = facts['mean']
  if 'paper' in facts:
    name = f'the paper, pre-trained on {facts["paper"]["pretrained_on"]}'
    means[name] = facts['paper']['vtab_1k']
  lines += [f'| {name} | | | | {100 * mean:.2f} |' for name, mean in means.items()]
  if facts['overrides']:
    given = ', '.join(f'{key}={value}' for key, value in facts['overrides'].items())
    lines += ['', f'Differs from configs/vtab.py in: {given}.']
  return '\n'.join(lines) + '\n'


def table(facts: Mapping) -> list[dict]:
  """A row for each task of a `summary`; accuracies are shares of 1."""
  keys = ('group', 'learning_rate', 'val_top1', 'test_top1', 'test_std')
  return [{'task': task, **{k: one[k] for k in keys}} for task, one in facts['tasks'].items()]


def find_data(asked: Sequence[str], data_dir: str | None, require_all: bool) -> dict[str, str]:
  """{task: its prepared set with the version}; prints the tasks whose data are missing."""
  from mixer.input.sources import vtab as data  # loads TensorFlow

  found, missing = {}, []
  for task in asked or data.TASKS:
    try:
      found[task] = data.find(task, data_dir)
    except MissingData:
      missing.append(f'  {task:<22} {data.preparation(task, data_dir)}')
  if missing:
    text = f'{len(missing)} of the tasks have no data; to prepare them:\n' + '\n'.join(missing)
    if require_all or not found:
      raise MissingData(text)
    console.print_line(f'SKIPPED: {text}')
  return found


def check_rest(rest: Sequence[str]) -> dict[str, str]:
  """{config key: value} of the flags for train.py; InputError for those that the protocol sets."""
  own = [flag for flag in rest if _OWN.fullmatch(flag)]
  if own or any(not flag.startswith('--') for flag in rest):
    raise InputError(
      f'{own or list(rest)} cannot be passed to train.py: the protocol sets the checkpoint, the '
      'task, the learning rates and the seeds itself (--checkpoint, --tasks, --learning_rates, '
      '--seeds, --data_dir); write other settings as --config.KEY=VALUE.'
    )
  pairs = [
    flag.removeprefix('--').removeprefix('config.').partition('=')
    for flag in rest
    if re.match(r'--(no)?config\.', flag)
  ]
  return {key: value for key, _, value in pairs}


def main(*rest: str) -> None:
  jax.config.update('jax_platforms', 'cpu')  # the accelerator is for the subprocesses
  sweep.exit_on_sigterm()
  given = flags.FLAGS
  overrides = check_rest(rest)
  checkpoint = pretrained.open(files.absolute(given.checkpoint)).identity
  sets = find_data(given.tasks, given.data_dir, given.require_all)
  directory = workdirs.prepare(given.workdir)
  claimed = {'checkpoint': checkpoint['sha256'], 'model': given.model, **overrides}
  started = (directory / files.CONFIG_FILE).exists()
  workdirs.claim(directory, claimed, started=started)

  from mixer.input.sources import vtab as data

  groups = {name: task.group for name, task in data.TASKS.items()}

  def report(results: dict) -> None:
    facts = summary(results, groups, given.model, overrides)
    facts |= {'checkpoint': checkpoint, 'sets': sets, 'one_rate': given.one_learning_rate}
    files.write(directory / 'vtab.json', json.dumps(facts, indent=1).encode())
    files.write_csv(directory / 'vtab.csv', table(facts))
    files.write_text(directory / 'vtab.md', markdown(facts))

  own = [f'--config.init.path={checkpoint["source"]}']
  own += [f'--config.train_input.data_dir={given.data_dir}'] if given.data_dir else []
  protocol(
    runner(given.model, directory, [*own, *rest]),
    list(sets),
    rates=given.learning_rates,
    seeds=given.seeds,
    one_learning_rate=given.one_learning_rate,
    report=report,
  )
  console.print_line(
    (directory / 'vtab.md').read_text() + f'written: {directory}/vtab.json, .csv and .md'
  )


if __name__ == '__main__':
  flags.DEFINE_string('checkpoint', None, 'A file of weights, or a workdir.', required=True)
  flags.DEFINE_string('model', None, 'The model of the checkpoint, such as B/16.', required=True)
  flags.DEFINE_string('workdir', None, 'For the workdirs of the runs.', required=True)
  flags.DEFINE_list('tasks', None, 'Names of tasks; default: all nineteen.')
  flags.DEFINE_string('data_dir', None, 'The directory of the TFDS sets; default: that of TFDS.')
  flags.DEFINE_bool('require_all', False, 'Fail if the data of a task are missing.')
  flags.DEFINE_list('learning_rates', list(RATES), 'The grid.')
  flags.DEFINE_bool('one_learning_rate', False, 'One for all tasks, by mean validation accuracy.')
  flags.DEFINE_integer('seeds', 1, 'Final runs of each task.', lower_bound=1)
  cli.run(main, keep_unknown=True)
