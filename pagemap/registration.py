"""Which memory a userfaultfd holds, round by round, while the process maps, moves and unmaps.

The kernel drops registrations silently, and not only where memory is unmapped: mremap() takes that of what
it moves, and of all that the moved VMA merges with (mm/userfaultfd.c, mremap_userfaultfd_prep). The pages
keep their marks of protection then, but are written without a fault, and would look clean for ever. So
nothing is registered again that was not seen to be unregistered, and where it had been protected, it loses
its marks first.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from . import regions
from .categories import PAGE_SIZE, Category
from .layout import (
    PROT_WRITE,
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

LARGE = 256 << 20
"""Bytes of a VMA that does not come and go in a moment, not even one that was merged from many."""

FAR = 1 << 40
"""Bytes of a hole, such as the one behind the heap, in whose middle nothing is mapped in a moment."""

NOTHING = region_array([], [])

# A scan passes a registered VMA by as a whole (pagemap_scan_is_interesting_vma).
_UNREGISTERED = Query(exclude=Category.WPALLOWED, report=Category(0))
_REGISTERED = Query(require=Category.WPALLOWED, report=Category(0))


def page_size_finder(pagemap: PageMap) -> Callable[[int, int], int | None]:
    """Looks up the page size in bytes of the VMA at an address; None unless a file of this inode is there."""
    if not pagemap._procmap_query:
        return lambda address, inode: smaps_page_size(pagemap.pid, address, inode)

    def look_up(address: int, inode: int) -> int | None:
        found = pagemap._vma_from(address)
        return found[2] if found is not None and found[0] <= address and found[3] == inode else None

    return look_up


def _mostly_refused(rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """[vvar], [vdso] and the like, and shared files that may not be written."""
    special = (rows["inode"] == 0) & (rows["prot"] != 0)
    return np.asarray((rows["prot"] & PROT_WRITE == 0) & (special | rows["shared"]), np.bool_)


def _of(vmas: list[tuple[int, int]]) -> Regions:
    return regions.coalesce(region_array([vma[0] for vma in vmas], [vma[1] for vma in vmas]))


def _split(part: Pieces, cut: npt.NDArray[np.bool_], wanted: npt.NDArray[np.bool_]) -> list[Pieces]:
    """What lies between the cuts, each behind a piece, where any piece is wanted."""
    if not len(part.starts):
        return []
    at = np.append(0, np.flatnonzero(cut) + 1)
    stops = np.append(at[1:], len(part.starts))
    keep = np.logical_or.reduceat(wanted, at)
    return [part.slice(*edges) for edges in zip(at[keep].tolist(), stops[keep].tolist(), strict=True)]


def _not_in(rows: npt.NDArray[Any], before: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The VMAs that were not there before, or not as they are."""
    if not len(before):
        return rows
    at = np.minimum(np.searchsorted(before["start"], rows["start"]), len(before) - 1)
    return np.asarray(rows[~_same(before[at], rows)])


def _same(these: npt.NDArray[Any], those: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which VMAs of two tables are alike. (Comparing whole records, NumPy turns Ctrl-C into a TypeError.)"""
    alike = np.ones(len(these), np.bool_)
    for name in these.dtype.names or ():
        alike &= these[name] == those[name]
    return alike


def _among(values: npt.NDArray[Any], these: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which values are among some that are sorted. (np.isin imports numpy.ma, which may not be allowed.)"""
    first, last = (np.searchsorted(these, values, side) for side in ("left", "right"))
    return np.asarray(first != last, np.bool_)


def _between(rows: npt.NDArray[Any], start: int, end: int) -> npt.NDArray[Any]:
    """The VMAs that reach into a range."""
    return rows[np.searchsorted(rows["end"], start, "right") : np.searchsorted(rows["start"], end, "left")]


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
        self._rows = self.table.array
        self._mapped: Regions = NOTHING
        self._moved: Regions = NOTHING
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
        # Of a refresh that was interrupted, nobody knows what it found.
        self._stale = regions.union(self._stale, _of(self._claimed))
        self._claimed.clear()
        changed = self._list()
        first = not self._begun
        unregistered = self._unregistered()
        before = self.refused
        if changed:
            # One that has vanished looks refused, too: what is there now is something else.
            self.refused = {vma: code for vma, code in before.items() if self._is_listed(vma)}
        taken = [vma for vma, code in self.refused.items() if code == errno.EBUSY]
        for_good = [vma for vma, code in self.refused.items() if code != errno.EBUSY]
        known = _of(for_good)
        # What somebody else holds looks registered. So what is new is asked for, whatever the scan says.
        lacking = self._bounds if taken else regions.union(unregistered, self._moved)
        new = regions.difference(lacking, known)
        if len(new) or (changed and before):
            if self._tells and not first:
                self._stale = regions.union(self._stale, regions.union(unregistered, _of(taken)))
            self.refused = self._still_refused(lacking)
            for part in self._zones(new, for_good):
                if self._tells and not first:
                    self._register_late(part)
                else:
                    self._register(part)
            again = pieces(self.table, regions.intersection(lacking, known))
            for i in range(len(again.starts)):
                self._register_one(again.slice(i, i + 1))
            self._stale = regions.difference(self._stale, _of(list(self.refused)))
        self._moved = NOTHING
        self._claimed.clear()
        if len(self._stale):
            # What is not listed yet may have been moved there: the next listing knows.
            late = regions.difference(self._stale, self._mapped)
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

    def _is_listed(self, vma: tuple[int, int]) -> bool:
        row = self.table.find(vma[0])
        found = None if row is None else self.table.array[row]
        return found is not None and (int(found["start"]), int(found["end"])) == vma

    def refused_vmas(self) -> list[tuple[Vma, str]]:
        """The VMAs that cannot be registered, with the reason in words."""
        refused = self.refused.copy()  # another thread may be in a round
        if not refused:
            return []
        return [
            (vma, REFUSALS.get(refused[vma.start, vma.end], "the kernel refuses"))
            for vma in self.table
            if (vma.start, vma.end) in refused
        ]

    def has_writable(self) -> bool:
        """Whether any writable memory could be registered."""
        return any((vma.start, vma.end) not in self.refused for vma in self.table if vma.prot & PROT_WRITE)

    def protect(self, start: int, end: int) -> None:
        """Protects registered pages. ProcessLookupError when the process has gone.

        What was unmapped meanwhile, and what lies behind it, stays as it is: the next round finds it written.
        """
        try:
            self._uffd.protect(start, end)
        except OSError as error:
            self._check_alive(error)
            if error.errno != errno.ENOENT:
                raise

    # Listing

    def _list(self) -> bool:
        """Whether anything was mapped or unmapped since the last time."""
        listing = self._listing()
        if listing == self._listed:
            return False
        self._layout = self._listed = None  # until all is taken from the new one: an interrupt may strike
        self.table = table = VmaTable.parse(
            listing if isinstance(listing, bytes) else self._pagemap._maps_text()
        )
        rows = table.array
        self._mapped = regions.coalesce(region_array(rows["start"], rows["end"]))
        moved = _not_in(rows, self._rows)
        moved = regions.coalesce(region_array(moved["start"], moved["end"]))
        self._moved = regions.union(self._moved, regions.intersection(moved, self._bounds))
        self._rows = rows
        self._vma_count = len(pieces(table, self._bounds).starts)
        self._listed = listing
        return True

    def _listing(self) -> Listing:
        """The VMAs as they stand now: equal to an earlier one where nothing was mapped or unmapped.

        A few VMAs are looked up one by one, which is cheaper than the text of all.
        """
        if self._everything or self._vma_count > FEW_VMAS or not self._pagemap._procmap_query:
            return self._pagemap._maps_text()
        found = []
        for start, end in zip(self._bounds["start"].tolist(), self._bounds["end"].tolist(), strict=True):
            found += self._queried(start, end)
        return found

    def _queried(self, start: int, end: int) -> list[tuple[int, int, int, int]]:
        found = []
        while start < end and (vma := self._pagemap._vma_from(start)) is not None:
            if vma[0] < end:
                found.append(vma)
            start = vma[1]
        return found

    def _listed_anew(self, start: int, end: int) -> list[Any]:
        """The VMAs that reach into a range, by whichever way is faster."""
        if self._pagemap._procmap_query and 2 * len(_between(self._rows, start, end)) < len(self._rows):
            return self._queried(start, end)
        return _between(VmaTable.parse(self._pagemap._maps_text()).array, start, end).tolist()  # type: ignore[no-any-return]

    # Registering

    def _unregistered(self) -> Regions:
        """What nobody has registered. At first that is all: memory that no scan enters is asked for, too."""
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
            if not len(regions.clip(lacking, start, end))
            and not len(self._pagemap.scan(_REGISTERED, start=start, end=start + PAGE_SIZE))
        }

    def _zones(self, lacking: Regions, refused: list[tuple[int, int]]) -> list[Pieces]:
        """What lies between two landmarks with anything in it that lacks registration.

        A VMA that is registered in part is two, which its process can no longer mremap. And a process that
        maps without a pause has its VMAs grow, merge and vanish while the registration waits for the lock. So
        one ends where no VMA reaches that is still to be registered: at a file or a large VMA that is, for
        these do not come and go, at one that is refused, or in the middle of the hole behind the heap. Ranges
        that were asked for end where they end.
        """
        if not self._everything:
            part = pieces(self.table, lacking)
            within = np.searchsorted(self._bounds["start"], part.starts, "right")
            return _split(part, np.diff(within) != 0, np.ones(len(within), np.bool_))
        rows = pieces(self.table, self._bounds).rows
        starts, ends = rows["start"], rows["end"]
        lacks = _among(starts, pieces(self.table, lacking).rows["start"])
        landmark = ~lacks & ((rows["inode"] != 0) | (ends - starts >= np.uint64(LARGE)))
        landmark |= _among(starts, np.array(sorted(start for start, _ in refused), np.uint64))
        holes = starts[1:] - ends[:-1]
        far = holes >= np.uint64(FAR)
        middle = ends[:-1] + holes // np.uint64(2 * PAGE_SIZE) * np.uint64(PAGE_SIZE)
        part = Pieces(
            np.append(starts[:1], np.where(far, middle, ends[:-1])),
            np.append(np.where(far, middle, starts[1:]), self._bounds["end"][-1:]),
            rows,
        )
        return _split(part, far | landmark[1:] | landmark[:-1], lacks)

    def _register_late(self, part: Pieces) -> None:
        """All of it, when writes to what is registered already may not be lost.

        Any VMA may lose its registration meanwhile, with the marks of protection left in place, and get it
        again: nobody can tell, where the VMAs are not as they were right before, or what touches them.
        """
        start, end = int(part.starts[0]), int(part.ends[-1])
        around = max(start - PAGE_SIZE, 0), end + PAGE_SIZE
        before = self._listed_anew(*around)
        lacking = self._pagemap.scan(_UNREGISTERED, start=start, end=end)
        first = len(self._claimed)
        self._register(part)
        if self._listed_anew(*around) != before:
            lacking = regions.union(lacking, _of(self._claimed[first:]))
        self._stale = regions.union(self._stale, lacking)

    def _register(self, part: Pieces) -> None:
        """All of it in one call, as a rule; where something is refused, that which mostly is goes first, then
        halves find what it is.
        """
        try:
            self._claim(int(part.starts[0]), int(part.ends[-1]))
            return
        except OSError as error:
            if error.errno not in REFUSALS:
                self._check_alive(error)
                raise
        if len(part.starts) == 1:
            self._register_one(part)
            return
        odd = _mostly_refused(part.rows)
        if odd.all() or not odd.any():
            half = len(part.starts) // 2
            self._register(part.slice(0, half))
            self._register(part.slice(half, None))
            return
        for i in np.flatnonzero(odd).tolist():
            self._register_one(part.slice(i, i + 1))
        edges = np.flatnonzero(np.diff(np.concatenate([[True], odd, [True]])))
        for first, stop in edges.reshape(-1, 2).tolist():
            self._register(part.slice(first, stop))

    def _register_one(self, part: Pieces) -> None:
        """A VMA with the holes beside it; hugetlb without, for it wants ranges aligned to its pages."""
        ranges = [(int(part.starts[0]), int(part.ends[0])), part.vma(0)]
        for start, end in ranges if part.rows["inode"][0] else ranges[:1]:
            try:
                self._claim(max(start, int(part.starts[0])), min(end, int(part.ends[0])))
                self.refused.pop(part.vma(0), None)
                return
            except OSError as error:
                if error.errno not in REFUSALS:
                    self._check_alive(error)
                    raise
                refused = error.errno
        # What has vanished meanwhile was not refused: as little is known of it as of what is new.
        vma = part.vma(0)
        if vma in [row[:2] for row in self._listed_anew(*vma)]:
            self.refused[vma] = refused

    def _claim(self, start: int, end: int) -> None:
        """Registers a range; nothing where nothing is mapped any more, which is EINVAL, too."""
        for again in (True, False):
            try:
                self._has_huge |= self._uffd.register(start, end)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                if not self._listed_anew(start, end):
                    return
                if not again:
                    raise
            else:
                self._claimed.append((start, end))
                return

    def _unprotect(self, part: Pieces) -> Regions:
        """Lifts the protection; what the kernel refuses has changed meanwhile, and is for the next round."""
        left = []
        for start, end in zip(part.starts.tolist(), part.ends.tolist(), strict=True):
            try:
                self._uffd.unprotect(start, end)
            except OSError:
                left.append((start, end))
        return regions.coalesce(region_array([s for s, _ in left], [e for _, e in left]))

    def _check_alive(self, error: OSError) -> None:
        """ProcessLookupError where that is the reason: a userfaultfd says ENOMEM of memory that has gone."""
        try:
            self._pagemap._maps_text()
        except ProcessLookupError as gone:
            raise gone from error
