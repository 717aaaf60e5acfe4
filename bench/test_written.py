"""Which pages were written since the last look: what a round costs, by how much was written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import pagemap
from pagemap import PAGE_SIZE, Query, ScanFlag, features

from . import alternatives as alt
from . import baseline
from .alternatives import Alternative, Spans
from .conftest import Pair, Scale
from .memory import GIB, Memory, anonymous

WRITTEN_MASKS = Query.WRITTEN.masks()
UFFD_WP_BIT = 57
SOFT_DIRTY_BIT = np.uint64(55)


@dataclass(frozen=True)
class Writes:
    label: str
    size: int
    step: int
    """Every so manieth page is written between two rounds; 0: none."""
    huge: bool = False
    scattered: bool = False


WRITES = {
    "clean": Writes("clean", 4 * GIB, 0),
    "scattered": Writes("clean, scattered frames", 2 * GIB, 0, scattered=True),
    "1/1000": Writes("1 in 1,000 written", 4 * GIB, 1000),
    "1/100": Writes("1 in 100 written", GIB, 100),
    "1/16": Writes("1 in 16 written", GIB, 16),
    "1/2": Writes("every second written", GIB, 2),
    "all": Writes("all written", GIB, 1),
    "huge": Writes("clean, huge pages", 4 * GIB, 0, huge=True),
}


@dataclass(frozen=True)
class Round:
    writes: Writes
    memory: Memory
    tracker: pagemap.Tracker
    pm: pagemap.PageMap

    def write(self) -> None:
        if self.writes.step:
            baseline.touch(self.memory.start, self.memory.end, self.writes.step)

    def before(self, write: Callable[[], None]) -> Callable[[], None] | None:
        """What comes before each timed run: nothing where nothing is written."""
        return write if self.writes.step else None

    def after_writing(self, collect: Callable[[], Spans]) -> Callable[[], Spans]:
        def answer() -> Spans:
            self.tracker.collect()
            self.write()
            return collect()

        return answer


@pytest.fixture(scope="module", params=WRITES)
def rounds(request: pytest.FixtureRequest, scale: Scale, pm: pagemap.PageMap) -> Iterator[Round]:
    if not features().wp_async:
        pytest.skip(features().why["wp_async"])
    writes = WRITES[request.param]
    with (
        anonymous(scale.size(writes.size), huge=writes.huge, scattered=writes.scattered) as memory,
        pagemap.track(memory.array) as tracker,
    ):
        tracker.collect()
        yield Round(writes, memory, tracker, pm)


def collect(r: Round) -> Alternative:
    run = r.tracker.collect
    return Alternative("collect", run, r.after_writing(lambda: alt.spans(run())))


def c_get_and_protect(r: Round) -> Alternative:
    def get(vec: npt.NDArray[Any] = baseline.warm) -> Callable[[], int]:
        return baseline.scan(
            r.pm.fileno(), r.memory.start, r.memory.end, WRITTEN_MASKS, ScanFlag.WP_MATCHING, vec
        )

    def answer() -> Spans:
        vec = np.zeros(r.memory.pages, pagemap.REGION_DTYPE)
        return alt.spans(vec[: get(vec)()])

    return Alternative("C, ioctl that gets and protects", get(), r.after_writing(answer))


def numpy_pread(r: Round) -> Alternative:
    """The look alone: the bit of write protection, without setting it again."""
    fd, offset, size = r.pm.fileno(), r.memory.start // PAGE_SIZE * 8, r.memory.pages * 8

    def run() -> Spans:
        entries = np.frombuffer(os.pread(fd, size, offset), np.uint64)
        return alt.runs((entries >> np.uint64(UFFD_WP_BIT) & np.uint64(1)) == 0, r.memory.start)

    return Alternative("Python, os.pread + NumPy, no reset", run, r.after_writing(run))


OTHERS = {"c": c_get_and_protect, "numpy": numpy_pread}


@pytest.mark.parametrize("other", OTHERS)
def test_round(pair: Pair, rounds: Round, other: str) -> None:
    pair(
        f"written: {rounds.writes.label}",
        collect(rounds),
        OTHERS[other](rounds),
        before=rounds.before(rounds.write),
        pages=rounds.memory.pages,
    )


def test_write_barrier(pair: Pair, rounds: Round) -> None:
    """mprotect and SIGSEGV, on a twin of the memory: it would split the VMAs of the tracker's."""
    writes = rounds.writes
    if writes.step > 1 and rounds.memory.pages // writes.step > max_map_count() // 2 - 1000:
        pytest.skip("mprotect would need more VMAs than vm.max_map_count allows")
    with (
        anonymous(rounds.memory.size, huge=writes.huge) as twin,
        baseline.Barrier(twin.start, twin.end) as barrier,
    ):

        def write() -> None:
            rounds.write()
            if writes.step:
                baseline.touch(twin.start, twin.end, writes.step)

        def answer() -> Spans:
            barrier.collect()
            write()
            found = alt.spans(barrier.vec[: barrier.collect()])
            return found - np.uint64(twin.start) + np.uint64(rounds.memory.start)

        pair(
            f"written: {writes.label}",
            collect(rounds),
            Alternative("C, mprotect + SIGSEGV", barrier.collect, answer),
            before=rounds.before(write),
            pages=rounds.memory.pages,
        )


def test_soft_dirty(pair: Pair, rounds: Round) -> None:
    """clear_refs and the soft-dirty bit: of the whole process, whether it is asked about or not."""
    if not features().soft_dirty:
        pytest.skip(features().why["soft_dirty"])

    def run() -> Spans:
        spans: Spans = look.run()
        with open("/proc/self/clear_refs", "w", encoding="ascii") as clear_refs:
            clear_refs.write("4")
        return spans

    look = alt.numpy_pread(rounds.pm, rounds.memory, SOFT_DIRTY_BIT)
    other = Alternative("Python, soft-dirty, reset", run, rounds.after_writing(run))
    run()
    pair(
        f"written: {rounds.writes.label}",
        collect(rounds),
        other,
        before=rounds.before(rounds.write),
        pages=rounds.memory.pages,
    )


def max_map_count() -> int:
    with open("/proc/sys/vm/max_map_count", encoding="ascii") as limit:
        return int(limit.read())
