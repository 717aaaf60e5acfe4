"""Several walks at the same time, their answers put together in order.

A walk holds the mmap lock of the process that it looks at, for reading, as long as the system call lasts.
Where that is this process, every mmap, munmap and mremap waits for it, and every later walk for those: two
threads that allocate while they walk are slower than one. So all memory and all threads are there before
the first walk begins, and the calling thread is one of the workers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from . import _pagemap
from .categories import REGION_DTYPE
from .walk import HUGE, Walk


class _Part(NamedTuple):
    """What the walk number `rank` found: `length` regions from `first` on in a worker's buffer."""

    rank: int
    buffer: _pagemap.RegionBuffer
    first: int
    length: int


class _Worker:
    """Takes walks from a queue until it is empty; their regions stand in its buffer one after the other."""

    def __init__(self, queue: deque[tuple[int, Walk]], buffer: _pagemap.RegionBuffer) -> None:
        self.queue = queue
        self.buffer = buffer
        self.parts: list[_Part] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        length = 0
        try:
            while True:
                try:
                    rank, walk = self.queue.popleft()
                except IndexError:
                    return
                first, length = length, self._fill(walk, length)
                self.parts.append(_Part(rank, self.buffer, first, length - first))
        except BaseException as error:
            self.error = error
            self.queue.clear()

    def _fill(self, walk: Walk, length: int) -> int:
        length = walk.fill(self.buffer, length)
        while not walk.done:
            self.buffer.resize(2 * self.buffer.capacity)
            length = walk.fill(self.buffer, length)
        return length


def scan_parallel(
    walks: Sequence[Walk], spare: _pagemap.RegionBuffer, threads: int
) -> tuple[_pagemap.RegionBuffer, int]:
    """The answers of walks over ascending ranges, in their order: a buffer and how many regions it holds.

    The buffer is `spare` where they fit. An error of any walk ends the others after their present walk.
    """
    queue = deque(enumerate(walks))
    buffers = (_pagemap.RegionBuffer(HUGE // REGION_DTYPE.itemsize) for _ in range(min(threads, len(walks))))
    workers = [_Worker(queue, buffer) for buffer in buffers]
    helpers = [threading.Thread(target=worker.run, name="pagemap") for worker in workers[1:]]
    started = []
    try:
        for helper in helpers:
            helper.start()
            started.append(helper)
        workers[0].run()
    finally:
        queue.clear()
        for helper in started:
            helper.join()
    for worker in workers:
        if worker.error is not None:
            raise worker.error
    parts = sorted(part for worker in workers for part in worker.parts)
    total = sum(part.length for part in parts)
    buffer = spare if total <= spare.capacity else _pagemap.RegionBuffer(total)
    length = 0
    for part in parts:
        length = buffer.append(length, part.buffer, part.first, part.length)
    return buffer, length
