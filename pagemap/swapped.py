"""Which pages are really swapped out.

A protected hole carries a marker in its page-table entry, which PAGEMAP_SCAN and the `swapped` bit of
/proc/PID/pagemap do not tell from a page in swap. The swap type does: markers have the last one
(SWP_PTE_MARKER, include/linux/swap.h), which no swap device ever gets. It shows where page frame numbers do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import regions
from .categories import Category
from .features import address_space_end
from .layout import region_array
from .query import Query
from .scanner import PageMap

SWAPPED = Query(require=Category.SWAPPED, report=Category(0))
_PRESENT = Query(require=Category.PRESENT, report=Category(0))
_TRIES = 16
_FRAME = np.uint64((1 << 55) - 1)
_PRESENT_ENTRY = np.uint64(1 << 63)
_SWAPPED_ENTRY = np.uint64(1 << 62)
_SWAP_TYPE = np.uint64(31)  # all bits of the field; and a marker has all of them set
_UNIT = 2 << 20
_CHUNK = 256 << 20


def sees_frames(pagemap: PageMap) -> bool:
    """Whether entries that are read through this descriptor have page frame numbers.

    What counts is who opened it (fs/proc/task_mmu.c, pagemap_open), not who reads. So a page that is in
    memory tells; some, for any may be gone before it is read.
    """
    return any(
        entry & _PRESENT_ENTRY and entry & _FRAME
        for region in pagemap.scan(_PRESENT, max_pages=_TRIES)
        for entry in pagemap.entries(int(region["start"]), int(region["end"]))
    )


def without_markers(pagemap: PageMap, found: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The pages among `found`, which a scan called swapped, that hold something: now in swap or in memory."""
    unit = np.uint64(_UNIT)
    ends = np.minimum((found["end"] + unit - np.uint64(1)) // unit * unit, np.uint64(address_space_end()))
    extents = regions.coalesce(region_array(found["start"] // unit * unit, ends))
    parts = [found[:0]]
    for first, end in zip(extents["start"].tolist(), extents["end"].tolist(), strict=True):
        for start in range(first, end, _CHUNK):
            entries = pagemap.entries(start, min(end, start + _CHUNK))
            in_swap = (entries & _SWAPPED_ENTRY != 0) & (entries & _SWAP_TYPE != _SWAP_TYPE)
            parts.append(regions.from_mask(in_swap | (entries & _PRESENT_ENTRY != 0), start, Category(0)))
    return regions.intersection(regions.coalesce(np.concatenate(parts)), found)
