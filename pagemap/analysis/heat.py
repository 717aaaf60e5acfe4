"""Where it is written: how often each page, each VMA; and as a picture, time by address."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .._sweep import I64, U64, HasArray, Runs, last_of_equal, measure, ranges_of, sweep, values_at
from .asking import for_each, question, run
from .base import Analysis, Source, Table, tally
from .series import Series, Timeline

VMA_HEAT_DTYPE = np.dtype([("start", "<u8"), ("end", "<u8"), ("pages", "<u8"), ("writes", "<u8")])
"""A row of `Heat.by_vma`: start, end (bytes); pages: distinct ones; writes: `samples` summed over these."""


@dataclass(frozen=True, slots=True, eq=False)
class Heat(Table):
    """In how many samples each page was: m runs of pages, disjoint.

    start, end: uint64 (m,), bytes, end exclusive. samples: int64 (m,), at least 1. The timeline says how
    many there were.
    """

    timeline: Timeline
    start: U64
    end: U64
    samples: I64

    @property
    def pages(self) -> I64:
        """The size of each run, in pages: int64 (m,)."""
        return ((self.end - self.start) // np.uint64(self.timeline.page_size)).astype(np.int64)

    def hottest(self, count: int = 20) -> Heat:
        """The `count` hottest runs of pages, hottest first; of equally hot ones the larger first."""
        order = np.lexsort((self.start, -self.pages, -self.samples))[:count]
        return Heat(self.timeline, self.start[order], self.end[order], self.samples[order])

    def by_vma(self, vmas: HasArray | npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The same for each VMA (`vmas` as in regions.by_vma): an array of VMA_HEAT_DTYPE, a row for each.

        Needs runs in order of address, so ask the heat, not what its `hottest` returned.
        """
        start, end = ranges_of(vmas)
        table = np.zeros(start.size, VMA_HEAT_DTYPE)
        table["start"], table["end"] = start, end
        samples = self.samples.astype(np.uint64)
        bounds = np.stack((self.start, self.end), axis=1).reshape(-1)
        pages, writes = measure(bounds, [np.ones_like(samples), samples], start, end)
        table["pages"] = pages // np.uint64(self.timeline.page_size)
        table["writes"] = writes // np.uint64(self.timeline.page_size)
        return table

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        return {"start": self.start, "end": self.end, "pages": self.pages, "samples": self.samples}


class HeatCount(Analysis[Heat, Heat]):
    """See `heat`."""

    def map(self, chunk: Series) -> Heat:
        bounds = np.concatenate((chunk.start, chunk.end))
        order = np.argsort(bounds, kind="stable")
        at = bounds[order]
        last = last_of_equal(at)
        depth = np.cumsum(np.where(order < chunk.start.size, 1, -1))[last]
        runs = Runs(np.uint64, np.int64)
        runs.add(at[last], depth > 0, depth)
        return Heat(chunk.timeline, *runs.result())

    def join(self, earlier: Heat, later: Heat) -> Heat:
        bounds_a, bounds_b = (np.stack((h.start, h.end), axis=1).reshape(-1) for h in (earlier, later))
        runs = Runs(np.uint64, np.int64)
        for at, in_a, in_b in sweep(bounds_a, bounds_b):
            depth = values_at(earlier.samples, in_a) + values_at(later.samples, in_b)
            runs.add(at, depth > 0, depth)
        return Heat(earlier.timeline.then(later.timeline), *runs.result())

    def finish(self, partial: Heat) -> Heat:
        return partial


@question
def heat(source: Source) -> Heat:
    """In how many samples each page was written, over the whole address space, as runs of equally hot pages.

    ``heat(s).hottest(20)`` are the hottest pages, ``heat(s).by_vma(vmas)`` the hottest VMAs. The number of
    access checks that found the page accessed is what DAMON calls nr_accesses
    (Documentation/mm/damon/design.rst).
    """
    return run(HeatCount(), source)


@dataclass(frozen=True, slots=True, eq=False)
class HeatAxes:
    """The axes of a heat map: rows are times, columns equal numbers of pages, holes left out.

    time_ns       int64 (rows + 1,), ns: row r is the time from time_ns[r] to time_ns[r + 1]
    start, end    uint64 (s,), bytes: the pieces of the address space that are shown, side by side; what is
                  between two of them is left out
    position      int64 (s + 1,), pages: where on the axis each piece begins; the last: where the axis ends
    column_pages  pages in a column (the last column may have fewer)
    page_size     bytes
    """

    time_ns: I64
    start: U64
    end: U64
    position: I64
    column_pages: int
    page_size: int

    @classmethod
    def fit(cls, heat: Heat, *, rows: int = 256, columns: int = 256, min_hole: int = 2 << 20) -> HeatAxes:
        """Axes that show all of `heat` in at most `rows` x `columns` cells.

        Holes of `min_hole` bytes or more, where nothing was ever written, are left out; 0 leaves out every
        hole. Rows are of equally many samples (the last may have fewer), so a row is never empty of
        samples.
        """
        if rows < 1 or columns < 1 or min_hole < 0:
            raise ValueError(
                f"rows and columns must be positive, min_hole not negative: {rows}, {columns}, {min_hole}"
            )
        times, page_size = heat.timeline.time_ns, heat.timeline.page_size
        step = max(-(-times.size // rows), 1)
        edges = np.append(times[step - 1 :: step], times[-1:] if times.size % step else times[:0])
        hole = heat.start[1:] - heat.end[:-1] >= np.uint64(max(min_hole, 1))
        start = np.append(heat.start[:1], heat.start[1:][hole])
        end = np.append(heat.end[:-1][hole], heat.end[-1:])
        pages = ((end - start) // np.uint64(page_size)).astype(np.int64)
        position = np.concatenate((np.zeros(1, np.int64), np.cumsum(pages)))
        width = max(-(-int(position[-1]) // columns), 1)
        time_ns = np.append(np.int64(heat.timeline.begin_ns), edges)
        return cls(time_ns, start, end, position, width, page_size)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.time_ns.size - 1, -(-int(self.position[-1]) // self.column_pages)

    @property
    def capacity(self) -> I64:
        """Pages in each column: int64 (columns,)."""
        return np.diff(np.append(np.arange(self.shape[1]) * self.column_pages, self.position[-1]))

    def place(self, address: npt.NDArray[np.uint64]) -> I64:
        """Where addresses (bytes) lie on the axis, in pages from its beginning; in a hole: at its edge."""
        if not self.start.size:
            return np.zeros(address.shape, np.int64)
        piece = np.maximum(np.searchsorted(self.start, address, "right"), 1) - 1
        inside = (address.clip(self.start[piece], self.end[piece]) - self.start[piece]) // np.uint64(
            self.page_size
        )
        return np.asarray(self.position[piece] + inside.astype(np.int64), np.int64)

    def address(self, position: npt.NDArray[np.int64]) -> U64:
        """The address (bytes) at positions on the axis, which are pages from its beginning."""
        if not self.start.size:
            return np.zeros(position.shape, np.uint64)
        piece = (np.searchsorted(self.position, position, "right") - 1).clip(0, self.start.size - 1)
        inside = (position - self.position[piece]) * self.page_size
        return np.asarray(self.start[piece] + inside.astype(np.uint64), np.uint64)


@dataclass(frozen=True, slots=True, eq=False)
class HeatMap:
    """Writes by time and address. counts[r, c]: pages of column c, summed over the samples of row r; int64.

    samples: int64 (rows,), how many samples a row has.
    """

    axes: HeatAxes
    counts: I64
    samples: I64

    @property
    def fraction(self) -> npt.NDArray[np.float64]:
        """float64 (rows, columns), 0 to 1: the share of a cell's pages that its average sample has."""
        full = np.maximum(self.samples[:, None] * self.axes.capacity, 1)
        return np.asarray(self.counts / full, np.float64)


@dataclass(frozen=True, eq=False)
class HeatGrid(Analysis[tuple[I64, I64], HeatMap]):
    """See `heatmap`. What lies outside the axes is not counted."""

    axes: HeatAxes

    def map(self, chunk: Series) -> tuple[I64, I64]:
        rows, columns = self.axes.shape
        row = (np.searchsorted(self.axes.time_ns, chunk.time_ns) - 1).clip(0, max(rows - 1, 0))
        samples = np.zeros(rows, np.int64)
        np.add.at(samples, row, 1)
        # All from `start` on, less all from `end` on: a part of the column it falls in, and every column
        # after.
        counts, after = np.zeros((rows, columns + 1), np.int64), np.zeros((rows, columns + 2), np.int64)
        region_row = np.repeat(row, np.diff(chunk.offsets))
        width = self.axes.column_pages
        for address, sign in ((chunk.start, 1), (chunk.end, -1)):
            column, part = np.divmod(self.axes.place(address), width)
            tally(counts, region_row, column, sign * (width - part))
            tally(after, region_row, column + 1, sign * width)
        counts += np.cumsum(after, axis=1)[:, :-1]
        return counts[:, :columns], samples

    def join(self, earlier: tuple[I64, I64], later: tuple[I64, I64]) -> tuple[I64, I64]:
        return earlier[0] + later[0], earlier[1] + later[1]

    def finish(self, partial: tuple[I64, I64]) -> HeatMap:
        return HeatMap(self.axes, *partial)


@question
def heatmap(source: Source, *, rows: int = 256, columns: int = 256, min_hole: int = 2 << 20) -> HeatMap:
    """Which pages were written when: a grid of time by address, the holes squeezed out.

    Reads the source twice, first for the axes: TypeError for an iterator. With axes of one's own
    (`HeatAxes.fit` of a `heat` found before), ``run(HeatGrid(axes), source)`` reads it once. See
    HeatAxes.fit for the parameters. The picture is that of "damo report heatmap" (DAMON user-space tool),
    of facts for each page in place of samples.
    """
    if isinstance(source, Iterator):
        raise TypeError(
            "heatmap reads its source twice, and an iterator can be read only once: give a list, or fit axes"
        )

    def grid(found: Heat) -> HeatGrid:
        return HeatGrid(HeatAxes.fit(found, rows=rows, columns=columns, min_hole=min_hole))

    return run(for_each(heat(source), grid), source)
