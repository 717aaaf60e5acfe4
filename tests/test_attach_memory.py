"""An attached process: the pages reported are the pages it wrote, wherever it maps, grows or moves memory."""

import itertools
import random
import shutil
import struct
import time

import children
import injection
import pytest
from test_track_interrupted import Strikes
from witness import PAGE, PMD, is_canonical

import pagemap
from pagemap import regions

PAGES = 64
TIB = 1 << 40

# Answers each line, an expression, with its value. Its memory comes from mmap(2) by ctypes: no neighbour
# of Python's own shares a page with it.
CHILD = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = libc.sbrk.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *3 * (ctypes.c_int,), ctypes.c_long)
libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
libc.sbrk.argtypes = (ctypes.c_ssize_t,)
PAGE = 4096
SHARED, PRIVATE, FIXED, ANONYMOUS, NORESERVE = 1, 2, 0x10, 0x20, 0x4000
NOHUGEPAGE = 15

def check(address):
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mapping")
    return address

def map(pages, flags, at=None, fd=-1):
    address = check(libc.mmap(at, pages * PAGE, 3, flags, fd, 0))
    libc.madvise(address, pages * PAGE, NOHUGEPAGE)
    return address

def file(pages, flags):
    import tempfile
    with tempfile.TemporaryFile() as of:
        of.write(b"page" * (pages * PAGE // 4))
        of.flush()
        return map(pages, flags, fd=of.fileno())

def grow(pages):
    start = -(-check(libc.sbrk(0)) // PAGE) * PAGE
    check(libc.sbrk((pages + 1) * PAGE))
    return start

def move(address, pages, to):
    # By way of a reservation, so that it cannot stay where it is.
    return check(libc.mremap(address, pages * PAGE, to * PAGE, 1))

def write(address, *pages):
    for page in pages:
        ctypes.memset(address + page * PAGE + page, page + 1, 3)

def read(address, *pages):
    return sum(ctypes.string_at(address + page * PAGE, 1)[0] for page in pages) >= 0

print("ready", flush=True)
for line in sys.stdin:
    print(eval(line), flush=True)
"""

KINDS = {
    "anonymous": f"map({PAGES}, PRIVATE | ANONYMOUS)",
    "shared": f"map({PAGES}, SHARED | ANONYMOUS)",
    "file_private": f"file({PAGES}, PRIVATE)",
    "file_shared": f"file({PAGES}, SHARED)",
}


@pytest.fixture
def child(need):
    need("wp_async")
    with children.target(CHILD) as target:
        yield target


def address_of(child, what):
    return int(child.ask(what))


def write(child, address, pages):
    assert child.ask(f"write({', '.join(map(str, [address, *sorted(pages)]))})") == "None"


def pages_at(found, address, count=PAGES):
    """The pages that an answer names of `count` from an address, counted from there."""
    assert is_canonical(found.tolist())
    mask = regions.to_mask(found, address, address + count * PAGE)
    return set(mask.nonzero()[0].tolist())


def is_populated(found, populated):
    """Of memory that is new: its populated pages. Who may not see frames cannot tell a protected hole from a
    page in swap, and is told of holes nearby, too."""
    return found == populated if pagemap.features().pfn else found >= populated


def present(pid, address):
    """By the word of /proc/PID/pagemap, bit 63."""
    with open(f"/proc/{pid}/pagemap", "rb") as file:
        file.seek(address // PAGE * 8)
        entries = struct.unpack(f"={PAGES}Q", file.read(PAGES * 8))
    return {page for page, entry in enumerate(entries) if entry >> 63}


@pytest.mark.parametrize("kind", KINDS)
def test_reported_is_what_was_written(child, kind):
    """Pages that were there, pages that were only read, and holes."""
    address = address_of(child, KINDS[kind])
    write(child, address, range(0, PAGES, 4))
    assert child.ask(f"read({', '.join(map(str, [address, *range(PAGES // 2)]))})") == "True"
    pick = random.Random(kind)
    with pagemap.attach(child.pid) as tracker:
        assert tracker.pid == child.pid
        assert pages_at(tracker.collect(), address) == set()
        for count in (1, 0, 9, 40, PAGES, 0, 3):
            written = set(pick.sample(range(PAGES), count))
            write(child, address, written)
            assert pages_at(tracker.peek(), address) == written
            assert pages_at(tracker.collect(), address) == written


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_mapping(child, kind):
    with pagemap.attach(child.pid) as tracker:
        address = address_of(child, KINDS[kind])
        write(child, address, {1, 2, 50})
        mapped = present(child.pid, address)
        # The first write to a large folio of a file maps all of it: mm/memory.c, finish_fault.
        assert mapped == {1, 2, 50} or (kind == "file_shared" and mapped > {1, 2, 50})
        assert is_populated(pages_at(tracker.collect(), address), mapped)
        write(child, address, {2, 3})
        assert pages_at(tracker.collect(), address) == {2, 3}
        assert pages_at(tracker.collect(), address) == set()


def test_what_peek_showed_is_reported_though_it_was_dropped(child):
    """Who made a copy of it must hear of that. And it is tracked from then on."""
    with pagemap.attach(child.pid) as tracker:
        address = address_of(child, KINDS["anonymous"])
        write(child, address, {1, 2, 50})
        assert is_populated(pages_at(tracker.peek(), address), {1, 2, 50})
        assert child.ask(f"libc.madvise({address}, {PAGES} * PAGE, 4)") == "0"
        assert pages_at(tracker.collect(), address) >= {1, 2, 50}
        write(child, address, {3})
        assert pages_at(tracker.collect(), address) == {3}
        assert child.ask(f"libc.madvise({address}, {PAGES} * PAGE, 4)") == "0"
        assert pages_at(tracker.collect(), address) >= {3}


def test_the_heap_grows(child):
    """brk(2), again and again: what was tracked stays tracked."""
    with pagemap.attach(child.pid) as tracker:
        earlier = []
        for written in ({0, 5, 63}, {1}, {*range(PAGES)}):
            address = address_of(child, f"grow({PAGES})")
            write(child, address, written)
            for other in earlier:
                write(child, other, {7})
            found = tracker.collect()
            assert pages_at(found, address) >= written
            assert all(7 in pages_at(found, other) for other in earlier)
            earlier.append(address)
        assert "[heap]" in list(tracker.vmas.names)


def test_a_mapping_that_moves(child):
    """Longer than before and with no room behind it: its populated pages are reported where they are now."""
    address = address_of(child, f"map({PAGES * 2}, PRIVATE | ANONYMOUS)")
    write(child, address, {1, 8, PAGES - 1})
    with pagemap.attach(child.pid) as tracker:
        moved = address_of(child, f"move({address}, {PAGES}, {PAGES * 2})")
        assert moved != address
        write(child, moved, {8, 100})
        found = tracker.collect()
        assert is_populated(pages_at(found, moved, PAGES * 2), {1, 8, PAGES - 1, 100})
        assert pages_at(found, address) == set()
        write(child, moved, {3, 100})
        assert pages_at(tracker.collect(), moved, PAGES * 2) == {3, 100}


@pytest.mark.parametrize(("before", "after"), [*itertools.product(("PRIVATE", "SHARED"), repeat=2)])
def test_other_memory_at_the_same_address(child, before, after):
    address = address_of(child, f"map({PAGES}, {before} | ANONYMOUS)")
    write(child, address, range(PAGES))
    with pagemap.attach(child.pid) as tracker:
        for written in ({1, 9}, {9, 33}):
            assert address_of(child, f"map({PAGES}, {after} | ANONYMOUS | FIXED, {address})") == address
            write(child, address, written)
            assert pages_at(tracker.collect(), address) >= written
            write(child, address, {40})
            assert pages_at(tracker.collect(), address) == {40}


def test_unmapped_and_mapped_again_between_two_rounds(child):
    address = address_of(child, f"map({PAGES}, PRIVATE | ANONYMOUS)")
    write(child, address, range(8))
    with pagemap.attach(child.pid) as tracker:
        for page in range(8, 20):
            assert child.ask(f"libc.munmap({address}, {PAGES} * PAGE)") == "0"
            assert address_of(child, f"map({PAGES}, PRIVATE | ANONYMOUS | FIXED, {address})") == address
            write(child, address, {page})
            assert page in pages_at(tracker.collect(), address)
            write(child, address, {0})
            assert 0 in pages_at(tracker.collect(), address)


def page_tables(pid):
    return int(injection.status(pid, "VmPTE").split()[0]) * 1024


def test_a_reservation_of_a_tebibyte_costs_nothing(child):
    """Protection markers for its holes would take 2 GiB of page tables."""
    address = address_of(child, f"map({TIB // PAGE}, PRIVATE | ANONYMOUS | NORESERVE)")
    write(child, address, {0})
    before = page_tables(child.pid)
    begin = time.monotonic()
    with pagemap.attach(child.pid) as tracker:
        for far in (0, TIB // PAGE - 1, TIB // PAGE // 2 + 3):
            assert child.ask(f"ctypes.memset({address} + {far} * PAGE, 1, 1) > 0") == "True"
            found = tracker.collect()
            found = regions.clip(found, address, address + TIB)
            (names,) = found[["start", "end"]].tolist()
            only = (address + far * PAGE, address + (far + 1) * PAGE)
            assert is_populated({*range(*names, PAGE)}, {*range(*only, PAGE)})
            assert names[1] - names[0] <= PMD
        assert time.monotonic() - begin < 5
        assert page_tables(child.pid) - before < 1 << 20


def test_a_stack_at_the_very_end_of_the_address_space(need):
    """Without randomization (a debugger's choice) it ends where user addresses do: at no huge page's end."""
    need("wp_async")
    if not shutil.which("setarch"):
        pytest.skip("needs setarch (Debian: util-linux)")
    with injection.running("setarch", "-R", injection.program("busy"), 1) as target:
        for _ in range(3):
            with pagemap.attach(target.pid) as tracker:
                deadline = time.monotonic() + children.LIMIT
                while not len(tracker.collect()):
                    assert time.monotonic() < deadline
        words, status = injection.end(target)
        assert (words.split()[0], status) == ("ok", 0), words


def test_vmas_are_as_the_last_collect_saw_them(need):
    """Who mirrors the memory sees there what to forget: what went, and came back before the look, too."""
    need("wp_async")
    with children.target(CHILD) as target, pagemap.attach(target.pid) as tracker:
        at = 0x2A00_0000_0000
        mapping = f"map({PAGES}, PRIVATE | ANONYMOUS | FIXED, {at})"
        assert tracker.vmas.find(at) is None
        target.ask(mapping)
        tracker.collect()
        assert tracker.vmas.find(at) is not None
        target.ask(f"libc.munmap({at}, {PAGES * PAGE})")
        tracker.peek()
        assert tracker.vmas.find(at) is not None
        tracker.collect()
        assert tracker.vmas.find(at) is None
        target.ask(mapping)
        tracker.peek()
        tracker.populated()
        assert tracker.vmas.find(at) is None
        tracker.collect(0)
        assert tracker.vmas.find(at) is None
        tracker.collect(1)
        assert tracker.vmas.find(at) is not None


def test_the_end_while_memory_is_registered(need, monkeypatch):
    need("wp_async")
    register = pagemap.uffd.Userfault.register
    with children.target(CHILD) as target, pagemap.attach(target.pid) as tracker:

        def last(*arguments):
            try:
                return register(*arguments)
            finally:
                target.kill()

        target.ask(f"map({PAGES}, PRIVATE | ANONYMOUS)")
        monkeypatch.setattr(pagemap.uffd.Userfault, "register", last)
        with pytest.raises(ProcessLookupError, match=rf"process {target.pid} .*has exited"):
            tracker.collect()


def test_what_vanishes_while_it_is_registered_is_not_refused(need, monkeypatch):
    """It is asked for as if it were new when it comes back: all of it, for a part would cut it in two."""
    need("wp_async")
    register = pagemap.uffd.Userfault.register
    meanwhile = []

    def late(*arguments):
        while meanwhile:
            target.ask(meanwhile.pop())
        return register(*arguments)

    with children.target(CHILD) as target, pagemap.attach(target.pid) as tracker:
        monkeypatch.setattr(pagemap.uffd.Userfault, "register", late)
        at = 0x2A00_0000_0000
        mapping = "map(%d, PRIVATE | ANONYMOUS | FIXED, %#x)"
        target.ask(mapping % (PAGES, at))
        meanwhile.append(f"libc.munmap({at}, {PAGES} * PAGE)")
        tracker.collect()
        assert not meanwhile
        assert at not in [vma.start for vma, _ in tracker.refused]
        target.ask(mapping % (PAGES, at))
        meanwhile.append(mapping % (PAGES, at + PAGES * PAGE))
        tracker.collect()
        assert not meanwhile
        moved = address_of(target, f"move({at}, {2 * PAGES}, {3 * PAGES})")
        write(target, moved, {1, 2 * PAGES})
        assert pages_at(tracker.collect(), moved, 3 * PAGES) >= {1, 2 * PAGES}
        write(target, moved, {PAGES})
        assert pages_at(tracker.collect(), moved, 3 * PAGES) == {PAGES}


class StrikesInTrackers(Strikes):
    """Strikes not inside of what trackers call: there are too many places to try each."""

    FILES = tuple(module.__file__ for module in (pagemap.tracking, pagemap.tracker, pagemap.registration))

    def _profile(self, frame, event, argument):
        if frame.f_code.co_filename in self.FILES:
            super()._profile(frame, event, argument)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("collects", [1, 2])
def test_what_went_unsaid_and_came_back_is_reported_whole(need, collects):
    """Who mirrors the memory still has its old pages: no answer said that they had gone."""
    need("wp_async")
    with children.target(CHILD) as target, pagemap.attach(target.pid) as tracker:
        at = 0x2A00_0000_0000
        map_it = f"map({PAGES}, PRIVATE | ANONYMOUS | FIXED, {at})"
        first, struck = 0, True
        while struck:
            target.ask(map_it)
            target.ask(f"write({at}, *range({PAGES}))")
            assert regions.page_count(regions.clip(tracker.collect(), at, at + PAGES * PAGE)) == PAGES
            target.ask(f"libc.munmap({at}, {PAGES * PAGE})")
            strikes = map(StrikesInTrackers, range(first, first + collects))
            struck = all(strike.hit(tracker.collect)[1] for strike in strikes)
            if struck:
                target.ask(map_it)
                target.ask(f"write({at}, 5)")
                shown = regions.clip(tracker.peek(), at, at + PAGES * PAGE)
                found = regions.clip(tracker.collect(), at, at + PAGES * PAGE)
                assert tracker.vmas.find(at) is not None
                assert regions.page_count(found) == PAGES, first
                assert not len(regions.difference(shown, found)), first
                # What was reported is protected: a mirror is told of its loss.
                target.ask(f"write({at}, 5, 50)")
                tracker.collect()
                target.ask(f"libc.madvise({at}, {PAGES * PAGE}, 4)")
                found = regions.clip(tracker.collect(), at, at + PAGES * PAGE)
                assert regions.page_count(found) == PAGES, first
                target.ask(f"libc.munmap({at}, {PAGES * PAGE})")
            first += 1
        assert first > 20
