"""The report as one page for a browser: pictures and tables in a single file, nothing from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagemap import plot

from ._group import Unsupported
from ._summary import Grid, Summary, summarize

if TYPE_CHECKING:
    from pagemap.trace import Recording

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 2rem auto;
       max-width: 68rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1.05rem; margin-bottom: .2rem; } p.note { color: #555; margin: 0 0 .5rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption { color: #555; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .15rem .8rem .15rem 0; white-space: nowrap; vertical-align: top; }
th:last-child, td:last-child { text-align: left; white-space: normal; overflow-wrap: anywhere; }
thead th { border-bottom: 1px solid #999; } tbody tr:nth-child(even) { background: #f5f5f5; }
table.facts th { text-align: left; padding-right: 1.5rem; }
table.facts td { text-align: left; white-space: normal; }
.scroll { overflow-x: auto; } nav a { margin-right: 1.2rem; }
"""

PICTURES: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("heatmap", "When which page was written: time from left to right, addresses upwards.", plot.heatmap),
    ("rate", "How much was written: distinct pages of each sample by its length.", plot.rate),
    ("working-set", "How much is written within a window of time, over its length.", plot.working_set),
)
RESIDENT_PICTURES: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("heatmap", "When which page was resident: time from left to right, addresses upwards.", plot.heatmap),
    ("rate", "How much was resident or swapped, over time.", plot.rate),
)


def write_page(recordings: list[Recording], path: Path) -> None:
    """Writes the report of recordings into an HTML file that needs nothing else."""
    try:
        text = "".join(page(recordings))
    except ImportError as error:
        raise Unsupported(str(error)) from error
    path.write_text(text, encoding="utf-8")


def page(recordings: list[Recording]) -> Iterator[str]:
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    # Whatever a program's name or command line holds, nothing is loaded or run.
    yield (
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
    )
    yield f"<title>pagemap report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>pagemap report</h1>\n"
    summaries = [summarize(recording) for recording in recordings]
    if len(summaries) > 1:
        links = (f'<a href="#r{i}">{escape(one.title)}</a>' for i, one in enumerate(summaries))
        yield f"<nav>{' '.join(links)}</nav>\n"
    for i, (recording, summary) in enumerate(zip(recordings, summaries, strict=True)):
        yield from section(i, recording, summary)
    yield "</body>\n</html>\n"


def section(number: int, recording: Recording, summary: Summary) -> Iterator[str]:
    yield f'<section id="r{number}">\n<h2>{escape(summary.title)}</h2>\n<table class="facts">\n'
    for name, value in summary.facts:
        yield f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>\n"
    yield "</table>\n"
    if len(recording.timeline.time_ns):
        pictures = RESIDENT_PICTURES if recording.metadata.kind == "resident" else PICTURES
        for name, caption, draw in pictures:
            yield (
                f'<figure id="r{number}-{name}">'
                f'<img alt="{escape(caption)}" src="{picture(draw(recording))}">'
                f"<figcaption>{escape(caption)}</figcaption></figure>\n"
            )
    for grid in summary.grids:
        yield from table(grid)
    yield "</section>\n"


def picture(ax: Any) -> str:
    """A PNG as a data URL."""
    buffer = io.BytesIO()
    ax.figure.savefig(buffer, format="png", dpi=110)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def table(grid: Grid) -> Iterator[str]:
    yield f'<h3>{escape(grid.title)}</h3>\n<p class="note">{escape(grid.note)}</p>\n'
    headings = "".join(f"<th>{escape(name)}</th>" for name in grid.headings)
    yield f'<div class="scroll"><table><thead><tr>{headings}</tr></thead>\n<tbody>\n'
    for row in grid.rows:
        yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n"
    yield "</tbody></table></div>\n"
