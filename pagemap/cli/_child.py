"""A command that is started to be looked at: it stands still until there is somebody to look."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence

from ._group import Failure

_F_SETSIG = 10
"""fcntl(2); Python has no name for it."""


class Child:
    """A command, stopped before its first instruction, until resume()."""

    def __init__(self, command: Sequence[str]) -> None:
        # A process cannot stop itself in a program that it does not run yet, and ptrace would take from a
        # set-user-ID program its rights. So the kernel is told to send SIGSTOP when a pipe loses its last
        # writer: execve(2) closes that, when it has replaced the memory and before it returns to it.
        reader, writer = os.pipe()
        os.close(writer)

        def arm() -> None:
            fcntl.fcntl(reader, fcntl.F_SETOWN, os.getpid())
            fcntl.fcntl(reader, _F_SETSIG, signal.SIGSTOP)
            os.open(f"/proc/self/fd/{reader}", os.O_WRONLY | os.O_CLOEXEC)
            fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC)

        try:
            # close_fds would close the writer before the exec; Python's own descriptors close by themselves.
            self._process = subprocess.Popen(command, preexec_fn=arm, close_fds=False)
            # Where something replaced the exec's SIGSTOP, this one is a moment late, but it comes.
            os.kill(self.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        except OSError as error:
            raise Failure(f"cannot start {command[0]}: {error.strerror}") from error
        finally:
            os.close(reader)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """As subprocess has it; None while it runs."""
        return self._process.returncode

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def has_exited(self, seconds: float = 0.001) -> bool:
        """Whether it is over, at the latest in so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.returncode is not None

    def end(self) -> bool:
        """Terminates the command, and kills it where that takes too long; whether that was needed."""
        if self._process.poll() is not None:
            return False
        self._process.terminate()
        self.resume()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        return True


class Stop(threading.Event):
    """An event whose wait() also ends, with False, when a process gives up the memory that it has now.

    That is when it exits, or replaces its program, which no notification tells. It is asked for all the
    time, each time after 1% of the time it is looked at already, within 1 ms and 50 ms.
    """

    def __init__(self) -> None:
        super().__init__()
        self.number = 0
        """The signal that set it; 0 for none."""
        self._memory: int | None = None
        self._since = 0.0

    @contextlib.contextmanager
    def watching(self, pid: int) -> Iterator[None]:
        """Looks at the memory that the process has now."""
        self._memory, self._since = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY), time.monotonic()
        try:
            yield
        finally:
            os.close(self._memory)
            self._memory = None

    def wait(self, timeout: float | None = None) -> bool:
        if self._memory is None or timeout is None:
            return super().wait(timeout)
        end = time.monotonic() + timeout
        while True:
            now = time.monotonic()
            pause = min(max((now - self._since) / 100, 0.001), 0.05)
            if super().wait(max(min(end - now, pause), 0)):
                return True
            # The file is that of the memory as it was opened: it is empty when that has gone.
            if time.monotonic() >= end or not os.pread(self._memory, 8, 0):
                return False
