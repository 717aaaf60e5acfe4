"""Series: samples of one process over time, as flat columns."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from .._sweep import I64, U64, last_of_equal
from ..categories import PAGE_SIZE, REGION_DTYPE
from ..query import Query
from ..regions import Regions

UNKNOWN_NS = -(1 << 63)
"""As begin_ns: nobody knows when the first sample's interval began."""


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """When n samples were taken: sample i stands for what happened after sample i - 1 and until time_ns[i].

    time_ns    int64 (n,), ns of a clock that never goes back; strictly increasing
    begin_ns   ns; when the first sample's interval began, time_ns[0] where that is unknown
    page_size  bytes in a page of the series
    """

    time_ns: I64
    begin_ns: int
    page_size: int

    @property
    def begins_ns(self) -> I64:
        """When each sample's interval began: int64 (n,)."""
        begins = np.empty_like(self.time_ns)
        begins[:1], begins[1:] = self.begin_ns, self.time_ns[:-1]
        return begins

    @property
    def duration_ns(self) -> I64:
        """Length of each sample's interval: int64 (n,); 0 for a first sample whose beginning is unknown."""
        return self.time_ns - self.begins_ns

    @property
    def end_ns(self) -> int:
        """The last sample's time; begin_ns where there is none."""
        return int(self.time_ns[-1]) if self.time_ns.size else self.begin_ns

    def then(self, later: Timeline) -> Timeline:
        """This timeline and the next chunk's, as one; ValueError unless that begins where this one ends."""
        if not later.time_ns.size:
            return self
        if not self.time_ns.size:
            return later
        if self.page_size != later.page_size:
            raise ValueError(f"chunks of one series differ in page size: {self.page_size}, {later.page_size}")
        if self.end_ns != later.begin_ns:
            raise ValueError(
                f"a chunk that begins at {later.begin_ns} ns cannot follow one that ends at {self.end_ns} ns:"
                " chunks go in order of time, whole samples each, and begin_ns of one is the last time of the"
                " one before"
            )
        return Timeline(np.concatenate((self.time_ns, later.time_ns)), self.begin_ns, self.page_size)


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """n samples of one process, m regions in all, as columns that are used where they are, never copied.

    Sample i was taken at ``time_ns[i]`` and has the regions ``offsets[i]:offsets[i + 1]`` of the columns; a
    sample without regions is a sample too: nothing was written since the one before.

    time_ns     int64 (n,)      ns of a clock that never goes back; strictly increasing
    offsets     int64 (n + 1,)  rows; from 0 to m, never falling
    start, end  uint64 (m,)     bytes, end exclusive, whole pages; sorted and disjoint within a sample;
                                an empty region counts for nothing: it can mark a sample without any
    categories  uint64 (m,)
    begin_ns    ns; when the first sample's interval began; default: unknown, taken to be time_ns[0]
    page_size   bytes, of the machine that was recorded

    TypeError for columns of another type, ValueError for what is out of order, such as a clock that jumped
    back.
    """

    time_ns: I64
    offsets: I64
    start: U64
    end: U64
    categories: U64
    begin_ns: int = UNKNOWN_NS
    page_size: int = PAGE_SIZE

    def __post_init__(self) -> None:
        for name, dtype in _COLUMNS.items():
            column: Any = getattr(self, name)
            if not isinstance(column, np.ndarray) or column.dtype != dtype or column.ndim != 1:
                what = f"{column.dtype} {column.shape}" if isinstance(column, np.ndarray) else type(column)
                raise TypeError(f"{name} must be a one-dimensional array of {dtype}, not {what}")
        _check_clock(self.time_ns)
        n, m = self.time_ns.size, self.start.size
        if self.offsets.size != n + 1 or not self.end.size == self.categories.size == m:
            raise ValueError(
                f"the columns do not fit: {n} times need {n + 1} offsets, not {self.offsets.size}, and {m}"
                f" starts as many ends and categories, not {self.end.size} and {self.categories.size}"
            )
        if self.offsets[0] != 0 or self.offsets[-1] != m or (np.diff(self.offsets) < 0).any():
            raise ValueError(f"offsets must go from 0 to the number of regions, {m}, and never fall")
        begin = operator.index(self.begin_ns)
        if begin == UNKNOWN_NS:
            begin = int(self.time_ns[0]) if n else 0
        if n and begin > self.time_ns[0]:
            raise ValueError(f"begin_ns, {begin}, is after the first sample, {int(self.time_ns[0])}")
        object.__setattr__(self, "begin_ns", begin)
        if self.page_size < 1 or self.page_size & (self.page_size - 1):
            raise ValueError(f"page_size must be a power of two, not {self.page_size}")
        _check_regions(self.start, self.end, self.offsets, self.page_size)

    @classmethod
    def from_rows(
        cls,
        time_ns: I64,
        start: U64,
        end: U64,
        categories: U64,
        *,
        begin_ns: int = UNKNOWN_NS,
        page_size: int = PAGE_SIZE,
    ) -> Series:
        """From columns of equal length, as files have them, with a time (ns) for each region.

        Neighbouring rows of equal time are a sample; a row with start == end marks one without regions.
        start, end and categories are used where they are. ValueError where the time goes back.
        """
        if not isinstance(time_ns, np.ndarray) or time_ns.dtype != np.int64 or time_ns.ndim != 1:
            raise TypeError("time_ns must be a one-dimensional array of int64")
        stops = np.flatnonzero(last_of_equal(time_ns)) + 1
        offsets = np.concatenate((np.zeros(1, np.int64), stops))
        return cls(time_ns[offsets[1:] - 1], offsets, start, end, categories, begin_ns, page_size)

    @classmethod
    def from_samples(
        cls,
        samples: Iterable[tuple[int, Regions]],
        *,
        begin_ns: int = UNKNOWN_NS,
        page_size: int = PAGE_SIZE,
    ) -> Series:
        """From (time in ns, regions) pairs, such as ``DirtyTracker.rounds`` yields. Copies the regions."""
        pairs = list(samples)
        arrays = [np.empty(0, REGION_DTYPE), *(r for _, r in pairs)]
        if any(not isinstance(r, np.ndarray) or r.dtype != REGION_DTYPE for r in arrays):
            raise TypeError("each sample must be (time in ns, array of REGION_DTYPE)")
        start, end, categories = (
            np.concatenate([r[name] for r in arrays]) for name in ("start", "end", "categories")
        )
        offsets = np.cumsum([r.size for r in arrays], dtype=np.int64)
        times = np.array([operator.index(t) for t, _ in pairs], np.int64)
        return cls(times, offsets, start, end, categories, begin_ns, page_size)

    def __len__(self) -> int:
        """The number of samples."""
        return self.time_ns.size

    @property
    def timeline(self) -> Timeline:
        return Timeline(self.time_ns, self.begin_ns, self.page_size)

    @property
    def pages(self) -> I64:
        """The size of each region, in pages: a new int64 (m,)."""
        return ((self.end - self.start) // np.uint64(self.page_size)).astype(np.int64)

    @property
    def sample_of_row(self) -> I64:
        """The number of the sample that each region belongs to: a new int64 (m,)."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.offsets))

    @property
    def pages_of_sample(self) -> I64:
        """The pages in each sample: a new int64 (n,)."""
        below = np.concatenate((np.zeros(1, np.int64), np.cumsum(self.pages)))
        return below[self.offsets[1:]] - below[self.offsets[:-1]]

    def regions(self, i: SupportsIndex) -> Regions:
        """The regions of sample `i`: a new array of REGION_DTYPE."""
        index = range(len(self))[operator.index(i)]
        rows = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        r = np.empty(rows.stop - rows.start, REGION_DTYPE)
        r["start"], r["end"], r["categories"] = self.start[rows], self.end[rows], self.categories[rows]
        return r

    def samples(self, first: int, stop: int) -> Series:
        """The samples `first` to `stop` (exclusive) as a Series that follows the ones before. Views."""
        rows = slice(int(self.offsets[first]), int(self.offsets[stop]))
        return Series(
            self.time_ns[first:stop],
            self.offsets[first : stop + 1] - self.offsets[first],
            self.start[rows],
            self.end[rows],
            self.categories[rows],
            int(self.time_ns[first - 1]) if first else self.begin_ns,
            self.page_size,
        )

    def chunks(self, max_rows: int) -> Iterator[Series]:
        """Chunks of whole samples, each with at most `max_rows` regions or a single sample. Views."""
        first = 0
        while first < len(self):
            fit = int(np.searchsorted(self.offsets, self.offsets[first] + max_rows, "right")) - 1
            stop = max(fit, first + 1)
            yield self.samples(first, stop)
            first = stop

    def select(self, query: Query) -> Series:
        """All samples, but only those of their regions that `query` matches. Copies what is left."""
        chosen = query.matches(self.categories)
        kept = np.concatenate((np.zeros(1, np.int64), np.cumsum(chosen, dtype=np.int64)))
        return Series(
            self.time_ns,
            kept[self.offsets],
            self.start[chosen],
            self.end[chosen],
            self.categories[chosen],
            self.begin_ns,
            self.page_size,
        )


_COLUMNS = {
    "time_ns": np.dtype(np.int64),
    "offsets": np.dtype(np.int64),
    "start": np.dtype(np.uint64),
    "end": np.dtype(np.uint64),
    "categories": np.dtype(np.uint64),
}


def _check_clock(time_ns: npt.NDArray[np.int64]) -> None:
    wrong = time_ns[1:] <= time_ns[:-1]
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(
            f"the time of sample {i + 1}, {int(time_ns[i + 1])} ns, is not after that of sample {i},"
            f" {int(time_ns[i])} ns: a series needs a clock that never goes back (time.monotonic_ns);"
            " split it where the clock jumped"
        )


def _check_regions(start: U64, end: U64, offsets: I64, page_size: int) -> None:
    wrong = (end < start) | (((start | end) & np.uint64(page_size - 1)) != 0)
    # A region may start below the end of the one before only where a sample begins.
    overlap = start[1:] < end[:-1]
    heads = offsets[1:-1]
    overlap[heads[(heads > 0) & (heads < start.size)] - 1] = False
    wrong[1:] |= overlap
    if wrong.any():
        row = int(np.argmax(wrong))
        sample = int(np.searchsorted(offsets, row, "right")) - 1
        raise ValueError(
            f"row {row} (sample {sample}), {int(start[row]):#x} to {int(end[row]):#x}, is not in order: the"
            f" regions of a sample must be sorted, disjoint and whole pages of {page_size} bytes; see"
            " pagemap.regions.coalesce()"
        )
