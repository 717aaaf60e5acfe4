"""Several walks at the same time, their answers put together in order.

A walk holds the mmap lock of the process that it looks at, for reading, as long as the system call lasts.
Where that is this process, every mmap, munmap and mremap waits for it, and every later walk for those: two
threads that allocate while they walk are slower than one. So helpers are started, and their memory is
mapped, between two walks of the calling thread, which is one of the workers; and only when what is left to
walk is worth a thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

from . import _pagemap
from .categories import REGION_DTYPE
from .walk import HUGE, Walk

WORTH_A_THREAD = 1e-3
"""Seconds of walking that are left: to start, feed and join a thread takes a tenth of that to a fifth."""


class _Worker:
    """Takes walks from a queue until it is empty; their regions stand in its buffer one after the other."""

    def __init__(self, queue: deque[tuple[int, Walk]], buffer: _pagemap.RegionBuffer) -> None:
        self.queue = queue
        self.buffer = buffer
        self.length = 0
        self.parts: list[tuple[int, int, int]] = []
        """(number of the walk, its first region in the buffer, how many)"""
        self.error: BaseException | None = None

    def step(self) -> bool:
        """One walk; False when none is left."""
        try:
            rank, walk = self.queue.popleft()
        except IndexError:
            return False
        first = self.length
        self.length = walk.fill(self.buffer, first)
        while not walk.done:
            larger = _pagemap.RegionBuffer(max(2 * self.buffer.capacity, HUGE // REGION_DTYPE.itemsize))
            self.length = larger.append(0, self.buffer, 0, self.length)
            self.buffer = larger
            self.length = walk.fill(larger, self.length)
        self.parts.append((rank, first, self.length - first))
        return True

    def run(self) -> None:
        try:
            while self.step():
                pass
        except BaseException as error:
            self.error = error
            self.queue.clear()


def scan_parallel(
    walks: Sequence[Walk], spare: _pagemap.RegionBuffer, threads: int
) -> tuple[_pagemap.RegionBuffer, int]:
    """The answers of walks over ascending ranges, in their order: a buffer and how many regions it holds.

    The buffer may be `spare`. An error of any walk ends the others after their present walk.
    """
    queue = deque(enumerate(walks))
    own = _Worker(queue, spare)
    helpers: list[_Worker] = []
    running: list[threading.Thread] = []
    began = time.perf_counter()
    try:
        while own.step():
            each = (time.perf_counter() - began) / len(own.parts)
            if not helpers and each * len(queue) > WORTH_A_THREAD:
                room = HUGE // REGION_DTYPE.itemsize
                helpers = [
                    _Worker(queue, _pagemap.RegionBuffer(room)) for _ in range(min(threads - 1, len(queue)))
                ]
                for helper in helpers:
                    thread = threading.Thread(target=helper.run, name="pagemap")
                    thread.start()
                    running.append(thread)
    finally:
        queue.clear()
        for thread in running:
            thread.join()
    for helper in helpers:
        if helper.error is not None:
            raise helper.error
    return _joined([own, *helpers])


def _joined(workers: Sequence[_Worker]) -> tuple[_pagemap.RegionBuffer, int]:
    total = sum(worker.length for worker in workers)
    if total == workers[0].length:
        return workers[0].buffer, total
    parts = sorted((rank, k, first, n) for k, w in enumerate(workers) for rank, first, n in w.parts)
    buffer, length = _pagemap.RegionBuffer(total), 0
    for _, k, first, n in parts:
        length = buffer.append(length, workers[k].buffer, first, n)
    return buffer, length
