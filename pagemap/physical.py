"""The physical side of a process's memory: page frames, what the kernel knows of them, who shares them.

For root: page frame numbers are shown to CAP_SYS_ADMIN only, and /proc/kpageflags and /proc/kpagecount are
readable by root only. Sources: Documentation/admin-guide/mm/pagemap.rst,
include/uapi/linux/kernel-page-flags.h.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from . import errors
from ._sweep import U64
from .categories import PAGE_SIZE, Category
from .features import features
from .maps import VmaTable
from .process import Descriptor
from .query import Query
from .scanner import PageMap

_PFN = np.uint64((1 << 55) - 1)
_PRESENT = np.uint64(1 << 63)

CHUNK_PAGES = 1 << 18
"""Pages that are looked at in one go: 2 MiB for each column."""

GAP = 64
"""Frames that are read in vain sooner than read around: a call costs as much as some 64 of them."""

PSS_SHIFT = 12
"""smaps sums shares of pages in units of 2**-12 bytes (fs/proc/task_mmu.c)."""

_SUMS = ("rss", "pss", "uss", "dirty", "referenced", "anonymous", "ksm", "thp", "hugetlb", "zero")

PHYSICAL_DTYPE = np.dtype([(name, "<u8") for name in ("start", "end", *_SUMS)])
"""A row of `Physical.table`, all in bytes.

start, end: the VMA. rss: resident pages as smaps counts them: without hugetlb, the zero page, and what is
no memory of a process (device memory, vvar). pss: of each of these its size by the number of its mappings.
uss: those that are mapped once, which is Private_Clean + Private_Dirty of smaps; rss - uss are shared.
dirty, referenced, anonymous, ksm, thp: those whose frame has the flag. smaps calls a page dirty or referenced
also where only the page table knows it, so these two are lower bounds of its; thp are parts of transparent
huge pages however they are mapped, which AnonHugePages is for whole ones only. hugetlb, zero: resident and
not in rss.
"""


class PageFlag(IntFlag):
    """Bits of /proc/kpageflags (``KPF_*``, include/uapi/linux/kernel-page-flags.h)."""

    LOCKED = 1 << 0
    ERROR = 1 << 1
    REFERENCED = 1 << 2
    UPTODATE = 1 << 3
    DIRTY = 1 << 4
    LRU = 1 << 5
    ACTIVE = 1 << 6
    SLAB = 1 << 7
    WRITEBACK = 1 << 8
    RECLAIM = 1 << 9
    BUDDY = 1 << 10
    MMAP = 1 << 11
    ANON = 1 << 12
    SWAPCACHE = 1 << 13
    SWAPBACKED = 1 << 14
    COMPOUND_HEAD = 1 << 15
    COMPOUND_TAIL = 1 << 16
    HUGE = 1 << 17
    UNEVICTABLE = 1 << 18
    HWPOISON = 1 << 19
    NOPAGE = 1 << 20
    KSM = 1 << 21
    """Never reported where the kernel has it on every anonymous page (Linux 6.12)."""
    THP = 1 << 22
    OFFLINE = 1 << 23
    ZERO_PAGE = 1 << 24
    IDLE = 1 << 25
    PGTABLE = 1 << 26


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """Resident pages and their frames, n of each, in order of address. All are uint64 (n,).

    address: bytes. pfn: page frame numbers. flags: PageFlag of the frame. mappings: how many page tables, of
    all processes, map it; 0 for the zero page and for what is no process's memory.
    """

    address: U64
    pfn: U64
    flags: U64
    mappings: U64

    def having(self, flag: PageFlag) -> npt.NDArray[np.bool_]:
        """bool (n,): which frames have any of these flags."""
        return np.asarray(self.flags & np.uint64(flag), np.bool_)


class _FrameTable:
    """/proc/kpageflags and /proc/kpagecount: a u64 for each frame."""

    def __init__(self) -> None:
        self._files: list[tuple[str, Descriptor]] = []
        if not features().pfn:
            raise PermissionError(1, f"no physical view: {features().why['pfn']}", "/proc/self/pagemap")
        for path in ("/proc/kpageflags", "/proc/kpagecount"):
            try:
                self._files.append((path, Descriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC))))
            except FileNotFoundError as error:
                text = f"no physical view: no {path} here (CONFIG_PROC_PAGE_MONITOR is off, or a container)"
                raise errors.UnsupportedError(text) from error
            except PermissionError as error:
                text = f"no physical view: only root may read it{errors.try_sudo(')', ' (')}"
                raise PermissionError(error.errno, text, path) from error
        self._told = ~np.uint64(0)
        if self._is_ksm_everywhere():
            self._told = ~np.uint64(PageFlag.KSM)

    def _is_ksm_everywhere(self) -> bool:
        """Some kernels (6.12) have KSM in the flags of every anonymous page: also in those of a new one?"""
        page = mmap.mmap(-1, PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page[0] = 1
        address = np.frombuffer(page, np.uint8).ctypes.data
        with PageMap() as pm:
            entry = pm.entries(address, address + PAGE_SIZE)
        flags, _ = self.look_up(entry & _PFN)
        return bool(flags[0] & np.uint64(PageFlag.KSM))

    def look_up(self, pfn: U64) -> tuple[U64, U64]:
        """Flags and mappings of frames, in any order, as often as they come: uint64, as many as there are."""
        frames, inverse = np.unique(pfn, return_inverse=True)
        cuts = np.flatnonzero(np.diff(frames) > GAP) + 1
        first = frames[np.append(0, cuts)] if frames.size else frames
        last = frames[np.append(cuts, frames.size) - 1] if frames.size else frames
        # Stretches of frames, read one after another into one buffer: where each wanted frame is in it.
        sizes = (last - first + np.uint64(1)).astype(np.int64)
        begins = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))
        stretch = np.searchsorted(first, frames, "right") - 1
        at = begins[stretch] + (frames - first[stretch]).astype(np.int64)
        found = []
        for path, file in self._files:
            buffer = np.zeros(int(begins[-1]), np.uint64)
            view = buffer.data.cast("B")
            for frame, begin, size in zip(first.tolist(), begins.tolist(), sizes.tolist(), strict=False):
                _read_fully(file.fd, view[begin * 8 : (begin + size) * 8], frame * 8, path)
            found.append(buffer[at][inverse])
        return found[0] & self._told, found[1]


def _read_fully(fd: int, view: memoryview, offset: int, path: str) -> None:
    """Reads until the view is full or the file ends: what is behind the last frame of RAM stays 0."""
    while len(view):
        try:
            n = os.preadv(fd, [view], offset)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error
        if not n:
            return
        view, offset = view[n:], offset + n


def iter_frames(
    source: SupportsIndex | PageMap | None = None,
    *,
    start: SupportsIndex = 0,
    end: SupportsIndex | None = None,
) -> Iterator[Frames]:
    """frames(), in pieces of at most CHUNK_PAGES pages: bounded memory."""
    table = _FrameTable()
    return _iter_frames(table, source, start, end)


def _iter_frames(
    table: _FrameTable,
    source: SupportsIndex | PageMap | None,
    start: SupportsIndex,
    end: SupportsIndex | None,
) -> Iterator[Frames]:
    pm = source if isinstance(source, PageMap) else PageMap(source)
    try:
        present = pm.scan(Query(require=Category.PRESENT, report=Category(0)), start=start, end=end)
        addresses: list[U64] = []
        entries: list[U64] = []
        count = 0
        for first, last in zip(present["start"].tolist(), present["end"].tolist(), strict=True):
            for begin in range(first, last, CHUNK_PAGES * PAGE_SIZE):
                stop = min(last, begin + CHUNK_PAGES * PAGE_SIZE)
                if count + (stop - begin) // PAGE_SIZE > CHUNK_PAGES:
                    yield _frames(table, addresses, entries)
                    addresses, entries, count = [], [], 0
                addresses.append(np.arange(begin, stop, PAGE_SIZE, dtype=np.uint64))
                entries.append(pm.entries(begin, stop))
                count += (stop - begin) // PAGE_SIZE
        if count:
            yield _frames(table, addresses, entries)
    finally:
        if pm is not source:
            pm.close()


def _frames(table: _FrameTable, addresses: list[U64], entries: list[U64]) -> Frames:
    address, entry = np.concatenate(addresses), np.concatenate(entries)
    # Between the scan and this look a page may have gone.
    there = (entry & _PRESENT) != 0
    address, pfn = address[there], entry[there] & _PFN
    return Frames(address, pfn, *table.look_up(pfn))


def frames(
    source: SupportsIndex | PageMap | None = None,
    *,
    start: SupportsIndex = 0,
    end: SupportsIndex | None = None,
) -> Frames:
    """The frames behind the resident pages of a process (a pid, a PageMap, or None: this one).

    start, end: addresses in bytes that limit it. The process runs on meanwhile: frames are those of the
    moment each page was looked at. Raises PermissionError without the right to see frames (root),
    UnsupportedError without kpageflags, and what PageMap.scan raises.
    """
    parts = list(iter_frames(source, start=start, end=end))
    columns = ("address", "pfn", "flags", "mappings")
    empty = np.empty(0, np.uint64)
    return Frames(*(np.concatenate([empty, *(getattr(part, name) for part in parts)]) for name in columns))


@dataclass(frozen=True, slots=True, eq=False)
class Physical:
    """A process's memory as physical memory: row i of `table` (PHYSICAL_DTYPE, bytes) is VMA i of `vmas`."""

    vmas: VmaTable
    table: npt.NDArray[Any]

    @property
    def total(self) -> dict[str, int]:
        """The sums over all VMAs, in bytes: Rss, Pss … of smaps_rollup."""
        return {name: int(self.table[name].sum()) for name in _SUMS}


def physical(source: SupportsIndex | PageMap | None = None) -> Physical:
    """Resident, proportional and unique set size of a process (a pid, a PageMap, or None: this one), by VMA.

    The definitions are those of /proc/PID/smaps (Documentation/filesystems/proc.rst; smaps_account() in
    fs/proc/task_mmu.c). Raises as frames() does.
    """
    table = _FrameTable()
    pm = source if isinstance(source, PageMap) else PageMap(source)
    try:
        vmas = pm.vmas()
        starts, ends = vmas.array["start"], vmas.array["end"]
        sums = {name: np.zeros(len(vmas), np.uint64) for name in _SUMS}
        for part in _iter_frames(table, pm, 0, None):
            row = np.searchsorted(starts, part.address, "right") - 1
            known = (row >= 0) & (part.address < ends[row])
            for name, weight in _weights(part).items():
                np.add.at(sums[name], row[known], weight[known])
    finally:
        if pm is not source:
            pm.close()
    result = np.zeros(len(vmas), PHYSICAL_DTYPE)
    result["start"], result["end"] = starts, ends
    for name, column in sums.items():
        result[name] = column >> np.uint64(PSS_SHIFT) if name == "pss" else column
    return Physical(vmas, result)


def _weights(part: Frames) -> dict[str, U64]:
    """What each page adds to each column, in bytes; to pss in 2**-PSS_SHIFT bytes."""
    page = np.uint64(PAGE_SIZE)
    counted = (part.mappings > 0) & ~part.having(PageFlag.HUGE | PageFlag.ZERO_PAGE)
    share = np.uint64(PAGE_SIZE << PSS_SHIFT) // np.maximum(part.mappings, np.uint64(1))
    marked = {
        "dirty": PageFlag.DIRTY,
        "referenced": PageFlag.REFERENCED,
        "anonymous": PageFlag.ANON,
        "ksm": PageFlag.KSM,
        "thp": PageFlag.THP,
    }
    return {
        "rss": counted * page,
        "pss": counted * share,
        "uss": (counted & (part.mappings == 1)) * page,
        **{name: (counted & part.having(flag)) * page for name, flag in marked.items()},
        "hugetlb": part.having(PageFlag.HUGE) * page,
        "zero": part.having(PageFlag.ZERO_PAGE) * page,
    }
