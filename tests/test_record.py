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


def test_a_duration_below_the_interval(tmp_path, need):
    need("wp_async")
    done = record(
        "-o", tmp_path, "-i", "10s", "-d", "0.7", "--", "sh", "-c", "sleep 0.3; echo there; sleep 3 >&- 2>&-"
    )
    assert (done.returncode, done.stdout) == (0, "there\n")
    assert trace.open(tmp_path).only().timing.samples == 1


def test_a_program_that_replaces_itself_between_two_samples_is_followed_at_once(tmp_path, need):
    """Also where the interval is long: what the second writes in its first half second is seen."""
    need("wp_async")
    script = "import os, time; print(time.time_ns(), flush=True); os.execvp('sleep', ['sleep', '0.5'])"
    for options in ([], ["--resident"]):
        path = tmp_path / str(len(options))
        done = record("-o", path, "-i", "10s", "-d", "0.6", *options, "--", sys.executable, "-c", script)
        assert done.returncode == 0, done.stderr
        first, second = trace.open(path)
        assert second.name == "sleep"
        assert first.ended == "exited"
        assert second.metadata.begin_ns - int(done.stdout) < 150_000_000


def interrupted(path, number, script):
    """The exit code and stderr of `record -- sh -c SCRIPT`, where a signal goes to both, as on a terminal."""
    command = [sys.executable, "-m", "pagemap", "record", "-o", path, "-i", "20ms", "--", "sh", "-c", script]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        _, errors = process.communicate(timeout=30)
    return process.returncode, errors


def test_ctrl_c_leaves_the_command_the_time_to_end(tmp_path, need):
    need("wp_async")
    script = f"trap 'sleep 0.5; touch {tmp_path}/done; exit 7' INT; echo ready; while :; do sleep 0.1; done"
    code, errors = interrupted(tmp_path / "trace", signal.SIGINT, script)
    assert (code, (tmp_path / "done").exists()) == (7, True), errors
    assert "ended: stopped" in errors or "ended: exited" in errors


def test_sigterm_ends_the_command_and_its_code_is_passed_on(tmp_path, need):
    need("wp_async")
    code, errors = interrupted(tmp_path / "trace", signal.SIGTERM, "echo ready; exec sleep 60")
    assert code == 128 + signal.SIGTERM, errors
    assert "now: pagemap report" in errors


def test_a_full_disk(tmp_path, need):
    """What was saved is said and can be read, the command is ended, and no half file stays."""
    need("wp_async")
    path = tmp_path / "small"
    path.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", path]).returncode:
        pytest.skip("needs root, and mount")
    program = (
        "import mmap, random, time\nm = mmap.mmap(-1, 1 << 26)\nwhile not time.sleep(0.01):\n"
        "  for i in random.sample(range(1 << 14), 3000): m[i << 12] = 1\n"
    )
    try:
        done = record("-o", path / "t", "-i", "20ms", "-d", "40", "--", sys.executable, "-c", program)
        assert done.returncode == 1
        assert "No space left on device (" in done.stderr
        assert str(path / "t") in done.stderr
        assert f"the command was ended; what was saved: pagemap report {path / 't'}" in done.stderr
        assert not list(path.rglob(".*"))
        recording = trace.open(path / "t").only()
        assert recording.ended == "killed"
        assert len(recording.timeline.time_ns) > 0
    finally:
        subprocess.run(["umount", path], check=True)
