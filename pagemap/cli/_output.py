"""What commands print: consoles, sizes, tables of VMAs."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from pagemap import PAGE_SIZE, Category
from pagemap.maps import printable

from ._params import label

_WIDE = 10_000
GAP = 2
"""Columns between two columns of a table."""
MIN_NAME = 16


class PipedConsole(Console):
    """A console that leaves a reader who has gone to the group: rich's own ends with code 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def console(stream: TextIO | None = None) -> Console:
    """A console on stdout (or `stream`): colours and a terminal's width on a terminal; neither in a pipe."""
    file = sys.stdout if stream is None else stream
    reconfigure = getattr(file, "reconfigure", None)
    if reconfigure is not None:
        # A file name that is not UTF-8 must not end the program.
        reconfigure(errors="backslashreplace")
    terminal = file.isatty()
    return PipedConsole(
        file=file,
        force_terminal=terminal,
        width=None if terminal else _WIDE,
        highlight=False,
        markup=False,
        emoji=False,
    )


def size(nbytes: float) -> str:
    """Bytes for people: "0", "4 KiB", "1.5 MiB", "12 GiB"."""
    if not nbytes:
        return "0"
    value, unit = float(nbytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if value >= 100 or value == int(value) else f"{value:.1f} {unit}"


def pages(count: int) -> str:
    """A number of pages as a size; "-" for none."""
    return size(count * PAGE_SIZE) if count else "-"


def new_table() -> Table:
    """The look of every table."""
    return Table(
        box=box.SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, header_style="bold", show_edge=False
    )


def progress() -> Progress:
    """A progress bar on a terminal's stderr, gone when it is done; print nothing while it shows."""
    return Progress(console=console(sys.stderr), transient=True, disable=not sys.stderr.isatty())


def room_for_name(rows: Iterable[Sequence[str]], width: int) -> int:
    """What is left of `width` for a table's last column, beside these cells (and the headings)."""
    columns = zip(*rows, strict=True)
    return max(width - sum(max(map(cell_len, column)) + GAP for column in columns), MIN_NAME)


def fitted(name: str, room: int) -> str:
    """A name cut to `room` columns: a path keeps its end, anything else its beginning."""
    if cell_len(name) <= room:
        return name
    if not name.startswith("/"):
        return set_cell_size(name, room - 1).rstrip() + "…"
    while cell_len(name) > room - 1:
        name = name[1:]
    return f"…{name}"


def pages_table(
    lead: Sequence[str],
    rows: Iterable[tuple[Sequence[str], Any, str]],
    total: tuple[Sequence[str], dict[Category, int]],
    categories: Sequence[Category],
    width: int,
) -> Table:
    """Pages by category: columns `lead`, one for each category, and a name.

    rows: (texts of the lead columns, a record of pagemap.regions.VMA_PAGES_DTYPE, name).
    total: (texts of the lead columns, pages by category). Counts are shown as sizes.
    width: columns of the terminal; paths that do not fit keep their end.
    """
    headings = [*lead, *map(label, categories)]
    body = [
        ([*texts, *(pages(int(record[str(category.name)])) for category in categories)], printable(name))
        for texts, record, name in rows
    ]
    texts, by_category = total
    sums = [*texts, *(pages(by_category[category]) for category in categories)]

    room = room_for_name([headings, sums, *(cells for cells, _ in body)], width)
    table = new_table()
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("name", overflow="fold")
    for cells, name in body:
        table.add_row(*cells, Text(fitted(name, room) if name.startswith("/") else name))
    table.add_section()
    table.add_row(*sums, Text("total"), style="bold")
    return table
