"""Released kernels hang for good in a protecting scan of hugetlb: no tracker ever asks for one.

Every walk goes through tracker.IoctlWalk, and `flags` say which protect: a double of that class writes down
what the kernel is asked, and asks it.
"""

import contextlib

import children
import pytest
from memory import ANONYMOUS, DONTNEED, FIXED, HUGETLB, PRIVATE, READ, SHARED, WRITE, Memory, map_at
from tracked import bounds, hugetlb, pages_in, plain, whole
from witness import PMD

import pagemap
from pagemap import ScanFlag, tracker


class Asked(list):
    """Ranges of memory that were scanned with the flag WP_MATCHING."""

    def meets(self, start, end):
        return any(low < end and start < high for low, high in self)


@pytest.fixture
def protecting_scans(monkeypatch):
    asked = Asked()

    class Walk(tracker.IoctlWalk):
        def step(self, buffer, at):
            if self.flags & ScanFlag.WP_MATCHING:
                asked.append((self.position, self.end))
            return super().step(buffer, at)

    monkeypatch.setattr(tracker, "IoctlWalk", Walk)
    return asked


@pytest.mark.parametrize("granularity", ["native", "page"])
@pytest.mark.parametrize("flags", [PRIVATE, SHARED])
def test_own_memory(need, protecting_scans, flags, granularity):
    need("wp_async", "hugetlb")
    with contextlib.ExitStack() as stack:
        ordinary = stack.enter_context(plain())
        huge = stack.enter_context(hugetlb(flags))
        with pagemap.track(bounds(ordinary), bounds(huge), granularity=granularity) as tracked:
            for step in (
                lambda: None,
                lambda: huge.write(0),
                lambda: huge.advise(DONTNEED, 0, 512),
                lambda: huge.write(512),
            ):
                step()
                ordinary.write(3)
                tracked.peek()
                tracked.collect(1)
                tracked.collect()
                tracked.reset()
        assert protecting_scans.meets(*bounds(ordinary))
        assert not protecting_scans.meets(*bounds(huge))


def test_hugetlb_that_takes_the_place_of_other_memory(need, protecting_scans):
    need("wp_async", "hugetlb")
    with Memory(3 * 512, align=PMD) as memory:
        memory.write(*range(3 * 512))
        with pagemap.track(bounds(memory)) as tracked:
            tracked.collect()
            protecting_scans.clear()
            map_at(memory.at(512), PMD, READ | WRITE, PRIVATE | ANONYMOUS | HUGETLB | FIXED)
            assert pages_in(tracked.collect(), memory) == whole(1)
            memory.write(700, 3)
            assert pages_in(tracked.collect(), memory) == whole(1) | {3}
            assert pages_in(tracked.collect(), memory) == set()
            assert protecting_scans.meets(memory.at(0), memory.at(512))
            assert not protecting_scans.meets(memory.at(512), memory.at(1024))


TARGET = """
import mmap, sys
from ctypes import addressof, c_char
HUGE = 2 << 20
room = mmap.mmap(-1, 8 * HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
base = -(-addressof(c_char.from_buffer(room)) // HUGE) * HUGE
from ctypes import CDLL, c_long, c_void_p, c_size_t
libc = CDLL(None)
libc.mmap.argtypes = (c_void_p, c_size_t, c_long, c_long, c_long, c_long)
libc.mmap.restype = c_void_p
PRIVATE, SHARED, ANONYMOUS, FIXED, HUGETLB = 2, 1, 0x20, 0x10, 0x40000
for place, flags in ((1, PRIVATE), (3, SHARED)):
    where = base + place * HUGE
    assert libc.mmap(where, HUGE, 3, flags | ANONYMOUS | FIXED | HUGETLB, -1, 0) == where
def write(place, page):
    c_char.from_address(base + place * HUGE + page * 4096).value = b"x"
for place in (0, 2, 4):
    write(place, 5)
print(base, flush=True)
for line in sys.stdin:
    write(*map(int, line.split()))
    print("written", flush=True)
"""


def test_hugetlb_between_other_memory_of_a_target(need, protecting_scans):
    """Walks over neighbouring ranges are joined into longer ones: not over what lies between them."""
    need("wp_async", "hugetlb")
    with children.target(TARGET) as target, pagemap.attach(target.pid) as tracked:
        base = int(target.first_words)
        places = [(base + (place << 21), base + (place + 1 << 21)) for place in range(5)]
        for place in (1, 3, 0, 2, 4, 1):
            target.ask(f"{place} 7")
            found = pagemap.regions.clip(tracked.collect(), places[0][0], places[-1][1])
            start, end = places[place]
            assert pagemap.regions.page_count(found) == (512 if place in (1, 3) else 1)
            assert start <= found["start"][0]
            assert found["end"][-1] <= end
        for place, (start, end) in enumerate(places):
            assert protecting_scans.meets(start, end) == (place in (0, 2, 4)), place
