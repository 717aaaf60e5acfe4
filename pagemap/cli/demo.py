"""`pagemap demo`: a real program's memory, seen by both engines, compared and timed."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from rich.table import Table

from pagemap import Category, PageMap, Query, features, regions
from pagemap.attach import attach
from pagemap.errors import UnsupportedError

from ._group import Failure, Unsupported
from ._output import console, pages, pages_table, progress, size
from ._params import Mebibytes
from .scan import DEFAULT_ORDER, default_categories

ATTEMPTS = 5
PAIRS = 25


@dataclass(frozen=True)
class Part:
    """An array of the workload: what it says of itself."""

    name: str
    start: int
    end: int
    pages: int
    how: str


@dataclass(frozen=True)
class Workload:
    """The running program, and its arrays."""

    pid: int
    parts: list[Part]
    child: subprocess.Popen[str]

    def write(self) -> tuple[Part, int]:
        """Makes it write: to which array, and to its first page and every so manieth from there on."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write("write\n")
        self.child.stdin.flush()
        return self.parts[0], int(self.child.stdout.readline())

    @property
    def ranges(self) -> npt.NDArray[Any]:
        """start and end of each part, for regions.by_vma."""
        return np.array([(p.start, p.end) for p in self.parts], [("start", "<u8"), ("end", "<u8")])


@click.command(
    short_help="The main job, on a real process that it starts.",
    epilog="""\b
Examples:
  pagemap demo
  pagemap demo --size 64         with less memory

The exit code is 1 when the engines disagree, 3 where there is no PAGEMAP_SCAN.""",
)
@click.option(
    "--size",
    "mebibytes",
    type=Mebibytes(min=16),
    default=512,
    show_default=True,
    metavar="MIB",
    help="Memory of the program, about; it reserves as much again.",
)
def command(mebibytes: int) -> None:
    """Starts a NumPy program, scans its memory with both engines, checks that they agree, and times them;
    attaches to it, and sees which pages it writes.

    The program touches its arrays in different ways and says what it did; that is the third witness.
    """
    out = console()
    with started_workload(mebibytes) as workload, contextlib.ExitStack() as stack:
        read = stack.enter_context(PageMap(workload.pid, engine="read"))
        scan = stack.enter_context(PageMap(workload.pid, engine="scan")) if features().scan else read
        query = Query(any_of=Category.PRESENT | Category.SWAPPED, report=default_categories(scan.engine))
        found = scan.scan(query)
        out.print(
            f"A NumPy program, process {workload.pid}, holds {pages(regions.page_count(found))}"
            f" in {found.size} regions, by engine {scan.engine}:\n"
        )
        out.print(parts_table(workload, found))
        if scan is read:
            raise Unsupported(f"nothing to compare with: {features().why['scan']}")
        checked = check_agreement(scan, read)
        out.print(f"Both engines agree on all {checked.size} regions ({pages(regions.page_count(checked))}).")
        check_parts(workload, checked)
        out.print("Both found just the pages that the program says it touched, in every array.")
        out.print(speed_report(*paired_times(scan, read)))
        out.print(watch_writes(workload))


@contextlib.contextmanager
def started_workload(mebibytes: int) -> Iterator[Workload]:
    """The program, its arrays made; ended when the context is left, in whatever way."""
    program = Path(__file__).with_name("_workload.py")
    # A session of its own: Ctrl-C is for this process, which then ends that one.
    child = subprocess.Popen(
        [sys.executable, "-P", str(program), str(mebibytes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with child:
        try:
            yield Workload(child.pid, read_parts(child), child)
        finally:
            child.kill()


def read_parts(child: subprocess.Popen[str]) -> list[Part]:
    assert child.stdout is not None
    parts: list[Part] = []
    with progress() as bar:
        task = bar.add_task("the program touches its memory", total=None)
        for line in child.stdout:
            if line == "ready\n":
                return parts
            parts.append(Part(**json.loads(line)))
            bar.update(task, description=f"the program touches its memory: {parts[-1].name} done")
    code = child.wait()
    raise Failure(f"the program ended with code {code} before it was ready: too little memory? Try --size 64")


def parts_table(workload: Workload, found: npt.NDArray[Any]) -> Table:
    """The pages of each array by category, and those of the rest of the process."""
    table = regions.by_vma(found, workload.ranges)
    counts = regions.totals(found)
    shown = [c for c in DEFAULT_ORDER if counts[c] or c is Category.PRESENT]
    rest: dict[str, int] = {str(c.name): counts[c] - int(table[str(c.name)].sum()) for c in shown}
    rows: list[tuple[list[str], Any, str]] = [
        ([size(part.end - part.start)], record, f"{part.name}: {part.how}")
        for part, record in zip(workload.parts, table, strict=True)
    ]
    rows.append(([""], rest, "interpreter, libraries, heap, stack"))
    return pages_table(["size"], rows, ([""], counts), shown, console().width)


def check_agreement(scan: PageMap, read: PageMap) -> npt.NDArray[Any]:
    """The regions, with every category that both engines can tell. Failure where they differ.

    The read engine's answer lies between two of the ioctl's: where these are equal, nothing has moved, and
    a difference is a fault. Where they are not (the kernel swaps, say), it tries again.
    """
    report = default_categories("scan") & default_categories("read")
    query = Query(any_of=Category.PRESENT | Category.SWAPPED, report=report)
    for _ in range(ATTEMPTS):
        before, by_read, after = scan.scan(query), read.scan(query), scan.scan(query)
        if not np.array_equal(before, after):
            continue
        if np.array_equal(before, by_read):
            return before
        odd = regions.symmetric_difference(before, by_read)
        where = f"first at {int(odd['start'][0]):#x}" if odd.size else "in their categories"
        raise Failure(f"the engines disagree, {where}: please report this with the output of pagemap doctor")
    raise Failure("the program's memory does not hold still (is the machine swapping?): try again")


def check_parts(workload: Workload, found: npt.NDArray[Any]) -> None:
    """Failure unless each array has as many pages as the program says."""
    table = regions.by_vma(found, workload.ranges)
    for part, record in zip(workload.parts, table, strict=True):
        if int(record["pages"]) != part.pages:
            raise Failure(f"{part.name}: the program touched {part.pages} pages, found {record['pages']}")


def paired_times(scan: PageMap, read: PageMap) -> tuple[list[float], list[float]]:
    """Seconds that each engine takes for the populated pages of the whole process, in pairs of runs."""
    by_scan, by_read = [], []
    with progress() as bar:
        for _ in bar.track(range(PAIRS), description="timing both engines"):
            by_scan.append(seconds(scan.scan))
            by_read.append(seconds(read.scan))
    return by_scan, by_read


def watch_writes(workload: Workload) -> str:
    """What the program writes, seen from outside. Failure unless it is just what the program says."""
    if not features().wp_async:
        return f"\nWhich pages it writes cannot be shown here: {features().why['wp_async']}."
    try:
        tracker = attach(workload.pid)
    except (PermissionError, UnsupportedError) as error:  # a container without ptrace, for example
        return f"\nWhich pages it writes cannot be shown here: {error}."
    with tracker:
        tracker.collect()
        part, stride = workload.write()
        begin = time.perf_counter()
        found = tracker.collect()
        taken = time.perf_counter() - begin
        there = regions.to_mask(found, part.start, part.end)
        written = np.arange(there.size) % stride == 0
        wrong = np.count_nonzero(there != written)
        if wrong:
            raise Failure(
                f"{part.name}: {wrong} pages are called written and are not, or the other way round"
            )
        return (
            f"\nAttached to it (it stood still for {tracker.stopped_us:.0f} µs), then it wrote to"
            f" {np.count_nonzero(written)} pages of {part.name}:\njust these were found there,"
            f" in {taken * 1e3:.2f} ms for the whole process."
        )


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def speed_report(by_scan: list[float], by_read: list[float]) -> str:
    ratios = sorted(r / s for s, r in zip(by_scan, by_read, strict=True))
    low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
    return (
        f"\nThe whole process, present or swapped pages: ioctl {statistics.median(by_scan) * 1e3:.2f} ms,"
        f" reading pagemap {statistics.median(by_read) * 1e3:.2f} ms.\n"
        f"On this machine the ioctl was {statistics.median(ratios):.1f} times faster"
        f" (median of {len(ratios)} pairs of runs; eight in ten between {low:.1f} and {high:.1f})."
    )
