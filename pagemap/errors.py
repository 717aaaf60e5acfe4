"""The errors of this package, and the kernel's errno values in words.

Bad arguments are TypeError and ValueError; what the kernel refuses is an OSError subclass.
"""

from __future__ import annotations

import errno
import os


class UnsupportedError(OSError):
    """This kernel, or this engine, cannot do what was asked; the message says what would."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EOPNOTSUPP, message)


class StalledScanError(OSError):
    """A walk made no progress: going on would never end."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.ELOOP, message)


def try_sudo(after: str = "", before: str = "") -> str:
    """The advice to become root, between these; nothing for root itself."""
    return f"{before}try sudo{after}" if os.geteuid() else ""


def explain(error: OSError, pid: int, path: str) -> OSError:
    """The fitting OSError subclass for an errno that the kernel gave for `pid` and `path`, with advice."""
    code = error.errno
    if code in (errno.EPERM, errno.EACCES):
        text = (
            f"may not look at process {pid}: that needs the same user and a dumpable process, or"
            f" CAP_SYS_PTRACE ({try_sudo('; ')}see ptrace(2), 'Ptrace access mode checking')"
        )
    elif code in (errno.ENOENT, errno.ESRCH):
        text = f"process {pid} does not exist, has exited or replaced its program (execve), or has no memory"
    elif code == errno.ENOTTY:
        return UnsupportedError("this kernel has no PAGEMAP_SCAN (Linux 6.7); use engine='read'")
    else:
        text = error.strerror or str(error)
    return OSError(code, text, path)
