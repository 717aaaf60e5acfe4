"""`pagemap dirty`: how fast a process writes, and where, as it happens."""

from __future__ import annotations

import contextlib
import json
import time
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

from ._output import console, new_table, printable, size
from ._params import ProcessId
from ._series import Duration
from .scan import program_name

SHOWN = 15
"""VMAs in the table."""


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
start, end, name, pages of each VMA that was written, hottest first.""",
)
@click.argument("pid", type=ProcessId())
@click.option("-i", "--interval", type=Duration(), default="1s", show_default=True, help="Between two looks.")
@click.option("-n", "--count", type=click.IntRange(min=1), help="End after so many intervals.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for scripts.")
def command(pid: int, interval: float, count: int | None, as_json: bool) -> None:
    """What process PID writes: pages and MiB per second, by VMA, hottest first. Refreshed until Ctrl-C."""
    with attach(pid) as tracker:
        if as_json:
            for each in rounds(tracker, interval, count):
                click.echo(json.dumps(as_record(each)))
        else:
            watch(tracker, interval, count)


def rounds(tracker: Tracker, interval: float, count: int | None) -> Any:
    before = time.monotonic_ns()
    for now, found in tracker.rounds(interval, count):
        yield Round(now, (now - before) / 1e9, found, written_vmas(tracker, found))
        before = now


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
    name = printable(program_name(tracker.pid))
    total, begin = 0, time.monotonic()
    with contextlib.ExitStack() as stack:
        live = stack.enter_context(Live(console=out, auto_refresh=False)) if out.is_terminal else None
        try:
            for each in rounds(tracker, interval, count):
                total += each.pages
                if live is not None:
                    live.update(picture(name, tracker, each, total), refresh=True)
                else:
                    out.print(rate(each), end="")
                    out.print(
                        "".join(f"  {shown(vma[2])} {size(vma[3] * PAGE_SIZE)}" for vma in each.vmas[:3])
                    )
        finally:
            seconds = time.monotonic() - begin
            out.print(f"{name} ({tracker.pid}) wrote {size(total * PAGE_SIZE)} of pages in {seconds:.1f} s")


def rate(each: Round) -> str:
    per_second = each.pages / each.seconds if each.seconds else 0.0
    return f"{per_second:10,.0f} pages/s {per_second * PAGE_SIZE / (1 << 20):10,.1f} MiB/s"


def shown(name: str) -> str:
    return printable(name) or "anonymous"


def picture(name: str, tracker: Tracker, each: Round, total: int) -> Table:
    table = new_table()
    table.title = f"{name} ({tracker.pid}): {rate(each).strip()}, {size(total * PAGE_SIZE)} in all"
    table.title_justify = "left"
    for heading in ("written", "of", "address"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("name", overflow="fold")
    for start, end, vma_name, pages in each.vmas[:SHOWN]:
        table.add_row(size(pages * PAGE_SIZE), size(end - start), f"{start:x}", Text(shown(vma_name)))
    return table
