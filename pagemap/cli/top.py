"""`pagemap top`: what all processes hold, and how fast some of them write."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import time
from dataclasses import dataclass

import click
import numpy as np
from rich.console import Group
from rich.live import Live
from rich.text import Text

from pagemap import PAGE_SIZE, Category, PageMap, Query, Tracker, features, regions
from pagemap.attach import attach

from ._output import console, fitted, new_table, pages, room_for_name, size
from ._params import ProcessId
from ._series import Duration
from .scan import program_name


@dataclass(frozen=True)
class Row:
    """A process, in pages; dirty: bytes/s, None where it is not attached to."""

    pid: int
    user: str
    name: str
    resident: int
    huge: int
    swapped: int
    dirty: float | None


MAX_USER = 12
"""Columns for the name of a user."""

SORTS = {
    "resident": lambda row: (row.resident, row.pid),
    "huge": lambda row: (row.huge, row.resident),
    "swapped": lambda row: (row.swapped, row.resident),
    "dirty": lambda row: (row.dirty or 0.0, row.resident),
    "pid": lambda row: (-row.pid, 0),
}


@click.command(
    short_help="All processes: resident, huge, swapped; dirty rate of some.",
    epilog="""\b
Examples:
  pagemap top
  pagemap top --sort huge --interval 5s
  pagemap top --attach $(pgrep -o redis) --attach 1234
  pagemap top -n 1 | head                  once, for a pipe

\b
Processes that one may not look at are counted, not shown: sudo shows all. The
dirty rate needs --attach: tracking costs the process about a microsecond for each
page that it writes in an interval.""",
)
@click.option("-i", "--interval", type=Duration(), default="2s", show_default=True, help="Between two looks.")
@click.option("-n", "--iterations", type=click.IntRange(min=1), help="End after so many looks.")
@click.option("--sort", type=click.Choice(sorted(SORTS)), default="resident", show_default=True)
@click.option(
    "--attach", "tracked", type=ProcessId(), multiple=True, metavar="PID", help="Show its dirty rate, too."
)
@click.option("--limit", type=click.IntRange(min=0), help="So many processes; 0: all. Default: what fits.")
def command(
    interval: float, iterations: int | None, sort: str, tracked: tuple[int, ...], limit: int | None
) -> None:
    """What the memory of all processes is: resident, in huge pages, swapped out. Refreshed until Ctrl-C.

    Sizes count every mapping of a page: memory that processes share is in each of them.
    """
    if os.getpid() in tracked:
        raise click.UsageError("this command's own writes say nothing: give another process")
    out = console()
    if not out.is_terminal and iterations is None:
        iterations = 1
    if limit is None:
        limit = max(out.height - 6, 5) if out.is_terminal else 0
    with contextlib.ExitStack() as stack:
        trackers = {pid: stack.enter_context(attach(pid)) for pid in dict.fromkeys(tracked)}
        live = (
            stack.enter_context(Live(console=out, auto_refresh=False, transient=False))
            if out.is_terminal
            else None
        )
        before = time.monotonic()
        if trackers:
            time.sleep(interval)  # a rate needs an interval
        done = 0
        while True:
            now = time.monotonic()
            rows, hidden = look(trackers, now - before)
            before = now
            table = picture(sorted(rows, key=SORTS[sort], reverse=True), limit, hidden, out.width)
            if live is not None:
                live.update(table, refresh=True)
            else:
                out.print(table)
            done += 1
            if iterations is not None and done >= iterations:
                return
            time.sleep(interval)


def query() -> Query:
    known = features().categories if features().scan else features().read_categories
    wanted = Category.PRESENT | Category.SWAPPED
    return Query(any_of=wanted, report=wanted | (known & (Category.HUGE | Category.GUARD)))


def look(trackers: dict[int, Tracker], seconds: float) -> tuple[list[Row], int]:
    """All processes that can be looked at, and how many cannot."""
    rows, hidden = [], 0
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        pid = int(entry)
        try:
            found = PageMap(pid)
        except PermissionError:
            hidden += 1
            continue
        except OSError:
            continue  # it has gone, or is a kernel thread
        with found, contextlib.suppress(OSError):
            rows.append(measure(found, trackers, seconds))
    return rows, hidden


def measure(pm: PageMap, trackers: dict[int, Tracker], seconds: float) -> Row:
    """A process's row. One that has replaced its program (execve) is tracked no more, and goes on."""
    found = pm.scan(query())
    sizes = (found["end"] - found["start"]) // np.uint64(PAGE_SIZE)

    def count(category: Category) -> int:
        chosen = Query(require=category, exclude=Category.GUARD).matches(found["categories"])
        return int(sizes[chosen].sum())

    dirty, swapped = None, count(Category.SWAPPED)
    if pm.pid in trackers:
        # Where nothing is, tracking leaves marks that the kernel calls swapped.
        swapped = swapped_pages(pm.pid)
        try:
            dirty = regions.nbytes(trackers[pm.pid].collect()) / seconds
        except ProcessLookupError:
            del trackers[pm.pid]
    return Row(
        pm.pid,
        user_of(pm.pid),
        program_name(pm.pid),
        count(Category.PRESENT),
        count(Category.PRESENT | Category.HUGE),
        swapped,
        dirty,
    )


def swapped_pages(pid: int) -> int:
    """What the kernel counts as swapped out, without shared memory."""
    with open(f"/proc/{pid}/status", "rb") as status:
        found = re.search(rb"^VmSwap:\s*(\d+) kB$", status.read(), re.MULTILINE)
    return int(found[1]) * 1024 // PAGE_SIZE if found else 0


def user_of(pid: int) -> str:
    uid = os.stat(f"/proc/{pid}").st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def picture(rows: list[Row], limit: int, hidden: int, width: int) -> Group:
    headings = ["pid", "resident", "huge", "swapped", "written/s", "user"]
    body = [
        [
            str(row.pid),
            pages(row.resident),
            pages(row.huge),
            pages(row.swapped),
            "" if row.dirty is None else f"{size(row.dirty)}/s",
            fitted(row.user, MAX_USER),
        ]
        for row in rows[: limit or None]
    ]
    room = room_for_name([headings, *body], width)
    table = new_table()
    for heading in headings[:-1]:
        table.add_column(heading, justify="right", no_wrap=True, min_width=max(len(heading), 7))
    table.add_column("user", no_wrap=True, min_width=len("user"))
    table.add_column("name", no_wrap=True)
    for cells, row in zip(body, rows, strict=False):
        table.add_row(*map(Text, cells), Text(fitted(row.name, room)))
    shown = f"{len(rows)} process{'es' * (len(rows) != 1)}" + (
        f", {hidden} more that this user may not look at" if hidden else ""
    )
    return Group(table, Text(shown, style="dim"))
