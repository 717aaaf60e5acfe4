"""One pass over an address range: continued until it is done, whatever the room for its answer.

Two engines do the steps: the ioctl, and the entries of /proc/PID/pagemap. Both answer in a
RegionBuffer and say where the next step has to start.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _pagemap
from .categories import REGION_DTYPE, ScanFlag
from .errors import StalledScanError
from .process import Descriptor

Masks = tuple[int, int, int, int]

HUGE = 2 << 20
"""Bytes of a huge page: what a large buffer grows by, one page fault."""


class Walk(ABC):
    """A range being walked. `position` is where the next step starts; `done` when nothing is left.

    `budget` is how many more matching pages may be found, None for no limit; a budget of 0 never
    reaches the kernel, for which it means no limit.
    """

    def __init__(self, masks: Masks, start: int, end: int, budget: int | None) -> None:
        self.masks = masks
        self.position = start
        self.end = end
        self.budget = budget

    @property
    def done(self) -> bool:
        return self.position >= self.end or self.budget == 0

    @abstractmethod
    def step(self, buffer: _pagemap.RegionBuffer, at: int) -> tuple[int, int, int]:
        """Appends to a buffer that holds `at` regions: (length, resume, pages found)."""

    def fill(self, buffer: _pagemap.RegionBuffer, at: int = 0) -> int:
        """Steps until the buffer is full or the walk done; returns how many regions it holds."""
        capacity = buffer.capacity
        while at < capacity and not self.done:
            at, resume, pages = self.step(buffer, at)
            if self.budget is not None:
                self.budget -= pages
            if resume <= self.position:
                raise StalledScanError(
                    f"the walk stays at {self.position:#x}: the kernel can go no further there"
                    " (a huge page that it cannot take in part?)"
                )
            self.position = resume
        return at


class IoctlWalk(Walk):
    """Steps by PAGEMAP_SCAN."""

    def __init__(
        self,
        pagemap: Descriptor,
        masks: Masks,
        start: int,
        end: int,
        budget: int | None = None,
        flags: ScanFlag = ScanFlag(0),
    ) -> None:
        super().__init__(masks, start, end, budget)
        self.pagemap = pagemap
        self.flags = int(flags)

    def step(self, buffer: _pagemap.RegionBuffer, at: int) -> tuple[int, int, int]:
        return buffer.scan(
            at, self.pagemap.fd, self.position, self.end, self.budget or 0, self.flags, *self.masks
        )


class ReadWalk(Walk):
    """Steps by reading entries, of the mapped `ranges` only: the file has 2**35 of them."""

    def __init__(
        self,
        pagemap: Descriptor,
        masks: Masks,
        start: int,
        end: int,
        budget: int | None,
        ranges: npt.NDArray[np.uint64],
    ) -> None:
        super().__init__(masks, start, end, budget)
        self.pagemap = pagemap
        self.ranges = ranges

    def step(self, buffer: _pagemap.RegionBuffer, at: int) -> tuple[int, int, int]:
        first = int(np.searchsorted(self.ranges[:, 1], np.uint64(self.position), side="right"))
        return buffer.read(
            at, self.pagemap.fd, self.ranges[first:], self.position, self.end, self.budget or 0, *self.masks
        )


def collect(walk: Walk, spare: _pagemap.RegionBuffer, at: int) -> tuple[_pagemap.RegionBuffer, int]:
    """Walks to the end: a buffer and how many regions it holds. The first `at` stand in `spare` already.

    The buffer is `spare`, which is warm, where the answer fits. A larger one grows by huge pages, and
    what comes after each of them goes through `spare`: no huge page is begun for less than `spare` holds.
    """
    n = walk.fill(spare, at)
    if walk.done:
        return spare, n
    buffer, length = _pagemap.RegionBuffer(HUGE // REGION_DTYPE.itemsize), 0
    while n:
        length = buffer.append(length, spare, 0, n)
        length = walk.fill(buffer, length)
        n = walk.fill(spare)
        if n:
            unit = 1 if walk.done else HUGE
            room = -(-(length + n) * REGION_DTYPE.itemsize // unit) * unit
            buffer.resize(room // REGION_DTYPE.itemsize)
    return buffer, length


def regions_of(buffer: _pagemap.RegionBuffer, length: int) -> npt.NDArray[np.void]:
    """The first `length` regions of a buffer as an array: a view, which keeps the buffer alive."""
    if length == 0:
        return np.empty(0, REGION_DTYPE)
    memory: Any = buffer
    return np.frombuffer(memory, REGION_DTYPE, length)


def batches(walk: Walk, capacity: int, pool: list[_pagemap.RegionBuffer]) -> Iterator[npt.NDArray[np.void]]:
    """The answer of a walk in arrays of at most `capacity` regions, none empty.

    A buffer of the pool is used again when nobody holds its array any more: a consumer that keeps one
    batch at a time needs two buffers, however large the process.
    """
    while not walk.done:
        buffer = next((b for b in pool if b.exports == 0), None)
        if buffer is None:
            buffer = _pagemap.RegionBuffer(capacity)
            pool[:-1] = []
            pool.append(buffer)
        length = walk.fill(buffer)
        if length:
            yield regions_of(buffer, length)
