"""A round of an attached process with many VMAs, little of which has been written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import pagemap
from pagemap import PAGE_SIZE, features

from . import alternatives as alt
from .alternatives import Alternative, Spans
from .conftest import Pair

VMAS, PAGES_EACH, WRITES = 10_000, 16, 50
UFFD_WP_BIT = 57

# Says where its memory is, then writes to WRITES pages of it for each line of its input.
PROGRAM = """
import sys
from bench.memory import anonymous, split_vmas
vmas, pages, writes = map(int, sys.argv[1:])
with anonymous(vmas * pages * 4096) as memory:
    split_vmas(memory, vmas)
    print(memory.start, memory.end, flush=True)
    part = pages * 4096
    for line in sys.stdin:
        memory.array[part :: 2 * part][: writes * 7 : 7] += 1
        print(flush=True)
"""


@dataclass(frozen=True)
class Attached:
    """A program that is tracked, and its memory."""

    program: subprocess.Popen[str]
    tracker: pagemap.Tracker
    pm: pagemap.PageMap
    start: int
    end: int

    def write(self) -> None:
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        self.program.stdin.write("\n")
        self.program.stdin.flush()
        self.program.stdout.readline()

    def inside(self, spans: Spans) -> Spans:
        return spans[(spans[:, 0] >= self.start) & (spans[:, 1] <= self.end)]


@pytest.fixture
def attached() -> Iterator[Attached]:
    if not features().wp_async:
        pytest.skip(features().why["wp_async"])
    command = [sys.executable, "-c", PROGRAM, str(VMAS), str(PAGES_EACH), str(WRITES)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            start, end = map(int, program.stdout.readline().split())
            with pagemap.attach(program.pid) as tracker, pagemap.PageMap(program.pid) as pm:
                yield Attached(program, tracker, pm, start, end)
        finally:
            program.kill()


def collect(a: Attached) -> Alternative:
    def answer() -> Spans:
        a.tracker.collect()
        a.write()
        return a.inside(alt.spans(a.tracker.collect()))

    return Alternative("collect, attached", a.tracker.collect, answer)


def numpy_pread(a: Attached) -> Alternative:
    """The look alone, at all writable memory: the bit of write protection, without setting it again."""

    def run() -> Spans:
        found = []
        with open(f"/proc/{a.program.pid}/maps", encoding="utf-8", errors="surrogateescape") as maps:
            for line in maps:
                bounds, flags = line.split(maxsplit=2)[:2]
                if flags[1] == "w":
                    start, end = (int(bound, 16) for bound in bounds.split("-"))
                    found.append(written(a.pm.fileno(), start, end))
        return np.concatenate(found)

    def answer() -> Spans:
        a.tracker.collect()
        a.write()
        return a.inside(run())

    return Alternative("Python, maps + os.pread + NumPy, no reset", run, answer)


def written(fd: int, start: int, end: int) -> Spans:
    size = (end - start) // PAGE_SIZE * 8
    entries: Any = np.frombuffer(os.pread(fd, size, start // PAGE_SIZE * 8), np.uint64)
    populated = entries >> np.uint64(62) != 0
    return alt.runs(populated & (entries >> np.uint64(UFFD_WP_BIT) & np.uint64(1) == 0), start)


def test_round(pair: Pair, attached: Attached) -> None:
    pair(
        "attached, 10,000 VMAs, 50 pages written",
        collect(attached),
        numpy_pread(attached),
        before=attached.write,
    )
