"""DirtyTracker: which pages were written, by a userfaultfd whose faults the kernel resolves itself.

A round ends with the scan that reports a page and protects it again in one step, under the page-table
lock: nothing falls between. What the scan cannot tell (see layout.py) is found by comparing residency
between rounds.
"""

from __future__ import annotations

import errno
from typing import Any, Literal

import numpy as np

from . import _pagemap, regions
from .categories import PAGE_SIZE, REGION_DTYPE, Category, ScanFlag
from .features import address_space_end, features
from .layout import (
    Layout,
    aligned,
    bridged,
    pmd_size,
    region_array,
)
from .maps import Vma, VmaTable
from .query import Query
from .registration import Registration
from .scanner import FIRST, PageMap
from .swapped import SWAPPED, sees_frames, without_markers
from .tracking import NOTHING, Regions, Tracker, union
from .uffd import REFUSALS, Userfault
from .walk import HUGE, IoctlWalk, regions_of

Granularity = Literal["native", "page"]

HUGE_REGIONS = HUGE // REGION_DTYPE.itemsize
COPY = 8
"""An answer that fills less than this part of its buffer is copied out of it: who keeps it keeps no more."""
KEPT = 4 * HUGE_REGIONS
"""Regions (8 MiB) that a buffer may have to be kept for another round."""

_BARE = Category(0)
_POPULATED = Query(any_of=Category.PRESENT | Category.SWAPPED, report=_BARE)
_STATE = Query(any_of=Category.PRESENT | Category.SWAPPED, report=Category.PRESENT)
_RESIDENT = Query(require=Category.PRESENT, report=_BARE)
_OWN_COPIES = Query(require=Category.PRESENT, exclude=Category.FILE, report=_BARE)
_MAPPED_HUGE = Query(require=Category.PRESENT | Category.HUGE, report=_BARE)


class DirtyTracker(Tracker):
    """Pages written since the last collect(), by asynchronous write protection. See track() and attach().

    bounds: the memory to track, None for all that there is, also what is mapped later. pinned: the
    memory in `bounds` cannot be unmapped while the tracker lives. sparse: leave holes alone, instead of
    placing markers in them (4 KiB of page table for each 2 MiB).
    """

    def __init__(
        self,
        pagemap: PageMap,
        uffd: Userfault,
        bounds: Regions | None,
        *,
        pinned: bool,
        sparse: bool,
        granularity: Granularity,
        keep_alive: tuple[Any, ...] = (),
    ) -> None:
        self._uffd = uffd  # before anybody can find this one, to close its copy in a fork
        super().__init__(pagemap, uffd.mode.category)
        self._bounds = bounds
        self._split_huge = granularity == "page"
        self._keep_alive = keep_alive
        self._masks = Query(require=uffd.mode.category).masks()
        self._writes = uffd.mode.category == Category.WRITTEN
        self._sparse = sparse and self._writes
        # All that has to be asked is asked now: the process may give up its rights later.
        self._reports_drops = features().wp_drop
        self._scan_tells = self._reports_drops or not self._writes
        self._sees_frames = False
        self._stage: Regions = NOTHING
        # A long answer is a view of the buffer that the kernel filled; the next goes to the other one.
        self._buffer = _pagemap.RegionBuffer(FIRST)
        self._other: _pagemap.RegionBuffer | None = None
        whole = region_array([0], [address_space_end()])
        self._registration = Registration(
            pagemap, uffd, whole if bounds is None else bounds, everything=bounds is None
        )
        self._resident: dict[str, Regions] = {}
        # What is protected; with sparse tracking extents in units of a page table, and all else is holes.
        self._hull: Regions = NOTHING
        self._late: Regions = NOTHING
        self._huge: Regions = NOTHING
        self._pinned: Layout | None = None
        try:
            self._sees_frames = sees_frames(pagemap)
            found = self._refresh()
            self._start(found)
            self._table = self._registration.table
            if pinned:
                self._pinned = found
        except BaseException:
            self.close()
            raise

    @property
    def refused(self) -> list[tuple[Vma, str]]:
        return self._registration.refused_vmas()

    # Which memory

    def _refresh(self) -> Layout:
        if self._pinned is not None:
            return self._pinned
        return self._registration.refresh()

    # One walk

    def _walk(self, ranges: Regions, *, reset: bool) -> None:
        """Adds the pages of the category in some ranges to _stage; with `reset`, protected again at once."""
        if not len(ranges):
            return
        self._salvage()
        buffer = self._buffer
        flags = ScanFlag.WP_MATCHING if reset else ScanFlag(0)
        descriptor = self._pagemap._open()
        try:
            length = 0
            for start, end in zip(ranges["start"].tolist(), ranges["end"].tolist(), strict=True):
                walk = IoctlWalk(descriptor, self._masks, start, end, None, flags)
                length = walk.fill(buffer, length)
                while not walk.done:
                    buffer.resize((length // HUGE_REGIONS + 1) * HUGE_REGIONS)
                    length = walk.fill(buffer, length)
        except OSError as error:
            if reset:
                # Pages may have been reset before the error, and their count is lost: all of them, then.
                self._stage = union(self._stage, self._labelled(ranges))
            self._pagemap._raise(error)
        self._salvage()

    def _salvage(self) -> None:
        """What a walk found is staged: after it, and before the next what an interrupt left of it.

        The length is the buffer's own word: an interrupt may strike between the kernel's answer and ours.
        Between the staging of regions and their removal, it makes them stand there twice.
        """
        buffer = self._buffer
        length = buffer.length
        if not length:
            return
        found = regions_of(buffer, length)
        self._stage = union(self._stage, found.copy() if length * COPY < buffer.capacity else found)
        del found
        if buffer.exports:  # by what was found, or by a traceback
            self._buffer, self._other = self._next_buffer(), buffer
        else:
            buffer.clear()

    def _next_buffer(self) -> _pagemap.RegionBuffer:
        """A buffer that nobody looks at: the one before, which is warm, when its array is gone."""
        other = self._other
        if other is None or other.exports or other.capacity > KEPT:
            return _pagemap.RegionBuffer(FIRST)
        other.clear()
        return other

    def _accept(self) -> None:
        """What was staged is found."""
        self._found = union(self._found, self._stage)
        self._stage = NOTHING

    def _labelled(self, pages: Regions) -> Regions:
        return regions.relabel(pages, self._category)

    def _scan(self, query: Query, ranges: Regions) -> Regions:
        parts = [
            self._pagemap.scan(query, start=start, end=end)
            for start, end in zip(ranges["start"].tolist(), ranges["end"].tolist(), strict=True)
        ]
        return regions.coalesce(np.concatenate(parts)) if parts else NOTHING

    # Rounds

    def _start(self, whole: Layout) -> None:
        if self._bounds is None:
            if not self._registration.has_writable():
                raise OSError(
                    errno.EBUSY,
                    f"all memory of process {self.pid} is tracked already: close the other tracker first"
                    " (pagemap in another process, a checkpoint)",
                )
            self._gather()
        else:
            self._check_bounds(self._bounds, whole)
            self._hull, self._huge = self._bounds, whole.huge
            swapped = self._scan(SWAPPED, whole.copied)  # now, as there are no markers yet
            for start, end in zip(self._bounds["start"].tolist(), self._bounds["end"].tolist(), strict=True):
                self._registration.protect(start, end)
            if self._split_huge:
                self._split(whole.plain)
            self._resident = self._residency(whole)
            if len(swapped):
                self._resident["copied"] = union(self._resident["copied"], swapped)
        self._stage = self._found = NOTHING

    def _check_bounds(self, bounds: Regions, whole: Layout) -> None:
        if self._registration.refused:
            (start, end), code = next(iter(self._registration.refused.items()))
            raise OSError(code, f"cannot track {start:#x}-{end:#x}: {REFUSALS[code]}")
        missing = regions.difference(bounds, whole.everything())
        if len(missing):
            start, end = int(missing["start"][0]), int(missing["end"][0])
            raise ValueError(f"nothing is mapped at {start:#x}-{end:#x}: only mapped memory can be tracked")

    def _gather(self) -> VmaTable:
        self._salvage()
        self._accept()
        whole, table = self._refresh(), self._registration.table
        if not self._writes:
            self._gather_by_call(union(whole.plain, whole.huge))
        else:
            if self._sparse:
                self._gather_sparse(whole.plain, whole.mapped)
            else:
                self._walk(whole.plain, reset=True)
                self._accept()
            if len(whole.huge):
                # Where there was other memory, its content has gone, and nothing may be populated yet.
                came = regions.intersection(regions.difference(whole.huge, self._huge), self._hull)
                self._found = union(self._found, self._labelled(came))
                self._gather_by_call(whole.huge)
            self._huge = whole.huge
        if len(whole.opaque):
            self._found = union(self._found, self._labelled(self._scan(_POPULATED, whole.opaque)))
        if self._split_huge:
            dense = self._found[self._found["end"] - self._found["start"] >= np.uint64(pmd_size())]
            self._split(regions.relabel(regions.intersection(dense, whole.plain), 0))
            self._accept()
        if self._scan_tells and whole.only_plain and not self._resident:
            return table
        # After the walk: what is populated later is reported by the next walk itself.
        dropped, resident = self._dropped(whole, self._found)
        self._found = union(self._found, dropped)
        self._resident = resident
        return table

    def _gather_sparse(self, plain: Regions, mapped: Regions) -> None:
        self._vanished = union(self._vanished, regions.difference(self._hull, mapped))
        protected = regions.intersection(self._hull, mapped)
        hull = regions.intersection(protected, plain)
        owed = self._owed(mapped)
        self._found = union(self._found, owed)
        # Walks are joined over what was not mapped as the VMAs were listed. What has been since may be found
        # and protected with the rest: it is reported again once it is listed.
        self._walk(bridged(hull, mapped), reset=True)
        late = regions.difference(self._stage, mapped)
        self._late = union(self._late, late)
        self._accept()
        # Whatever was reported is protected from then on, populated or not: its loss has to be reported, too.
        holes = regions.difference(plain, protected)
        found = union(self._scan(_POPULATED, holes), regions.intersection(owed, holes))
        fresh = aligned(found, pmd_size(), holes)
        if len(fresh):
            # In this order: what is populated after the walk is protected by it, and reported by the next.
            self._walk(fresh, reset=True)
            if self._split_huge:
                self._split(fresh)
            populated = self._holding(fresh)
            self._found = union(self._found, self._labelled(regions.intersection(self._stage, populated)))
            self._stage = NOTHING
        self._hull = union(protected, fresh)
        self._late = late

    def _owed(self, mapped: Regions) -> Regions:
        """Mapped memory outside of the hull of which somebody may have pages: it is reported whole."""
        return self._labelled(regions.intersection(union(self._late, self._vanished), mapped))

    def _gather_by_call(self, ranges: Regions) -> None:
        """Look, then protect what was found, by a call of its own: hugetlb, and accesses.

        A page written between the two is among the found; any other is still unprotected, or was
        protected all the time, and the next round sees it.
        """
        self._walk(ranges, reset=False)
        found = self._stage
        self._accept()
        for start, end in zip(found["start"].tolist(), found["end"].tolist(), strict=True):
            self._registration.protect(start, end)

    def _split(self, ranges: Regions) -> None:
        """Maps transparent huge pages by small ones, so that a write is 4 KiB of dirt.

        Protecting one page of a huge one splits its mapping. A write to that page just before would be
        forgotten with it, so it is reported.
        """
        size = pmd_size()
        for region in self._scan(_MAPPED_HUGE, ranges):
            first = -(-int(region["start"]) // size) * size
            for address in range(first, int(region["end"]) - size + 1, size):
                page = self._labelled(region_array([address], [address + PAGE_SIZE]))
                self._stage = union(self._stage, page)
                self._registration.protect(address, address + PAGE_SIZE)

    # What the scan does not tell

    def _residency(self, whole: Layout) -> dict[str, Regions]:
        """Where memory is populated whose loss of content (MADV_DONTNEED) no scan reports."""
        if not self._writes:
            return {}
        watched = {
            "copied": (_OWN_COPIES, whole.copied),
            "huge": (_RESIDENT, whole.huge),
            "opaque": (_POPULATED, whole.opaque),
        }
        if not self._reports_drops:
            watched["plain"] = (_POPULATED, whole.plain)
        return {name: self._scan(query, ranges) for name, (query, ranges) in watched.items() if len(ranges)}

    def _holding(self, ranges: Regions) -> Regions:
        """Pages in memory or in swap; with them, where this user cannot tell, markers on protected holes."""
        found = self._scan(_STATE, ranges)
        present = found["categories"] != 0
        return union(regions.relabel(found[present], 0), self._in_swap(found[~present]))

    def _in_swap(self, found: Regions) -> Regions:
        return without_markers(self._pagemap, found) if len(found) and self._sees_frames else found

    def _dropped(self, whole: Layout, written: Regions) -> tuple[Regions, dict[str, Regions]]:
        """Pages that lost their content since the last round and are still mapped; what to watch in the next.

        An own copy in swap still has its content. Where it looks like a dropped one, it is reported, and
        watched until it is seen again: it may be dropped at any time.
        """
        resident = self._residency(whole)
        gone = NOTHING
        for name, before in self._resident.items():
            gone = union(gone, regions.difference(before, resident.get(name, NOTHING)))
        if "copied" in resident:
            certain = self._sees_frames
            copies = self._resident.get("copied", NOTHING)
            if certain or not self._sparse:  # else `written` has markers in it
                copies = union(copies, regions.relabel(regions.intersection(written, whole.copied), 0))
            away = regions.difference(copies, resident["copied"])
            swapped = self._in_swap(self._scan(SWAPPED, away))
            if certain:
                gone = regions.difference(gone, swapped)
            resident["copied"] = union(resident["copied"], swapped)
        if len(gone):
            gone = self._labelled(regions.intersection(gone, whole.everything()))
        return gone, resident

    def _populated(self) -> Regions:
        whole = self._refresh()
        watched = regions.intersection(self._hull, whole.plain) if self._sparse else whole.plain
        return self._holding(regions.coalesce(np.concatenate([watched, whole.huge, whole.opaque])))

    def _look(self) -> Regions:
        # What an interrupted collect() left on its way is not to be taken for what this walk finds.
        self._salvage()
        self._accept()
        whole = self._refresh()
        hull = regions.intersection(self._hull, whole.plain) if self._sparse else whole.plain
        self._walk(union(hull, whole.huge), reset=False)
        seen, self._stage = self._stage, NOTHING
        if self._sparse:
            holes = regions.difference(whole.plain, hull)
            populated = self._labelled(self._scan(_POPULATED, holes))
            self._late = union(self._late, populated)
            seen = union(seen, self._owed(whole.mapped))
        if len(whole.opaque):
            seen = union(seen, self._labelled(self._scan(_POPULATED, whole.opaque)))
        return union(seen, self._dropped(whole, seen)[0])

    def _release(self) -> None:
        self._uffd.close()
        self._keep_alive = ()

    def _abandon(self) -> None:
        self._uffd.close_copy()
        super()._abandon()
