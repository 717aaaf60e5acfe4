"""Tracking by soft-dirty bits, for kernels before asynchronous write protection (Linux 3.11 to 6.6).

Source: Documentation/admin-guide/mm/soft-dirty.rst. What differs from userfaultfd: clearing is for the
whole process at a time, so two trackers of one process disturb each other; reading and clearing are two
steps, between which another process is stopped (SIGSTOP) and, in this process, other threads are on
their own; the kernel also calls all pages dirty of a VMA that was mapped, merged or moved meanwhile.
Pages that MADV_DONTNEED drops are found by comparing residency, unless they are read before that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import regions
from .categories import Category
from .errors import UnsupportedError, explain
from .maps import VmaTable
from .process import Descriptor
from .query import Query
from .scanner import PageMap
from .tracking import NOTHING, Regions, Tracker, union

_SOFT_DIRTY = Query(require=Category.SOFT_DIRTY)
_POPULATED = Query(any_of=Category.PRESENT | Category.SWAPPED, report=Category(0))
_CLEAR_SOFT_DIRTY = b"4"  # Documentation/filesystems/proc.rst, clear_refs
_STOP_LIMIT = 5.0


def thread_states(pid: int) -> set[str]:
    """The states (proc_pid_stat(5)) of the threads of a process; none where it has gone."""
    states = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with (
                contextlib.suppress(FileNotFoundError, ProcessLookupError),
                open(f"/proc/{pid}/task/{thread}/stat", "rb") as stat,
            ):
                states.add(chr(stat.read().rpartition(b")")[2].split()[0][0]))
    return states


def is_still(pid: int) -> bool:
    """Whether no thread of it runs: stopped, traced or gone."""
    return thread_states(pid) <= {"T", "t", "Z", "X"}


@contextlib.contextmanager
def stopped(pid: int, pidfd: int) -> Iterator[None]:
    """Keeps every thread of a process from running; it goes on afterwards unless it was stopped before."""
    if is_still(pid):
        yield
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
        deadline = time.monotonic() + _STOP_LIMIT
        while not is_still(pid):
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {pid} does not stop: it is in an uninterruptible system call")
            time.sleep(0.0001)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)


def _open_pidfd(pid: int) -> Descriptor:
    try:
        return Descriptor(os.pidfd_open(pid))
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        raise UnsupportedError(
            "this kernel has no pidfd_open, without which another process cannot be stopped safely:"
            " Linux 5.3 brings it"
        ) from error


class SoftDirtyTracker(Tracker):
    """Pages written since the last collect(), by soft-dirty bits. See the module for what differs."""

    def __init__(self, pagemap: PageMap, bounds: Regions | None, keep_alive: tuple[Any, ...] = ()) -> None:
        super().__init__(pagemap, Category.SOFT_DIRTY)
        self._bounds = bounds
        self._keep_alive = keep_alive
        self._resident: Regions = NOTHING
        self._pidfd: Descriptor | None = None
        try:
            if self.pid != os.getpid():
                # In this order: if it still has the memory of `pagemap`, the pid was not another's.
                self._pidfd = _open_pidfd(self.pid)
                pagemap.vmas()
            self.reset()
        except BaseException:
            self.close()
            raise

    def _gather(self) -> VmaTable:
        if self._pidfd is None:
            return self._turn()
        with stopped(self.pid, self._pidfd.fd):
            return self._turn()

    def _turn(self) -> VmaTable:
        table = self._pagemap.vmas()
        self._found = union(self._found, self._look())
        self._resident = self._scan(_POPULATED)
        path = f"/proc/{self.pid}/clear_refs"
        try:
            with open(path, "wb", buffering=0) as clear_refs:
                clear_refs.write(_CLEAR_SOFT_DIRTY)
        except OSError as error:
            raise explain(error, self.pid, path) from error
        return table

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
        self._pidfd = None
        self._keep_alive = ()
