"""What the command line prints where: names that others chose, narrow terminals, readers that go."""

import contextlib
import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios

import pytest

pytest.importorskip("rich", reason="the command needs click and rich")

import pagemap
from pagemap import errors

COMMAND = [sys.executable, "-m", "pagemap"]
ESCAPE = "\x1b"
EVIL = "x\x1b]0;owned\x07y"
SHOWN = "x\\x1b]0;owned\\x07y"

PROGRAM = """
import mmap, sys
open("/proc/self/comm", "w").write("x\\x1b]0;owned\\x07y")
f = open(sys.argv[1], "r+b")
shared = mmap.mmap(f.fileno(), 0)
held = mmap.mmap(-1, 64 << 20)
held[:] = bytes(len(held))
print("ready", flush=True)
while True:
    shared[0] = held[0] = 1
"""


def run(*args, **options):
    done = subprocess.run(
        [*COMMAND, *map(str, args)], capture_output=True, text=True, timeout=60, check=False, **options
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """A process whose name, arguments and file would turn a terminal."""
    file = tmp_path_factory.mktemp("evil") / EVIL
    file.write_bytes(bytes(pagemap.PAGE_SIZE))
    program = PROGRAM.replace("while True:", "import time\nwhile not time.sleep(0.01):")
    child = subprocess.Popen([sys.executable, "-c", program, file, EVIL], stdout=subprocess.PIPE, text=True)
    with child:
        try:
            assert child.stdout.readline() == "ready\n"
            yield child.pid
        finally:
            child.kill()


@pytest.fixture(scope="module")
def recorded(evil, tmp_path_factory):
    """Two traces of it in one directory, and what the commands that made them said."""
    pytest.importorskip("pyarrow", reason="traces need pyarrow")
    if not pagemap.features().wp_async:
        pytest.skip(pagemap.features().why["wp_async"])
    path = tmp_path_factory.mktemp("traces") / "trace"
    said = [run("record", evil, "-o", path, "-i", "20ms", "-d", "0.2").stderr for _ in range(2)]
    return path, "".join(said)


def test_what_others_chose_is_escaped(evil):
    for arguments in (["top"], ["scan", evil, "--limit", "0"], ["dirty", evil, "-n", "1", "-i", "50ms"]):
        done = run(*arguments)
        assert SHOWN in done.stdout, arguments
        assert ESCAPE not in done.stdout + done.stderr, arguments


def test_what_others_chose_is_escaped_in_traces(evil, recorded, tmp_path):
    path, said = recorded
    assert SHOWN in said
    assert ESCAPE not in said
    commands = [["report", path], ["wss", path], ["heatmap", path]]
    if pytest.importorskip("matplotlib", reason="pictures need matplotlib"):
        commands.append(["heatmap", path, "-o", tmp_path / "picture.png"])
    for arguments in commands:
        done = run(*arguments)
        assert done.returncode == 0
        assert SHOWN[:12] in done.stdout + done.stderr, arguments
        assert ESCAPE not in done.stdout + done.stderr, arguments


def test_a_file_that_is_no_trace_is_named_without_what_a_terminal_obeys(tmp_path):
    pytest.importorskip("pyarrow", reason="traces need pyarrow")
    (tmp_path / f"{EVIL}.parquet").write_bytes(b"no trace")
    done = run("report", tmp_path)
    assert done.returncode == 1
    assert f"{SHOWN}.parquet is no Parquet file" in done.stderr
    assert ESCAPE not in done.stderr
    gone = run("report", tmp_path / EVIL)
    assert SHOWN in gone.stderr
    assert ESCAPE not in gone.stderr


def on_a_terminal(*args, columns):
    """The lines that a command prints on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    hidden = ("COLUMNS", "LINES")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    process = subprocess.Popen(
        [*COMMAND, *map(str, args)], stdout=theirs, stderr=theirs, stdin=theirs, env=environment
    )
    os.close(theirs)
    output = b""
    with contextlib.suppress(OSError):  # EIO: the other side is closed
        while chunk := os.read(ours, 65536):
            output += chunk
    os.close(ours)
    assert process.wait(60) == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output.decode()).replace("\r", "\n")
    return [line.rstrip() for line in plain.splitlines()]


def test_top_fits_a_narrow_terminal(evil):
    lines = on_a_terminal("top", "-n", "1", "--limit", "0", columns=80)
    head = next(line for line in lines if "resident" in line)
    assert head.split() == ["pid", "resident", "huge", "swapped", "written/s", "user", "name"]
    row = next(line for line in lines if line.split()[:1] == [str(evil)])
    assert float(re.search(r"([\d.]+) MiB", row)[1]) >= 64
    assert "x\\x1b]0" in row
    assert all(len(line) <= 80 for line in lines)


def test_dirty_fits_a_narrow_terminal(evil):
    lines = on_a_terminal("dirty", evil, "-n", "1", "-i", "100ms", columns=80)
    head = next(line for line in lines if "pages/s" in line)
    assert head.split() == ["pages/s", "MiB/s", "total", "of", "address", "name"]
    row = next(line for line in lines if line.endswith(SHOWN[-12:]))
    assert re.search(r"\d+ +\d+\.\d +(\d[\d.]*|-) KiB +4 KiB +[0-9a-f]{9,} +…", row)
    assert all(len(line) <= 80 for line in lines if "attached" not in line)


@pytest.mark.parametrize("what", ["doctor", "scan", "dirty", "top", "-h", "--version"])
def test_a_reader_that_goes(evil, what):
    """As `| head -1` does, but surely before the last line."""
    arguments = {"scan": [evil], "dirty": [evil, "-i", "50ms"]}.get(what, [])
    process = subprocess.Popen(
        [*COMMAND, what, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(60) == 141


@pytest.mark.parametrize("what", [["doctor"], ["scan", "self"], ["--version"], ["-h"], ["scan", "-h"]])
def test_a_full_or_closed_output(what):
    command = shlex.join([*COMMAND, *what])
    for where, says in ((">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")):
        done = subprocess.run(
            ["sh", "-c", f"{command} {where}"], stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (1, f"Error: {says}\n"), where
    done = subprocess.run(["sh", "-c", f"{command} <&- 2>&-"], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0


HOLES = """
import mmap, os, sys
memory = mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
print("ready", flush=True)
sys.stdin.readline()
os.execvp("sleep", ["sleep", "60"])
"""


def test_top_of_a_tracked_process(need):
    """Its marks are no swap; where it replaces its program, it stays in the list."""
    need("wp_async")
    child = subprocess.Popen(
        [sys.executable, "-c", HOLES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    command = [*COMMAND, "top", "-n", "40", "-i", "100ms", "--attach", str(child.pid)]
    with child:
        child.stdout.readline()
        try:
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as top:
                rows = (
                    re.split("  +", line.strip())
                    for line in top.stdout
                    if line.split()[:1] == [str(child.pid)]
                )
                first = next(rows)
                note = run("scan", child.pid).stdout
                child.stdin.write("\n")
                child.stdin.close()
                *_, last = rows
                assert top.wait(60) == 0
        finally:
            child.kill()
    assert first[3] == "-"
    assert first[4].endswith("/s")
    assert (last[3], last[-1]) == ("-", "sleep")
    assert not any("/s" in cell for cell in last)
    assert "swapped includes marks where nothing is" in note


def test_wss_takes_all_its_samples(evil, need):
    """0.3 / 0.1 is 2.99… in floating point; and the window of one interval is the first that is shown."""
    need("wp_async")
    rows = [line.split() for line in run("wss", evil, "-i", "100ms", "-d", "0.3").stdout.splitlines()]
    windows = [(" ".join(row[:2]), row[8]) for row in rows if row[1:2] == ["ms"]]
    assert windows == [("100 ms", "3"), ("200 ms", "2")]


def test_wss_of_residency_says_so(evil, tmp_path):
    pytest.importorskip("pyarrow", reason="traces need pyarrow")
    run("record", evil, "-o", tmp_path / "t", "--resident", "-i", "20ms", "-d", "0.1")
    assert "resident or swapped, not those that were written" in run("wss", tmp_path / "t").stdout


@pytest.mark.parametrize("colours", [True, False])
def test_a_heat_map_on_a_terminal_respects_no_color(recorded, colours, monkeypatch):
    """Half blocks are two cells by their colours; without, shades say how much."""
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    if not colours:
        monkeypatch.setenv("NO_COLOR", "1")
    text = "\n".join(on_a_terminal("heatmap", recorded[0], columns=100))
    assert ("▀" in text or "▄" in text) is colours
    assert ("░" in text) is not colours


def test_root_is_not_told_to_become_root(monkeypatch):
    refused = OSError(1, "Operation not permitted")
    for user in (0, 1000):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        assert ("sudo" in str(errors.explain(refused, 1, "/proc/1/pagemap"))) == bool(user)


def test_a_recording_as_fast_as_it_goes_has_no_interval(evil, tmp_path):
    pytest.importorskip("pyarrow", reason="traces need pyarrow")
    run("record", evil, "-o", tmp_path / "t", "--resident", "-i", "0", "-d", "0.1")
    assert "as fast as it went" in run("report", tmp_path / "t").stdout
