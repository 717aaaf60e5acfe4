"""Other processes: everything that could hang, crash or must die runs in one, with a time limit."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

TESTS = Path(__file__).parent
NOBODY = 65534
LIMIT = 60

# What a child needs before it gives up its rights: the interpreter may be where others cannot read.
BECOME_NOBODY = """
import ctypes, errno, os, pathlib, threading
import numpy, pagemap
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, which the change of user cleared
"""


def _environment():
    paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}


def run(code, *arguments, limit=LIMIT):
    """Runs Python code to its end, which must be a good one; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=limit,
        env=_environment(),
        check=False,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.stderr == "", done.stderr
    return done.stdout


class Target:
    """A process to look at: says a line when it is told one."""

    def __init__(self, process):
        self.process = process
        self.pid = process.pid

    def hear(self, limit=LIMIT):
        ready, _, _ = select.select([self.process.stdout], [], [], limit)
        assert ready, "the target says nothing"
        return self.process.stdout.readline().strip()

    def stands_still(self):
        """Waits until it sleeps in its read of the next line."""
        deadline = time.monotonic() + LIMIT
        stat = Path(f"/proc/{self.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < deadline, "the target does not come to rest"
            time.sleep(0.001)

    def say(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ask(self, line):
        self.say(line)
        return self.hear()

    def kill(self):
        """Ends it, and leaves it a zombie."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def reap(self):
        self.process.kill()
        self.process.wait(LIMIT)


@contextlib.contextmanager
def target(code, *arguments):
    """Starts Python code, without the package and its imports; it has to say a first line."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    try:
        started = Target(process)
        started.first_words = started.hear()
        yield started
    finally:
        process.kill()
        process.wait(LIMIT)
        process.stdin.close()
        process.stdout.close()


IDLE = """
import sys
print("ready", flush=True)
for line in sys.stdin:
    print(line.strip(), flush=True)
"""


@contextlib.contextmanager
def idle():
    """A process that sleeps, and answers each line with itself."""
    with target(IDLE) as started:
        yield started
