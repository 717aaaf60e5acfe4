"""When a page is written again: working sets, and the intervals between writes.

Both follow from one thing, found here: each occurrence of a page in a sample, and the next occurrence of
the same page. Which pages these are does not matter any more then, only how many there are for each pair of
samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from .._sweep import I64, Runs, sweep, values_at
from .asking import for_each, question, run
from .base import MS, SECOND, Analysis, Source, Table, increasing, ladder, tally
from .rate import dirty_rate
from .series import Series, Timeline

Pairs = tuple[I64, I64, I64]
"""(i, j, pages): so many pages occur in sample i, next in sample j. int64, of equal length."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """The pages that occur in some samples: disjoint, sorted runs of pages with their first and last sample.

    start, end: int64, page numbers, end exclusive. first, last: int64, numbers of samples.
    """

    start: I64
    end: I64
    first: I64
    last: I64

    @property
    def pages(self) -> I64:
        return self.end - self.start

    def then(self, later: Seen, shift: int) -> tuple[Seen, Pairs]:
        """What both have seen, and the pairs between them; `later` counts its samples from `shift` on."""
        seen, pairs = Runs(np.int64, np.int64, np.int64), Runs(np.int64, np.int64, np.int64)
        first_b, last_b = later.first + shift, later.last + shift
        for at, in_a, in_b in sweep(_bounds(self), _bounds(later)):
            a, b = (in_a & 1).astype(np.bool_), (in_b & 1).astype(np.bool_)
            next_b, last_a = values_at(first_b, in_b), values_at(self.last, in_a)
            first = np.where(a, values_at(self.first, in_a), next_b)
            last = np.where(b, values_at(last_b, in_b), last_a)
            seen.add(at, a | b, first, last)
            pairs.add(at, a & b, last_a * b, next_b * a)
        start, end, i, j = pairs.result()
        return Seen(*seen.result()), (i, j, end - start)


def _bounds(seen: Seen) -> I64:
    return np.stack((seen.start, seen.end), axis=1).reshape(-1)


def follow(chunk: Series) -> tuple[Seen, list[Pairs]]:
    """All pairs within a chunk, and what it has seen, its samples numbered from 0 on.

    Neighbouring samples are joined, then neighbouring pairs of samples, and so on: log2(samples) rounds
    that cost no more than a pass over the regions each. A round joins all its pairs in one sweep: they lie
    side by side on one axis.
    """
    start = (chunk.start // np.uint64(chunk.page_size)).astype(np.int64)
    end = (chunk.end // np.uint64(chunk.page_size)).astype(np.int64)
    low = int(start.min(initial=1 << 62))
    room = max(int(end.max(initial=0)) - low, 1).bit_length()
    if len(chunk) > 1 and room + len(chunk).bit_length() > 62:
        half = len(chunk) // 2
        seen_a, pairs_a = follow(chunk.samples(0, half))
        seen_b, pairs_b = follow(chunk.samples(half, len(chunk)))
        both, across = seen_a.then(seen_b, half)
        return both, [*pairs_a, across, *((i + half, j + half, pages) for i, j, pages in pairs_b)]

    sample = chunk.sample_of_row
    solid = np.flatnonzero(end > start)
    group, sample = sample[solid] << room, sample[solid]
    seen = Seen((start[solid] - low) | group, (end[solid] - low) + group, sample, sample)
    found = []
    for _ in range(max(len(chunk) - 1, 0).bit_length()):
        # The axis is (group, page): halve the group, the even ones come before the odd ones.
        group = seen.start >> room
        odd = group & 1 == 1
        back = (group - (group >> 1)) << room
        seen = Seen(seen.start - back, seen.end - back, seen.first, seen.last)
        seen, pairs = _take(seen, ~odd).then(_take(seen, odd), 0)
        found.append(pairs)
    return Seen(seen.start + low, seen.end + low, seen.first, seen.last), found


def _take(seen: Seen, chosen: npt.NDArray[np.bool_]) -> Seen:
    return Seen(*(column.compress(chosen) for column in (seen.start, seen.end, seen.first, seen.last)))


@dataclass(frozen=True, slots=True, eq=False)
class WorkingSet(Table):
    """Distinct pages written within windows of k lengths, each of n samples the end of one.

    tau_ns  int64 (k,), ns
    sizes   int64 (k, n), pages: [i, s] in the window of length tau_ns[i] that ends at sample s

    The statistics are of the windows that lie wholly in the series; 0 or NaN where there is none.
    """

    timeline: Timeline
    tau_ns: I64
    sizes: I64

    @property
    def complete(self) -> npt.NDArray[np.bool_]:
        """bool (k, n): the window lies wholly in the series."""
        return self.timeline.time_ns - self.timeline.begin_ns >= self.tau_ns[:, None]

    @property
    def windows(self) -> I64:
        return np.asarray(np.count_nonzero(self.complete, axis=1), np.int64)

    @property
    def total_pages(self) -> I64:
        """The sum over all complete windows, exact; int64 (k,)."""
        return np.asarray(np.sum(self.sizes, axis=1, where=self.complete), np.int64)

    @property
    def mean_pages(self) -> npt.NDArray[np.float64]:
        """The working set as a function of tau: float64 (k,), pages."""
        windows = self.windows.astype(np.float64)
        windows[windows == 0] = np.nan
        return self.total_pages / windows

    @property
    def min_pages(self) -> I64:
        low = np.min(self.sizes, axis=1, where=self.complete, initial=np.iinfo(np.int64).max)
        return np.where(self.windows > 0, low, 0)

    @property
    def max_pages(self) -> I64:
        return np.asarray(np.max(self.sizes, axis=1, where=self.complete, initial=0), np.int64)

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        return {
            "tau_ns": self.tau_ns,
            "windows": self.windows,
            "mean_pages": self.mean_pages,
            "min_pages": self.min_pages,
            "max_pages": self.max_pages,
        }


@runtime_checkable
class HasTimeline(Protocol):
    """A Series, a recording, a Rate."""

    @property
    def timeline(self) -> Timeline: ...


@dataclass(frozen=True, slots=True, eq=False)
class _Windows:
    timeline: Timeline
    pages: I64
    """(n,): pages in each sample."""
    left: I64
    """(n, k + 1): [i, c] pages of sample i that are written again, when the c shortest windows are past."""
    again: I64
    """(n, k + 1): [j, c] the same pages, counted at the sample j that writes them again."""
    seen: Seen


@dataclass(frozen=True)
class WorkingSets(Analysis[_Windows, WorkingSet]):
    """See `working_set`."""

    tau_ns: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tau_ns", tuple(increasing(self.tau_ns, "taus_ns").tolist()))

    def map(self, chunk: Series) -> _Windows:
        seen, pairs = follow(chunk)
        shape = (len(chunk), len(self.tau_ns) + 1)
        left, again = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for found in pairs:
            self._count(chunk.timeline, left, again, found)
        return _Windows(chunk.timeline, chunk.pages_of_sample, left, again, seen)

    def join(self, earlier: _Windows, later: _Windows) -> _Windows:
        timeline = earlier.timeline.then(later.timeline)
        seen, pairs = earlier.seen.then(later.seen, earlier.pages.size)
        left, again = np.concatenate((earlier.left, later.left)), np.concatenate((earlier.again, later.again))
        self._count(timeline, left, again, pairs)
        return _Windows(timeline, np.concatenate((earlier.pages, later.pages)), left, again, seen)

    def _count(self, timeline: Timeline, left: I64, again: I64, pairs: Pairs) -> None:
        i, j, pages = pairs
        passed = np.searchsorted(self.tau_ns, timeline.time_ns[j] - _middles(timeline)[i], "right")
        tally(left, i, passed, pages)
        tally(again, j, passed, pages)

    def finish(self, partial: _Windows) -> WorkingSet:
        timeline, n = partial.timeline, partial.pages.size
        sizes = np.empty((len(self.tau_ns), n), np.int64)
        here = np.arange(n)
        # Pages enter with their sample. They leave when the sample has passed out of the window, or, where
        # they were written again before that, with the sample that did: it has counted them anew.
        again, left = np.cumsum(partial.again, axis=1), np.cumsum(partial.left, axis=1)
        entered = np.cumsum(partial.pages)
        for k, tau in enumerate(self.tau_ns):
            passed = np.minimum(here, np.searchsorted(_middles(timeline), timeline.time_ns - tau, "right"))
            out = np.concatenate((np.zeros(1, np.int64), np.cumsum(partial.pages - left[:, k])))
            sizes[k] = entered - np.cumsum(again[:, k]) - out[passed]
        return WorkingSet(timeline, np.array(self.tau_ns, np.int64), sizes)


def _middles(timeline: Timeline) -> I64:
    # Rounded up: the same side of every whole nanosecond as the exact middle.
    return timeline.time_ns - timeline.duration_ns // 2


@question
def working_set(source: Source, taus_ns: npt.ArrayLike | None = None) -> WorkingSet:
    """The set of pages written within a window of length tau, as a curve over tau and for each window.

    For each sample time t, the number of distinct pages that were written in (t - tau, t]. A write is known
    to lie in its sample's interval only: a sample belongs to the window when the middle of its interval
    does, and the last one always, so that samples that come a little early or late change nothing. Choose
    tau well above the sampling interval; below, the answer is that of one sample.

    taus_ns: whole ns, increasing. Default: 1, 2, 5, 10 … from about the median interval to the length of the
    series; without a `timeline`, as Series and recordings have, that takes a pass more, and an iterator is
    a TypeError. Memory: some 52 bytes for each sample and tau. Source: Denning, The Working Set Model for
    Program Behavior, CACM 11(5), 1968, W(t, tau) with writes as references; the mean over t is his s(tau).
    Only windows that lie wholly in the series count.
    """
    if taus_ns is not None:
        return run(WorkingSets(tuple(increasing(taus_ns, "taus_ns").tolist())), source)
    if isinstance(source, Iterator):
        raise TypeError("taus_ns must be given for an iterator, which can be read only once")

    def windows(known: HasTimeline) -> WorkingSets:
        return WorkingSets(tuple(default_taus(known.timeline).tolist()))

    return run(for_each(source if isinstance(source, HasTimeline) else dirty_rate(source), windows), source)


def default_taus(timeline: Timeline) -> I64:
    """1, 2, 5, 10, 20 … ns, those from 0.9 of the median interval to the length of the series; at least one.

    A sample is a moment late, never early: a window of just the interval that was asked for is among them.
    """
    durations = timeline.duration_ns[timeline.duration_ns > 0]
    if not durations.size:
        return np.array([SECOND], np.int64)
    typical = int(np.median(durations))
    steps = ladder(typical * 9 // 10, timeline.end_ns - timeline.begin_ns)
    return steps if steps.size else np.array([typical], np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Intervals(Table):
    """Time between writes to the same page. Bin k holds intervals of edges_ns[k] <= t < edges_ns[k + 1].

    edges_ns  int64 (k + 1,), ns, from 0 to the largest int64
    writes    int64 (k,): page-writes that came so long after the one before
    pages     distinct pages
    once      those of them that only one sample has: nobody knows how long until they are written again
    """

    edges_ns: I64
    writes: I64
    pages: int
    once: int

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        return {"at_least_ns": self.edges_ns[:-1], "below_ns": self.edges_ns[1:], "writes": self.writes}


@dataclass(frozen=True, slots=True, eq=False)
class _Gaps:
    timeline: Timeline
    writes: I64
    seen: Seen


@dataclass(frozen=True)
class RedirtyIntervals(Analysis[_Gaps, Intervals]):
    """See `redirty_intervals`."""

    edges_ns: tuple[int, ...] = tuple(ladder(MS, 100_000 * SECOND).tolist())

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges_ns", tuple(increasing(self.edges_ns, "edges_ns").tolist()))

    def map(self, chunk: Series) -> _Gaps:
        seen, pairs = follow(chunk)
        return _Gaps(chunk.timeline, sum(self._counts(chunk.timeline, pairs), start=self._zero()), seen)

    def join(self, earlier: _Gaps, later: _Gaps) -> _Gaps:
        timeline = earlier.timeline.then(later.timeline)
        seen, pairs = earlier.seen.then(later.seen, earlier.timeline.time_ns.size)
        counts = sum(self._counts(timeline, [pairs]), start=self._zero())
        return _Gaps(timeline, earlier.writes + later.writes + counts, seen)

    def _zero(self) -> I64:
        return np.zeros(len(self.edges_ns) + 1, np.int64)

    def _counts(self, timeline: Timeline, found: list[Pairs]) -> Iterator[I64]:
        for i, j, pages in found:
            counts = self._zero()
            gap = timeline.time_ns[j] - timeline.time_ns[i]
            np.add.at(counts, np.searchsorted(self.edges_ns, gap, "right"), pages)
            yield counts

    def finish(self, partial: _Gaps) -> Intervals:
        seen = partial.seen
        edges = np.array([0, *self.edges_ns, np.iinfo(np.int64).max], np.int64)
        once = int(seen.pages[seen.first == seen.last].sum())
        return Intervals(edges, partial.writes, int(seen.pages.sum()), once)


@question
def redirty_intervals(source: Source, edges_ns: npt.ArrayLike | None = None) -> Intervals:
    """How long after a page was written it is written again: a histogram of page-writes over time.

    The time between two consecutive samples that have the page, so its resolution is the sampling interval.
    The limits of the bins are whole ns, increasing; default 1, 2, 5 … from 1 ms to 10^5 s. Bins for what is
    shorter and longer come with them. Source: the inter-reference interval of Denning and Schwartz,
    Properties of the Working-Set Model, CACM 15(3), 1972, with writes as references.
    """
    analysis = RedirtyIntervals()
    if edges_ns is not None:
        analysis = RedirtyIntervals(tuple(increasing(edges_ns, "edges_ns").tolist()))
    return run(analysis, source)
