"""Objects shared between threads that do everything to them at once: nothing is lost, torn, freed too early.

The promises are in docs/threading.md. `make freethreaded` runs this with the GIL off, where it bites.
"""

import collections
import itertools
import sys
import threading
import time

import numpy as np
import pytest
from memory import Memory
from witness import PAGE, PRESENT

import pagemap
from pagemap import PageMap, Query, _pagemap

THREADS = 4
SECONDS = 1.0


def storm(*tasks):
    """Each task in threads of its own, over and over, until time is up; how often each came round."""
    errors, turns = [], collections.Counter()
    until = time.monotonic() + SECONDS
    start = threading.Barrier(len(tasks))

    def run(index, task):
        done = 0
        try:
            start.wait(20)
            while time.monotonic() < until and not errors:
                task()
                done += 1
        except BaseException as error:
            errors.append(error)
        turns[index] = done

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
    return [turns[index] for index in range(len(tasks))]


@pytest.fixture(autouse=True)
def quick_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def has_it(call, *arguments):
    """False where another thread has the buffer, which is a BufferError."""
    try:
        call(*arguments)
    except BufferError as error:
        assert "views" in str(error) or "written by another" in str(error)  # noqa: PT017
        return False
    return True


def test_a_region_buffer_is_written_or_seen_or_moved(need):
    """Scans, views, moves and copies of one buffer exclude each other: a view is never of memory that moved,
    and what it shows is a whole answer."""
    need("scan")
    with Memory(400) as memory, PageMap() as pm:
        memory.write(*range(0, 400, 2))
        truth = [(memory.at(page), memory.at(page + 1), PRESENT) for page in range(0, 400, 2)]
        buffer, other = _pagemap.RegionBuffer(300), _pagemap.RegionBuffer(300)
        arguments = (pm.fileno(), memory.start, memory.end, 0, 0, 0, PRESENT, 0, PRESENT)
        assert buffer.scan(0, *arguments)[0] == other.scan(0, *arguments)[0] == 200
        done = collections.Counter()

        def turn(name, call, *arguments):
            """Asks until it has the buffer, and leaves it to the others for a while."""
            until = time.monotonic() + SECONDS
            while not has_it(call, *arguments):
                if time.monotonic() > until:
                    return
                time.sleep(0)
            done[name] += 1
            time.sleep(0.0005)

        def scan():
            turn("scan", buffer.scan, 0, *arguments)

        def shown():
            regions = np.frombuffer(buffer, pagemap.REGION_DTYPE)
            assert buffer.exports > 0
            assert regions[:200].tolist() == truth

        def view():
            turn("view", shown)

        def resize():
            for capacity in (250, 400_000, 300):
                turn("resize", buffer.resize, capacity)

        def copy():
            turn("copy", buffer.append, 0, other, 0, 200)

        def copy_back():
            turn("copy back", other.append, 0, buffer, 0, 200)

        def read():
            ranges = np.array([[memory.start, memory.end]], np.uint64)
            asked = (pm.fileno(), ranges, memory.start, memory.end, 0, 0, PRESENT, 0, PRESENT)
            turn("read", buffer.read, 0, *asked)

        def look():
            assert buffer.capacity in (250, 300, 400_000)
            assert buffer.length in (0, 200)
            assert buffer.exports >= 0

        storm(scan, view, view, resize, copy, copy_back, read, look)
        assert buffer.exports == other.exports == 0
        buffer.resize(10)
        assert {"scan", "view", "resize", "copy", "copy back", "read"} == set(done), done


def test_everything_of_one_pagemap_at_once(engine):
    with Memory(300) as memory, PageMap(engine=engine) as pm:
        memory.write(*range(0, 300, 3))
        area = {"start": memory.start, "end": memory.end}
        truth = [(memory.at(page), memory.at(page + 1), PRESENT) for page in range(0, 300, 3)]

        def scan():
            assert pm.scan(Query.PRESENT, **area).tolist() == truth

        def batches():
            got = [batch.copy() for batch in pm.iter_scan(Query.PRESENT, **area, batch_size=7)]
            assert np.concatenate(got).tolist() == truth

        def abandoned():
            (first, *_) = next(pm.iter_scan(Query.PRESENT, **area, batch_size=3)).tolist()
            assert first == truth[0]

        def large():
            assert len(pm.scan(Query.PRESENT, start=memory.start, workers=2)) > 0

        def entries():
            assert np.flatnonzero(pm.entries(**area) >> np.uint64(63)).tolist() == list(range(0, 300, 3))

        def vmas():
            table = pm.vmas()
            assert table[table.find(memory.start)].end == memory.end
            assert len(table.names) == len(table)

        assert all(storm(scan, scan, batches, abandoned, large, entries, vmas))


def test_an_iterator_goes_from_thread_to_thread(engine):
    """One user at a time, whoever it is: each batch is drawn once, and is nobody else's memory."""
    with Memory(3000) as memory, PageMap(engine=engine) as pm:
        memory.write(*range(0, 3000, 2))
        truth = [(memory.at(page), memory.at(page + 1), PRESENT) for page in range(0, 3000, 2)]
        for _ in range(10):
            shared = pm.iter_scan(Query.PRESENT, start=memory.start, end=memory.end, batch_size=4)
            turn, drawn = threading.Lock(), []

            def draw(shared=shared, turn=turn, drawn=drawn):
                while True:
                    with turn:
                        batch = next(shared, None)
                    if batch is None:
                        return
                    drawn.append(batch.tolist())

            threads = [threading.Thread(target=draw) for _ in range(THREADS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert sorted(itertools.chain.from_iterable(drawn)) == truth


def test_a_tracker_that_threads_share_loses_no_write(need):
    """Two collect, one looks, one writes: each page that was written is in some answer after its write."""
    need("wp_async")
    with Memory(512) as memory:
        memory.write(*range(512))
        with pagemap.track((memory.start, memory.end)) as tracker:
            tracker.reset()
            written, collected = [], []
            pages = iter(range(512))

            def write():
                page = next(pages, None)
                if page is not None:
                    memory.write(page)
                    written.append(page)
                time.sleep(0)

            def collect():
                found = tracker.collect()
                collected.append([(int(r["start"]), int(r["end"])) for r in found])

            def some():
                found = tracker.collect(max_pages=3)
                assert int((found["end"] - found["start"]).sum()) <= 3 * PAGE
                collected.append([(int(r["start"]), int(r["end"])) for r in found])

            turns = storm(write, collect, some, lambda: tracker.peek())
            assert all(turns)
            collect()
            seen = {
                (address - memory.start) // PAGE
                for found in collected
                for start, end in found
                for address in range(start, end, PAGE)
            }
            assert set(written) <= seen
            assert seen <= set(range(512))
            assert len(written) > 20


def test_close_beside_everything(engine):
    """Of four threads in their calls each gets answers, then ValueError; descriptors are closed once."""
    with Memory(64) as memory:
        memory.write(*range(0, 64, 2))
        area = {"start": memory.start, "end": memory.end}
        for _ in range(40):
            pm = PageMap(engine=engine)
            start = threading.Barrier(5)
            outcomes = []

            def ask(call, pm=pm, start=start, outcomes=outcomes):
                start.wait(20)
                try:
                    while True:
                        call(pm)
                except ValueError as error:
                    outcomes.append("closed" in str(error))
                except BaseException as error:
                    outcomes.append(error)

            calls = (
                lambda pm: pm.scan(**area),
                lambda pm: list(pm.iter_scan(**area, batch_size=5)),
                lambda pm: pm.entries(**area),
                lambda pm: pm.vmas(),
            )
            threads = [threading.Thread(target=ask, args=(call,)) for call in calls]
            for thread in threads:
                thread.start()
            start.wait(20)
            time.sleep(0.002)
            closers = [threading.Thread(target=pm.close) for _ in range(2)]
            for thread in closers:
                thread.start()
            for thread in threads + closers:
                thread.join(60)
                assert not thread.is_alive()
            assert outcomes == [True] * 4
            assert pm.closed


def test_what_is_made_on_first_use_from_many_threads():
    """The list of a table's names; what the machine offers."""
    with PageMap() as pm:
        for _ in range(20):
            table, got = pm.vmas(), []

            def ask(table=table, got=got):
                got.append((table.names, pagemap.features()))

            threads = [threading.Thread(target=ask) for _ in range(THREADS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert len(got) == THREADS
            assert all(pair == got[0] for pair in got)
