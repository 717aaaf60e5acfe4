"""How much is written: dirty pages for each sample, and in runs of what length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .._sweep import I64
from .asking import question, run
from .base import SECOND, Analysis, Source, Table
from .series import Series, Timeline


@dataclass(frozen=True, slots=True, eq=False)
class Rate(Table):
    """Pages in each of n samples. time_ns, duration_ns (ns), pages: int64 (n,)."""

    timeline: Timeline
    pages: I64

    @property
    def time_ns(self) -> I64:
        return self.timeline.time_ns

    @property
    def duration_ns(self) -> I64:
        return self.timeline.duration_ns

    @property
    def pages_per_s(self) -> npt.NDArray[np.float64]:
        """float64 (n,); NaN for a first sample whose interval is unknown."""
        duration = self.duration_ns.astype(np.float64)
        duration[duration == 0] = np.nan
        return self.pages / duration * SECOND

    @property
    def bytes_per_s(self) -> npt.NDArray[np.float64]:
        return self.pages_per_s * self.timeline.page_size

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        return {
            "time_ns": self.time_ns,
            "duration_ns": self.duration_ns,
            "pages": self.pages,
            "pages_per_s": self.pages_per_s,
            "bytes_per_s": self.bytes_per_s,
        }


class DirtyRate(Analysis[Rate, Rate]):
    """See `dirty_rate`."""

    def map(self, chunk: Series) -> Rate:
        return Rate(chunk.timeline, chunk.pages_of_sample)

    def join(self, earlier: Rate, later: Rate) -> Rate:
        return Rate(earlier.timeline.then(later.timeline), np.concatenate((earlier.pages, later.pages)))

    def finish(self, partial: Rate) -> Rate:
        return partial


@question
def dirty_rate(source: Source) -> Rate:
    """Distinct pages written in each sample's interval, by its length: pages/s and bytes/s over time.

    A page that was written many times in an interval counts once, so the rate is a lower bound of the
    writes and falls as intervals grow longer; it is what a copier of dirty pages at this interval would
    have to send. Source: the "dirty rate" of live migration (Clark et al., Live Migration of Virtual
    Machines, NSDI 2005, 4.1); QEMU's calc-dirty-rate measures the same.
    """
    return run(DirtyRate(), source)


@dataclass(frozen=True, slots=True, eq=False)
class RunLengths(Table):
    """Runs of adjacent pages by length: bin k holds lengths of edges[k] <= pages < edges[k + 1].

    edges        int64 (k + 1,), pages: powers of two
    runs, pages  int64 (k,): how many runs, and how many pages in them
    """

    edges: I64
    runs: I64
    pages: I64

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        return {
            "at_least_pages": self.edges[:-1],
            "below_pages": self.edges[1:],
            "runs": self.runs,
            "pages": self.pages,
        }


class Contiguity(Analysis[npt.NDArray[np.int64], RunLengths]):
    """See `run_lengths`."""

    EDGES = 1 << np.arange(53, dtype=np.int64)

    def map(self, chunk: Series) -> npt.NDArray[np.int64]:
        solid = np.flatnonzero(chunk.end > chunk.start)
        start, end, sample = chunk.start[solid], chunk.end[solid], chunk.sample_of_row[solid]
        head = np.ones(start.size, np.bool_)
        head[1:] = (start[1:] != end[:-1]) | (sample[1:] != sample[:-1])
        first = np.flatnonzero(head)
        last = np.append(first[1:], start.size)[: first.size] - 1
        lengths = ((end[last] - start[first]) // np.uint64(chunk.page_size)).astype(np.int64)
        bins = np.searchsorted(self.EDGES, lengths, "right") - 1
        counts = np.zeros((2, self.EDGES.size), np.int64)
        np.add.at(counts[0], bins, 1)
        np.add.at(counts[1], bins, lengths)
        return counts

    def join(self, earlier: npt.NDArray[np.int64], later: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return earlier + later

    def finish(self, partial: npt.NDArray[np.int64]) -> RunLengths:
        used = int(np.flatnonzero(partial[0]).max(initial=-1)) + 1
        return RunLengths(self.EDGES[: used + 1], partial[0, :used], partial[1, :used])


@question
def run_lengths(source: Source) -> RunLengths:
    """Contiguity: the lengths of maximal runs of adjacent pages within a sample, whatever their categories.

    Long runs are cheap to copy and are what huge pages are for; runs of one page are what they cost.
    """
    return run(Contiguity(), source)
