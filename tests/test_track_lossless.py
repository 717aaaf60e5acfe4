"""What else can happen to tracked memory than a store: no change of content goes unreported."""

import contextlib
import os
import tempfile

import children
import pytest
from memory import (
    ANONYMOUS,
    DONTNEED,
    GUARD_INSTALL,
    HUGEPAGE,
    PAGEOUT,
    PRIVATE,
    READ,
    WRITE,
    Memory,
)
from tracked import (
    PAGES,
    SMALL_PAGES,
    bounds,
    file_private,
    huge,
    huge_bytes,
    hugetlb,
    pages_in,
    plain,
    remap,
    view,
    whole,
)
from witness import PAGE, PMD, entries

import pagemap

FREE, COLLAPSE, POPULATE_WRITE, GUARD_REMOVE = 8, 25, 23, 103
SWAPPED_ENTRY = 1 << 62


@pytest.fixture(autouse=True)
def kernel(need):
    need("wp_async")


def written(*pages):
    memory = Memory(PAGES)
    memory.write(*(pages or range(PAGES)))
    return memory


# Dropped pages


def test_dropped_pages():
    with written() as memory, pagemap.track(bounds(memory)) as tracker:
        memory.advise(DONTNEED, 10, 3)
        assert memory.read(9, 10, 12, 13) == [b"x", b"\0", b"\0", b"x"]
        assert pages_in(tracker.peek(), memory) == {10, 11, 12}
        assert pages_in(tracker.collect(), memory) == {10, 11, 12}
        assert pages_in(tracker.collect(), memory) == set()
        memory.write(11)  # a hole again, and protected as such
        assert pages_in(tracker.collect(), memory) == {11}


def test_dropped_page_tables():
    """All of 2 MiB: the kernel frees the page table, and with it the marks of protection."""
    with Memory(3 * 512, align=PMD) as memory:
        memory.write(*range(3 * 512))
        with pagemap.track(bounds(memory)) as tracker:
            memory.advise(DONTNEED, 512, 512)
            assert pages_in(tracker.collect(), memory) == whole(1)
            assert pages_in(tracker.collect(), memory) == set()
            memory.write(700)
            found = pages_in(tracker.collect(), memory)
            if pagemap.features().wp_drop:
                assert found == {700}
            else:  # what was not protected anew comes once more, as its table comes back
                assert {700} <= found <= whole(1)
                memory.write(701)
                assert pages_in(tracker.collect(), memory) == {701}


@pytest.mark.parametrize("granularity", ["native", "page"])
def test_dropped_huge_pages(need, granularity):
    need("thp", "frames")
    with huge() as memory, pagemap.track(bounds(memory), granularity=granularity) as tracker:
        memory.advise(DONTNEED, 0, 512)
        assert pages_in(tracker.collect(), memory) == whole(0)
        memory.advise(DONTNEED, 512 + 7, 2)
        assert pages_in(tracker.collect(), memory) == {519, 520}
        assert pages_in(tracker.collect(), memory) == set()


def test_dropped_copies_of_a_file():
    """The file's own content comes back: no fault, and the mark of protection stays."""
    with file_private() as memory:
        memory.write(20, 21, 22)
        with pagemap.track(bounds(memory)) as tracker:
            memory.advise(DONTNEED, 20, 2)
            assert memory.read(20, 21, 22) == [b"p", b"p", b"x"]
            assert pages_in(tracker.peek(), memory) == {20, 21}
            assert pages_in(tracker.collect(), memory) == {20, 21}
            memory.write(20)
            assert pages_in(tracker.collect(), memory) == {20}
            memory.advise(DONTNEED, 20, 1)
            assert pages_in(tracker.collect(), memory) == {20}


def test_dropped_hugetlb(need):
    need("hugetlb")
    with hugetlb(PRIVATE) as memory:
        memory.write(0, 512)
        with pagemap.track(bounds(memory)) as tracker:
            memory.advise(DONTNEED, 512, 512)
            assert pages_in(tracker.peek(), memory) == whole(1)
            assert pages_in(tracker.collect(), memory) == whole(1)
            assert memory.read(512) == [b"\0"]
            assert pages_in(tracker.collect(), memory) == set()


def test_pages_given_up_and_taken():
    """MADV_FREE: the content is lost when the kernel wants the page, whenever that is."""
    with written() as memory, pagemap.track(bounds(memory)) as tracker:
        memory.advise(FREE, 30, 4)
        tracker.collect()
        memory.advise(PAGEOUT, 30, 4)
        lost = {page for page in range(30, 34) if memory.read(page) == [b"\0"]}
        if not lost:
            pytest.skip("the kernel did not want the pages")
        assert lost <= pages_in(tracker.collect(), memory) <= set(range(30, 34))


def test_guard_regions(need):
    need("guard")
    with written() as memory, pagemap.track(bounds(memory)) as tracker:
        memory.advise(GUARD_INSTALL, 8, 2)
        tracker.collect()
        memory.advise(GUARD_REMOVE, 8, 2)
        assert memory.read(8) == [b"\0"]
        assert pages_in(tracker.collect(), memory) == {8, 9}


# Swapped pages


@pytest.mark.parametrize("kind", ["plain", "shared", "memfd"])
def test_a_dirty_page_that_is_swapped_is_dirty(need, kind):
    need("swap")
    with SMALL_PAGES[kind]() as memory:
        memory.write(*range(16))
        with pagemap.track(bounds(memory)) as tracker:
            memory.write(1, 2, 9)
            memory.swap_out(0, 16)
            assert pages_in(tracker.peek(), memory) == {1, 2, 9}
            assert pages_in(tracker.collect(), memory) == {1, 2, 9}
            assert pages_in(tracker.collect(), memory) == set()
            assert memory.read(*range(4)) == [b"x"] * 4  # and in again, unchanged
            assert pages_in(tracker.collect(), memory) == set()
            memory.swap_out(0, 16)
            memory.write(2, 3)  # from swap
            assert pages_in(tracker.collect(), memory) == {2, 3}


def test_copies_of_a_file_that_are_swapped(need):
    """Dropped while they are in swap, the file's own content comes back, and the mark of protection stays."""
    need("swap", "frames")
    with file_private() as memory:
        memory.write(*range(16))
        memory.swap_out(8, 2)
        with pagemap.track(bounds(memory)) as tracker:
            memory.write(1, 2)
            memory.swap_out(0, 8)
            assert pages_in(tracker.collect(), memory) == {1, 2}
            memory.advise(DONTNEED, 4, 5)
            assert memory.read(4, 8, 9) == [b"p", b"p", b"x"]
            assert pages_in(tracker.peek(), memory) == {4, 5, 6, 7, 8}
            assert pages_in(tracker.collect(), memory) == {4, 5, 6, 7, 8}
            assert memory.read(*range(4)) == [b"x"] * 4
            assert pages_in(tracker.collect(), memory) == set()


def test_copies_that_are_swapped_by_an_ordinary_user(need):
    """Who may not see what is in an entry is told too much: each round, until the page is seen again."""
    need("swap", "root")
    children.run("import tracked\n" + children.BECOME_NOBODY + ORDINARY_USER)


ORDINARY_USER = """
from memory import DONTNEED
from tracked import bounds, file_private, pages_in
with file_private() as memory:
    memory.write(*range(16))
    memory.swap_out(8, 2)
    with pagemap.track(bounds(memory)) as tracker:
        memory.write(1, 2)
        memory.swap_out(0, 8)
        for _ in range(2):
            assert {1, 2} <= pages_in(tracker.collect(), memory) <= set(range(10))
        memory.advise(DONTNEED, 4, 5)
        assert memory.read(4, 8, 9) == [b"p", b"p", b"x"]
        assert {4, 5, 6, 7, 8} <= pages_in(tracker.collect(), memory)
        memory.read(*range(16))
        tracker.collect()
        assert pages_in(tracker.collect(), memory) == set()
"""


def test_a_dropped_page_that_was_swapped(need):
    need("swap")
    with written() as memory, pagemap.track(bounds(memory)) as tracker:
        memory.swap_out(0, 16)
        assert any(entry & SWAPPED_ENTRY for entry in entries(memory.start, memory.at(16)))
        memory.advise(DONTNEED, 4, 2)
        assert pages_in(tracker.collect(), memory) == {4, 5}


# Written by the kernel


def test_read_into_tracked_memory():
    with written() as memory, open("/dev/zero", "rb", buffering=0) as zeros:
        with pagemap.track(bounds(memory)) as tracker:
            buffers = [view(memory, 3, 2), view(memory, 10, 1), view(memory, 20, 5)]
            assert os.readv(zeros.fileno(), buffers) == 8 * PAGE
            assert pages_in(tracker.collect(), memory) == {3, 4, 10, *range(20, 25)}
        assert memory.read(2, 3) == [b"x", b"\0"]


def test_read_past_the_page_cache():
    """O_DIRECT: the device writes; it has done so when the call returns."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.NamedTemporaryFile(dir="."))
        except OSError as error:
            pytest.skip(f"a file on a disk, in the working directory: {error.strerror}")
        file.write(b"d" * 4 * PAGE)
        file.flush()
        try:
            direct = os.open(file.name, os.O_RDONLY | os.O_DIRECT)
        except OSError as error:
            pytest.skip(f"O_DIRECT: {error.strerror}")
        stack.callback(os.close, direct)
        memory = stack.enter_context(written())
        tracker = stack.enter_context(pagemap.track(bounds(memory)))
        assert os.readv(direct, [view(memory, 7, 4)]) == 4 * PAGE
        assert memory.read(7) == [b"d"]
        assert pages_in(tracker.collect(), memory) == {7, 8, 9, 10}


def test_populated_by_the_kernel():
    with Memory(PAGES) as memory, pagemap.track(bounds(memory)) as tracker:
        memory.advise(POPULATE_WRITE, 12, 4)
        assert pages_in(tracker.collect(), memory) == {12, 13, 14, 15}


# The mapping changes


def test_read_only_for_a_while():
    with written() as memory, pagemap.track(bounds(memory)) as tracker:
        memory.write(3, 30)
        memory.protect(READ, 0, 32)
        assert pages_in(tracker.peek(), memory) == {3, 30}
        assert pages_in(tracker.collect(), memory) == {3, 30}
        memory.protect(READ | WRITE, 0, 32)
        assert pages_in(tracker.collect(), memory) == set()
        memory.write(3, 31, 32)
        assert pages_in(tracker.collect(), memory) == {3, 31, 32}


def test_written_between_two_changes_of_protection():
    with written() as memory, pagemap.track(bounds(memory)) as tracker:
        for page in range(PAGES):
            memory.protect(0, page, 1)
            memory.protect(READ | WRITE, page, 1)
            memory.write(page)
            memory.protect(READ, page, 1)
        assert pages_in(tracker.collect(), memory) == set(range(PAGES))
        assert pages_in(tracker.collect(), memory) == set()


def test_a_huge_page_that_is_split(need):
    """By a change of protection, by a hole: pages that were not written stay so."""
    need("thp", "frames")
    with huge() as memory, pagemap.track(bounds(memory)) as tracker:
        memory.write(5)
        memory.protect(READ, 100, 10)
        memory.unmap(512 + 100, 10)
        assert huge_bytes(memory) == 0
        assert pages_in(tracker.collect(), memory) == {5}
        memory.write(512, 3)
        assert pages_in(tracker.collect(), memory) == {512, 3}


@pytest.mark.parametrize("protect", ["all written", "some written"])
def test_pages_that_are_collapsed(need, protect):
    """Into a huge page: what was written before is reported, and what is written to it afterwards."""
    need("thp", "frames")
    with Memory(512, align=PMD, huge_pages=True) as memory:
        memory.write(*range(512))
        with pagemap.track(bounds(memory)) as tracker:
            first = set(range(512)) if protect == "all written" else {1, 2, 3}
            memory.write(*first)
            memory.advise(HUGEPAGE)
            with contextlib.suppress(OSError):  # the kernel refuses where pages are protected
                memory.advise(COLLAPSE)
            if protect == "all written":
                assert huge_bytes(memory) == PMD
            assert pages_in(tracker.collect(), memory) == first
            memory.write(77)
            found = pages_in(tracker.collect(), memory)
            assert found == {77}
            assert pages_in(tracker.collect(), memory) == set()


def test_mapped_anew_inside_a_range():
    """munmap, mmap: the new memory is found, and all that is in it counts as written."""
    with written() as memory, pagemap.track(bounds(memory)) as tracker:
        memory.unmap(16, 16)
        memory.write(40)
        assert pages_in(tracker.collect(), memory) == {40}
        memory.replace(16, 8, READ | WRITE, PRIVATE | ANONYMOUS)
        memory.write(17, 41)
        assert {17, 41} <= pages_in(tracker.collect(), memory) <= {*range(16, 24), 41}
        memory.write(18)
        assert pages_in(tracker.collect(), memory) == {18}


def test_mapped_over_between_two_rounds():
    with written() as memory, pagemap.track(bounds(memory)) as tracker:
        memory.replace(8, 8, READ | WRITE, PRIVATE | ANONYMOUS)
        found = pages_in(tracker.peek(), memory)
        assert set(range(8, 16)) <= found | {page for page in range(8, 16) if memory.read(page) == [b"x"]}
        assert pages_in(tracker.collect(), memory) == set(range(8, 16))
        memory.write(9)
        assert pages_in(tracker.collect(), memory) == {9}


def test_moved_into_a_range():
    """mremap from elsewhere onto it: other content at these addresses."""
    with written() as memory, Memory(8) as other, pagemap.track(bounds(memory)) as tracker:
        other.write(0, 3)
        remap(other.start, 8 * PAGE, memory.at(24))
        assert memory.read(24, 25) == [b"x", b"\0"]
        found = pages_in(tracker.collect(), memory)
        assert set(range(24, 32)) == found
        memory.write(25)
        assert pages_in(tracker.collect(), memory) == {25}


def test_moved_inside_a_range():
    with written() as memory, pagemap.track(bounds(memory)) as tracker:
        memory.write(3)
        remap(memory.at(0), 8 * PAGE, memory.at(32))
        found = pages_in(tracker.collect(), memory)
        assert set(range(32, 40)) <= found <= {*range(8), *range(32, 40)}
        memory.write(33)
        assert pages_in(tracker.collect(), memory) == {33}


@pytest.mark.parametrize("make", [plain, file_private])
def test_all_gone(make):
    with make() as memory:
        tracker = pagemap.track(bounds(memory))
        memory.write(1)
        memory.unmap(0, PAGES)
        assert len(tracker.collect()) == 0
        assert len(tracker.peek()) == 0
        tracker.close()


def test_a_neighbour_that_merges_with_what_is_moved():
    """mremap() drops the registration of all that it merges with, whose pages keep their protection marks."""
    with Memory(64) as memory:
        memory.write(*range(24))
        memory.unmap(24, 40)
        memory.replace(48, 16, READ | WRITE, PRIVATE | ANONYMOUS)
        with pagemap.track((memory.at(0), memory.at(24)), (memory.at(48), memory.at(64))) as tracker:
            remap(memory.at(0), 8 * PAGE, memory.at(48))
            tracker.collect()
            remap(memory.at(48), 8 * PAGE, memory.at(0))  # back to where it fits
            memory.write(20)
            assert 20 in pages_in(tracker.peek(), memory)
            assert 20 in pages_in(tracker.collect(), memory)
            memory.write(20, 21)
            assert pages_in(tracker.collect(), memory) == {20, 21}


def test_a_neighbour_that_merges_while_memory_is_registered(monkeypatch):
    """What lost its registration after it was looked at, and is registered with what is new, looks clean."""
    register = pagemap.uffd.Userfault.register
    claims = 0
    with Memory(64) as memory:
        memory.write(*range(40, 64))
        memory.unmap(0, 40)
        memory.replace(0, 16, READ | WRITE, PRIVATE | ANONYMOUS)

        def late(*arguments):
            nonlocal claims
            claims += 1
            if claims == 2:
                remap(memory.at(0), 8 * PAGE, memory.at(40))
                memory.write(60)
            return register(*arguments)

        with pagemap.track((memory.at(0), memory.at(16)), (memory.at(40), memory.at(64))) as tracker:
            remap(memory.at(40), 8 * PAGE, memory.at(0))
            monkeypatch.setattr(pagemap.uffd.Userfault, "register", late)
            found = pages_in(tracker.collect(), memory)
            assert claims == 2
            assert 60 in found | pages_in(tracker.collect(), memory)
            memory.write(60, 61)
            assert pages_in(tracker.collect(), memory) == {60, 61}
