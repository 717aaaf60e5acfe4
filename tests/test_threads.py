"""Threads may share a PageMap, close it under each other, be interrupted, and be there when Python ends."""

import gc
import os
import sys
import threading
import time

import children
import numpy as np
import pytest
from memory import Memory
from witness import PAGE, PRESENT

import pagemap
from pagemap import PageMap, Query

SECONDS = 0.5


@pytest.fixture(autouse=True)
def quick_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(*tasks):
    """Runs each task in a thread of its own until time is up; raises what one of them raised."""
    errors, turns = [], [0] * len(tasks)
    until = time.monotonic() + SECONDS
    start = threading.Barrier(len(tasks))

    def run(index, task):
        try:
            start.wait(10)
            while time.monotonic() < until and not errors:
                task()
                turns[index] += 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
    return turns


def every(step):
    memory = Memory(600)
    memory.write(*range(0, 600, step))
    truth = [(memory.at(page), memory.at(page + 1), PRESENT) for page in range(0, 600, step)]
    return memory, truth


def test_two_threads_ask_one_pagemap(engine):
    """Each of the questions, with answers that differ between the threads: none gets the other's."""
    (one, truth_one), (two, truth_two) = every(2), every(3)
    with one, two, PageMap(engine=engine) as pm:

        def ask(memory, truth):
            area = {"start": memory.start, "end": memory.end}

            def task():
                assert pm.scan(Query.PRESENT, **area).tolist() == truth
                batches = list(pm.iter_scan(Query.PRESENT, **area))
                assert np.concatenate(batches).tolist() == truth
                assert pm.scan(Query.PRESENT, **area, max_pages=7).tolist() == truth[:7]
                assert pm.entries(**area).nonzero()[0].size >= len(truth)
                assert pm.vmas().find(memory.start) is not None

            return task

        assert all(turns > 3 for turns in together(ask(one, truth_one), ask(two, truth_two)))


def test_batches_of_two_threads_are_not_one_buffer(engine):
    (one, truth_one), (two, truth_two) = every(2), every(3)
    with one, two, PageMap(engine=engine) as pm:

        def ask(memory, truth):
            def task():
                for _ in range(50):
                    (batch,) = pm.iter_scan(Query.PRESENT, start=memory.start, end=memory.end)
                    assert batch.tolist() == truth

            return task

        assert all(together(ask(one, truth_one), ask(two, truth_two)))


def test_close_while_others_scan(engine):
    """Answers until then, ValueError after; never EBADF, nor the answer of another file."""
    memory, truth = every(2)
    area = {"start": memory.start, "end": memory.end}
    with memory:
        answers, closed = [], []
        for turn in range(60):
            pm = PageMap(engine=engine)
            ready = threading.Barrier(3)

            def ask(pm=pm, ready=ready, turn=turn):
                ready.wait(10)
                try:
                    while True:
                        if turn % 2:
                            assert pm.scan(Query.PRESENT, **area).tolist() == truth
                        else:
                            found = [
                                r
                                for b in pm.iter_scan(Query.PRESENT, **area, batch_size=50)
                                for r in b.tolist()
                            ]
                            assert found == truth
                        pm.vmas()
                        answers.append(turn)
                except ValueError as error:
                    assert "closed" in str(error)  # noqa: PT017
                    closed.append(turn)

            threads = [threading.Thread(target=ask) for _ in range(2)]
            for thread in threads:
                thread.start()
            ready.wait(10)
            time.sleep(turn / 60 * 0.004)
            pm.close()
            # What takes the number of a descriptor that was closed too early would be scanned.
            others = [os.open("/dev/zero", os.O_RDONLY) for _ in range(4)]
            for thread in threads:
                thread.join(30)
                assert not thread.is_alive()
            for fd in others:
                os.close(fd)
        assert len(closed) == 120
        assert answers


def test_one_scan_with_workers_beside_another(engine):
    with Memory((64 << 20) // PAGE) as memory, PageMap(engine=engine) as pm:
        memory.write(*range(0, memory.pages, 16))
        area = {"start": memory.start, "end": memory.end}
        truth = pm.scan(Query.PRESENT, **area)
        assert len(truth) == memory.pages // 16

        def task():
            assert np.array_equal(pm.scan(Query.PRESENT, **area, workers=3), truth)

        assert all(together(task, task))
    gc.collect()
    assert not [t for t in threading.enumerate() if t.name.startswith("pagemap")]


def test_workers_end_with_their_error(engine):
    """A worker that fails ends the scan with its error, and every thread."""
    with children.idle() as target, PageMap(target.pid, engine=engine) as pm:
        target.kill()
        for _ in range(20):
            with pytest.raises(ProcessLookupError):
                pm.scan(workers=4)
    assert threading.active_count() == 1 + sum(t.daemon for t in threading.enumerate())


SCANS_FOR_EVER = """
import sys, threading, time, mmap, pagemap
memory = mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(0, 64 << 20, 8192):
    memory[page] = 1
engine, workers = sys.argv[1], int(sys.argv[2])
start, _ = pagemap.span(memory)  # and all that lies above: the libraries, the stack
pm = pagemap.PageMap(engine=engine)
started = threading.Event()
def scan():
    while True:
        pm.scan(start=start, workers=workers)
        sum(map(len, pm.iter_scan(start=start, batch_size=100)))
        started.set()
for _ in range(2):
    threading.Thread(target=scan, daemon=True).start()
started.wait(30)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_python_ends_while_threads_scan(engine, workers):
    """Exit status 0, and not a word: a daemon thread may be anywhere in a scan when the interpreter goes."""
    children.run(SCANS_FOR_EVER + "sys.exit(0)", engine, workers, limit=30)


def test_an_interrupt_between_two_batches(engine):
    """Control-C ends a long iteration at once, and the PageMap is as good as before."""
    children.run(
        """
import mmap, signal, sys, time, pagemap
from pagemap import PageMap, Query

memory = mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(0, 64 << 20, 8192):
    memory[page] = 1
start, end = pagemap.span(memory)
with PageMap(engine=sys.argv[1]) as pm:
    truth = pm.scan(Query.PRESENT, start=start, end=end).tolist()
    for ask in (
        lambda: [list(pm.iter_scan(Query.PRESENT, batch_size=1)) for _ in iter(int, 1)],
        lambda: [pm.scan(Query.PRESENT) for _ in iter(int, 1)],
        lambda: [pm.scan(Query.PRESENT, workers=2) for _ in iter(int, 1)],
    ):
        for delay in (0.01, 0.05, 0.1):
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, delay)
            before = time.monotonic()
            try:
                ask()
            except KeyboardInterrupt:
                assert time.monotonic() - before < 5
            else:
                raise AssertionError("nobody was interrupted")
            assert pm.scan(Query.PRESENT, start=start, end=end).tolist() == truth
            (batch,) = pm.iter_scan(Query.PRESENT, start=start, end=end)
            assert batch.tolist() == truth
""",
        engine,
    )


def test_signals_that_python_handles_do_not_break_a_scan(engine):
    """A handler runs a thousand times a second: EINTR is nobody's error."""
    children.run(
        """
import mmap, signal, sys, time, pagemap
from pagemap import PageMap, Query

memory = mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(0, 64 << 20, 8192):
    memory[page] = 1
start, end = pagemap.span(memory)
handled = []
with PageMap(engine=sys.argv[1]) as pm:
    truth = pm.scan(Query.PRESENT, start=start, end=end).tolist()
    signal.signal(signal.SIGALRM, lambda *_: handled.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        assert pm.scan(Query.PRESENT, start=start, end=end, workers=2).tolist() == truth
        pm.vmas()
    signal.setitimer(signal.ITIMER_REAL, 0)
assert len(handled) > 10
""",
        engine,
    )


def test_the_extension_in_a_subinterpreter():
    """Its state is each module's own: loaded, used and unloaded in interpreters that come and go."""
    try:
        import _xxsubinterpreters  # noqa: F401
    except ImportError:
        pytest.skip("this Python calls its subinterpreters something else")
    children.run(
        """
import sys, pagemap, _xxsubinterpreters as interpreters
code = f'''
import importlib.util, os
spec = importlib.util.spec_from_file_location("pagemap._pagemap", {pagemap._pagemap.__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
fd = os.open("/proc/self/pagemap", os.O_RDONLY)
vec = bytearray(24 * 100)
if {pagemap.features().scan}:
    n, _ = module.pagemap_scan(fd, 0, (1 << 47) - 4096, vec, category_mask=8, return_mask=8)
    assert n > 10
buffer = module.RegionBuffer(10)
view = memoryview(buffer)
try:
    buffer.resize(20)
except BufferError:
    pass
else:
    raise AssertionError
os.close(fd)
'''
for _ in range(20):
    interpreter = interpreters.create()
    interpreters.run_string(interpreter, code)
    interpreters.destroy(interpreter)
assert pagemap.scan().size
"""
    )


def test_two_modules_of_the_extension_do_not_share_a_type():
    import importlib.util

    spec = importlib.util.spec_from_file_location("pagemap._pagemap", pagemap._pagemap.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    assert again.RegionBuffer is not pagemap._pagemap.RegionBuffer
    mine, other = again.RegionBuffer(4), pagemap._pagemap.RegionBuffer(4)
    with pytest.raises(TypeError, match="another RegionBuffer"):
        mine.append(0, other, 0, 1)
    with PageMap(engine="read") as pm:
        again.read_entries(pm.fileno(), 0, memoryview(mine).cast("B").cast("Q"))


@pytest.mark.parametrize("limit", [0, 1])
def test_where_no_more_threads_can_be_started_fewer_do_the_work(engine, monkeypatch, limit):
    """A limit of the user or the container: the answer is the same."""
    monkeypatch.setattr(pagemap.parallel, "WORTH_A_THREAD", 0)
    start, asked = threading.Thread.start, []

    def limited(thread):
        asked.append(thread)
        if len(asked) > limit:
            raise RuntimeError("can't start new thread")
        start(thread)

    with Memory(5 * 4096) as memory, PageMap(engine=engine) as pm:
        memory.write(*range(0, 5 * 4096, 3))
        area = {"start": memory.start, "end": memory.end}
        expected = pm.scan(**area).tolist()
        monkeypatch.setattr(threading.Thread, "start", limited)
        assert pm.scan(workers=4, **area).tolist() == expected
        assert len(asked) == limit + 1
