"""A process that another userfaultfd tracks as well: neither resets what the other one has to find."""

import contextlib
import errno
import subprocess
import sys

import children
import pytest
from witness import PAGE

import pagemap
from pagemap import regions

PAGES = 64

# Tracks an array of its own, writes a page of it or of another, says what it found, lets go of it.
TARGET = f"""
import mmap, sys, numpy, pagemap
def area():
    memory = mmap.mmap(-1, {PAGES} * {PAGE}, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    array = numpy.frombuffer(memory, numpy.uint8).reshape({PAGES}, {PAGE})
    array[:] = 1
    return array
mine, other, tracker = area(), area(), None
def answer(words):
    global mine, tracker
    if words[0] == "track":
        tracker = pagemap.track(mine)
    elif words[0] == "again":
        tracker and tracker.close()
        mine = area()
        tracker = pagemap.track(mine)
    elif words[0] == "free":
        tracker.close()
    elif words[0] == "mine":
        mine[int(words[1])] = 2
    elif words[0] == "other":
        other[int(words[1])] = 2
    else:
        found = tracker.collect()
        start, _ = pagemap.span(mine)
        return pagemap.regions.to_mask(found, start, start + mine.nbytes).nonzero()[0].tolist()
    return hex(pagemap.span(mine)[0]), hex(pagemap.span(other)[0])
print("ready", flush=True)
for line in sys.stdin:
    print(answer(line.split()), flush=True)
"""


@pytest.fixture(autouse=True)
def tracking(need):
    need("wp_async")


@contextlib.contextmanager
def target():
    """It has the package, unlike children.target(); each line is answered by one."""
    with subprocess.Popen(
        [sys.executable, "-c", TARGET], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        started = children.Target(process)
        try:
            assert started.hear() == "ready"
            yield started
        finally:
            process.kill()


def addresses(answer):
    return [int(address, 16) for address in eval(answer)]


def pages_of(found, start):
    return set(regions.to_mask(found, start, start + PAGES * PAGE).nonzero()[0].tolist())


def test_all_of_it_is_tracked_already():
    """The second is told so, the first loses nothing; and when it has gone, the second may."""
    with target() as process:
        with pagemap.attach(process.pid) as tracker:
            tracker.collect()
            with pytest.raises(OSError, match="tracked already: close the other") as error:
                pagemap.attach(process.pid)
            assert error.value.errno == errno.EBUSY
            _, other = addresses(process.ask("other 5"))
            assert pages_of(tracker.collect(), other) == {5}
        with pagemap.attach(process.pid) as tracker:
            tracker.collect()
            process.ask("other 6")
            assert pages_of(tracker.collect(), other) == {6}


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_part_is_tracked_by_the_process_itself(rounds):
    """That part is reported whole, the rest exactly; what the process finds itself stays exact."""
    with target() as process:
        mine, other = addresses(process.ask("track"))
        process.ask("what")
        with pagemap.attach(process.pid) as tracker:
            assert mine in {start for vma, _ in tracker.refused for start in range(vma.start, vma.end, PAGE)}
            for number in range(rounds):
                tracker.collect()
                process.ask(f"mine {number}")
                process.ask(f"other {number + 10}")
                found = tracker.collect()
                assert pages_of(found, mine) == set(range(PAGES))
                assert pages_of(found, other) == {number + 10}
                assert process.ask("what") == str([number])


def test_what_the_process_maps_and_tracks_later():
    """Registered already when it is first seen: a scan cannot tell by whom."""
    with target() as process, pagemap.attach(process.pid) as tracker:
        tracker.collect()
        for number in range(3):
            mine, _ = addresses(process.ask("again"))
            process.ask("what")
            tracker.collect()
            process.ask(f"mine {number}")
            assert number in pages_of(tracker.collect(), mine)
            assert process.ask("what") == str([number])


def test_what_it_tracks_no_more_is_tracked_from_outside():
    with target() as process:
        mine, _ = addresses(process.ask("track"))
        with pagemap.attach(process.pid) as tracker:
            tracker.collect()
            process.ask("free")
            assert pages_of(tracker.collect(), mine) == set(range(PAGES))
            process.ask("mine 7")
            assert pages_of(tracker.collect(), mine) == {7}
            assert not any(vma.start <= mine < vma.end for vma, _ in tracker.refused)
