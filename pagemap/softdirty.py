"""Tracking by soft-dirty bits, for kernels before asynchronous write protection (Linux 3.11 to 6.6).

Source: Documentation/admin-guide/mm/soft-dirty.rst. What differs from userfaultfd: clearing is for the
whole process at a time, so two trackers of one process disturb each other; reading and clearing are two
steps, between which another process is stopped (SIGSTOP) and, in this process, other threads are on
their own; the kernel also calls all pages dirty of a VMA that was mapped, merged or moved meanwhile.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import regions
from .categories import Category
from .errors import explain
from .process import Descriptor
from .query import Query
from .scanner import PageMap
from .tracking import NOTHING, Regions, Tracker, union

_SOFT_DIRTY = Query(require=Category.SOFT_DIRTY)
_POPULATED = Query(any_of=Category.PRESENT | Category.SWAPPED, report=Category(0))
_CLEAR_SOFT_DIRTY = b"4"  # Documentation/filesystems/proc.rst, clear_refs
_STOP_LIMIT = 5.0


def thread_states(pid: int) -> set[str]:
    """The states (proc_pid_stat(5)) of the threads of a process."""
    states = set()
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{thread}/stat", "rb") as stat:
                states.add(chr(stat.read().rpartition(b")")[2].split()[0][0]))
        except FileNotFoundError:
            continue
    return states


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Keeps every thread of a process from running; it goes on afterwards unless it was stopped before."""
    if thread_states(pid) <= {"T", "t", "Z", "X"}:
        yield
        return
    process = Descriptor(os.pidfd_open(pid))
    signal.pidfd_send_signal(process.fd, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + _STOP_LIMIT
        while not thread_states(pid) <= {"T", "t", "Z", "X"}:
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {pid} does not stop: it is in an uninterruptible system call")
            time.sleep(0.0001)
        yield
    finally:
        signal.pidfd_send_signal(process.fd, signal.SIGCONT)


class SoftDirtyTracker(Tracker):
    """Pages written since the last collect(), by soft-dirty bits. See the module for what differs."""

    def __init__(self, pagemap: PageMap, bounds: Regions | None, keep_alive: tuple[Any, ...] = ()) -> None:
        super().__init__(pagemap, Category.SOFT_DIRTY)
        self._bounds = bounds
        self._keep_alive = keep_alive
        self._resident: Regions = NOTHING
        try:
            self.reset()
        except BaseException:
            self.close()
            raise

    def _gather(self) -> None:
        if self.pid == os.getpid():
            self._turn()
        else:
            with stopped(self.pid):
                self._turn()

    def _turn(self) -> None:
        self._table = self._pagemap.vmas()
        self._found = union(self._found, self._look())
        self._resident = self._scan(_POPULATED)
        path = f"/proc/{self.pid}/clear_refs"
        try:
            with open(path, "wb", buffering=0) as clear_refs:
                clear_refs.write(_CLEAR_SOFT_DIRTY)
        except OSError as error:
            raise explain(error, self.pid, path) from error

    def _populated(self) -> Regions:
        return self._scan(_POPULATED)

    def _look(self) -> Regions:
        dropped = regions.difference(self._resident, self._scan(_POPULATED))
        return union(self._scan(_SOFT_DIRTY), regions.relabel(dropped, Category.SOFT_DIRTY))

    def _scan(self, query: Query) -> Regions:
        if self._bounds is None:
            return self._pagemap.scan(query)
        parts = [self._pagemap.scan(query, start=int(b["start"]), end=int(b["end"])) for b in self._bounds]
        return regions.coalesce(np.concatenate(parts))

    def _release(self) -> None:
        self._bounds = NOTHING
