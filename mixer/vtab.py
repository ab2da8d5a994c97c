"""The VTAB-1k protocol for one checkpoint: nineteen tasks of 1,000 training images each.

  python -m mixer.vtab --checkpoint=Mixer-B_16.npz --model=B/16 --workdir=DIR

For each task, train.py with configs/vtab.py: on 800 images with each learning rate of the paper's,
judged on 200 others, then on all 1,000 with the best; top-1 on the test set. Tasks whose data are
not prepared are listed and left out. Flags it does not know go to train.py. The same command goes
on where it was stopped. See docs/vtab.md.
"""

from collections.abc import Callable, Sequence
import csv
import io
import json
import pathlib
import re
import statistics

from absl import flags
from etils import epath
import jax

from mixer import cli, files, paper, pretrained, sweep
from mixer.errors import InputError, MissingData
from mixer.run import workdirs

CONFIG = pathlib.Path(__file__).parent.parent / 'configs' / 'vtab.py'
RATES = ('0.003', '0.01', '0.03')  # appendix C
# What the protocol gives to train.py itself.
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
    run: trains and evaluates, or knows the result already.
    rates: to choose from, of each task's own accuracy on its 200 images or, with
      `one_learning_rate`, of the mean over the tasks. Of equal ones the first.
    seeds: final runs of each task.
    report: is given the results so far after each task.
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
  """Runs of train.py, each in a workdir of its own that also keeps its result."""

  def run(task: str, stage: str, rate: str, seed: int) -> float:
    own = directory / task / (f'{stage}-{rate}' + (f'-seed{seed}' if seed else ''))
    result = own / 'result.json'
    if not result.exists():
      config = f'{CONFIG}:task={task},model={model}'
      row = sweep.train(config, stage, rate, own, [*rest, f'--config.seed={seed}'])
      files.write(result, json.dumps(row, indent=1).encode())
    if stage == 'dev':  # three runs a task whose weights nobody wants
      (own / 'checkpoints').rmtree(missing_ok=True)
      (own / 'model.npz').unlink(missing_ok=True)
    return json.loads(result.read_text())['dev/top1' if stage == 'dev' else 'test/top1']

  return run


def summary(
  results: dict[str, dict], groups: dict[str, str], model: str, overrides: dict[str, str]
) -> dict:
  """The means over what is there; `groups` has the group of each of the nineteen tasks."""
  test = {task: statistics.fmean(one['test']) for task, one in results.items()}
  facts: dict = {'tasks': {}, 'groups': {}, 'complete': set(results) == set(groups)}
  facts |= {'model': model, 'overrides': overrides}
  for task, one in results.items():
    facts['tasks'][task] = {
      'group': groups[task],
      **one,
      'val_top1': one['dev'][one['learning_rate']],
      'test_top1': test[task],
      'test_std': statistics.pstdev(one['test']),
    }
  for group in dict.fromkeys(groups.values()):
    found = [test[task] for task in results if groups[task] == group]
    of = list(groups.values()).count(group)
    mean = statistics.fmean(found) if found else None
    facts['groups'][group] = {'mean': mean, 'tasks': len(found), 'of': of}
  facts['mean'] = statistics.fmean(test.values())
  for row in paper.rows(f'Mixer-{model}'):
    if row.vtab is not None:
      data = paper.DATA_NAMES[row.data]
      facts['paper'] = {'pretrained_on': data, 'vtab_1k': row.vtab / 100}
  return facts


def markdown(facts: dict) -> str:
  """The table of a `summary`, in per cent."""
  lines = ['| task | group | learning rate | val | test |', '|---|---|---|---|---|']
  for task, one in facts['tasks'].items():
    spread = f' ± {100 * one["test_std"]:.2f}' if len(one['test']) > 1 else ''
    lines.append(
      f'| {task} | {one["group"]} | {one["learning_rate"]} | {100 * one["val_top1"]:.2f} '
      f'| {100 * one["test_top1"]:.2f}{spread} |'
    )
  for group, one in facts['groups'].items():
    if one['tasks']:
      count = one['of'] if one['tasks'] == one['of'] else f'{one["tasks"]} of {one["of"]}'
      lines.append(f'| **{group}**, mean of {count} | | | | {100 * one["mean"]:.2f} |')
  name = 'VTAB-1k, mean of the nineteen' if facts['complete'] else 'mean of k tasks, not VTAB-1k'
  name = name.replace('of k', f'of {len(facts["tasks"])}')
  lines.append(f'| **{name}** | | | | {100 * facts["mean"]:.2f} |')
  if 'paper' in facts:
    lines.append(
      f'| the paper, pre-trained on {facts["paper"]["pretrained_on"]} | | | '
      f'| {100 * facts["paper"]["vtab_1k"]:.2f} |'
    )
  if facts['overrides']:
    given = ', '.join(f'{key}={value}' for key, value in facts['overrides'].items())
    lines += ['', f'Not as configs/vtab.py has it: {given}.']
  return '\n'.join(lines) + '\n'


def table(facts: dict) -> str:
  """The tasks of a `summary` as CSV, as shares of 1."""
  text = io.StringIO()
  keys = ('group', 'learning_rate', 'val_top1', 'test_top1', 'test_std')
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(('task', *keys))
  writer.writerows((task, *(one[key] for key in keys)) for task, one in facts['tasks'].items())
  return text.getvalue()


def find_data(asked: Sequence[str], data_dir: str | None, require_all: bool) -> dict[str, str]:
  """{task: its prepared set with the version}; tells the tasks whose data are missing."""
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
    print(f'SKIPPED: {text}', flush=True)
  return found


def check_rest(rest: Sequence[str]) -> dict[str, str]:
  """{config key: value} of the flags for train.py; InputError for those that are not its to set."""
  own = [word for word in rest if _OWN.fullmatch(word)]
  if own or any(not word.startswith('--') for word in rest):
    raise InputError(
      f'{own or list(rest)} cannot be passed on to train.py: the protocol sets the checkpoint, the '
      'task, the learning rates and the seeds itself (--checkpoint, --tasks, --learning_rates, '
      '--seeds, --data_dir); all else is written --config.KEY=VALUE.'
    )
  words = [word for word in rest if re.match(r'--(no)?config\.', word)]
  pairs = [word.removeprefix('--').removeprefix('config.').partition('=') for word in words]
  return {key: value for key, _, value in pairs}


def main(*rest: str) -> None:
  jax.config.update('jax_platforms', 'cpu')  # the accelerator is for the runs that are started
  sweep.end_on_sigterm()
  given = flags.FLAGS
  overrides = check_rest(rest)
  checkpoint = pretrained.identify(files.absolute(given.checkpoint))
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
    files.write(directory / 'vtab.csv', table(facts).encode())
    files.write(directory / 'vtab.md', markdown(facts).encode())

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
  print((directory / 'vtab.md').read_text() + f'written to {directory}/vtab.json, .csv and .md')


if __name__ == '__main__':
  flags.DEFINE_string('checkpoint', None, 'Any file of weights, or a workdir.', required=True)
  flags.DEFINE_string('model', None, 'Its model, such as B/16.', required=True)
  flags.DEFINE_string('workdir', None, 'Holds a workdir for each run.', required=True)
  flags.DEFINE_list('tasks', None, 'Some of the tasks; without, all nineteen.')
  flags.DEFINE_string('data_dir', None, "Where TFDS sets lie; None for TFDS's own default.")
  flags.DEFINE_bool('require_all', False, 'Stop where the data of a task are missing.')
  flags.DEFINE_list('learning_rates', list(RATES), 'The grid.')
  flags.DEFINE_bool('one_learning_rate', False, 'One for all tasks, by the mean of their val.')
  flags.DEFINE_integer('seeds', 1, 'Final runs of each task.', lower_bound=1)
  cli.run(main, keep_unknown=True)
