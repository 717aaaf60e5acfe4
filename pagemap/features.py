"""What this kernel, this user and this process may do: probed, never concluded from a version.

Every probe works on memory and descriptors of its own and changes nothing that anybody else can see.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from . import _pagemap, errors, process
from .categories import PAGE_SIZE, REGION_DTYPE, Category, ScanFlag
from .uffd import WRITE, new_descriptor

SOFT_DIRTY_ENTRY = 1 << 55
GUARD_ENTRY = 1 << 58
_PFN_MASK = (1 << 55) - 1
_MADV_GUARD_INSTALL = 102  # include/uapi/asm-generic/mman-common.h, Linux 6.13

_SINCE = {
    Category.SOFT_DIRTY: "Linux 6.8",
    Category.GUARD: "Linux 6.16",
    Category.ACCESSED: "Linux 7.3",
}


_SECCOMP = "a seccomp filter, perhaps that of a container"


@dataclass(frozen=True)
class Features:
    """What works here. `why` has the reason, in words, for each thing that does not.

    The keys of `why` are the names of the fields below and of categories and flags ("GUARD").
    """

    scan: bool
    """The PAGEMAP_SCAN ioctl."""
    categories: Category
    """Categories that the ioctl knows."""
    read_categories: Category
    """Categories that the `read` engine can tell from /proc/PID/pagemap."""
    flags: ScanFlag
    """Flags that the ioctl knows."""
    wp_async: bool
    """userfaultfd with asynchronous write protection, for an ordinary user's own memory."""
    wp_drop: bool
    """Pages that MADV_DONTNEED drops are reported as written; else trackers compare residency too."""
    rwp_async: bool
    """The same as wp_async for read and write accesses."""
    soft_dirty: bool
    """Soft-dirty bits are really recorded."""
    procmap_query: bool
    """The PROCMAP_QUERY ioctl."""
    pfn: bool
    """Page frame numbers in pagemap entries are visible to this user."""
    why: Mapping[str, str]


def _page() -> tuple[mmap.mmap, int]:
    memory = mmap.mmap(-1, PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[0] = 1
    return memory, np.frombuffer(memory, np.uint8).ctypes.data


def _entry(fd: int, address: int) -> int:
    out = np.zeros(1, np.uint64)
    _pagemap.read_entries(fd, address, out)
    return int(out[0])


def _known_bits(fd: int, argument: str) -> int:
    """Bits that the kernel accepts in an argument: a walk over an empty range checks it, and does no more."""
    vec = np.zeros(1, REGION_DTYPE)
    known = 0
    for bit in range(64):
        masks = {"category_mask": int(Category.WRITTEN), argument: 1 << bit}
        try:
            _pagemap.pagemap_scan(fd, 0, 0, vec, **masks)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            known |= 1 << bit
    return known


def _probe_scan(fd: int, why: dict[str, str]) -> tuple[bool, Category, ScanFlag]:
    try:
        _pagemap.pagemap_scan(fd, 0, 0)
        categories = Category(_known_bits(fd, "return_mask"))
        flags = ScanFlag(_known_bits(fd, "flags"))
    except OSError as error:
        why["scan"] = (
            "this kernel has no PAGEMAP_SCAN: Linux 6.7 brings it; until then the `read` engine works"
            if error.errno == errno.ENOTTY
            else f"PAGEMAP_SCAN is refused here ({error.strerror}): {_SECCOMP}"
        )
        for category in Category:
            why[str(category.name)] = why["scan"]
        for flag in ScanFlag:
            why[str(flag.name)] = why["scan"]
        return False, Category(0), ScanFlag(0)
    for category in Category:
        if category not in categories:
            why[str(category.name)] = (
                f"this kernel does not know it: {_SINCE.get(category, 'a newer one')} brings it"
            )
    for flag in ScanFlag:
        if flag not in flags:
            why[str(flag.name)] = "this kernel does not know it"
    return True, categories, flags


def _probe_uffd(why: dict[str, str]) -> tuple[bool, bool]:
    try:
        uffd = new_descriptor()
        known, _ = _pagemap.uffd_api(uffd.fd, 0)
    except OSError as error:
        reasons = {
            errno.ENOSYS: "this kernel has no userfaultfd (CONFIG_USERFAULTFD)",
            errno.EINVAL: "this kernel has no userfaultfd for an ordinary user: Linux 5.11 brings it,"
            " and 6.7 asynchronous write protection",
        }
        refused = f"userfaultfd is refused here ({error.strerror}): {_SECCOMP}"
        why["wp_async"] = why["rwp_async"] = reasons.get(error.errno or 0, refused)
        return False, False
    wp_async = known & WRITE.features == WRITE.features
    rwp_async = bool(known & _pagemap.UFFD_FEATURE_RWP_ASYNC)
    if not wp_async:
        why["wp_async"] = "this kernel has no asynchronous write protection: Linux 6.7 brings it"
    if not rwp_async:
        why["rwp_async"] = "this kernel has no access tracking by userfaultfd: Linux 7.3 brings it"
    return wp_async, rwp_async


def _drops_are_reported(pagemap: int) -> bool:
    """Drops one page, and a whole page table, of protected memory of its own: are both reported?"""
    unit = PAGE_SIZE * (PAGE_SIZE // 8)
    memory = mmap.mmap(-1, 3 * unit, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = -(-np.frombuffer(memory, np.uint8).ctypes.data // unit) * unit
    end = start + 2 * unit
    offset = start - np.frombuffer(memory, np.uint8).ctypes.data
    with contextlib.suppress(OSError):  # EINVAL where there are none (CONFIG_TRANSPARENT_HUGEPAGE)
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    for page in range(0, 2 * unit, PAGE_SIZE):
        memory[offset + page] = 1
    uffd = new_descriptor()
    _pagemap.uffd_api(uffd.fd, WRITE.features)
    _pagemap.uffd_register(uffd.fd, start, end, _pagemap.UFFDIO_REGISTER_MODE_WP)
    _pagemap.uffd_protect(uffd.fd, start, end, _pagemap.UFFDIO_REGISTER_MODE_WP, 1)
    memory.madvise(mmap.MADV_DONTNEED, offset + PAGE_SIZE, PAGE_SIZE)
    memory.madvise(mmap.MADV_DONTNEED, offset + unit, unit)
    vec = np.zeros(2, REGION_DTYPE)
    written = int(Category.WRITTEN)
    n, _ = _pagemap.pagemap_scan(pagemap, start, end, vec, category_mask=written, return_mask=written)
    expected = [(start + PAGE_SIZE, start + 2 * PAGE_SIZE, written), (start + unit, end, written)]
    return bool(vec[:n].tolist() == expected)


def _probe_drop(pagemap: int, why: dict[str, str]) -> bool:
    try:
        reported = _drops_are_reported(pagemap)
    except OSError as error:
        why["wp_drop"] = f"it could not be tried ({error.strerror}): trackers compare residency as well"
        return False
    if not reported:
        why["wp_drop"] = (
            "this kernel forgets pages that MADV_DONTNEED drops from protected memory (6.16 to 6.19 do):"
            " trackers compare residency as well, which costs about 10 ns a resident page each round"
        )
    return reported


def _guard_in_entries(fd: int) -> bool:
    memory, address = _page()
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    installed = madvise(address, PAGE_SIZE, _MADV_GUARD_INSTALL) == 0
    seen = bool(installed and _entry(fd, address) & GUARD_ENTRY)
    memory.close()
    return seen


def _probe_procmap_query(why: dict[str, str]) -> bool:
    maps = process.open_proc(os.getpid(), "maps")[0]
    try:
        _pagemap.query_vma(maps.fd, 0)
    except OSError as error:
        why["procmap_query"] = f"no PROCMAP_QUERY here ({error.strerror}): Linux 6.11 brings it"
        return False
    return True


@functools.lru_cache(maxsize=8)
def _probe(euid: int, forks: int) -> Features:
    why: dict[str, str] = {}
    pagemap = process.open_proc(os.getpid(), "pagemap")[0]
    scan, categories, flags = _probe_scan(pagemap.fd, why)
    wp_async, rwp_async = _probe_uffd(why)
    wp_drop = scan and wp_async and _probe_drop(pagemap.fd, why)
    if not wp_async:
        why["wp_drop"] = why["wp_async"]
    memory, address = _page()
    entry = _entry(pagemap.fd, address)
    memory.close()
    soft_dirty = bool(entry & SOFT_DIRTY_ENTRY)
    if not soft_dirty:
        why["soft_dirty"] = "this kernel does not record soft-dirty pages (CONFIG_MEM_SOFT_DIRTY is off)"
    pfn = bool(entry & _PFN_MASK)
    if not pfn:
        advice = errors.try_sudo(")", " (")
        why["pfn"] = f"page frame numbers are hidden from this user: CAP_SYS_ADMIN shows them{advice}"
    read_categories = Category.PRESENT | Category.SWAPPED | Category.FILE
    if soft_dirty:
        read_categories |= Category.SOFT_DIRTY
    if _guard_in_entries(pagemap.fd):
        read_categories |= Category.GUARD
    return Features(
        scan=scan,
        categories=categories,
        read_categories=read_categories,
        flags=flags,
        wp_async=wp_async,
        wp_drop=wp_drop,
        rwp_async=rwp_async,
        soft_dirty=soft_dirty,
        procmap_query=_probe_procmap_query(why),
        pfn=pfn,
        why=MappingProxyType(why),
    )


def features() -> Features:
    """What works here, probed once for each process and effective user."""
    return _probe(os.geteuid(), process.fork_count)


@functools.cache
def address_space_end() -> int:
    """The end of the user address space in bytes: the highest address that a range may name.

    The kernel's own answer: /proc/self/pagemap has an entry for every page below it, and ends there.
    """
    pagemap = process.open_proc(os.getpid(), "pagemap")[0]
    low, high = 0, 1 << 52
    while high - low > 1:
        middle = (low + high) // 2
        if os.pread(pagemap.fd, 8, middle * 8):
            low = middle
        else:
            high = middle
    return (low + 1) * PAGE_SIZE
