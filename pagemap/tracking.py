"""What every tracker of written pages promises, whatever the kernel offers to keep it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, SupportsIndex, TypeVar

import numpy as np
import numpy.typing as npt

from . import process, regions
from .arguments import as_count
from .categories import PAGE_SIZE, REGION_DTYPE, Category
from .maps import Vma, VmaTable
from .scanner import PageMap

Regions = npt.NDArray[Any]
T = TypeVar("T")

NOTHING: Regions = np.empty(0, REGION_DTYPE)


def first_pages(found: Regions, budget: int) -> tuple[Regions, Regions]:
    """The first `budget` pages of an array, and the rest."""
    if regions.page_count(found) <= budget:
        return found, NOTHING
    before = np.cumsum((found["end"] - found["start"]) // np.uint64(PAGE_SIZE))
    whole = int(np.searchsorted(before, np.uint64(budget), side="right"))
    left = budget - (int(before[whole - 1]) if whole else 0)
    cut = int(found["start"][whole]) + left * PAGE_SIZE
    return regions.clip(found, 0, cut), regions.clip(found, cut, int(found["end"][-1]))


def union(a: Regions, b: Regions) -> Regions:
    """regions.union, without its cost where one side is empty."""
    return regions.union(a, b) if len(a) and len(b) else a if len(a) else b


class Answer:
    """What a collect() is about to return: held where an exception cannot lose it."""

    __slots__ = ("found", "vanished")

    def __init__(self) -> None:
        self.found: Regions = NOTHING
        self.vanished: Regions = NOTHING


class Tracker(ABC):
    """Pages written (or accessed) since the last collect(). Threads may share one; a fork is refused.

    A context manager; close() lifts all protection and may be called twice.
    """

    def __init__(self, pagemap: PageMap, category: Category) -> None:
        self._pagemap = pagemap
        self._category = category
        # One that lets a signal handler in that interrupts its holder, who is told by _busy.
        self._lock = threading.RLock()
        self._busy = False
        self._forks = process.fork_count
        self._closed = False
        self._table = VmaTable.parse(b"")
        self.stopped_us: float | None = None
        """Microseconds for which attach() kept the process from running; None where nothing was stopped."""
        # Pages on their way to the caller: the kernel has forgotten them, so they leave here with an answer.
        self._found: Regions = NOTHING
        self._pending: Regions = NOTHING
        self._undelivered: list[Answer] = []
        # Unmapped since the last answer: who has that answer still has pages of it, until `vmas` says so.
        self._vanished: Regions = NOTHING
        _live.add(self)

    @abstractmethod
    def _gather(self) -> VmaTable:
        """Adds to _found what was written, and resets it in the same step. Returns the VMAs that it saw."""

    @abstractmethod
    def _look(self) -> Regions:
        """What was written, without a reset."""

    @abstractmethod
    def _populated(self) -> Regions:
        """What is populated of the memory whose changes will be found."""

    @abstractmethod
    def _release(self) -> None:
        """Lets go of the kernel's side of the tracking. May be called twice."""

    @property
    def pid(self) -> int:
        """The process whose memory is tracked."""
        return self._pagemap.pid

    @property
    def category(self) -> Category:
        """What the regions of collect() report: WRITTEN, ACCESSED or SOFT_DIRTY."""
        return self._category

    @property
    def vmas(self) -> VmaTable:
        """The VMAs of the process as the last collect() saw them.

        Who copies pages forgets those in none of them: what is mapped there later starts anew, and only
        its populated pages are reported.
        """
        return self._table

    @property
    def refused(self) -> list[tuple[Vma, str]]:
        """VMAs that cannot be tracked, with the reason; none by soft-dirty bits, which all memory has.

        Those among them that are writable are reported whole, as far as they are populated, each round.
        """
        return []

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def collect(self, max_pages: SupportsIndex | None = None) -> Regions:
        """The pages written since the last collect(), reset in the same step: an array of REGION_DTYPE.

        Sorted, disjoint, whole pages. Every write is in some collect() that ends after it; a page may
        be reported once more than it was written. max_pages: at most so many pages now, the next call
        goes on behind them; None for no limit. Nothing is lost to an exception either, be it Ctrl-C:
        what was found before it is in the next answer.

        Raises ProcessLookupError when the process has exited or replaced its program, ValueError when
        closed or for a bad max_pages, RuntimeError in a fork, and in a signal handler that interrupts
        a call of this tracker.
        """
        budget = None if max_pages is None else as_count(max_pages, "max_pages", 0)
        answer = Answer()
        try:
            self._in_turn(lambda: self._deliver(budget, answer))
            return answer.found
        except BaseException:
            # One call that cannot be interrupted in the middle: a second Ctrl-C may follow the first.
            self._undelivered.append(answer)
            raise

    def _in_turn(self, call: Callable[[], T]) -> T:
        """One call at a time. No signal is handled between a step and the `try` that undoes it, as nothing
        is called there.
        """
        with self._lock:
            if self._busy:
                raise RuntimeError(
                    "called from a signal handler that interrupted another call of this tracker: only"
                    " close() may be; let the handler set a flag, and act on it afterwards"
                )
            self._busy = True
            try:
                self._check()
                return call()
            finally:
                try:
                    if self._closed:  # by a signal handler, meanwhile
                        self._let_go()
                finally:
                    self._busy = False

    def _deliver(self, budget: int | None, answer: Answer) -> None:
        self._take_back()
        gathered = None
        if budget is None or regions.page_count(self._pending) < budget:
            gathered = self._gather()
        if budget is None:
            answer.found = union(self._pending, self._found)
            self._pending = self._found = NOTHING
        else:
            answer.found = self._first(budget)
        if gathered is not None:
            answer.vanished, self._vanished = self._vanished, NOTHING
            self._table = gathered

    def _take_back(self) -> None:
        """Answers that an exception kept from their caller."""
        while self._undelivered:
            self._pending = union(self._pending, self._undelivered[0].found)
            self._vanished = union(self._vanished, self._undelivered[0].vanished)
            del self._undelivered[0]

    def _first(self, budget: int) -> Regions:
        """The oldest pages first, so that busy memory at low addresses cannot hold the rest back."""
        ready, rest = first_pages(self._pending, budget)
        new = regions.difference(self._found, self._pending)
        more, left = first_pages(new, budget - regions.page_count(ready))
        ready, rest = union(ready, more), union(rest, left)
        self._pending, self._found = rest, NOTHING
        return ready

    def peek(self) -> Regions:
        """The same pages as collect(), without a reset: the next collect() reports them still."""
        return self._in_turn(self._peek)

    def _peek(self) -> Regions:
        self._take_back()
        seen = self._look()  # first, for it adds to _found what an interrupted collect() left behind
        return union(union(self._pending, self._found), seen)

    def populated(self) -> Regions:
        """The pages that a copy of the memory starts with, without categories.

        All that is populated, but for what a process has populated since the last collect() where it had
        nothing: that is in the next one, unless it is dropped until then, which nobody could tell.
        """
        return self._in_turn(self._populated)

    def reset(self) -> None:
        """Forgets what was written so far."""
        self._in_turn(self._forget)

    def _forget(self) -> None:
        table = self._gather()
        self._undelivered.clear()
        self._pending = self._found = self._vanished = NOTHING
        self._table = table

    def rounds(self, interval: float, count: SupportsIndex | None = None) -> Iterator[tuple[int, Regions]]:
        """collect() every `interval` seconds, `count` times (None: for ever).

        Yields (time.monotonic_ns() at the start of the collect, its regions). A late round does not make
        the following ones come early.
        """
        if not interval >= 0:
            raise ValueError(f"interval must be 0 seconds or more, not {interval!r}")
        times = None if count is None else as_count(count, "count", 0)
        return self._rounds(interval, times)

    def _rounds(self, interval: float, count: int | None) -> Iterator[tuple[int, Regions]]:
        due = time.monotonic() + interval
        done = 0
        while count is None or done < count:
            time.sleep(max(0.0, due - time.monotonic()))
            stamp = time.monotonic_ns()
            yield stamp, self.collect()
            done += 1
            due = max(due + interval, time.monotonic())

    def close(self) -> None:
        """Stops tracking: all protection is lifted, what was not collected is forgotten.

        In a signal handler that interrupts a call of this tracker: as that call ends.
        """
        with self._lock:
            self._closed = True
            if not self._busy:
                self._let_go()

    def _let_go(self) -> None:
        self._release()
        self._pagemap.close()

    def __enter__(self) -> Self:
        self._check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            if self._forks == process.fork_count:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<{type(self).__name__} pid={self.pid} category={self._category.name}{state}>"

    def _check(self) -> None:
        if self._closed:
            raise ValueError("this tracker is closed")
        if self._forks != process.fork_count:
            raise RuntimeError(
                "this process is a fork of the one that started the tracker, and its memory is not tracked:"
                " start a tracker here"
            )

    def _abandon(self) -> None:
        """In a forked child: drop the descriptors, or the parent's close() would not be the last."""
        self._lock = threading.RLock()
        self._busy = False
        self._release()
        self._pagemap.close()


_live: weakref.WeakSet[Tracker] = weakref.WeakSet()


def _abandon_all() -> None:
    for tracker in list(_live):
        with contextlib.suppress(Exception):  # of one, say, that another thread was making
            tracker._abandon()


os.register_at_fork(after_in_child=_abandon_all)
