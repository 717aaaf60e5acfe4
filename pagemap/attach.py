"""attach(): dirty tracking of a process that does not cooperate.

A userfaultfd belongs to the memory of the process that creates it, whoever holds it. So one is created
inside the target (src/inject.c: ptrace, two system calls made through the instruction that its vdso
holds, nothing patched), taken over, and used from here. Closing it, or the death of this process,
leaves the target as it was.
"""

from __future__ import annotations

import errno
import os
from typing import SupportsIndex

from . import _pagemap, process
from .errors import UnsupportedError
from .process import Descriptor
from .track import TrackMode, start_tracker
from .tracker import Granularity
from .tracking import Tracker


class Injection:
    """Creates a userfaultfd inside a process, and knows how long that one stood still."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.stopped_us: float | None = None

    def __call__(self) -> Descriptor:
        uffd = Descriptor()
        try:
            stopped_ns = _pagemap.inject_userfaultfd(self.pid, _pagemap.UFFD_USER_MODE_ONLY, uffd)
        except OSError as error:
            raise self._explain(error) from error
        self.stopped_us = stopped_ns / 1000
        return uffd

    def _explain(self, error: OSError) -> OSError:
        """The stages are those of src/inject.h: at which step it failed."""
        reason = error.strerror
        if error.errno == errno.ESRCH:
            return ProcessLookupError(errno.ESRCH, f"{process.why_no_memory(self.pid)} ({reason})")
        text = f"cannot attach to process {self.pid}: {reason}"
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return UnsupportedError(text)
        if getattr(error, "stage", None) == "seize" and isinstance(error, PermissionError):
            text += (
                "; it takes the same user and kernel.yama.ptrace_scope 0 (or to be its parent, with 1), or"
                " CAP_SYS_PTRACE (try sudo): see ptrace(2)"
            )
        return OSError(error.errno, text)


def attach(pid: SupportsIndex, *, granularity: Granularity = "native", mode: TrackMode = "write") -> Tracker:
    """Starts tracking all memory of another process: which pages it writes from now on.

    The methods are those of track(). Memory that the process maps, grows or moves later is found by the
    next round, and its populated pages count as written; where it maps in that very moment, those of the
    VMAs beside count, too. The tracker's `stopped_us` says for how many microseconds the process stood
    still; afterwards the first write to each page in each round costs it about one. `refused` lists the
    VMAs that cannot be tracked. Who keeps a copy of the memory begins with the pages of populated(), and
    forgets after each collect() what is in none of `vmas`. What shared memory holds without a page-table
    entry, such as its swapped pages, is in its file, and not named before the process touches it.

    One call of the target may go another way than without: an mremap(2) of several mappings at once, which
    Linux 6.17 began to allow, is refused where they are tracked (EFAULT; the first may have moved).

    When the tracker is closed, or this process dies, the target goes on untracked. When the target exits
    or replaces its program (execve), collect() raises ProcessLookupError.

    Needs what ptrace needs: the same user and kernel.yama.ptrace_scope 0 (or to be its parent), or
    CAP_SYS_PTRACE; for a process with a seccomp filter CAP_SYS_ADMIN. Not for this process itself: that
    is track().

    granularity, mode: see track(). Raises ProcessLookupError, PermissionError (also for a process that
    is traced already), OSError EBUSY where another userfaultfd holds all of it, UnsupportedError (a 32-bit
    process, no vdso), TimeoutError (a process that does not stop), TypeError, ValueError; the target is
    then as it was before.
    """
    number = process.check_pid(pid)
    if number == os.getpid():
        raise ValueError("attach() is for other processes: use track() for memory of this one")
    injection = Injection(number)
    tracker = start_tracker(number, injection, None, pinned=False, granularity=granularity, mode=mode)
    tracker.stopped_us = injection.stopped_us
    return tracker
