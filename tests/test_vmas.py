"""vmas(): every VMA of a process, as /proc/PID/maps has it, read by splitting its lines."""

import mmap
import os
import re
import tempfile
from itertools import pairwise

import children
import numpy as np
import pytest
import witness
from hypothesis import given
from hypothesis import strategies as st

import pagemap
from pagemap import VMA_DTYPE, PageMap, Vma, VmaTable

LIMIT = pagemap.scanner.address_space_end()
LINE = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) ([r-])([w-])([x-])([ps]) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)"
)


def parsed(text):
    """The obvious Python."""
    found = []
    for line in text.split("\n")[:-1]:
        start, end, r, w, x, shared, offset, major, minor, inode, name = LINE.fullmatch(line).groups()
        found.append(
            Vma(
                int(start, 16),
                int(end, 16),
                int(offset, 16),
                int(inode),
                os.makedev(int(major, 16), int(minor, 16)),
                (r == "r") + 2 * (w == "w") + 4 * (x == "x"),
                shared == "s",
                name,
            )
        )
    return found


def maps_text(pid):
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape", newline="\n") as maps:
        return maps.read()


@pytest.fixture(scope="module")
def target():
    with children.idle() as started:
        started.stands_still()
        yield started


def test_each_vma_is_as_the_text_says(target, engine):
    with PageMap(target.pid, engine=engine) as pm:
        table = pm.vmas()
        truth = parsed(maps_text(target.pid))
        assert list(table) == truth
        assert [table[i] for i in range(len(table))] == truth
        assert table.names == [vma.name for vma in truth]
        assert table.array.dtype == VMA_DTYPE
        assert table.array.shape == (len(truth),)
        for field in VMA_DTYPE.names:
            assert table.array[field].tolist() == [getattr(vma, field) for vma in truth]
        permissions = [line.split(" ")[1] for line in maps_text(target.pid).splitlines()]
        assert [vma.permissions for vma in table] == permissions


def test_it_is_a_sequence(target):
    with PageMap(target.pid) as pm:
        table = pm.vmas()
    whole = list(table)
    assert table[-1] == whole[-1]
    assert isinstance(table[2:5], VmaTable)
    assert list(table[2:5]) == whole[2:5]
    assert list(table[::-3]) == whole[::-3]
    assert len(table[5:5]) == 0
    assert list(table[1:][1:]) == whole[2:]
    assert repr(table) == f"<VmaTable of {len(whole)} VMAs>"
    with pytest.raises(IndexError):
        table[len(table)]
    assert table[np.int64(3)] == whole[3]


def test_find(target):
    with PageMap(target.pid) as pm:
        table = pm.vmas()
    for index, vma in enumerate(table):
        for inside in (vma.start, vma.end - 1, (vma.start + vma.end) // 2):
            assert table.find(inside) == index
    assert table.find(0) is None
    gaps = [(a.end, b.start) for a, b in pairwise(table) if a.end < b.start]
    assert gaps
    for low, high in gaps:
        assert table.find(low) is None
        assert table.find(high - 1) is None


def test_names_of_every_sort():
    """Spaces, brackets, quotes, bytes that are no UTF-8, deleted files; the newline as it is escaped."""
    names = [
        b"with space",
        b"[heap]",
        b"trailing ",
        "gr\u00fc\u00df".encode(),
        b"\xff\xfe",
        b"new\nline",
        b"'\"\\",
    ]
    with tempfile.TemporaryDirectory() as directory:
        mapped = []
        for name in names:
            path = os.path.join(os.fsencode(directory), name)
            with open(path, "wb+") as file:
                file.write(bytes(mmap.PAGESIZE))
                file.flush()
                mapped.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        os.unlink(os.path.join(os.fsencode(directory), b"with space"))
        with PageMap() as pm:
            seen = {os.fsencode(name) for name in pm.vmas().names}
        for name in names:
            path = os.path.join(os.fsencode(directory), name).replace(b"\n", b"\\012")
            assert path + (b" (deleted)" if name == b"with space" else b"") in seen
        for memory in mapped:
            memory.close()


numbers = st.integers(0, (1 << 64) - 1)


@given(
    st.lists(
        st.tuples(
            st.integers(0, (1 << 51) - 1),
            st.integers(1, 1 << 20),
            st.text("r-", min_size=1, max_size=1),
            st.booleans(),
            numbers,
            st.integers(0, 4095),
            st.integers(0, 1 << 20),
            numbers,
            st.text(st.characters(codec="utf-8", exclude_characters="\n")).map(str.strip),
        ),
        max_size=8,
    )
)
def test_random_lines(rows):
    lines, last = [], 0
    for gap, pages, read, shared, offset, major, minor, inode, name in sorted(rows):
        start = max(last, gap * witness.PAGE)
        last = start + pages * witness.PAGE
        if last >= 1 << 64:
            break
        flags = f"{read}-x{'s' if shared else 'p'}"
        where = f"{start:08x}-{last:08x} {flags} {offset:08x} {major:02x}:{minor:02x} {inode}"
        lines.append(f"{where:<73}{' ' if name else ''}{name}\n" if name else where + " \n")
    text = "".join(lines)
    assert list(VmaTable.parse(text.encode())) == parsed(text)


@pytest.mark.parametrize(
    "text",
    [
        b"x",
        b"\n",
        b"1000-2000 rw-p 00000000 00:00 0",  # no newline
        b"1000-2000 rw-q 00000000 00:00 0\n",
        b"1000-2000 rwxxp 00000000 00:00 0\n",
        b"2000-1000 rw-p 00000000 00:00 0\n",
        b"1000-1000 rw-p 00000000 00:00 0\n",
        b"1000 2000 rw-p 00000000 00:00 0\n",
        b"10000000000000000-20000000000000000 rw-p 00000000 00:00 0\n",
        b"1000-2000 rw-p 00000000 00:00 99999999999999999999\n",
        b"1000-2000 rw-p 00000000 00:00 \n",
        b"1000-2000 rw-p 00000000 0000 0\n",
        b"1000-2000\n",
        b"\xff\x00\n",
    ],
)
def test_what_is_no_list_of_vmas(text):
    good = b"1000-2000 rw-p 00000000 00:00 0 \n"
    for number, whole in ((1, text), (2, good + text)):
        with pytest.raises(ValueError, match=f"line {number} is not a line of /proc/PID/maps"):
            VmaTable.parse(whole)
    for cut in range(1, len(good)):
        with pytest.raises(ValueError, match="line 1"):
            VmaTable.parse(good[:cut])


@given(st.binary(max_size=120))
def test_arbitrary_bytes_are_a_list_or_an_error(text):
    try:
        table = VmaTable.parse(text)
    except ValueError as error:
        assert "is not a line of /proc/PID/maps" in str(error)  # noqa: PT017
    else:
        assert len(table) == text.count(b"\n") == 0


def test_an_empty_list():
    table = VmaTable.parse(b"")
    assert len(table) == 0
    assert table.names == []
    assert list(table) == []
    assert table.find(0) is None
    assert table.ranges(0, 1 << 47).shape == (0, 2)


def test_lists_that_overlap_because_the_text_is_no_snapshot():
    """A VMA that grew between two reads of the file appears twice: sorted and disjoint all the same."""
    text = b"".join(
        b"%x-%x rw-p %08x 00:00 0 \n" % row
        for row in [(0x1000, 0x3000, 0), (0x2000, 0x5000, 0), (0x2000, 0x4000, 0), (0x5000, 0x6000, 7)]
    )
    table = VmaTable.parse(text)
    assert [(v.start, v.end, v.offset) for v in table] == [
        (0x1000, 0x3000, 0),
        (0x3000, 0x5000, 0x1000),
        (0x5000, 0x6000, 7),
    ]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), max_size=10),
    st.integers(0, 60),
    st.integers(0, 60),
)
def test_mapped_ranges(steps, low, high):
    """ranges(): exactly the mapped pages between two addresses, adjacent VMAs joined."""
    low, high = sorted((low, high))
    at, lines, mapped = 1, [], set()
    for gap, pages in steps:
        at += gap
        lines.append(b"%x-%x rw-p 00000000 00:00 0 \n" % (at << 12, at + pages << 12))
        mapped |= set(range(at, at + pages))
        at += pages
    found = VmaTable.parse(b"".join(lines)).ranges(low << 12, high << 12)
    assert found.dtype == np.uint64
    assert [page for start, end in found.tolist() for page in range(start >> 12, end >> 12)] == sorted(
        mapped & set(range(low, high))
    )
    assert all(a[1] < b[0] for a, b in pairwise(found.tolist()))
    assert all(start < end for start, end in found.tolist())


def test_more_text_than_one_read_returns(engine):
    """2,000 VMAs are more than 64 KiB of text, which the kernel hands out in pages."""
    code = """
import mmap, sys
memory = mmap.mmap(-1, 4000 * 4096)
import ctypes
mprotect = ctypes.CDLL(None).mprotect
mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
for page in range(0, 4000, 2):
    assert mprotect(start + page * 4096, 4096, 1) == 0
print("ready", flush=True)
sys.stdin.readline()
"""
    with children.target(code) as target, PageMap(target.pid, engine=engine) as pm:
        target.stands_still()
        text = maps_text(target.pid)
        assert text.count("\n") > 3990
        assert list(pm.vmas()) == parsed(text)


def test_the_vma_of_an_address_by_the_kernels_own_query(need):
    need("procmap_query")
    with open("/proc/self/maps", encoding="utf-8") as maps:
        fd = maps.fileno()
        memory = mmap.mmap(-1, 5 * mmap.PAGESIZE)
        start, end = pagemap.span(memory)
        low, high, page_size, _inode = pagemap._pagemap.query_vma(fd, start)
        assert low <= start
        assert end <= high
        assert page_size == mmap.PAGESIZE
        last = max(int(end) for end in VmaTable.parse(maps.read().encode()).array["end"] if end <= LIMIT)
        assert last == LIMIT or pagemap._pagemap.query_vma(fd, last) is None
        memory.close()
