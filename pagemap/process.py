"""Opening a process's files in /proc so that they stay the process's.

A descriptor of /proc/PID/pagemap or maps belongs to the memory of the process it was opened for: a
recycled pid does not show through it, and after a fork it still shows the parent.
"""

from __future__ import annotations

import errno
import operator
import os
from typing import SupportsIndex

from . import errors

PF_KTHREAD = 0x00200000  # include/linux/sched.h

fork_count = 0
"""How many forks lie between this process and the one that imported the package."""


def _after_fork_in_child() -> None:
    global fork_count
    fork_count += 1


os.register_at_fork(after_in_child=_after_fork_in_child)


class Descriptor:
    """A file descriptor with the lifetime of this object.

    Whoever uses `fd` holds a reference meanwhile: a close() in another thread drops only the owner's,
    and the number cannot be recycled under a running system call. One without a descriptor yet is an
    owner for a function of the extension to store it in: a number that is only returned is lost to a
    signal handler that raises.
    """

    # Of the class, so that they are there also when a signal strikes at the first step of __init__.
    fd = -1
    _close = staticmethod(os.close)  # os may be gone at interpreter shutdown

    def __init__(self, fd: int = -1) -> None:
        self.fd = fd

    def __del__(self) -> None:
        if self.fd >= 0:
            self._close(self.fd)


def check_pid(pid: SupportsIndex | None) -> int:
    if pid is None:
        return os.getpid()
    try:
        if isinstance(pid, bool):  # True would be init
            raise TypeError
        number = operator.index(pid)
    except TypeError:
        raise TypeError(f"pid must be an int or None, not {type(pid).__name__}") from None
    if not 0 < number < 1 << 31:
        raise ValueError(f"pid must be positive (None for this process), not {number}")
    return number


def _stat_fields(pid: int) -> list[str]:
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
        return stat.read().rpartition(")")[2].split()


def _never_memory(pid: int) -> str | None:
    """Why there is no address space behind a pid, for whomever asks; None where there may be one."""
    try:
        fields = _stat_fields(pid)
    except (FileNotFoundError, ProcessLookupError):
        return f"process {pid} does not exist"
    except OSError:  # hidden from this user (hidepid)
        return None
    if int(fields[6]) & PF_KTHREAD:
        return f"process {pid} is a kernel thread: it has no memory of its own"
    if fields[0] in ("Z", "X"):
        return f"process {pid} is a zombie: it has exited, and its memory is gone"
    return None


def why_no_memory(pid: int) -> str:
    """Why a process that may exist has no address space, in words."""
    gone = f"process {pid} has no memory: it has exited or replaced its program (execve)"
    return _never_memory(pid) or gone


def open_proc(pid: int, *names: str) -> list[Descriptor]:
    """Opens /proc/PID/NAME for each name, all of the same process. ProcessLookupError, PermissionError."""
    path = f"/proc/{pid}"
    try:
        directory = Descriptor(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        opened = []
        for name in names:
            path = f"/proc/{pid}/{name}"
            opened.append(Descriptor(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory.fd)))
            # Some kernels (6.1) open it where there is no memory, and have nothing in it.
            if name == "pagemap" and not os.pread(opened[-1].fd, 8, 0):
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):
            raise ProcessLookupError(errno.ESRCH, why_no_memory(pid), path) from error
        # The kernel also refuses an ordinary user what nobody can have: a zombie's files belong to root.
        if error.errno in (errno.EPERM, errno.EACCES) and (why := _never_memory(pid)):
            raise ProcessLookupError(errno.ESRCH, why, path) from error
        raise errors.explain(error, pid, path) from error
    return opened
