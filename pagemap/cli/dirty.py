"""`pagemap dirty`: how fast a process writes, and where, as it happens."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pagemap import PAGE_SIZE, Tracker, regions
from pagemap.attach import attach
from pagemap.maps import printable

from ._output import console, fitted, new_table, pages, room_for_name, size
from ._params import ProcessId
from ._series import Duration
from .scan import program_name

AROUND_TABLE = 9
"""Lines of a terminal that are not for VMAs."""


@dataclass(frozen=True)
class Round:
    """What was written in one interval."""

    time_ns: int
    seconds: float
    found: npt.NDArray[Any]
    vmas: list[tuple[int, int, str, int]]
    """start, end (bytes), name, pages written; hottest first, only those that were written."""

    @property
    def pages(self) -> int:
        return regions.page_count(self.found)


@click.command(
    short_help="A live view of what a process writes.",
    epilog="""\b
Examples:
  pagemap dirty 1234
  pagemap dirty 1234 --interval 200ms --count 50
  pagemap dirty 1234 --json | jq .bytes          a line for each interval
  sudo pagemap dirty $(pgrep -o postgres)

\b
The process stands still for some microseconds when it is attached to; then each
first write to a page in an interval costs it about one. A line of --json has
time_ns (CLOCK_MONOTONIC), seconds, pages, bytes, regions (their number), and vmas:
start, end, name, pages of each VMA that was written, hottest first.

\b
Ctrl-C ends the last interval early, prints the sum and ends with code 130. When the
process exits or replaces its program (execve), the code is 1; what it wrote in its
last interval is lost with it. Needs the rights of ptrace: the same user and
kernel.yama.ptrace_scope 0, or sudo.""",
)
@click.argument("pid", type=ProcessId())
@click.option("-i", "--interval", type=Duration(), default="1s", show_default=True, help="Between two looks.")
@click.option("-n", "--count", type=click.IntRange(min=1), help="End after so many intervals.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for scripts.")
def command(pid: int, interval: float, count: int | None, as_json: bool) -> None:
    """What process PID writes: pages and MiB per second, by VMA, hottest first. Refreshed until Ctrl-C."""
    if pid == os.getpid():
        raise click.UsageError("this command's own writes say nothing: give another process")
    if interval <= 0:
        raise click.UsageError("--interval must be positive")
    with attach(pid) as tracker:
        if as_json:
            for each in rounds(tracker, interval, count):
                click.echo(json.dumps(as_record(each)))
        else:
            watch(tracker, interval, count)


def rounds(tracker: Tracker, interval: float, count: int | None) -> Iterator[Round]:
    """The rounds, and at Ctrl-C what was written since the last of them."""
    before = time.monotonic_ns()
    try:
        for now, found in tracker.rounds(interval, count):
            yield Round(now, (now - before) / 1e9, found, written_vmas(tracker, found))
            before = now
    except KeyboardInterrupt:
        with contextlib.suppress(ProcessLookupError):  # on a terminal, Ctrl-C may have ended it, too
            now = time.monotonic_ns()
            found = tracker.collect()
            yield Round(now, (now - before) / 1e9, found, written_vmas(tracker, found))
        raise


def written_vmas(tracker: Tracker, found: npt.NDArray[Any]) -> list[tuple[int, int, str, int]]:
    table = tracker.vmas
    written = regions.by_vma(found, table)["pages"]
    hottest = np.argsort(written, kind="stable")[::-1][: int(np.count_nonzero(written))]
    return [(vma.start, vma.end, vma.name, int(written[i])) for i in hottest.tolist() for vma in (table[i],)]


def as_record(each: Round) -> dict[str, Any]:
    return {
        "time_ns": each.time_ns,
        "seconds": each.seconds,
        "pages": each.pages,
        "bytes": each.pages * PAGE_SIZE,
        "regions": len(each.found),
        "vmas": [dict(zip(("start", "end", "name", "pages"), vma, strict=True)) for vma in each.vmas],
    }


def watch(tracker: Tracker, interval: float, count: int | None) -> None:
    out = console()
    program = f"{program_name(tracker.pid)} ({tracker.pid})"
    total, begin = 0, time.monotonic()
    by_vma: dict[tuple[int, str], int] = {}
    stopped = tracker.stopped_us
    how = "by soft-dirty bits" if stopped is None else f"it stood still for {stopped:.0f} µs"
    with contextlib.ExitStack() as stack:
        try:
            out.print(f"{program} is attached to: {how}")
            live = stack.enter_context(Live(console=out, auto_refresh=False)) if out.is_terminal else None
            for each in rounds(tracker, interval, count):
                total += each.pages
                for start, _, name, written in each.vmas:
                    by_vma[start, name] = by_vma.get((start, name), 0) + written
                if live is not None:
                    room = max(out.height - AROUND_TABLE, 1)
                    live.update(picture(each, by_vma, total, room, out.width), refresh=True)
                else:
                    hottest = (f"  {shown(vma[2])} {pages(vma[3])}" for vma in each.vmas[:3])
                    out.print(rate(each), *hottest, sep="")
        finally:
            stack.close()  # the table stays, and what follows goes below it
            seconds = time.monotonic() - begin
            out.print(f"{program} wrote {total} pages, {size(total * PAGE_SIZE)}, in {seconds:.1f} s")
            for line in untracked(tracker):
                out.print(line)


def rates(count: int, seconds: float) -> tuple[str, str]:
    """Pages and MiB per second."""
    per_second = count / seconds if seconds else 0.0
    return f"{per_second:,.0f}", f"{per_second * PAGE_SIZE / (1 << 20):,.1f}"


def rate(each: Round) -> str:
    by_page, by_size = rates(each.pages, each.seconds)
    return f"{by_page:>10} pages/s {by_size:>10} MiB/s"


def shown(name: str) -> str:
    return printable(name) or "anonymous"


def untracked(tracker: Tracker) -> list[str]:
    """What may be written unseen, and is counted whole therefore."""
    return [
        f"{vma.start:x} {shown(vma.name)} cannot be tracked, all of it counts as written: {why}"
        for vma, why in tracker.refused
        if "w" in vma.permissions
    ]


def picture(each: Round, by_vma: dict[tuple[int, str], int], total: int, room: int, width: int) -> Table:
    """The hottest `room` VMAs of a round, what the others make together, and all."""
    headings = ["pages/s", "MiB/s", "total", "of", "address"]
    body = [
        [*rates(written, each.seconds), pages(by_vma[start, name]), size(end - start), f"{start:x}"]
        for start, end, name, written in each.vmas[:room]
    ]
    sums = [*rates(each.pages, each.seconds), pages(total), "", ""]
    left = room_for_name([headings, *body, sums], width)
    table = new_table()
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
    table.add_column("name", no_wrap=True)
    for cells, vma in zip(body, each.vmas, strict=False):
        table.add_row(*cells, Text(fitted(shown(vma[2]), left)))
    others = each.vmas[room:]
    if others:
        rest = rates(sum(vma[3] for vma in others), each.seconds)
        table.add_row(*rest, "", "", "", Text(f"{len(others)} more VMAs", style="dim"))
    table.add_section()
    table.add_row(*sums, Text("all"), style="bold")
    return table
