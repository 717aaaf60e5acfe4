"""A command that is started to be looked at: it stands still until there is somebody to look."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
from collections.abc import Sequence

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

    def has_exited(self) -> bool:
        """Whether it is over; a process's memory goes a moment before the process does."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)
        return self.returncode is not None

    def end(self) -> None:
        """Terminates the command, and kills it where that takes too long."""
        if self._process.poll() is None:
            self._process.terminate()
            self.resume()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
