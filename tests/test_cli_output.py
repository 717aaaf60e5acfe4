"""What the command line prints where: names that others chose, narrow terminals, readers that go."""

import subprocess
import sys

import pytest

pytest.importorskip("rich", reason="the command needs click and rich")

import pagemap

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
