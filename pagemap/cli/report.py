"""`pagemap report`: what a trace says, in words and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table
from rich.text import Text

from ._output import console, new_table
from ._series import choose

if TYPE_CHECKING:
    from ._summary import Grid, Summary


@click.command(
    short_help="What a trace says: rates, working set, hottest VMAs.",
    epilog="""\b
Examples:
  pagemap report                          of ./pagemap.trace
  pagemap report redis.trace
  pagemap report fleet.trace --pid 1234
  pagemap report 'traces/*/host=*/pid=*'
  pagemap report redis.trace --html redis.html

\b
The page that --html writes needs no network: pictures and tables are in it.""",
)
@click.argument("trace", default="pagemap.trace", metavar="FILE")
@click.option("--pid", type=int, help="Only the recordings of this process.")
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page for a browser instead."
)
def command(trace: str, pid: int | None, html: Path | None) -> None:
    """Summary of each recording in a trace: a directory, one of its files, or a glob."""
    recordings = choose(trace, pid)
    if html is not None:
        from ._html import write_page

        write_page(recordings, html)
        click.echo(f"{html}: {html.stat().st_size >> 10} KiB")
        return
    from ._summary import summarize

    for recording in recordings:
        show(summarize(recording))


def show(summary: Summary) -> None:
    out = console()
    out.print(Text(summary.title, style="bold"))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for name, value in summary.facts:
        facts.add_row(name, Text(value))
    out.print(facts)
    for grid in summary.grids:
        out.print()
        out.print(Text(grid.title, style="bold"), Text(f"({grid.note})", style="dim"))
        out.print(as_table(grid))
    out.print()


def as_table(grid: Grid) -> Table:
    table = new_table()
    for heading in grid.headings[:-1]:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(grid.headings[-1], overflow="fold")
    for row in grid.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
