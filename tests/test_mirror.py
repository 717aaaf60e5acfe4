"""A mirror that copies only what is reported equals the memory in the end, byte by byte.

Threads in C write as fast as they can, through system calls too, and drop pages and page tables, while pages
are collected and copied.
"""

import contextlib
import ctypes
import os
import time

import injection
import numpy as np
import pytest
from memory import ANONYMOUS, HUGEPAGE, PRIVATE, SHARED, Memory
from mirror import MemoryOf, Mirror
from tracked import bounds, file_private, hugetlb
from witness import PAGE, PMD

import pagemap

SECONDS = float(os.environ.get("PAGEMAP_MIRROR_SECONDS", "2"))
ROUNDS = 6
"""At least, however slow the machine is."""


@pytest.fixture(autouse=True)
def kernel(need):
    need("wp_async")


@pytest.fixture(scope="module")
def hammer():
    path, reason = injection.compiled("hammer", "-pthread", "-shared", "-fPIC")
    if path is None:
        pytest.skip(reason)
    library = ctypes.CDLL(str(path))
    library.hammer_add.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_bool)
    library.hammer_start.argtypes = (ctypes.c_int, ctypes.c_size_t)
    library.hammer_stop.restype = ctypes.c_ulong
    return library


def transparent(shared):
    memory = Memory(6 * 512, flags=(SHARED if shared else PRIVATE) | ANONYMOUS, align=PMD, huge_pages=True)
    memory.advise(HUGEPAGE)
    memory.write(*range(0, memory.pages, 512))
    return memory


def areas_to_hammer(stack):
    """(memory, whether pages of it may be dropped)"""
    for memory, may_drop in (
        (Memory(8192, align=PMD), True),
        (Memory(4096, flags=SHARED | ANONYMOUS), True),
        (file_private(4096), True),
        (transparent(shared=False), True),
        (transparent(shared=True), True),
    ):
        yield stack.enter_context(memory), may_drop


@pytest.mark.parametrize("granularity", ["native", "page"])
@pytest.mark.parametrize("budget", [None, 300])
def test_own_memory(need, hammer, granularity, budget):
    need("thp", "shmem_thp")
    with contextlib.ExitStack() as stack:
        made = list(areas_to_hammer(stack))
        mirror = Mirror(lambda start, end: ctypes.string_at(start, end - start))
        spans = [bounds(area) for area, _ in made]
        tracker = stack.enter_context(pagemap.track(spans, granularity=granularity))
        mirror.update(np.array([(*span, 0) for span in spans], pagemap.REGION_DTYPE))
        for area, may_drop in made:
            hammer.hammer_add(area.start, area.pages * PAGE, may_drop)
        hammer.hammer_start(3, time.time_ns() % 1000)
        until = time.monotonic() + SECONDS / 2
        rounds = 0
        while time.monotonic() < until or rounds < ROUNDS:
            mirror.update(tracker.collect(budget))
            rounds += 1
        writes = hammer.hammer_stop()
        mirror.update(tracker.collect())
        assert mirror.wrong_pages(spans) == []
        assert len(tracker.collect()) == 0
        assert mirror.copied > 5
        assert writes > 1000


def test_own_hugetlb(need, hammer):
    need("hugetlb")
    with hugetlb(PRIVATE, 3) as memory, pagemap.track(bounds(memory)) as tracker:
        mirror = Mirror(lambda start, end: ctypes.string_at(start, end - start))
        hammer.hammer_add(memory.start, memory.pages * PAGE, False)
        hammer.hammer_start(2, 5)
        for _ in range(60):
            mirror.update(tracker.collect())
        hammer.hammer_stop()
        mirror.update(tracker.collect())
        assert mirror.wrong_pages([bounds(memory)]) == []


@pytest.mark.parametrize("granularity", ["native", "page"])
@pytest.mark.parametrize("seed", [1, 2])
def test_another_process(granularity, seed):
    """It also maps, unmaps, moves and grows memory, its heap and its stack among it, all the time."""
    path, reason = injection.compiled("hammer", "-pthread", "-DPROGRAM")
    if path is None:
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(injection.running(path, seed))
        copy = stack.enter_context(MemoryOf(target.pid))
        tracker = stack.enter_context(pagemap.attach(target.pid, granularity=granularity))
        mirror = Mirror(copy)
        mirror.update(tracker.populated())
        until = time.monotonic() + SECONDS / 2
        rounds = 0
        while time.monotonic() < until or rounds < ROUNDS:
            mirror.update(tracker.collect())
            mirror.forget_unmapped(tracker.vmas)
            rounds += 1
        numbers = map(int, target.ask("stop").split())
        areas = [(start, start + length) for start, length in zip(numbers, numbers, strict=True)]
        mirror.update(tracker.collect())
        mirror.forget_unmapped(tracker.vmas)
        assert pagemap.regions.page_count(tracker.collect()) <= 20  # it waits in read(): its stack at most
        assert mirror.wrong_pages(areas) == []
        assert len(areas) > 10
