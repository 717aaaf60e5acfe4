"""How the VMAs of a process have to be tracked: pure NumPy on a VMA table.

Three kinds of memory need different care:

- *hugetlb* is never given to a write-protecting scan: released kernels hang in it (fs/proc/task_mmu.c,
  pagemap_scan_pte_hole before mid 2026), and refuse parts of a huge page.
- *private file mappings* keep the protection marker when MADV_DONTNEED drops the process's own copy of a
  page (mm/memory.c, zap_pte_range): the content changes back, and no scan says so.
- everything else is reported and reset by one PAGEMAP_SCAN.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import regions
from .categories import PAGE_SIZE, REGION_DTYPE
from .maps import VmaTable

Regions = npt.NDArray[Any]

PROT_WRITE = 2


def region_array(starts: npt.ArrayLike, ends: npt.ArrayLike) -> Regions:
    """Regions without categories from their bounds in bytes."""
    starts = np.asarray(starts, np.uint64)
    array = np.zeros(len(starts), REGION_DTYPE)
    array["start"], array["end"] = starts, np.asarray(ends, np.uint64)
    return array


@dataclass(frozen=True)
class Layout:
    """Memory by the care that it needs: region arrays without categories, sorted and disjoint."""

    plain: Regions
    """Reported and reset by one scan; contains `copied`."""
    copied: Regions
    """Private file mappings, whose own copies may be dropped behind the scan's back."""
    huge: Regions
    """hugetlb."""
    opaque: Regions
    """Writable memory that cannot be registered: its populated pages count as written each round."""
    mapped: Regions
    """All that is mapped, tracked or not."""

    @property
    def only_plain(self) -> bool:
        return not (len(self.copied) or len(self.huge) or len(self.opaque))

    def everything(self) -> Regions:
        return regions.union(regions.union(self.plain, self.huge), self.opaque)


@dataclass(frozen=True)
class Pieces:
    """VMAs, or the parts of them inside some ranges: from `starts` to `ends`, of the VMAs `rows`."""

    starts: npt.NDArray[Any]
    ends: npt.NDArray[Any]
    rows: npt.NDArray[Any]

    def slice(self, first: int, stop: int | None) -> Pieces:
        part = slice(first, stop)
        return Pieces(self.starts[part], self.ends[part], self.rows[part])

    def vma(self, index: int) -> tuple[int, int]:
        """The bounds of a VMA of which this is a piece, in bytes."""
        return int(self.rows["start"][index]), int(self.rows["end"][index])


def pieces(table: VmaTable, inside: Regions) -> Pieces:
    """What is mapped in some ranges, VMA by VMA."""
    rows = table.array
    marked = region_array(rows["start"], rows["end"])
    marked["categories"] = 1 + np.arange(len(rows)) % 2  # neighbours differ, and stay apart
    parts = regions.intersection(marked, regions.relabel(inside, 0))
    index = np.searchsorted(rows["start"], parts["start"], "right") - 1
    return Pieces(parts["start"], parts["end"], rows[index])


def huge_aligned(table: VmaTable, huge: dict[int, int], bounds: Regions) -> Regions:
    """`bounds` grown to whole huge pages where they begin or end in hugetlb: those are tracked whole."""
    grown = []
    for start, end in zip(bounds["start"].tolist(), bounds["end"].tolist(), strict=True):
        first, last = table.find(start), table.find(end - 1)
        unit = huge.get(int(table.array["dev"][first]), PAGE_SIZE) if first is not None else PAGE_SIZE
        last_unit = huge.get(int(table.array["dev"][last]), PAGE_SIZE) if last is not None else PAGE_SIZE
        grown.append((start // unit * unit, -(-end // last_unit) * last_unit))
    return regions.coalesce(region_array([g[0] for g in grown], [g[1] for g in grown]))


def huge_devices(table: VmaTable, page_size_of: Callable[[int, int], int | None]) -> dict[int, int]:
    """Devices whose files are mapped by huge pages, with the page size in bytes.

    hugetlbfs files lie on anonymous devices (major 0), all of one page size: one answer a device is enough.
    `page_size_of` is asked about an address and an inode: None where that file is not mapped there any more.
    A device all of whose VMAs have gone meanwhile may be hugetlbfs, and mapped again: it counts as huge.
    """
    rows = table.array
    candidates = rows[(rows["inode"] != 0) & ((rows["dev"] >> np.uint64(8)) & np.uint64(0xFFF) == 0)]
    sizes = {}
    for dev in sorted(set(candidates["dev"].tolist())):
        vmas = candidates[candidates["dev"] == np.uint64(dev)]
        answers = map(page_size_of, vmas["start"].tolist(), vmas["inode"].tolist())
        sizes[dev] = next((size for size in answers if size is not None), pmd_size())
    return {dev: size for dev, size in sizes.items() if size > PAGE_SIZE}


def layout(table: VmaTable, huge: dict[int, int], refused: Collection[tuple[int, int]]) -> Layout:
    """Sorts the VMAs of a table; `refused` are the bounds of those that could not be registered."""
    rows = table.array
    starts, ends = rows["start"], rows["end"]
    is_refused = np.zeros(len(rows), np.bool_)
    for start, end in refused:
        is_refused |= (starts == np.uint64(start)) & (ends == np.uint64(end))
    is_huge = np.isin(rows["dev"], np.array(list(huge), np.uint64)) & (rows["inode"] != 0)
    plain = ~is_refused & ~is_huge
    copied = plain & (rows["inode"] != 0) & ~rows["shared"]
    opaque = is_refused & (rows["prot"] & PROT_WRITE != 0)

    def pick(which: npt.NDArray[np.bool_]) -> Regions:
        return regions.coalesce(region_array(starts[which], ends[which]))

    everything = np.ones(len(rows), np.bool_)
    return Layout(pick(plain), pick(copied), pick(is_huge & ~is_refused), pick(opaque), pick(everything))


def restricted(whole: Layout, to: Regions) -> Layout:
    """The part of a layout inside some ranges."""
    return Layout(*(regions.intersection(part, to) for part in vars(whole).values()))


def aligned(found: Regions, size: int, inside: Regions) -> Regions:
    """`found` grown to multiples of `size` bytes, as far as `inside` goes. Without categories."""
    unit = np.uint64(size)
    starts = found["start"] // unit * unit
    ends = (found["end"] + unit - np.uint64(1)) // unit * unit
    return regions.relabel(regions.intersection(regions.coalesce(region_array(starts, ends)), inside), 0)


def bridged(parts: Regions, whole: Regions) -> Regions:
    """`parts` of `whole`, joined over gaps in which nothing of `whole` lies: fewer, longer walks."""
    if len(parts) < 2:
        return parts
    rest = regions.difference(whole, parts)
    following = np.searchsorted(rest["start"], parts["end"][:-1])
    bounded = np.append(rest["start"], np.uint64(2**64 - 1))
    gap_is_empty = bounded[following] >= parts["start"][1:]
    heads = np.append(True, ~gap_is_empty)
    tails = np.append(~gap_is_empty, True)
    return region_array(parts["start"][heads], parts["end"][tails])


@functools.cache
def pmd_size() -> int:
    """Bytes of a transparent huge page (2 MiB on x86-64)."""
    try:
        with open("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "rb") as file:
            return int(file.read())
    except OSError:
        return PAGE_SIZE * (PAGE_SIZE // 8)


def smaps_page_size(pid: int, address: int, inode: int) -> int | None:
    """The page size of the VMA of a file at an address, from smaps: slow, where PROCMAP_QUERY is missing."""
    inside = False
    with open(f"/proc/{pid}/smaps", "rb") as file:
        for line in file:
            words = line.split(None, 5)
            if not words[0].endswith(b":"):
                start, _, end = words[0].partition(b"-")
                inside = int(start, 16) <= address < int(end, 16) and int(words[4]) == inode
            elif inside and words[0] == b"KernelPageSize:":
                return int(words[1]) * 1024
    return None
