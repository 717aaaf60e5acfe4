"""What the kernel says of a page, and how a run of such pages is stored."""

from __future__ import annotations

import mmap
from enum import IntFlag

import numpy as np

PAGE_SIZE = mmap.PAGESIZE
"""Bytes in a page: the unit of every page count in this package."""

REGION_DTYPE = np.dtype([("start", "<u8"), ("end", "<u8"), ("categories", "<u8")])
"""``struct page_region`` (include/uapi/linux/fs.h): addresses in bytes, end exclusive; 24 bytes."""


class Category(IntFlag):
    """Categories of a page, with the kernel's values (``PAGE_IS_*``, include/uapi/linux/fs.h).

    Bits that this version has no name for pass through: newer kernels will bring some.
    """

    WPALLOWED = 1 << 0
    """In a VMA registered for asynchronous write protection. Linux 6.7."""
    WRITTEN = 1 << 1
    """Written since it was write-protected; a fact inside ``WPALLOWED`` memory only. Linux 6.7."""
    FILE = 1 << 2
    """File-backed or shared anonymous; asking costs a look at each page's descriptor. Linux 6.7."""
    PRESENT = 1 << 3
    """Resident. Linux 6.7."""
    SWAPPED = 1 << 4
    """Swapped out; also migration entries, guard regions and write-protect markers on holes. Linux 6.7."""
    PFNZERO = 1 << 5
    """The shared zero page. Linux 6.7."""
    HUGE = 1 << 6
    """Mapped by a PMD (transparent huge page) or hugetlb, populated or not. Linux 6.7."""
    SOFT_DIRTY = 1 << 7
    """Written since the last write to ``clear_refs``. Linux 6.8."""
    GUARD = 1 << 8
    """A guard region (``MADV_GUARD_INSTALL``). Linux 6.16."""
    ACCESSED = 1 << 9
    """Read or written since it was read-write-protected. Linux 7.3."""


class ScanFlag(IntFlag):
    """Flags of one ``PAGEMAP_SCAN`` (``PM_SCAN_*``, include/uapi/linux/fs.h)."""

    WP_MATCHING = 1 << 0
    """Write-protect the pages that match."""
    CHECK_WPASYNC = 1 << 1
    """Fail with EPERM at a VMA without asynchronous write protection."""
