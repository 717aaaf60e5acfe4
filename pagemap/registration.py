"""Which memory a userfaultfd holds, round by round, while the process maps, moves and unmaps.

The kernel drops registrations silently, and not only where memory is unmapped: mremap() takes that of what
it moves, and of all that the moved VMA merges with (mm/userfaultfd.c, mremap_userfaultfd_prep). The pages
keep their marks of protection then, but are written without a fault, and would look clean for ever. So
nothing is registered again that was not seen to be unregistered, and where it had been protected, it loses
its marks first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _pagemap, regions
from .categories import PAGE_SIZE, Category
from .features import features
from .layout import (
    Layout,
    Pieces,
    huge_devices,
    layout,
    pieces,
    region_array,
    restricted,
    smaps_page_size,
)
from .maps import Vma, VmaTable
from .query import Query
from .scanner import PageMap
from .uffd import REFUSALS, Userfault

Regions = npt.NDArray[Any]
Listing = bytes | list[tuple[int, int, int, int]]
"""The text of /proc/PID/maps, or what PROCMAP_QUERY says of some VMAs."""

FEW_VMAS = 16

NOTHING = region_array([], [])

# A scan passes a registered VMA by as a whole (pagemap_scan_is_interesting_vma).
_UNREGISTERED = Query(exclude=Category.WPALLOWED, report=Category(0))
_REGISTERED = Query(require=Category.WPALLOWED, report=Category(0))


def page_size_finder(pagemap: PageMap) -> Callable[[int], int]:
    """Looks up the page size in bytes of the VMA at an address."""
    if not features().procmap_query:
        return lambda address: smaps_page_size(pagemap.pid, address)

    def look_up(address: int) -> int:
        maps = pagemap._open_maps()
        found = _pagemap.query_vma(maps.fd, address)
        return found[2] if found is not None and found[0] <= address else PAGE_SIZE

    return look_up


class Registration:
    """What a userfaultfd holds of some memory: `bounds`, or all that there is."""

    def __init__(self, pagemap: PageMap, uffd: Userfault, bounds: Regions, *, everything: bool) -> None:
        self._pagemap = pagemap
        self._uffd = uffd
        self._bounds = bounds
        self._everything = everything
        # A scan tells what is registered for write protection only.
        self._tells = uffd.mode.category == Category.WRITTEN
        self.table = VmaTable.parse(b"")
        self.refused: dict[tuple[int, int], int] = {}
        """Bounds of VMAs that cannot be registered, with the errno."""
        self._listed: Listing | None = None
        self._vma_count = 0
        self._mapped: Regions = NOTHING
        self._layout: Layout | None = None
        self._begun = False
        self._has_huge = False
        self._claimed: list[tuple[int, int]] = []
        # Registered anew, perhaps with marks of the time before.
        self._stale: Regions = NOTHING

    def refresh(self) -> Layout:
        """Registers what is new, and sorts what there is by the care that it needs.

        Where memory is registered after the first time, its protection is lifted: all that is populated
        in it counts as written.

        A VMA that appears after the listing is left for the next round: a protecting scan passes by what is
        not registered. Where hugetlb was registered, the VMAs are listed again: it is then seen as hugetlb,
        be it as new as it may.
        """
        self._list()
        first = not self._begun
        lacking = self._lacking()
        before = self.refused
        if len(lacking) or before:
            self.refused = self._still_refused(lacking)
            for part in self._runs(lacking):
                self._register(part)
        late = NOTHING
        if self._claimed:
            if self._tells and not first:
                starts, ends = zip(*self._claimed, strict=True)
                claimed = regions.coalesce(region_array(starts, ends))
                self._stale = regions.union(self._stale, claimed)
                # What is not listed yet may have been moved there: the next listing knows.
                late = regions.difference(claimed, self._mapped)
            self._claimed.clear()
        if len(self._stale):
            left = self._unprotect(pieces(self.table, self._stale))
            self._stale = regions.union(left, late)
        if self._has_huge:
            self._listed = None
            self.table = self._pagemap.vmas()
            huge = huge_devices(self.table, page_size_finder(self._pagemap))
            return restricted(layout(self.table, huge, self.refused), self._bounds)
        if self._layout is None or before != self.refused:
            self._layout = restricted(layout(self.table, {}, self.refused), self._bounds)
        return self._layout

    def refused_vmas(self) -> list[tuple[Vma, str]]:
        """The VMAs that cannot be registered, with the reason in words."""
        if not self.refused:
            return []
        return [
            (vma, REFUSALS.get(self.refused[vma.start, vma.end], "the kernel refuses"))
            for vma in self.table
            if (vma.start, vma.end) in self.refused
        ]

    def protect(self, start: int, end: int) -> None:
        """Protects registered pages. ProcessLookupError when the process has gone."""
        try:
            self._uffd.protect(start, end)
        except OSError as error:
            raise self._gone_or(error) from error

    # Listing

    def _list(self) -> None:
        listing = self._listing()
        if listing == self._listed:
            return
        self._layout = None
        self.table = table = VmaTable.parse(
            listing if isinstance(listing, bytes) else self._pagemap._maps_text()
        )
        rows = table.array
        self._mapped = regions.coalesce(region_array(rows["start"], rows["end"]))
        self._vma_count = len(pieces(table, self._bounds).starts)
        self._listed = listing

    def _listing(self) -> Listing:
        """The VMAs as they stand now: equal to an earlier one where nothing was mapped or unmapped.

        A few VMAs are looked up one by one, which is cheaper than the text of all.
        """
        if self._everything or self._vma_count > FEW_VMAS or not features().procmap_query:
            return self._pagemap._maps_text()
        maps = self._pagemap._open_maps()
        found = []
        for start, end in zip(self._bounds["start"].tolist(), self._bounds["end"].tolist(), strict=True):
            while start < end and (vma := _pagemap.query_vma(maps.fd, start)) is not None:
                found.append(vma)
                start = vma[1]
        return found

    # Registering

    def _lacking(self) -> Regions:
        """What is not registered. At first that is all, and memory that no scan enters is asked for, too."""
        if not (self._begun and self._tells):
            self._begun = True
            return self._bounds
        bounds = self._bounds
        parts = []
        for start, end in zip(bounds["start"].tolist(), bounds["end"].tolist(), strict=True):
            part = self._pagemap.scan(_UNREGISTERED, start=start, end=end)
            if len(part):
                parts.append(part)
        return regions.coalesce(np.concatenate(parts)) if parts else NOTHING

    def _still_refused(self, lacking: Regions) -> dict[tuple[int, int], int]:
        """Those among the refused VMAs that no scan names: mappings of bare frames."""
        return {
            (start, end): code
            for (start, end), code in self.refused.items()
            if self.table.find(start) is not None
            and not len(regions.clip(lacking, start, end))
            and not len(self._pagemap.scan(_REGISTERED, start=start, end=start + PAGE_SIZE))
        }

    def _runs(self, lacking: Regions) -> list[Pieces]:
        """What lacks registration, in runs with nothing in between that does not.

        The hole behind a VMA belongs to its piece: a VMA that has grown into it since it was listed is
        registered whole. One that is registered in part is two, which its process can no longer mremap.
        """
        part = pieces(self.table, lacking)
        if not len(part.starts):
            return []
        starts, bounds = self.table.array["start"], self._bounds
        following = np.append(starts, bounds["end"][-1])[np.searchsorted(starts, part.starts, "right")]
        limits = bounds["end"][np.searchsorted(bounds["start"], part.starts, "right") - 1]
        ends = np.where(part.ends == part.rows["end"], np.minimum(following, limits), part.ends)
        part = Pieces(part.starts, ends, part.rows)
        others = regions.difference(self._mapped, lacking)["start"]
        before = np.searchsorted(others, part.starts)
        cuts = [0, *(np.flatnonzero(before[1:] != before[:-1]) + 1).tolist(), len(part.starts)]
        return [part.slice(first, stop) for first, stop in pairwise(cuts)]

    def _register(self, part: Pieces) -> None:
        """All of it in one call, as a rule; where something is refused, halves find what."""
        try:
            self._claim(int(part.starts[0]), int(part.ends[-1]))
        except OSError as error:
            if error.errno not in REFUSALS:
                raise self._gone_or(error) from error
            if len(part.starts) == 1:
                self.refused[part.vma(0)] = error.errno
                return
            half = len(part.starts) // 2
            self._register(part.slice(0, half))
            self._register(part.slice(half, None))

    def _claim(self, start: int, end: int) -> None:
        """Registers a range, and with it the VMAs at its ends as far as they reach by now.

        A process that maps without a pause has them grow and merge between any two calls. So the kernel is
        asked right before, and right after whether one was cut in two all the same: what was cut off follows.
        """
        start, end = self._reach(start, end)
        self._has_huge |= self._uffd.register(start, end)
        self._claimed.append((start, end))
        for address in (end, start - PAGE_SIZE):
            with contextlib.suppress(OSError):  # a neighbour of another kind, or gone: for the next round
                while (rest := self._cut_off(address)) is not None:
                    self._has_huge |= self._uffd.register(*rest)
                    self._claimed.append(rest)
                    address = rest[1] if address >= end else rest[0] - PAGE_SIZE

    def _reach(self, start: int, end: int) -> tuple[int, int]:
        first, last = self._vma_at(start), self._vma_at(end - PAGE_SIZE)
        if first is not None:
            start = min(start, first[0])
        if last is not None:
            end = max(end, last[1])
        return start, end

    def _cut_off(self, address: int) -> tuple[int, int] | None:
        """What is not registered around an address just outside of what was registered."""
        vma = self._vma_at(address)
        if vma is None or not self._tells:
            return None
        if not len(self._pagemap.scan(_UNREGISTERED, start=address, end=address + PAGE_SIZE)):
            return None
        return vma

    def _vma_at(self, address: int) -> tuple[int, int] | None:
        """The bounds of a VMA as they are now.

        None where that makes no difference, as ranges that were asked for end where they end, and on
        kernels that cannot tell (PROCMAP_QUERY).
        """
        if not (self._everything and features().procmap_query and address >= 0):
            return None
        maps = self._pagemap._open_maps()
        found = _pagemap.query_vma(maps.fd, address)
        return found[:2] if found is not None and found[0] <= address else None

    def _unprotect(self, part: Pieces) -> Regions:
        """Lifts the protection; what the kernel refuses has changed meanwhile, and is for the next round."""
        left = []
        for start, end in zip(part.starts.tolist(), part.ends.tolist(), strict=True):
            try:
                self._uffd.unprotect(start, end)
            except OSError:
                left.append((start, end))
        return regions.coalesce(region_array([s for s, _ in left], [e for _, e in left]))

    def _gone_or(self, error: OSError) -> OSError:
        """ProcessLookupError where that is the reason: a userfaultfd says ENOMEM of memory that has gone."""
        try:
            self._pagemap._maps_text()
        except ProcessLookupError as gone:
            return gone
        return error
