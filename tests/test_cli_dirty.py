"""`pagemap dirty` on a real process: what it prints is what the process wrote."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

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
    assert len(lines) == 5
    assert re.search(rf"\({target.pid}\) is attached to: it stood still for \d+ µs", lines[0])
    assert all("pages/s" in line for line in lines[1:4])
    assert f"({target.pid}) wrote" in lines[4]


def test_ctrl_c_shows_the_summary_and_no_traceback(target):
    with dirty(target.pid, "--interval", "50ms") as command:
        command.stdout.readline()
        command.send_signal(signal.SIGINT)
        text, errors = command.communicate(timeout=20)
    assert command.returncode == 130
    assert "Traceback" not in errors
    assert f"({target.pid}) wrote" in text
    write(target, 1)  # it goes on


def test_ctrl_c_counts_what_was_written_up_to_then(target):
    with dirty(target.pid, "--interval", "1h") as command:
        assert "is attached to" in command.stdout.readline()
        write(target, 777)
        time.sleep(1)  # past its first line, and into the interval
        command.send_signal(signal.SIGINT)
        text, _ = command.communicate(timeout=20)
    assert command.returncode == 130
    total = int(re.search(r"wrote (\d+) pages", text)[1])
    assert 777 <= total < 777 + 200  # and what the interpreter needs to do so


def test_live_on_a_terminal(target):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "12"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        [sys.executable, "-m", "pagemap", "dirty", str(target.pid), "-i", "500ms", "-n", "3"],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    ) as command:
        os.close(theirs)
        output = b""
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while chunk := os.read(ours, 65536):
                if not output:
                    write(target, 777)  # the first line says that it is attached
                output += chunk
        os.close(ours)
        assert (command.wait(20), command.stderr.read()) == (0, "")
    text = output.decode()
    assert text.count("\x1b[2K") >= 2  # lines that are drawn anew
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "")
    last = plain[plain.rindex("pages/s") :]
    assert re.search(r" all *$", last, re.MULTILINE)
    assert f"({target.pid}) wrote" in last
    table = plain[plain.index("pages/s") :]
    rows = re.findall(
        r"^ *[\d,]+ +[\d,.]+ +(3\.\d) MiB +\S+ \S+ +([0-9a-f]+) +anonymous", table, re.MULTILINE
    )
    # 777 pages are 3.04 MiB; the VMA may have merged with another below.
    assert any(float(total) < 3.3 and int(address, 16) <= target.start for total, address in rows)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["self"], "give another process"),
        (["1", "--interval", "0"], "--interval must be positive"),
        (["1", "--count", "0"], "0 is not in the range"),
        (["redis"], "'redis' is no process id"),
    ],
)
def test_wrong_usage(arguments, says):
    with dirty(*arguments) as command:
        text, errors = command.communicate(timeout=20)
    assert (command.returncode, text) == (2, "")
    assert says in errors


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
