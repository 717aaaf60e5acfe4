"""Access tracking (Linux 7.3): on quiet memory the pages reported are the pages that were touched."""

import os
import subprocess
import sys

import machine
import numpy as np
import pytest
import tracked
from memory import ANONYMOUS, PRIVATE, Memory

import pagemap
from pagemap import Category, regions

PAGES = 64
PAGE = pagemap.PAGE_SIZE

requires_access = pytest.mark.usefixtures("access")


@pytest.fixture
def access(need):
    need("rwp_async")


def reported(found, memory):
    assert set(found["categories"].tolist()) <= {int(Category.ACCESSED)}
    return set(np.flatnonzero(regions.to_mask(found, memory.start, memory.end)).tolist())


@requires_access
@pytest.mark.parametrize("kind", [tracked.plain, tracked.shared, tracked.memfd, tracked.file_private])
def test_reads_and_writes_are_accesses(kind):
    memory = kind(PAGES)
    with pagemap.track((memory.start, memory.end), mode="access") as tracker:
        assert tracker.category is Category.ACCESSED
        tracker.reset()
        memory.read(1, 9, 33)
        memory.write(2, 33, 40)
        expected = {1, 2, 9, 33, 40}
        assert reported(tracker.peek(), memory) == expected
        assert reported(tracker.collect(), memory) == expected
        assert reported(tracker.collect(), memory) == set()
        memory.read(9)
        assert reported(tracker.collect(), memory) == {9}


@requires_access
def test_a_write_tracker_and_an_access_tracker_exclude_each_other():
    memory = tracked.plain(PAGES)
    bounds = (memory.start, memory.end)
    with pagemap.track(bounds, mode="access"), pytest.raises(OSError, match="userfaultfd already holds it"):
        pagemap.track(bounds)


@requires_access
def test_of_another_process_what_it_touches():
    program = """
import mmap, sys
memory = mmap.mmap(-1, 64 * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[:] = b"x" * len(memory)
import ctypes
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
for line in sys.stdin:
    page = int(line)
    memory[page * mmap.PAGESIZE]
    print("read", flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    ) as child:
        try:
            start = int(child.stdout.readline())
            with pagemap.attach(child.pid, mode="access") as tracker:
                tracker.collect()
                child.stdin.write("7\n")
                child.stdin.flush()
                child.stdout.readline()
                for answer in (tracker.peek(), tracker.collect()):
                    found = regions.clip(answer, start, start + PAGES * PAGE)
                    assert found.tolist() == [(start + 7 * PAGE, start + 8 * PAGE, int(Category.ACCESSED))]
                assert (
                    regions.page_count(regions.clip(tracker.populated(), start, start + PAGES * PAGE))
                    == PAGES
                )
        finally:
            child.kill()


@pytest.mark.skipif(machine.rwp_async() is None, reason="this kernel has access tracking")
def test_is_refused_with_the_reason():
    memory = Memory(1, flags=PRIVATE | ANONYMOUS)
    with pytest.raises(pagemap.UnsupportedError, match=r"access tracking by userfaultfd: Linux 7\.3"):
        pagemap.track((memory.start, memory.end), mode="access")
