"""The backend for kernels before asynchronous write protection.

Where the kernel records soft-dirty bits, with these. Elsewhere the bits come from a double: a scan for
SOFT_DIRTY is answered by a real userfaultfd tracker, and clear_refs resets that. All else is the real thing.
"""

import contextlib
import dataclasses
import errno
import io
import os
import signal
import sys
import time

import children
import numpy as np
import pytest
from memory import DONTNEED
from tracked import PAGES, SMALL_PAGES, bounds, plain

import pagemap
from pagemap import Category, PageMap, Query, regions, softdirty
from pagemap.softdirty import SoftDirtyTracker, stopped, thread_states


class SoftDirtyBits(PageMap):
    """A PageMap whose kernel records soft-dirty bits, for some ranges or an attached process."""

    def __init__(self, pid, recorder):
        super().__init__(pid)
        self.recorder = recorder
        self.cleared_while = []

    def scan(self, query=Query.POPULATED, *, start=0, end=None, **options):
        if not query.require & Category.SOFT_DIRTY:
            return super().scan(query, start=start, end=end, **options)
        written = self.recorder.peek() if end is None else regions.clip(self.recorder.peek(), start, end)
        return regions.relabel(written, Category.SOFT_DIRTY)

    def open(self, path, mode, buffering=-1):
        if "clear_refs" not in path:
            return open(path, mode, buffering)
        assert (path, mode, buffering) == (f"/proc/{self.pid}/clear_refs", "wb", 0)
        outer = self

        class ClearRefs(io.RawIOBase):
            def write(self, what):
                assert what == b"4"
                outer.recorder.reset()
                outer.cleared_while.append(thread_states(outer.pid))

        return ClearRefs()


@pytest.fixture
def soft_dirty(need, monkeypatch):
    """soft_dirty(pid, bounds) -> (tracker, PageMap)"""
    real = pagemap.features().soft_dirty
    if not real:
        need("wp_async")
    with contextlib.ExitStack() as stack:

        def make(pid, limits):
            if real:
                pm = PageMap(pid)
            else:
                recorder = pagemap.track(limits) if pid is None else pagemap.attach(pid)
                pm = SoftDirtyBits(pid, stack.enter_context(recorder))
                monkeypatch.setattr(softdirty, "open", pm.open, raising=False)
            ranges = None if limits is None else np.array([(*limits, 0)], pagemap.REGION_DTYPE)
            return stack.enter_context(SoftDirtyTracker(pm, ranges)), pm

        yield make


def pages(found, memory):
    assert set(found["categories"].tolist()) <= {int(Category.SOFT_DIRTY)}
    mask = regions.to_mask(found, memory.start, memory.end)
    return set(mask.nonzero()[0].tolist())


@pytest.mark.parametrize("kind", SMALL_PAGES)
def test_reported_is_what_was_written(soft_dirty, kind):
    with SMALL_PAGES[kind]() as memory:
        tracker, _ = soft_dirty(None, bounds(memory))
        assert tracker.category == Category.SOFT_DIRTY
        assert pages(tracker.collect(), memory) == set()
        memory.write(1, 5, 60)
        assert pages(tracker.peek(), memory) == {1, 5, 60}
        assert pages(tracker.collect(), memory) == {1, 5, 60}
        memory.write(5, 9)
        assert len(pages(tracker.collect(1), memory)) == 1
        tracker.reset()
        assert pages(tracker.collect(), memory) == set()


def test_refuses_nothing(soft_dirty):
    with plain() as memory:
        tracker, _ = soft_dirty(None, bounds(memory))
        assert tracker.refused == []


def test_dropped_pages(soft_dirty):
    with plain() as memory:
        memory.write(*range(PAGES))
        tracker, _ = soft_dirty(None, bounds(memory))
        memory.advise(DONTNEED, 10, 3)
        assert pages(tracker.peek(), memory) == {10, 11, 12}
        assert pages(tracker.collect(), memory) == {10, 11, 12}
        assert pages(tracker.collect(), memory) == set()


TARGET = """
import ctypes, sys, threading, time
memory = ctypes.create_string_buffer(80 * 4096)
start = -(-ctypes.addressof(memory) // 4096) * 4096
def work():
    while True:
        sum(range(1000))
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
print(start, flush=True)
for line in sys.stdin:
    for page in map(int, line.split()):
        ctypes.c_char.from_address(start + page * 4096).value = b"x"
    print("written", flush=True)
"""


@pytest.fixture
def busy():
    with children.target(TARGET) as target:
        yield target


def runs(pid):
    return "T" not in thread_states(pid)


def test_another_process_stands_still_while_bits_are_read_and_cleared(soft_dirty, busy):
    tracker, pm = soft_dirty(busy.pid, None)
    start = int(busy.first_words)
    for written in ([3], [], [0, 7, 63]):
        busy.ask(" ".join(map(str, written)))
        found = regions.clip(tracker.collect(), start, start + 64 * 4096)
        assert {(low - start) // 4096 for low in found["start"].tolist()} == set(written)
        assert runs(busy.pid)
    if isinstance(pm, SoftDirtyBits):
        assert pm.cleared_while == [{"T"}] * 4


@contextlib.contextmanager
def descriptor_of(pid):
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def test_stopped_means_every_thread(busy):
    with descriptor_of(busy.pid) as fd:
        for _ in range(20):
            with stopped(busy.pid, fd):
                assert thread_states(busy.pid) == {"T"}
            assert runs(busy.pid)
        with pytest.raises(ZeroDivisionError), stopped(busy.pid, fd):
            raise ZeroDivisionError
        assert runs(busy.pid)
    assert busy.ask("1") == "written"


def test_who_was_stopped_before_stays_stopped(busy):
    with descriptor_of(busy.pid) as fd:
        os.kill(busy.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while thread_states(busy.pid) != {"T"}:
            assert time.monotonic() < deadline
        with stopped(busy.pid, fd):
            assert thread_states(busy.pid) == {"T"}
        assert thread_states(busy.pid) == {"T"}
        os.kill(busy.pid, signal.SIGCONT)
    assert busy.ask("1") == "written"


def test_a_process_that_ends_meanwhile(busy):
    with descriptor_of(busy.pid) as fd:
        with stopped(busy.pid, fd):
            busy.kill()
        with stopped(busy.pid, fd):
            assert thread_states(busy.pid) <= {"Z"}
        busy.reap()
        with stopped(busy.pid, fd):
            assert thread_states(busy.pid) == set()


def test_one_that_does_not_stop(busy, monkeypatch):
    """A time limit, and it goes on."""
    monkeypatch.setattr(softdirty, "_STOP_LIMIT", 0.05)
    monkeypatch.setattr(softdirty, "is_still", lambda pid: False)
    with (
        descriptor_of(busy.pid) as fd,
        pytest.raises(TimeoutError, match="does not stop"),
        stopped(busy.pid, fd),
    ):
        pass
    assert runs(busy.pid)
    assert busy.ask("1") == "written"


def test_a_target_that_has_gone(soft_dirty, busy):
    tracker, _ = soft_dirty(busy.pid, None)
    busy.reap()
    with pytest.raises(ProcessLookupError, match=str(busy.pid)):
        tracker.collect()


def test_threads_come_and_go_while_it_is_stopped():
    code = """
    import sys, threading
    def work():
        while True:
            threads = [threading.Thread(target=lambda: None) for _ in range(20)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
    threading.Thread(target=work, daemon=True).start()
    print("ready", flush=True)
    input()
    """
    with children.target(code) as target, descriptor_of(target.pid) as fd:
        for _ in range(20):
            with stopped(target.pid, fd):
                assert thread_states(target.pid) <= {"T", "X", "Z"}
            time.sleep(0.005)


@pytest.mark.parametrize("told", [True, False])
def test_the_engine_is_one_that_tells_soft_dirty_pages(need, monkeypatch, told):
    """Linux 6.7 has the ioctl, but no SOFT_DIRTY in it."""
    need("scan")
    track = sys.modules["pagemap.track"]
    known = pagemap.features()
    categories = known.categories & ~Category.SOFT_DIRTY | (Category.SOFT_DIRTY if told else Category(0))
    old = dataclasses.replace(
        known, wp_async=False, soft_dirty=True, categories=categories, why={"wp_async": "switched off"}
    )
    monkeypatch.setattr(track, "features", lambda: old)
    monkeypatch.setattr(track, "SoftDirtyTracker", lambda pm, bounds, keep_alive: pm)
    with plain() as memory, pagemap.track(bounds(memory)) as pm:
        assert pm.engine == ("scan" if told else "read")


def test_a_kernel_without_pidfds(monkeypatch):
    def refused(pid):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "pidfd_open", refused)
    with (
        children.idle() as target,
        PageMap(target.pid) as pm,
        pytest.raises(pagemap.UnsupportedError, match=r"Linux 5\.3"),
    ):
        SoftDirtyTracker(pm, None)
