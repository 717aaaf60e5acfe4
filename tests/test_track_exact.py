"""On quiet memory, the pages reported are the pages written: every kind of memory, any order of things."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory import ANONYMOUS, DONTNEED, HUGEPAGE, PRIVATE, SHARED, Memory
from tracked import PAGES, SMALL_PAGES, bounds, huge, huge_bytes, hugetlb, pages_in, plain, view, whole
from witness import PAGE, PMD

import pagemap


@pytest.fixture(params=SMALL_PAGES)
def small(request, need):
    need("wp_async")
    with SMALL_PAGES[request.param]() as memory:
        yield memory


def test_nothing_written_is_nothing_reported(small):
    with pagemap.track(bounds(small)) as tracker:
        for _ in range(3):
            assert pages_in(tracker.collect(), small) == set()
            small.read(*range(PAGES))
            assert pages_in(tracker.peek(), small) == set()


def test_reported_is_what_was_written(small):
    pick = random.Random(3)
    with pagemap.track(bounds(small)) as tracker:
        for count in (1, 0, 7, 30, PAGES, 1):
            written = set(pick.sample(range(PAGES), count))
            small.write(*written)
            assert pages_in(tracker.peek(), small) == written
            assert pages_in(tracker.collect(), small) == written
        small.write(5)
        tracker.reset()
        assert pages_in(tracker.collect(), small) == set()


def test_every_write_alone(small):
    """Page by page, in a random order: none passes for another, none is forgotten the second time."""
    order = [*range(PAGES), *range(PAGES)]
    random.Random(7).shuffle(order)
    with pagemap.track(bounds(small)) as tracker:
        for page in order:
            small.write(page)
            assert pages_in(tracker.collect(), small) == {page}


def test_only_the_range_that_was_asked_for(small):
    with pagemap.track((small.at(8), small.at(16)), (small.at(40), small.at(41))) as tracker:
        small.write(*range(PAGES))
        assert pages_in(tracker.collect(), small) == {*range(8, 16), 40}


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sets(st.integers(0, PAGES - 1), max_size=8)),
        st.tuples(st.just("read"), st.sets(st.integers(0, PAGES - 1), max_size=8)),
        st.tuples(st.just("drop"), st.tuples(st.integers(0, PAGES - 1), st.integers(1, 9))),
        st.tuples(st.sampled_from(["collect", "peek", "reset"]), st.none()),
        st.tuples(st.just("budget"), st.integers(0, PAGES)),
    ),
    max_size=25,
)


@pytest.mark.parametrize("kind", SMALL_PAGES)
@given(steps=STEPS)
def test_any_order_of_things(kind, steps):
    """Against a model: what must be reported, and what may be. That is what was dropped and has the same
    content after, and once more what was written or dropped again while a budget let it wait."""
    with SMALL_PAGES[kind]() as memory, pagemap.track(bounds(memory)) as tracker:
        must, may, again = set(), set(), set()
        drops_are_told = tracker.category == pagemap.Category.WRITTEN  # else not once the pages are read
        for step, what in [*steps, ("collect", None)]:
            if step == "write":
                memory.write(*what)
                again |= what & (must | may)
                must |= what
            elif step == "read":
                memory.read(*what)
            elif step == "drop" and drops_are_told:
                first, count = what[0], min(what[1], PAGES - what[0])
                before = memory.read(*range(first, first + count))
                memory.advise(DONTNEED, first, count)
                after = memory.read(*range(first, first + count))
                again |= {*range(first, first + count)} & (must | may)
                for page, old, new in zip(range(first, first + count), before, after, strict=True):
                    (must if old != new else may).add(page)
            elif step == "reset":
                tracker.reset()
                must, may, again = set(), set(), set()
            elif step != "drop":
                found = tracker.peek() if step == "peek" else tracker.collect(what)
                found = pages_in(found, memory, tracker.category)
                assert found <= must | may
                if step == "budget":
                    assert len(found) <= what
                    assert len(found) == what or must <= found
                else:
                    assert must <= found
                if step == "budget":
                    must, may, again = must - found, may - found | again & found, again - found
                elif step == "collect":
                    must, may, again = set(), set(), set()


def test_a_huge_page(need):
    """The kernel maps a protected huge page by small ones at its first write: 4 KiB of dirt, not 2 MiB."""
    need("wp_async", "thp", "frames")
    with huge(3) as memory, pagemap.track(bounds(memory)) as tracker:
        assert pages_in(tracker.collect(), memory) == set()
        for page in (0, 3, 511, 512 + 100):
            memory.write(page)
            assert pages_in(tracker.peek(), memory) == {page}
            assert pages_in(tracker.collect(), memory) == {page}
            assert pages_in(tracker.collect(), memory) == set()
        assert huge_bytes(memory) == 1 << 21  # the third was not written, and is whole


def test_a_huge_page_by_the_page(need):
    """The same without a split in the writer's way: that is done when the tracking starts."""
    need("wp_async", "thp", "frames")
    with huge() as memory, pagemap.track(bounds(memory), granularity="page") as tracker:
        assert huge_bytes(memory) == 0
        assert pages_in(tracker.collect(), memory) == set()
        for page in (0, 3, 511, 512, 600):
            memory.write(page)
            assert pages_in(tracker.peek(), memory) == {page}
            assert pages_in(tracker.collect(), memory) == {page}
        memory.write(1, 2, 700, 701)
        assert pages_in(tracker.collect(), memory) == {1, 2, 700, 701}


@pytest.mark.parametrize("granularity", ["native", "page"])
def test_a_huge_page_of_shared_memory(need, granularity):
    """Losing its huge mapping makes all of it count as written, once: never less than what was written."""
    need("wp_async", "shmem_thp", "frames")
    with Memory(512, flags=SHARED | ANONYMOUS, align=PMD, huge_pages=True) as memory:
        memory.advise(HUGEPAGE)
        memory.write(*range(512))
        with pagemap.track(bounds(memory), granularity=granularity) as tracker:
            tracker.collect()
            for page in (0, 3, 511):
                memory.write(page)
                assert page in pages_in(tracker.collect(), memory)
            memory.write(*range(10, 20))
            assert pages_in(tracker.collect(), memory) == set(range(10, 20))
            assert pages_in(tracker.collect(), memory) == set()


@pytest.mark.parametrize("granularity", ["native", "page"])
@pytest.mark.parametrize("flags", [PRIVATE, SHARED])
def test_hugetlb(need, flags, granularity):
    """Pages that were never touched, then written; 2 MiB each, whatever was asked for."""
    need("wp_async", "hugetlb")
    with hugetlb(flags) as memory, pagemap.track(bounds(memory), granularity=granularity) as tracker:
        assert pages_in(tracker.collect(), memory) == set()
        memory.write(700)
        assert pages_in(tracker.peek(), memory) == whole(1)
        assert pages_in(tracker.collect(), memory) == whole(1)
        assert pages_in(tracker.collect(), memory) == set()
        memory.write(0, 513)
        assert pages_in(tracker.collect(), memory) == whole(0, 1)
        memory.write(1)
        assert pages_in(tracker.collect(), memory) == whole(0)


def test_a_part_of_a_hugetlb_page_is_tracked_as_the_whole(need):
    need("wp_async", "hugetlb")
    with hugetlb(PRIVATE) as memory, pagemap.track((memory.at(600), memory.at(602))) as tracker:
        memory.write(0, 512)
        assert pages_in(tracker.collect(), memory) == whole(1)


def test_several_kinds_at_once(need):
    need("wp_async")
    made = [make() for make in SMALL_PAGES.values()]
    with pagemap.track([bounds(memory) for memory in made]) as tracker:
        for number, memory in enumerate(made):
            memory.write(number, PAGES - 1)
        found = tracker.collect()
        starts = {start for start, end, _ in found.tolist() for start in range(start, end, PAGE)}
        assert starts == {m.at(page) for n, m in enumerate(made) for page in (n, PAGES - 1)}
    for memory in made:
        memory.close()


@pytest.mark.parametrize(
    "make", [lambda n: np.zeros(n, np.uint8), lambda n: bytearray(n), lambda n: np.zeros(n // 8)[::2]]
)
def test_buffers(need, make):
    """An ordinary buffer shares its first and its last page with others; the pages between are its own."""
    need("wp_async")
    buffer = make(1 << 20)
    array = np.frombuffer(buffer, np.uint8) if isinstance(buffer, bytearray) else buffer
    start, end = pagemap.span(buffer)
    with pagemap.track(buffer) as tracker:
        array[:] = 1
        found = tracker.collect()
        assert (found["start"][0], found["end"][-1], len(found)) == (start, end, 1)
        array[len(array) // 2] = 2
        address = array.ctypes.data + len(array) // 2 * array.strides[0]
        inner = pagemap.regions.clip(tracker.collect(), start + PAGE, end - PAGE)
        assert inner["start"].tolist() == [address // PAGE * PAGE]
        assert inner["end"].tolist() == [address // PAGE * PAGE + PAGE]


def test_more_regions_than_the_kernel_collects_at_a_time(need):
    """513 and more in one walk: walk_end is stale from there on, and a naive loop repeats itself."""
    need("wp_async")
    with Memory(1 << 18) as memory, pagemap.track(bounds(memory)) as tracker:
        for step in (400, 2):  # 656 regions, and 131,072: more than the buffer has room for at first
            written = range(0, memory.pages, step)
            memory.write(*written)
            found = tracker.collect()
            assert ((found["start"] - memory.start) // PAGE).tolist() == list(written)
            assert (found["end"] - found["start"] == PAGE).all()
            assert len(tracker.collect()) == 0


def is_found(found, item):
    """Whether the page of an array's first byte is among what was found."""
    at = item.__array_interface__["data"][0] // PAGE * PAGE
    return len(pagemap.regions.clip(found, at, at + PAGE)) == 1


def test_two_arrays_are_two_arrays():
    """Not the bounds of a range, though an array has __index__; NumPy's integers are."""
    with plain(16) as memory:
        arrays = np.frombuffer(view(memory, 0, 16), np.uint8).reshape(2, -1)
        first, second = arrays
        start, end = pagemap.span(arrays)
        for objects in (
            (first, second),
            [first, second],
            ((first,), [second]),
            (np.uint64(start), np.int64(end)),
        ):
            with pagemap.track(objects) as tracker:
                tracker.collect()
                first[4 * PAGE] += 1
                second[4 * PAGE] += 1
                found = tracker.collect()
                assert is_found(found, first[4 * PAGE :])
                assert is_found(found, second[4 * PAGE :])
                assert not is_found(found, first[6 * PAGE :])


STRINGS = [np.dtypes.StringDType()] if hasattr(np.dtypes, "StringDType") else []


@pytest.mark.parametrize(
    "dtype", ["M8[s]", "m8[us]", [("when", "M8[ns]"), ("what", "<i4")], "O", "U10", *STRINGS], ids=str
)
def test_arrays_of_any_dtype(dtype):
    """Also of those that have no buffer: dates and strings. A tracked array keeps its memory."""
    array = np.zeros(1 << 16, dtype)
    middle = len(array) // 2
    with pagemap.track(array) as tracker:
        tracker.collect()
        array[middle] = array[0]
        assert is_found(tracker.collect(), array[middle:])
        with pytest.raises(ValueError, match="resize"):
            array.resize(1)
