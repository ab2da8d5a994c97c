"""Writes a report: the page from `report.html.jinja`, and the table of metrics beside it."""

from collections.abc import Sequence
import dataclasses
import importlib.resources

from etils import epath
import jinja2

from mixer import files, settings
from mixer.report import curves, details, galleries, pareto, sections
from mixer.report.run_files import Run

_SCRIPTS = ('uplot/uPlot.iife.min.js', 'charts.js', 'tables.js')


@dataclasses.dataclass(frozen=True)
class Script:
  """A script of the page, and the source by which its security policy permits it."""

  text: str

  @property
  def source(self) -> str:
    return files.policy_source(self.text)


def write(runs: Sequence[Run], output: epath.Path, samples: int) -> None:
  """Writes the page to `output` and the table of metrics to the .csv beside it."""
  units, predicted = zip(*(galleries.of_run(run, samples) for run in runs))
  charts = curves.charts(runs)
  page = template().render(
    title=f'Report on {runs[0].label}' if len(runs) == 1 else f'Report on {len(runs)} runs',
    status='; '.join(sections.status(run) for run in runs),
    charts=charts,
    curves=curves.to_json(runs, charts),
    scripts=[Script(_own_file(name)) for name in _SCRIPTS],
    uplot_css=f'/* uPlot\n{_own_file("uplot/LICENSE")}*/\n{_own_file("uplot/uPlot.min.css")}',
    results=sections.results(runs),
    paper=sections.paper_comparison(runs),
    details=list(details.read(runs)),
    cost=sections.cost(runs),
    wall_time=sections.wall_time(runs),
    pareto=pareto.chart(runs),
    units=units,
    samples=predicted,
    differences=sections.differences(runs),
    configs=[(run.label, settings.flatten(run.config)) for run in runs],
    versions=sections.versions(runs),
  )
  files.write_text(output, page)
  files.write_csv(output.with_suffix('.csv'), table_of_metrics(runs))


def _own_file(name: str) -> str:
  return importlib.resources.files('mixer.report').joinpath(name).read_text('utf-8')


def template() -> jinja2.Template:
  return jinja2.Template(
    _own_file('report.html.jinja'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )


def table_of_metrics(runs: Sequence[Run]) -> list[dict]:
  """A row for each run, with the last value of every metric that any of them has."""
  names = sorted({name for run in runs for name in run.final})
  evaluated = {
    run.label: {
      f'{evaluation}: {name}': value
      for evaluation, results in run.evaluations.items()
      for name, value in results.items()
    }
    for run in runs
  }
  columns = sorted({name for found in evaluated.values() for name in found})
  return [
    {'run': run.label, 'workdir': run.path, 'model': run.config['model']['name'],
     'training_data': run.data, 'finished': bool(run.description)}
    | {name: run.final.get(name, '') for name in names}
    | {name: evaluated[run.label].get(name, '') for name in columns}
    for run in runs
  ]  # fmt: skip
