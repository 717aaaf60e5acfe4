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
from .categories import PAGE_SIZE
from .walk import Walk

WORTH_A_THREAD = 1e-3
"""Seconds of walking that are left: to start, feed and join a thread takes a tenth of that to a fifth."""
MAX_ROOM = 1 << 22
"""Regions (96 MiB) for which a worker has address space from the beginning."""


class _Worker:
    """Takes walks from a queue until it is empty; their regions stand in its buffers one after the other.

    `spare` is warm and small. What does not fit goes on to `large`: address space that costs nothing where
    it is not needed.
    """

    def __init__(self, queue: deque[tuple[int, Walk]], spare: _pagemap.RegionBuffer, room: int) -> None:
        self.queue = queue
        self.spare = spare
        self.room = room
        self.large: _pagemap.RegionBuffer | None = None
        self.in_spare = self.in_large = 0
        self.ranks: list[int] = []
        """Which walks it did, in this order."""
        self.ends: list[int] = []
        """As many: how many regions there were behind each of them."""
        self.error: BaseException | None = None

    def reserve(self) -> _pagemap.RegionBuffer:
        if self.large is None:
            self.large = _pagemap.RegionBuffer(self.room)
        return self.large

    def step(self) -> bool:
        """One walk; False when none is left."""
        try:
            rank, walk = self.queue.popleft()
        except IndexError:
            return False
        self.in_spare = walk.fill(self.spare, self.in_spare)
        while not walk.done:
            self._move()
            self.in_spare = walk.fill(self.spare)
        self.ranks.append(rank)
        self.ends.append(self.in_large + self.in_spare)
        return True

    def _move(self) -> None:
        large, before = self.reserve(), self.in_large
        needed = before + self.in_spare
        if needed > large.capacity:
            large.resize(max(needed, 2 * large.capacity))
        self.in_large = large.append(before, self.spare, 0, self.in_spare)
        self.in_spare = 0
        if self.in_large < needed:
            # The first that was moved continues the last that was there: a page changed in between.
            self.ends = [end - (end > before) for end in self.ends]

    def answer(self) -> tuple[_pagemap.RegionBuffer, int]:
        """All its regions, in one buffer."""
        if not self.in_large:
            return self.spare, self.in_spare
        if self.in_spare:
            self._move()
        return self.reserve(), self.in_large

    def run(self) -> None:
        try:
            while self.step():
                pass
        except BaseException as error:
            self.error = error
            self.queue.clear()


def scan_parallel(
    walks: Sequence[Walk], spares: Sequence[_pagemap.RegionBuffer]
) -> tuple[_pagemap.RegionBuffer, int]:
    """The answers of walks over ascending ranges, in their order: a buffer and how many regions it holds.

    A thread at most for each of `spares`, of which the buffer may be the first. An error of any walk ends the
    others after their present walk.
    """
    queue = deque(enumerate(walks))
    pages = sum(walk.end - walk.position for walk in walks) // PAGE_SIZE
    own, *helpers = [_Worker(queue, spare, max(1, min(pages, MAX_ROOM))) for spare in spares]
    running: list[threading.Thread] = []
    alone = False
    began = time.perf_counter()
    try:
        while own.step():
            each = (time.perf_counter() - began) / len(own.ranks)
            if not (running or alone) and each * len(queue) > WORTH_A_THREAD:
                crowded = own.ends[-1] * (len(queue) + 1) > len(spares) * own.spare.capacity
                for helper in helpers[: len(queue)]:
                    if crowded:
                        own.reserve()
                        helper.reserve()
                    thread = threading.Thread(target=helper.run, name="pagemap")
                    try:
                        thread.start()
                    except RuntimeError:  # a limit of threads (setrlimit(2), a container): so with fewer
                        alone = True
                        break
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
    answers = [worker.answer() for worker in workers]
    total = sum(length for _, length in answers)
    if total == answers[0][1]:
        return answers[0]
    parts = [
        (rank, source, first, end)
        for worker, (source, _) in zip(workers, answers, strict=True)
        for rank, first, end in zip(worker.ranks, [0, *worker.ends], worker.ends, strict=False)
    ]
    buffer, length = _pagemap.RegionBuffer(total), 0
    for _, source, first, end in sorted(parts, key=lambda part: part[0]):
        length = buffer.append(length, source, first, end - first)
    return buffer, length
