"""`pagemap dirty` on a real process: what it prints is what the process wrote."""

import json
import os
import signal
import subprocess
import sys

import pytest

import pagemap

PROGRAM = """
import ctypes, mmap, sys
memory = mmap.mmap(-1, 1024 * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[:] = b"x" * len(memory)
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
for line in sys.stdin:
    for page in range(int(line)):
        memory[page * mmap.PAGESIZE] = 65
    print("written", flush=True)
"""

pytestmark = pytest.mark.skipif(
    not pagemap.features().wp_async, reason=pagemap.features().why.get("wp_async", "")
)


@pytest.fixture
def target():
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            child.start = int(child.stdout.readline())
            yield child
        finally:
            child.kill()


def dirty(pid, *options):
    return subprocess.Popen(
        [sys.executable, "-m", "pagemap", "dirty", str(pid), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def write(target, pages):
    target.stdin.write(f"{pages}\n")
    target.stdin.flush()
    target.stdout.readline()


def test_json_says_what_was_written(target):
    with dirty(target.pid, "--json", "--interval", "300ms") as command:
        try:
            json.loads(command.stdout.readline())  # it is attached, and a first interval is over
            write(target, 777)
            records = [json.loads(command.stdout.readline()) for _ in range(2)]
        finally:
            command.send_signal(signal.SIGINT)
            _, errors = command.communicate(timeout=20)
    assert (command.returncode, errors) == (130, "")
    found = [vma for record in records for vma in record["vmas"] if vma["start"] <= target.start < vma["end"]]
    assert sum(vma["pages"] for vma in found) == 777
    for record in records:
        assert record["bytes"] == record["pages"] * pagemap.PAGE_SIZE
        assert sum(vma["pages"] for vma in record["vmas"]) == record["pages"]
        assert [v["pages"] for v in record["vmas"]] == sorted(
            (v["pages"] for v in record["vmas"]), reverse=True
        )
        assert record["seconds"] > 0.2


def test_ends_after_count_with_a_summary(target):
    with dirty(target.pid, "--interval", "50ms", "--count", "3") as command:
        text, errors = command.communicate(timeout=20)
    assert (command.returncode, errors) == (0, "")
    lines = text.splitlines()
    assert len(lines) == 4
    assert all("pages/s" in line for line in lines[:3])
    assert f"({target.pid}) wrote" in lines[3]


def test_ctrl_c_shows_the_summary_and_no_traceback(target):
    with dirty(target.pid, "--interval", "50ms") as command:
        command.stdout.readline()
        command.send_signal(signal.SIGINT)
        text, errors = command.communicate(timeout=20)
    assert command.returncode == 130
    assert "Traceback" not in errors
    assert f"({target.pid}) wrote" in text
    write(target, 1)  # it goes on


def test_a_target_that_exits_is_named(target):
    with dirty(target.pid, "--interval", "50ms") as command:
        command.stdout.readline()
        target.kill()
        target.wait()
        _, errors = command.communicate(timeout=20)
    assert command.returncode == 1
    assert f"process {target.pid}" in errors
    assert "Traceback" not in errors


NOBODY = """
import ctypes, os, sys
import pagemap.cli._group
from pagemap.cli import dirty
os.setgroups([]); os.setgid(65534); os.setuid(65534)
ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: as after execve
pagemap.cli._group.cli(["dirty", sys.argv[1]], prog_name="pagemap")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_somebody_elses_process(target):
    done = subprocess.run(
        [sys.executable, "-c", NOBODY, str(target.pid)], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert f"process {target.pid}" in done.stderr
    assert "Traceback" not in done.stderr
