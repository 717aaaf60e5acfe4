"""Targets written in C, and what an injection into one must leave as it was."""

import atexit
import contextlib
import fcntl
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import children
import pytest

from pagemap import _pagemap
from pagemap.process import Descriptor

FLAGS = _pagemap.UFFD_USER_MODE_ONLY


@functools.cache
def compiled(name, *flags):
    """The program of tests/targets/NAME.c and None, or None and the reason."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None, "no C compiler (cc)"
    source = children.TESTS / "targets" / f"{name}.c"
    program = _directory() / name
    command = [compiler, "-O2", "-Wall", "-Wextra", *flags, str(source), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return None, f"{' '.join(command)}: {done.stderr}"
    return program, None


@functools.cache
def _directory():
    directory = Path(tempfile.mkdtemp(prefix="pagemap-targets-"))
    atexit.register(shutil.rmtree, directory)
    directory.chmod(0o755)  # for other users
    return directory


def program(name):
    path, reason = compiled(name, "-pthread", "-march=native")
    if shutil.which("cc") is None:
        pytest.skip(reason)
    assert path is not None, reason
    return path


@contextlib.contextmanager
def running(*command, first_words="ready"):
    process = subprocess.Popen(
        list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        target = children.Target(process)
        if first_words is not None:
            assert target.hear() == first_words
        yield target
    finally:
        process.kill()
        process.wait(children.LIMIT)
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


@contextlib.contextmanager
def start(name, *arguments, first_words="ready"):
    """A target that has said its first words."""
    with running(program(name), *arguments, first_words=first_words) as target:
        yield target


def end(target):
    """Closes the target's input; its last words and its exit status."""
    words, _ = target.process.communicate(timeout=children.LIMIT)
    return words.strip(), target.process.returncode


def inject(pid, times=1):
    """Each descriptor is a userfaultfd that nobody has set up yet; the times that the target stood still."""
    stopped = []
    for _ in range(times):
        uffd = Descriptor()
        stopped_ns = _pagemap.inject_userfaultfd(pid, FLAGS, uffd)
        assert os.readlink(f"/proc/self/fd/{uffd.fd}") == "anon_inode:[userfaultfd]"
        assert fcntl.fcntl(uffd.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        _pagemap.uffd_api(uffd.fd, 0)
        assert stopped_ns > 0
        stopped.append(stopped_ns)
    return stopped


def status(pid, field):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return value.strip()
    raise AssertionError(field)


def userfaultfds(pid):
    """How many the process has open itself."""
    links = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(entry.path))
    return sum("userfaultfd" in link for link in links)


def refused(pid, number, stage, flags=FLAGS):
    owner = Descriptor()
    with pytest.raises(OSError) as caught:  # noqa: PT011
        _pagemap.inject_userfaultfd(pid, flags, owner)
    assert (caught.value.errno, caught.value.stage) == (number, stage)
    assert caught.value.strerror
    assert not caught.value.strerror.startswith(f"{stage}: ")
    assert type(caught.value) is type(OSError(number, ""))
    assert owner.fd == -1
