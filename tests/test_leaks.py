"""Ten thousand calls cost no memory, no descriptor and no reference; results are the caller's for good."""

import gc
import os
import sys

import children
import numpy as np
import pytest
from memory import Memory
from witness import PAGE, PRESENT

import pagemap
from pagemap import PageMap, Query, _pagemap

CALLS = 10_000
SLACK = 128 << 10
"""Bytes that the process may grow by in one round of calls: 16 a call would be more."""
ROUNDS = 4
"""What else goes on in the process may make it grow once. A leak is there in every round."""


def resident():
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * PAGE


def descriptors():
    return sorted(os.listdir("/proc/self/fd"))


def least_growth(call, count):
    """By how much the process grows over so many calls, in the best of the rounds."""
    least = SLACK
    for _ in range(ROUNDS):
        before = resident()
        for _ in range(count):
            call()
        gc.collect()
        least = min(least, resident() - before)
        if least < SLACK:
            break
    return least


def refused(ask, error):
    try:
        ask()
    except error:
        return
    raise AssertionError("not refused")


@pytest.fixture
def place(engine):
    """A PageMap, memory with 100 regions, and the keywords of its range."""
    with Memory(200) as memory, PageMap(engine=engine) as pm:
        memory.write(*range(0, 200, 2))
        yield pm, {"start": memory.start, "end": memory.end}


def opened(pm):
    with PageMap(engine=pm.engine):
        pass


def grown():
    buffer = _pagemap.RegionBuffer(10)
    view = np.frombuffer(buffer, pagemap.REGION_DTYPE)
    refused(lambda: buffer.resize(1000), BufferError)
    del view
    buffer.resize(1000)
    buffer.append(0, _pagemap.RegionBuffer(3), 0, 2)


def raw(pm, area, vec):
    if pm.engine == "scan":
        pagemap.pagemap_scan(pm, area["start"], area["end"], vec, category_mask=PRESENT, return_mask=PRESENT)
    else:
        _pagemap.read_entries(pm.fileno(), area["start"], vec["start"].copy())


VEC = np.zeros(64, pagemap.REGION_DTYPE)

CALLED = {
    "scan": lambda pm, area: pm.scan(Query.PRESENT, **area),
    "scan of one page": lambda pm, area: pm.scan(start=area["start"], end=area["start"] + PAGE),
    "scan with a limit": lambda pm, area: pm.scan(**area, max_pages=50),
    "iter_scan": lambda pm, area: sum(map(len, pm.iter_scan(Query.PRESENT, **area, batch_size=64))),
    "iter_scan that is left": lambda pm, area: next(pm.iter_scan(Query.PRESENT, **area, batch_size=7)),
    "entries": lambda pm, area: pm.entries(**area),
    "a new PageMap": lambda pm, _: opened(pm),
    "the raw call": lambda pm, area: raw(pm, area, VEC),
    "numbers that are no int": lambda pm, _: refused(
        lambda: pagemap.pagemap_scan(pm, np.uint64(1 << 40), np.int64(1 << 50), flags=np.uint64(1 << 63)),
        OSError,
    ),
    "a RegionBuffer": lambda *_: grown(),
    "a bad range": lambda pm, _: refused(lambda: pm.scan(start=1), ValueError),
    "a bad query": lambda pm, _: refused(lambda: pm.scan(Query(1 << 40)), OSError),
    "a bad buffer": lambda pm, _: refused(lambda: pagemap.pagemap_scan(pm, 0, 0, bytes(24)), ValueError),
    "objects": lambda pm, _: refused(
        lambda: pagemap.pagemap_scan(pm, 0, 0, np.zeros(24, object)), ValueError
    ),
    "a bad keyword": lambda pm, _: refused(lambda: pagemap.pagemap_scan(pm, 0, 0, mask=5), TypeError),
    "a bad number": lambda pm, _: refused(lambda: pagemap.pagemap_scan(pm, 0, 1 << 70), ValueError),
    "a bad descriptor": lambda *_: refused(lambda: pagemap.pagemap_scan(10_000, 0, 0), OSError),
    "no such process": lambda *_: refused(lambda: PageMap(2**31 - 1), ProcessLookupError),
    "span": lambda *_: pagemap.span(VEC),
}


def test_a_thousand_trackers(need):
    need("wp_async")
    with Memory(200) as memory:
        memory.write(*range(0, 200, 2))

        def life():
            with pagemap.track((memory.start, memory.end)) as tracker:
                for ask in (tracker.collect, tracker.peek, tracker.populated, tracker.reset):
                    memory.write(7)
                    ask()

        for _ in range(100):
            life()
        files = descriptors()
        assert least_growth(life, CALLS // 10) < SLACK
        assert descriptors() == files


@pytest.mark.parametrize("name", CALLED)
def test_ten_thousand_calls(place, name):
    call = CALLED[name]
    count = CALLS if name != "no such process" else CALLS // 4
    for _ in range(500):
        call(*place)
    gc.collect()
    tracked = len(gc.get_objects())
    blocks = sys.getallocatedblocks()
    things = (VEC, Query.PRESENT, place[0], pagemap.REGION_DTYPE, _pagemap.RegionBuffer, _pagemap, None)
    references = [sys.getrefcount(thing) for thing in things]
    files = descriptors()
    assert least_growth(lambda: call(*place), count) < SLACK
    assert descriptors() == files
    assert abs(sys.getallocatedblocks() - blocks) < count // 10
    assert len(gc.get_objects()) - tracked < 100
    after = [sys.getrefcount(thing) for thing in things]
    assert all(abs(b - a) < 100 for a, b in zip(references, after, strict=True)), (references, after)


def test_ten_thousand_lists_of_vmas(engine):
    with children.idle() as target, PageMap(target.pid, engine=engine) as pm:
        for _ in range(500):
            pm.vmas().names  # noqa: B018
        gc.collect()
        files, blocks = descriptors(), sys.getallocatedblocks()
        assert least_growth(pm.vmas, CALLS) < SLACK
        assert descriptors() == files
        assert sys.getallocatedblocks() - blocks < CALLS // 10


def test_large_answers_are_given_back(engine):
    """Each of 50 answers is 2.4 MiB in a buffer of its own: the process does not grow by it."""
    with Memory(200_000) as memory, PageMap(engine=engine) as pm:
        memory.write(*range(0, 200_000, 2))
        area = {"start": memory.start, "end": memory.end}
        for _ in range(3):
            pm.scan(Query.PRESENT, **area)
        before = resident()
        for turn in range(50):
            assert len(pm.scan(Query.PRESENT, **area, workers=1 + turn % 2)) == 100_000
            assert sum(map(len, pm.iter_scan(Query.PRESENT, **area, batch_size=30_000))) == 100_000
        assert resident() - before < 8 << 20


def test_a_long_iteration_holds_two_buffers(engine):
    """Memory stays bounded however many batches there are, when nobody keeps them."""
    with Memory(400_000) as memory, PageMap(engine=engine) as pm:
        memory.write(*range(0, 400_000, 2))
        batches = pm.iter_scan(Query.PRESENT, start=memory.start, end=memory.end, batch_size=1000)
        addresses = {batch.__array_interface__["data"][0] for batch in batches}
        assert len(addresses) <= 2


def test_answers_are_the_callers_own_for_good(engine):
    """Scans of every size, kept while others follow, the memory changes, and the PageMap is closed."""
    kept = []
    with Memory(20_000) as memory:
        with PageMap(engine=engine) as pm:
            for step in (2, 3, 5, 200, 2000):
                memory.advise(4)  # MADV_DONTNEED
                memory.write(*range(0, memory.pages, step))
                area = {"start": memory.start, "end": memory.end}
                answers = [
                    pm.scan(Query.PRESENT, **area),
                    pm.scan(Query.PRESENT, **area, workers=2),
                    pm.scan(Query.PRESENT, **area, max_pages=10),
                    pm.scan(Query.PRESENT, start=memory.start, end=memory.at(100)),
                    *pm.iter_scan(Query.PRESENT, **area),
                    *pm.iter_scan(Query.PRESENT, **area, batch_size=150),
                    pm.entries(**area),
                ]
                kept += [(answer, answer.copy()) for answer in answers]
                assert all(np.array_equal(answer, copy) for answer, copy in kept)
        assert pm.closed
        del pm
        gc.collect()
        with PageMap(engine=engine) as other:
            other.scan(Query.PRESENT)
        assert all(np.array_equal(answer, copy) for answer, copy in kept)
        overlapping = [
            (a, b)
            for i, (a, _) in enumerate(kept)
            for b, _ in kept[:i]
            if a.size and np.may_share_memory(a, b)
        ]
        assert not overlapping
        for answer, _ in kept:
            answer[:1] = 0  # the caller's own: writable


def test_batches_that_are_held_stay_as_they_are(engine):
    with Memory(6000) as memory, PageMap(engine=engine) as pm:
        memory.write(*range(0, 6000, 2))
        area = {"start": memory.start, "end": memory.end}
        held = []
        for number, batch in enumerate(pm.iter_scan(Query.PRESENT, **area, batch_size=64)):
            if number % 3 == 0:
                held.append((batch, batch.copy()))
            assert all(np.array_equal(kept, copy) for kept, copy in held)
        parts = [batch[5:9] for batch, _ in held[:3]]
        copies = [part.copy() for part in parts]
        del held, batch
        for _ in pm.iter_scan(Query.PRESENT, **area, batch_size=64):
            pass
        assert all(np.array_equal(part, copy) for part, copy in zip(parts, copies, strict=True))


def test_the_descriptors_go_with_close_and_not_before():
    before = descriptors()
    pm = PageMap()
    assert len(descriptors()) == len(before) + 2
    assert all(not os.get_inheritable(int(fd)) for fd in set(descriptors()) - set(before))
    batches = pm.iter_scan(batch_size=1)
    next(batches)
    pm.close()
    del batches
    gc.collect()
    del pm
    assert descriptors() == before


def test_nothing_is_left_when_the_constructor_fails():
    before = descriptors()
    for arguments in ({"pid": -1}, {"engine": "none"}, {"pid": 2**31 - 1}):
        with pytest.raises((ValueError, ProcessLookupError)):
            PageMap(**arguments)
    gc.collect()
    assert descriptors() == before
