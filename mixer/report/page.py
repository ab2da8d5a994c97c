"""Pieces of a web page that is one file: it loads nothing, and its own policy forbids it to."""

import base64
from collections.abc import Sequence
import html

_STYLE = """
:root { color-scheme: light dark; --text: #1c2024; --soft: #60676f; --page: #fff; --card: #f6f7f9;
  --line: #dfe3e8; --good: #1a7f45; --bad: #b3261e; --bar: #c5d6ee; --mark: #eef4fc;
  --c0: #1f6fc4; --c1: #d1601f; --c2: #2a9160; --c3: #b33a7d; --c4: #7a57c2; --c5: #94761a;
  --c6: #16899b; --c7: #6b727a; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e7eb; --soft: #9aa3ad; --page: #14171a; --card: #1d2125; --line: #343a41;
    --good: #5cc98a; --bad: #ff8a80; --bar: #2f4a6b; --mark: #1f2a38; --c0: #6cb0f5; --c1: #f59a62;
    --c2: #5fcb98; --c3: #ec80b8; --c4: #b39af0; --c5: #d8ba55; --c6: #52c6d8; --c7: #a5adb6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 28px 20px 60px; max-width: 1180px; color: var(--text);
  background: var(--page);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 40px 0 10px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 15px; margin: 22px 0 8px; overflow-wrap: anywhere; }
p { max-width: 76ch; margin: 8px 0; }
.soft, figcaption, .legend { color: var(--soft); }
.soft { font-size: 13.5px; }
.scroll { overflow-x: auto; margin: 10px 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 5px 12px; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th:first-child, td:first-child { padding-left: 4px; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
td.num, th.num { text-align: right; white-space: nowrap; }
td.wrap { overflow-wrap: anywhere; min-width: 12ch; }
tr.own td { background: var(--mark); font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr));
  gap: 18px; }
figure { margin: 0; min-width: 0; }
.chart { background: var(--card); border-radius: 8px; padding: 12px 14px; }
figcaption { font-size: 13.5px; margin-bottom: 4px; overflow-wrap: anywhere; }
.chart figcaption { color: var(--text); font-weight: 600; }
.chart > svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 12px; }
.grid { stroke: var(--line); } .axis { stroke: var(--soft); }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); }
.c3 { stroke: var(--c3); } .c4 { stroke: var(--c4); } .c5 { stroke: var(--c5); }
.c6 { stroke: var(--c6); } .c7 { stroke: var(--c7); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; list-style: none; padding: 0;
  margin: 6px 0 0; font-size: 13px; overflow-wrap: anywhere; }
.key { width: 26px; height: 8px; margin-right: 6px; vertical-align: middle; }
.units { display: flex; flex-wrap: wrap; gap: 18px; }
.units figure { flex: 0 1 auto; max-width: 100%; }
.units img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(148px, 1fr)); gap: 14px; }
.samples figure { background: var(--card); border-radius: 8px; padding: 10px; }
.samples img { display: block; width: 100%; border-radius: 4px; margin-bottom: 8px; }
.samples img.small { image-rendering: pixelated; }
.right { color: var(--good); } .wrong { color: var(--bad); }
ol.top { list-style: none; margin: 0; padding: 0; font-size: 13px; }
ol.top li { display: flex; justify-content: space-between; gap: 8px; padding: 1px 5px;
  margin-top: 2px; border-radius: 3px; overflow-wrap: anywhere; }
details { margin: 8px 0; } summary { cursor: pointer; color: var(--soft); }
pre { overflow-x: auto; background: var(--card); padding: 12px; border-radius: 8px;
  font-size: 12.5px; }
@media (max-width: 600px) { body { padding: 18px 14px 40px; } svg text { font-size: 17px; }
  .samples { grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); } }
@media print { body { max-width: none; } figure, tr { break-inside: avoid; } }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Number(str):
  """Text of a table's cell that is set to the right."""


def document(title: str, body: Sequence[str]) -> str:
  """The whole page; `body` are the pieces that the functions below make."""
  return '\n'.join(
    [
      '<!DOCTYPE html>',
      '<html lang="en"><head><meta charset="utf-8">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
      f'<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>',
      f'<h1>{html.escape(title)}</h1>',
      *body,
      '</body></html>\n',
    ]
  )


def heading(text: str, level: int = 2) -> str:
  return f'<h{level}>{html.escape(text)}</h{level}>'


def paragraph(text: str, *, soft: bool = False) -> str:
  return f'<p{" class=soft" if soft else ""}>{html.escape(text)}</p>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], own: Sequence[int] = ()) -> str:
  """A table that scrolls by itself where it is too wide; `own` are the rows to stand out.

  A column is set to the right where one of its cells is a Number.
  """
  right = [any(isinstance(row[i], Number) for row in rows) for i in range(len(head))]

  def cells(tag, row):
    for text, is_right in zip(row, right, strict=True):
      kind = 'num' if is_right else 'wrap' if len(text) > 30 else ''
      yield f'<{tag} class="{kind}">{html.escape(text)}</{tag}>'

  lines = [
    f'<tr{" class=own" if i in own else ""}>{"".join(cells("td", row))}</tr>'
    for i, row in enumerate(rows)
  ]
  top = ''.join(cells('th', head))
  return (
    f'<div class="scroll"><table><thead><tr>{top}</tr></thead>'
    f'<tbody>{"".join(lines)}</tbody></table></div>'
  )


def image(png: bytes, alt: str, kind: str = '') -> str:
  data = base64.b64encode(png).decode()
  return f'<img class="{kind}" alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def group(kind: str, pieces: Sequence[str]) -> str:
  """The pieces within one element of the class `kind`."""
  return f'<div class="{kind}">{"".join(pieces)}</div>'


def figure(caption: str, content: str) -> str:
  return f'<figure><figcaption>{html.escape(caption)}</figcaption>{content}</figure>'


def details(summary: str, text: str) -> str:
  """`text`, set as it is, folded away behind its summary."""
  return (
    f'<details><summary>{html.escape(summary)}</summary><pre>{html.escape(text)}</pre></details>'
  )


def card(picture: str, caption: str, guesses: Sequence[tuple[str, float, bool]]) -> str:
  """An example: its true classes, and guesses (word, probability, whether it is right) as bars."""
  lines = [
    f'<li class="{"right" if is_right else "wrong" if i == 0 else ""}" style="background: '
    f'linear-gradient(90deg, var(--bar) {100 * share:.1f}%, transparent {100 * share:.1f}%)">'
    f'<span>{html.escape(word)}</span><span>{100 * share:.1f}&nbsp;%</span></li>'
    for i, (word, share, is_right) in enumerate(guesses)
  ]
  return (
    f'<figure>{picture}<figcaption>true: {html.escape(caption)}</figcaption>'
    f'<ol class="top">{"".join(lines)}</ol></figure>'
  )
