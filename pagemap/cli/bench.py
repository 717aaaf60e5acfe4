"""`pagemap bench`: how fast it is on this machine, next to the ways that need nothing but Python."""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from rich.text import Text

from pagemap import PAGE_SIZE, PageMap, Query, features, track

from ._group import Failure
from ._output import console, new_table, progress, size
from ._params import Mebibytes

Spans = npt.NDArray[np.uint64]
HUGE = 2 << 20
PRESENT_BIT, PROTECTED_BIT = np.uint64(63), np.uint64(57)
MIN_ROUNDS, MAX_ROUNDS = 5, 1000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


@dataclass(frozen=True)
class Way:
    """One way to the answer: `run` returns it as regions, or as flags of pages."""

    name: str
    run: Callable[[], npt.NDArray[Any]]


@dataclass(frozen=True)
class Timing:
    """The rounds of one way: seconds, and how many times as long as the first way of its group."""

    what: str
    way: str
    pages: int
    rounds: int
    seconds: float
    ratio: float
    ratio_min: float
    ratio_max: float


class Memory:
    """Fresh memory with every `step`-th page populated; unmapped with the object."""

    def __init__(self, nbytes: int, *, huge: bool, step: int) -> None:
        mapping = mmap.mmap(-1, nbytes + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel without huge pages
            mapping.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        whole = np.frombuffer(mapping, np.uint8)
        self.start = -(-whole.ctypes.data // HUGE) * HUGE
        self.end = self.start + nbytes
        self.nbytes = nbytes
        self.bytes = whole[self.start - whole.ctypes.data :][:nbytes]
        self.write(step)

    def write(self, step: int) -> None:
        """To every `step`-th page; 0: to none."""
        if step:
            self.bytes[:: step * PAGE_SIZE] += 1


def has_huge_pages() -> bool:
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled", encoding="ascii") as enabled:
            return "[never]" not in enabled.read()
    except OSError:
        return False


def as_spans(answer: npt.NDArray[Any], start: int) -> Spans:
    """Regions, or flags of pages from `start` on, as (start, end) in bytes."""
    if answer.dtype.names:
        return np.stack([answer["start"], answer["end"]], axis=1)
    edges = np.flatnonzero(np.diff(answer.astype(np.bool_), prepend=False, append=False))
    return edges.astype(np.uint64).reshape(-1, 2) * np.uint64(PAGE_SIZE) + np.uint64(start)


def by_pread(pm: PageMap, start: int, end: int, bit: np.uint64, wanted: int) -> Way:
    """As one would write it by hand: the entries of /proc/PID/pagemap, and one bit of each."""
    fd, offset, length = pm.fileno(), start // PAGE_SIZE * 8, (end - start) // PAGE_SIZE * 8

    def run() -> npt.NDArray[Any]:
        entries = np.frombuffer(os.pread(fd, length, offset), np.uint64)
        flags: npt.NDArray[np.bool_] = (entries >> bit & np.uint64(1)) == wanted
        return flags

    return Way("os.pread + NumPy", run)


def by_mincore(start: int, end: int) -> Way:
    flags = np.zeros((end - start) // PAGE_SIZE, np.uint8)

    def run() -> npt.NDArray[Any]:
        if _libc.mincore(start, end - start, flags.ctypes.data) != 0:
            raise OSError(ctypes.get_errno(), "mincore failed")
        return flags & 1

    return Way("mincore", run)


def race(
    what: str, ways: list[Way], start: int, pages: int, seconds: float, before: Callable[[], object]
) -> list[Timing]:
    """All ways in turns, so that what disturbs one disturbs all; their answers are compared first."""
    answers = []
    began = time.perf_counter()
    for way in ways:
        before()
        answers.append(as_spans(way.run(), start))
    once = time.perf_counter() - began
    for way, answer in zip(ways, answers, strict=True):
        if not np.array_equal(answer, answers[0]):
            raise Failure(f"{what}: {way.name} and {ways[0].name} give different answers; please report this")
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(int(min(max(seconds / once, MIN_ROUNDS), MAX_ROUNDS))):
        for way, own in zip(ways, times, strict=True):
            before()
            began = time.perf_counter()
            result = way.run()
            own.append(time.perf_counter() - began)
            del result
    found = []
    for way, own in zip(ways, times, strict=True):
        ratios = [b / a for a, b in zip(times[0], own, strict=True)]
        found.append(
            Timing(
                what,
                way.name,
                pages,
                len(own),
                statistics.median(own),
                statistics.median(ratios),
                min(ratios),
                max(ratios),
            )
        )
    return found


def nothing() -> None:
    """No writes between two rounds."""


def present(pm: PageMap, reader: PageMap, what: str, memory: Memory, seconds: float) -> list[Timing]:
    """Which pages are present: this library and the alternatives."""
    start, end = memory.start, memory.end
    ways = [
        Way("scan", lambda: pm.scan(Query.PRESENT, start=start, end=end)),
        Way("scan, 2 workers", lambda: pm.scan(Query.PRESENT, start=start, end=end, workers=2)),
        Way("scan, read engine", lambda: reader.scan(Query.PRESENT, start=start, end=end)),
        by_pread(pm, start, end, PRESENT_BIT, 1),
        by_mincore(start, end),
    ]
    return race(what, ways, start, memory.nbytes // PAGE_SIZE, seconds, nothing)


def one_page(pm: PageMap, seconds: float) -> list[Timing]:
    """The floor under every call."""
    memory = Memory(HUGE, huge=False, step=1)
    start = memory.start
    ways = [
        Way("scan", lambda: pm.scan(Query.PRESENT, start=start, end=start + PAGE_SIZE)),
        by_pread(pm, start, start + PAGE_SIZE, PRESENT_BIT, 1),
        by_mincore(start, start + PAGE_SIZE),
    ]
    return race("one page", ways, start, 1, seconds, nothing)


def written(pm: PageMap, what: str, memory: Memory, seconds: float, step: int) -> list[Timing]:
    """Which pages were written since the last round; by hand that is a look, without the reset."""
    start, end = memory.start, memory.end
    with track(memory.bytes) as tracker:
        tracker.collect()
        ways = [Way("collect", lambda: tracker.collect()), by_pread(pm, start, end, PROTECTED_BIT, 0)]
        return race(what, ways, start, memory.nbytes // PAGE_SIZE, seconds, lambda: memory.write(step))


def jobs(pm: PageMap, reader: PageMap, nbytes: int, seconds: float) -> list[Callable[[], list[Timing]]]:
    """What is measured here; memory is mapped when its job runs."""

    def present_job(what: str, huge: bool, step: int) -> Callable[[], list[Timing]]:
        return lambda: present(pm, reader, what, Memory(nbytes, huge=huge, step=step), seconds)

    def written_job(what: str, step: int) -> Callable[[], list[Timing]]:
        return lambda: written(pm, what, Memory(nbytes, huge=False, step=1), seconds, step)

    found = [present_job("dense, 4 KiB pages", False, 1)]
    if has_huge_pages():
        found.append(present_job("dense, huge pages", True, 1))
    found += [present_job("every second page", False, 2), lambda: one_page(pm, seconds)]
    if features().wp_async:
        found += [written_job("written: none", 0), written_job("written: 1 in 100", 100)]
    return found


@click.command(
    epilog="""\b
Examples:
  pagemap bench
  pagemap bench --size 4096 --seconds 3
  pagemap bench --json > here.json

\b
--json: {"kernel", "machine", "cpus", "size", "timings": [{"what", "way", "pages",
  "rounds", "seconds", "ratio", "ratio_min", "ratio_max"}…]}
`seconds` is the median over the rounds; `ratio`: how many times as long as
this library's own call on the same memory, the median of the rounds.

All ways run in turns on the same memory, and their answers are compared first.
Comparisons with C are part of the source: `make bench`."""
)
@click.option(
    "--size",
    "mib",
    type=Mebibytes(min=2),
    default=512,
    show_default=True,
    help="MiB of memory to look at; populated for the purpose.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=0.5,
    show_default=True,
    help="About so long for each kind of memory.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs: JSON.")
def command(mib: int, seconds: float, as_json: bool) -> None:
    """How fast it is here: scan and collect next to what one would write by hand."""
    nbytes = mib // 2 * HUGE
    with PageMap() as pm, PageMap(engine="read") as reader:
        work = jobs(pm, reader, nbytes, seconds)
        timings = []
        with progress() as bar:
            task = bar.add_task("measuring", total=len(work))
            for job in work:
                timings += job()
                bar.advance(task)
    if as_json:
        print(json.dumps(as_document(nbytes, timings), indent=1))
    else:
        print_table(nbytes, timings)


def as_document(nbytes: int, timings: list[Timing]) -> dict[str, Any]:
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "size": nbytes,
        "timings": [vars(timing) for timing in timings],
    }


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def print_table(nbytes: int, timings: list[Timing]) -> None:
    out = console()
    cpus = len(os.sched_getaffinity(0))
    out.print(f"Linux {platform.release()}, {platform.machine()}, {cpus} CPUs; {size(nbytes)} each\n")
    table = new_table()
    for heading in ("what", "way"):
        table.add_column(heading)
    for heading in ("time", "a page", "times as long"):
        table.add_column(heading, justify="right")
    last = timings[0].what
    for t in timings:
        if t.what != last:
            table.add_section()
        own = t.way in ("scan", "collect")
        ratio = "" if own else f"{t.ratio:,.0f}×" if t.ratio >= 20 else f"{t.ratio:.2f}×"
        style = "" if own else "green" if t.ratio > 1.05 else "red" if t.ratio < 0.95 else ""
        table.add_row(
            Text(t.what if t.what != last or t is timings[0] else ""),
            Text(t.way, "bold" if own else ""),
            duration(t.seconds),
            duration(t.seconds / t.pages),
            Text(ratio, style),
        )
        last = t.what
    out.print(table)
    out.print("\ntimes as long as this library's own call; green: the library is faster, red: slower")
