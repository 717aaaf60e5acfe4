"""What a copy of memory that runs beside the program has to send: incremental snapshots and live migration.

Each round sends what was written during the round before, so rounds follow one another: a series is read in
order, in memory bounded by a chunk and the pages of a round.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import regions
from .._sweep import I64
from ..categories import REGION_DTYPE
from .asking import in_order, question
from .base import MS, SECOND, Source, Table, chunks
from .series import Series

_NEVER = (1 << 63) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Rounds(Table):
    """k rounds: round i sends the pages that were written between begin_ns[i] and end_ns[i].

    begin_ns, end_ns  int64 (k,), ns: times of samples
    pages             int64 (k,), distinct pages
    page_size         bytes
    """

    begin_ns: I64
    end_ns: I64
    pages: I64
    page_size: int

    @property
    def nbytes(self) -> I64:
        """What each round sends: int64 (k,), bytes."""
        return self.pages * self.page_size

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        return {"begin_ns": self.begin_ns, "end_ns": self.end_ns, "pages": self.pages, "nbytes": self.nbytes}


class _Reader:
    """A position in a series, and the distinct pages of the samples from there on."""

    def __init__(self, source: Source) -> None:
        self._chunks = chunks(source)
        self._chunk = next(self._chunks, Series.from_samples([]))
        self._next = 0
        self.page_size = self._chunk.page_size
        self.at = self.begin = self._chunk.begin_ns
        if len(self._chunk) and self._chunk.time_ns[0] == self.begin:
            # Written before there was anything to send: the first, full round has it.
            self._next = 1

    def until(self, due: int) -> int | None:
        """Distinct pages from here to the first sample not before `due`, which is the new position.

        At least one sample is taken. None where the series ends before.
        """
        written = np.empty(0, REGION_DTYPE)
        while True:
            chunk, first = self._chunk, self._next
            stop = max(int(np.searchsorted(chunk.time_ns, min(due, _NEVER))) + 1, first + 1)
            taken = chunk.samples(first, min(stop, len(chunk)))
            columns = (taken.start, taken.end, np.zeros_like(taken.categories))
            rows = np.empty(taken.start.size + written.size, REGION_DTYPE)
            rows[taken.start.size :] = written
            for name, column in zip(REGION_DTYPE.names or (), columns, strict=True):
                rows[name][: taken.start.size] = column
            written = regions.coalesce(rows)
            if stop <= len(chunk):
                self._next, self.at = stop, int(chunk.time_ns[stop - 1])
                return regions.nbytes(written) // self.page_size
            following = next(self._chunks, None)
            if following is None:
                self._next = len(chunk)
                return None
            chunk.timeline.then(following.timeline)
            self._chunk, self._next = following, 0


@question
def snapshots(source: Source, every_ns: int) -> Rounds:
    """What incremental snapshots every `every_ns` would send: each the pages written since the one before.

    A snapshot is taken at the first sample that is due; the full one before the first round is not in the
    table, nor is what was written after the last. Source: the parent images of CRIU ("criu pre-dump
    --track-mem", criu.org/Memory_changes_tracking).
    """
    every = operator.index(every_ns)
    if every <= 0:
        raise ValueError(f"every_ns must be positive, not {every}")
    return in_order(functools.partial(_snapshots, every), source)


def _snapshots(every: int, source: Source) -> Rounds:
    reader = _Reader(source)
    rounds: list[tuple[int, int, int]] = []
    while True:
        begin = reader.at
        # The grid is that of the beginning, so a late sample does not make the next snapshot later.
        due = reader.begin + ((begin - reader.begin) // every + 1) * every
        pages = reader.until(due)
        if pages is None:
            return _table(rounds, reader.page_size)
        rounds.append((begin, reader.at, pages))


@dataclass(frozen=True, slots=True, eq=False)
class Migration:
    """A pre-copy live migration as it would have gone.

    rounds        all rounds but the first, full one; the last one, where it converged, is sent while the
                  program stands still
    converged     True, False, or None where the series ended before it was known
    why           the same in words
    memory_bytes  what the full round sent
    bandwidth     bytes/s
    sent_bytes    the full round and all of `rounds`
    downtime_ns   how long sending the last round takes; None unless converged
    """

    rounds: Rounds
    converged: bool | None
    why: str
    memory_bytes: int
    bandwidth: int
    sent_bytes: int
    downtime_ns: int | None


@question
def migrate(
    source: Source,
    *,
    memory_bytes: int,
    bandwidth: int,
    max_downtime_ns: int = 300 * MS,
    max_rounds: int = 29,
    max_factor: int = 3,
) -> Migration:
    """A pre-copy live migration of a program that writes as this series says, from its beginning on.

    The first round sends all memory, `memory_bytes` (``regions.nbytes`` of what is populated), at
    `bandwidth` bytes/s; each later one the pages that were written while the one before was sent. It
    converges as soon as these can be sent within `max_downtime_ns`: then the program is stopped, and they
    are the last round. It fails after `max_rounds` rounds or once more than max_factor * memory_bytes have
    been sent. A round ends at the first sample at or after its time, so the answer is never too good: below
    the sampling interval it cannot tell one round from the next.

    Source: Clark et al., Live Migration of Virtual Machines, NSDI 2005, 3.2 and 5.2: Xen stops after 29
    rounds or after sending three times the memory. 300 ms is QEMU's default for downtime-limit.
    """
    memory, rate, downtime = (operator.index(v) for v in (memory_bytes, bandwidth, max_downtime_ns))
    if memory < 0 or rate <= 0 or downtime < 0 or max_rounds < 1 or max_factor < 1:
        raise ValueError(
            "memory_bytes and max_downtime_ns must not be negative, bandwidth, max_rounds and max_factor"
            f" positive: {memory}, {downtime}, {rate}, {max_rounds}, {max_factor}"
        )
    return in_order(functools.partial(_migrate, memory, rate, downtime, max_rounds, max_factor), source)


def _migrate(
    memory: int, rate: int, downtime: int, max_rounds: int, max_factor: int, source: Source
) -> Migration:
    reader = _Reader(source)
    rounds: list[tuple[int, int, int]] = []
    sent = sending = memory
    while True:
        begin = reader.at
        pages = reader.until(begin + _transfer_ns(sending, rate))
        if pages is None:
            converged, why = None, f"the series ends in round {len(rounds) + 1}, before the answer is known"
            break
        sending = pages * reader.page_size
        sent += sending
        rounds.append((begin, reader.at, pages))
        if _transfer_ns(sending, rate) <= downtime:
            converged, why = True, f"what round {len(rounds)} left fits into the downtime"
            break
        if len(rounds) == max_rounds:
            converged, why = False, f"not within {max_rounds} rounds"
            break
        if sent > max_factor * memory:
            converged, why = False, f"more than {max_factor} times the memory was sent"
            break
    stop = _transfer_ns(sending, rate) if converged else None
    return Migration(_table(rounds, reader.page_size), converged, why, memory, rate, sent, stop)


def _transfer_ns(nbytes: int, bandwidth: int) -> int:
    return -(-nbytes * SECOND // bandwidth)


def _table(rounds: list[tuple[int, int, int]], page_size: int) -> Rounds:
    columns = np.array(rounds, np.int64).reshape(-1, 3).T
    return Rounds(columns[0].copy(), columns[1].copy(), columns[2].copy(), page_size)
