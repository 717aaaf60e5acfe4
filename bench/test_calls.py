"""The floor: one page, and the list of VMAs."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import pagemap
from pagemap import PAGE_SIZE, REGION_DTYPE, PageMap, Query, VmaTable

from . import baseline
from .alternatives import PAGEMAP_SCAN, Alternative, Spans
from .conftest import Pair
from .memory import Memory, anonymous, split_vmas

TIMES = 500
PRESENT = Query.PRESENT
VMAS = 10_000


@pytest.fixture(scope="module")
def page() -> Iterator[Memory]:
    with anonymous(2 << 20) as memory:
        yield Memory(memory.array[:PAGE_SIZE], memory.start, memory.start + PAGE_SIZE)


def repeated(name: str, loop: Callable[[], object]) -> Alternative:
    """`loop` asks TIMES times, without a call in between, and returns the last answer."""
    return Alternative(name, loop, lambda: one(loop()))


def one(found: object) -> Spans:
    """1 for a page that is present: what all ways of asking have in common."""
    number = found[0] if isinstance(found, tuple) else len(found) if hasattr(found, "__len__") else found
    return np.array([[int(bool(number)), 0]], np.uint64)


def page_map_scan(pm: PageMap, page: Memory) -> Alternative:
    scan, start, end = pm.scan, page.start, page.end

    def loop() -> object:
        for _ in range(TIMES):
            found = scan(PRESENT, start=start, end=end)
        return found

    return repeated("PageMap.scan", loop)


def raw_scan(pm: PageMap, page: Memory) -> Alternative:
    vec = np.empty(1, REGION_DTYPE)
    fd, start, end, scan = pm.fileno(), page.start, page.end, pagemap.pagemap_scan

    def loop() -> object:
        for _ in range(TIMES):
            found = scan(fd, start, end, vec, category_mask=8, return_mask=8)
        return found

    return repeated("pagemap_scan", loop)


def c_ioctl(pm: PageMap, page: Memory) -> Alternative:
    run = baseline.scan_one(pm.fileno(), page.start, PRESENT.masks(), TIMES)
    return Alternative("C, ioctl", run, lambda: one(run() // TIMES))


def c_pread(pm: PageMap, page: Memory) -> Alternative:
    run = baseline.pread_one(pm.fileno(), page.start, TIMES)
    return Alternative("C, pread", run, lambda: one(run() // TIMES))


def prepared(page: Memory) -> Any:
    vec = np.empty(1, REGION_DTYPE)
    arg = np.array([96, 0, page.start, page.end, 0, vec.ctypes.data, 1, 0, 0, 8, 0, 8], np.uint64)
    keep[arg.ctypes.data] = vec  # the kernel writes there
    return arg


keep: dict[int, Any] = {}


def fcntl_ioctl(pm: PageMap, page: Memory) -> Alternative:
    fd, arg, ioctl = pm.fileno(), prepared(page), fcntl.ioctl

    def loop() -> object:
        for _ in range(TIMES):
            found = ioctl(fd, PAGEMAP_SCAN, arg, True)
        return found

    return repeated("Python, fcntl.ioctl, arguments ready", loop)


def ctypes_ioctl(pm: PageMap, page: Memory) -> Alternative:
    arg = prepared(page)
    fd, command, at = pm.fileno(), ctypes.c_ulong(PAGEMAP_SCAN), ctypes.c_void_p(arg.ctypes.data)
    ioctl = ctypes.CDLL(None, use_errno=True).ioctl

    def loop() -> object:
        for _ in range(TIMES):
            found = ioctl(fd, command, at)
        return found

    return repeated("Python, ctypes, arguments ready", loop)


def os_pread(pm: PageMap, page: Memory) -> Alternative:
    fd, offset, unpack, pread = pm.fileno(), page.start // PAGE_SIZE * 8, struct.Struct("Q").unpack, os.pread

    def loop() -> object:
        for _ in range(TIMES):
            found = unpack(pread(fd, 8, offset))[0] >> 63
        return found

    return repeated("Python, os.pread + struct", loop)


OTHERS = {
    "c": c_ioctl,
    "c_pread": c_pread,
    "fcntl": fcntl_ioctl,
    "ctypes": ctypes_ioctl,
    "os_pread": os_pread,
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("ours", [raw_scan, page_map_scan])
def test_one_page(
    pair: Pair, pm: PageMap, page: Memory, ours: Callable[[PageMap, Memory], Alternative], other: str
) -> None:
    pair("one page", ours(pm, page), OTHERS[other](pm, page), each=TIMES, pages=1)


# The VMA list


@pytest.fixture(scope="module")
def many_vmas() -> Iterator[None]:
    with anonymous(VMAS * PAGE_SIZE, step=0) as memory:
        split_vmas(memory, VMAS)
        yield


def vmas(pm: PageMap) -> Alternative:
    return Alternative("vmas", pm.vmas, lambda: bounds(pm.vmas().array))


def bounds(table: Any) -> Spans:
    return np.stack([table["start"], table["end"]], axis=1)


def c_maps(pm: PageMap) -> Alternative:
    fd = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
    text, table = np.zeros(4 << 20, np.uint8), np.zeros(4 * VMAS, baseline.VMA)
    run = baseline.maps(fd, text, table)
    return Alternative("C, read and parse /proc/PID/maps", run, lambda: bounds(table[: run()]))


def python_maps(pm: PageMap) -> Alternative:
    """What one would write: the same fields, as the table has them."""

    def run() -> list[tuple[int, int, int, int, int, int, bool, str]]:
        found = []
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            for line in maps:
                span, flags, offset, dev, inode, *name = line.split(maxsplit=5)
                start, end = span.split("-")
                major, minor = dev.split(":")
                prot = (flags[0] == "r") | (flags[1] == "w") << 1 | (flags[2] == "x") << 2
                found.append(
                    (
                        int(start, 16),
                        int(end, 16),
                        int(offset, 16),
                        int(inode),
                        os.makedev(int(major, 16), int(minor, 16)),
                        prot,
                        flags[3] == "s",
                        name[0].rstrip("\n") if name else "",
                    )
                )
        return found

    def answer() -> Spans:
        found, table = run(), pm.vmas()
        assert same_rows(found, table)
        return np.array([row[:2] for row in found], np.uint64)

    return Alternative("Python, split each line", run, answer)


def same_rows(found: list[Any], table: VmaTable) -> bool:
    """Every field of every VMA, but for the heap and what else grew between the two."""
    return len(set(found) ^ {tuple(vma) for vma in table}) <= 10


def nearly_the_same(ours: Alternative, other: Alternative) -> None:
    """The list contains the comparer's own memory, which grows meanwhile."""
    a, b = {tuple(row) for row in ours.answer().tolist()}, {tuple(row) for row in other.answer().tolist()}
    assert len(a ^ b) <= 10, a ^ b
    assert len(a) > VMAS


@pytest.mark.parametrize("other", [c_maps, python_maps])
@pytest.mark.usefixtures("many_vmas")
def test_vmas(pair: Pair, pm: PageMap, other: Callable[[PageMap], Alternative]) -> None:
    pair("list of 10,000 VMAs", vmas(pm), other(pm), compare=nearly_the_same)
