"""`pagemap record -- COMMAND`: nothing of the command is missed, and it is what it is without."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="the command needs click and rich")
pytest.importorskip("pyarrow", reason="traces need pyarrow")

from pagemap import analysis, trace
from pagemap.cli._child import Child
from pagemap.cli._group import Failure


def record(*arguments, **options):
    command = [sys.executable, "-m", "pagemap", "record", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def test_it_has_not_run_an_instruction():
    """The kernel has mapped the program and its loader; the loader has mapped no library yet."""
    child = Child(["sh", "-c", "exit 7"])
    try:
        lines = Path(f"/proc/{child.pid}/maps").read_text().splitlines()
        state = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
    finally:
        child.resume()
    shell = os.path.realpath(shutil.which("sh"))
    assert any(line.endswith(shell) for line in lines)
    assert not any("/libc" in line for line in lines)
    assert (state[0], state[11]) == ("T", "0")
    while not child.has_exited():
        pass
    assert child.returncode == 7


def test_one_that_is_never_resumed_ends():
    child = Child(["sleep", "60"])
    child.end()
    assert child.returncode == -signal.SIGTERM


@pytest.mark.parametrize("command", ["/no/such/command", "/etc/passwd"])
def test_one_that_cannot_be_started(command):
    before = os.listdir("/proc/self/fd")
    with pytest.raises(Failure, match=f"cannot start {command}"):
        Child([command])
    assert os.listdir("/proc/self/fd") == before


def test_what_it_did_first_is_recorded(tmp_path, need):
    """It had not mapped the C library when the recording began: all of that is new."""
    need("wp_async")
    done = record("-o", tmp_path, "-i", "20ms", "--", "sleep", "0.5")
    assert done.returncode == 0, done.stderr
    assert "ended: exited" in done.stderr
    recording = trace.open(tmp_path).only()
    written = analysis.heat(recording).by_vma(recording.vmas)["pages"]
    code = [i for i, vma in enumerate(recording.vmas) if "/libc" in vma.name and vma.permissions == "r-xp"]
    assert written[code].sum() > 20


def test_a_program_that_replaces_itself_is_followed(tmp_path, need):
    need("wp_async")
    done = record("-o", tmp_path, "-i", "20ms", "--", "sh", "-c", "sleep 0.7; exec sleep 0.9")
    assert done.returncode == 0, done.stderr
    first, second = trace.open(tmp_path)
    assert (first.name, second.name) == ("sh", "sleep")
    assert first.pid == second.pid
    assert first.timing.samples > 0
    assert second.timing.samples > 0


def test_it_is_what_it_is_without(tmp_path, need):
    """Input, output, descriptors, signals that are ignored, code: those that it would have anyway."""
    need("wp_async")
    reader, writer = os.pipe()
    script = (
        f"read line; echo $line; echo there >/proc/self/fd/{writer}; grep SigIgn: /proc/self/status; exit 5"
    )
    plain = subprocess.run(
        ["sh", "-c", script], input="x\n", capture_output=True, text=True, pass_fds=[writer], check=False
    )
    done = record("-o", tmp_path, "--", "sh", "-c", script, input="x\n", pass_fds=[writer])
    os.close(writer)
    with open(reader) as pipe:
        assert pipe.read() == "there\n" * 2
    assert plain.stdout.startswith("x\nSigIgn:")
    assert done.stdout == plain.stdout
    assert done.returncode == plain.returncode == 5


def test_a_signal_that_ended_it_is_passed_on_as_a_shell_would(tmp_path, need):
    need("wp_async")
    assert (
        record("-o", tmp_path, "--", "sh", "-c", "sleep 0.1; kill -KILL $$").returncode
        == 128 + signal.SIGKILL
    )
