"""Plots of metrics; the SVG charts are tested with the report."""

import io

import matplotlib
from matplotlib import figure
from PIL import Image
import pytest

from mixer.visualize import plots

ROWS = [
  {'step': 1, 'train/loss': 2.0, 'train/accuracy': 0.1, 'mfu': 0.5},
  {'step': 2, 'train/loss': 0.0, 'train/accuracy': 0.2, 'val/loss': 1.0, 'val/top1': 0.3},
]


@pytest.fixture
def drawn(monkeypatch):
  """The figures that are written, as matplotlib has them."""
  figures, save = [], figure.Figure.savefig

  def record(drawing, *args, **kwargs):
    figures.append(drawing)
    save(drawing, *args, **kwargs)

  monkeypatch.setattr(figure.Figure, 'savefig', record)
  return figures


def legend(owner):
  return [text.get_text() for text in owner.texts]


def test_curves_are_the_losses_and_the_accuracies(drawn, tmp_path):
  plots.curves(ROWS, tmp_path / 'curves.png')
  with Image.open(io.BytesIO((tmp_path / 'curves.png').read_bytes())) as image:
    assert image.size == (1000, 400)
  ((loss, accuracy),) = [drawing.axes for drawing in drawn]
  assert legend(loss.get_legend()) == ['train/loss', 'val/loss'] and loss.get_yscale() == 'log'
  assert legend(accuracy.get_legend()) == ['train/accuracy', 'val/top1']
  assert [list(line.get_data()[1]) for line in accuracy.lines] == [[0.1, 0.2], [0.3]]
  assert [list(line.get_data()[0]) for line in loss.lines] == [[1, 2], [2]]


def test_panels_with_the_same_lines_share_a_legend_and_an_axis(drawn, tmp_path):
  panels = {'p': {'a': [(3, 0.5), (30, 1.0)]}, 'q': {'a': [(3, 5.0), (30, 7.0)]}}
  plots.png(panels, tmp_path / 'p.png', xlabel='x', ylabel='y', xticks=(3, 30))
  ((drawing,), (left, right)) = drawn, drawn[0].axes
  assert [legend(one) for one in drawing.legends] == [['a']] and left.get_legend() is None
  assert left.get_ylim() == right.get_ylim() and left.get_ylim()[1] > 7
  assert [label.get_text() for label in left.get_xticklabels()] == ['3', '30']
  assert (left.get_title(), right.get_title(), left.get_ylabel()) == ('p', 'q', 'y')


def test_matplotlib_keeps_its_settings(tmp_path):
  before = dict(matplotlib.rcParams)
  plots.svg([plots.Line('a', [(1, 2.0)])], log=True, prefix='p')
  plots.curves(ROWS, tmp_path / 'curves.png')
  assert dict(matplotlib.rcParams) == before
