"""Processes that cannot be looked at: which error, and whether it says what to do."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import children
import pytest
import witness

import pagemap
from pagemap import PageMap


@pytest.mark.parametrize("pid", [0, -1, -(2**31), 2**31, 2**63, 2**64])
def test_numbers_that_are_no_pid(pid):
    with pytest.raises(ValueError, match=f"pid must be positive .None for this process., not {pid}"):
        PageMap(pid)
    with pytest.raises(ValueError, match="pid must be positive"):
        pagemap.scan(pid=pid)


@pytest.mark.parametrize("pid", [1.0, "1", b"1", [1], object()])
def test_what_is_not_even_a_number(pid):
    with pytest.raises(TypeError, match=f"pid must be an int or None, not {type(pid).__name__}"):
        PageMap(pid)


def test_no_such_process(engine):
    pid = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1  # never given out
    with pytest.raises(ProcessLookupError, match=f"process {pid} does not exist") as caught:
        PageMap(pid, engine=engine)
    assert caught.value.errno == errno.ESRCH
    assert caught.value.filename == f"/proc/{pid}"
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_one_that_has_exited(engine):
    gone = subprocess.Popen([sys.executable, "-S", "-c", ""])
    gone.wait(30)
    with pytest.raises(ProcessLookupError, match=f"process {gone.pid} does not exist"):
        PageMap(gone.pid, engine=engine)


def test_a_zombie(engine):
    with children.idle() as target:
        target.kill()
        with pytest.raises(ProcessLookupError, match=f"process {target.pid} is a zombie: it has exited"):
            PageMap(target.pid, engine=engine)


def test_a_kernel_thread(engine):
    try:
        fields = Path("/proc/2/stat").read_text().rpartition(")")[2].split()
    except OSError:
        pytest.skip("process 2 is not visible here")
    if not int(fields[6]) & 0x00200000:
        pytest.skip("process 2 is no kernel thread here")
    with pytest.raises(ProcessLookupError, match="process 2 is a kernel thread: it has no memory"):
        PageMap(2, engine=engine)


def test_someone_elses_process_without_privilege(need):
    """As user `nobody`, about a process of root: what was asked, why not, and what helps."""
    need("root")
    with children.idle() as target:
        children.run(
            children.BECOME_NOBODY
            + """
import sys
target = int(sys.argv[1])
before = len(os.listdir("/proc/self/fd"))
for engine in ("auto", "read"):
    for ask in (pagemap.PageMap, lambda pid, engine: pagemap.scan(pid=pid, engine=engine)):
        try:
            ask(target, engine=engine)
        except PermissionError as error:
            assert error.errno in (errno.EACCES, errno.EPERM)
            assert error.filename == f"/proc/{target}/pagemap", error.filename
            assert f"may not look at process {target}" in str(error), error
            for advice in ("sudo", "CAP_SYS_PTRACE", "ptrace(2)"):
                assert advice in str(error), (advice, error)
            assert isinstance(error.__cause__, PermissionError)
        else:
            raise AssertionError("root's process was shown")
assert len(os.listdir("/proc/self/fd")) == before
""",
            target.pid,
        )
        assert target.ask("still there") == "still there"


def test_what_has_no_memory_is_told_without_privilege_too(need):
    """A zombie and a kernel thread are refused for another reason than root's process is."""
    need("root")
    children.run(
        children.BECOME_NOBODY
        + """
from pathlib import Path
zombie = os.fork()
if zombie == 0:
    os._exit(0)
os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
asked = {zombie: "zombie"}
if int(Path("/proc/2/stat").read_text().rpartition(")")[2].split()[6]) & 0x200000:
    asked[2] = "kernel thread"
for pid, word in asked.items():
    try:
        pagemap.PageMap(pid)
    except ProcessLookupError as error:
        assert word in str(error), error
    else:
        raise AssertionError(pid)
"""
    )


def test_ones_own_process_without_privilege(need):
    """Nobody may look at nobody's processes: with both engines, but without frame numbers."""
    need("root")
    children.run(
        children.BECOME_NOBODY
        + """
import mmap, sys
memory = mmap.mmap(-1, 8 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in (0, 1, 5):
    memory[page * 4096] = 1
start, end = pagemap.span(memory)
child = os.fork()
if child == 0:
    ctypes.CDLL(None).pause()
try:
    features = pagemap.features()
    assert not features.pfn and "CAP_SYS_ADMIN" in features.why["pfn"], features.why
    for pid in (None, child):
        for engine in ("scan", "read") if features.scan else ("read",):
            with pagemap.PageMap(pid, engine=engine) as pm:
                assert [(r[0] - start, r[1] - start) for r in pm.scan(start=start, end=end).tolist()] == [
                    (0, 2 * 4096), (5 * 4096, 6 * 4096)]
                assert not (pm.entries(start, end) & numpy.uint64((1 << 55) - 1)).any()
finally:
    os.kill(child, 9)
    os.waitpid(child, 0)
"""
    )


def test_a_process_that_has_shut_itself_up(need):
    """PR_SET_DUMPABLE 0: the message names it."""
    need("root")
    children.run(
        children.BECOME_NOBODY
        + """
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    libc = ctypes.CDLL(None)
    libc.prctl(4, 0, 0, 0, 0)
    os.write(writer, b".")
    libc.pause()
os.read(reader, 1)
try:
    pagemap.PageMap(child)
except PermissionError as error:
    assert "dumpable" in str(error), error
else:
    raise AssertionError("a process that is not dumpable was shown")
finally:
    os.kill(child, 9)
    os.waitpid(child, 0)
"""
    )


def test_what_was_opened_with_privilege_stays_open_without(need, engine):
    """The right to look is checked when a PageMap is opened: the kernel's rule (proc_mem_open)."""
    need("root")
    with children.idle() as target:
        children.run(
            """
import sys, pagemap, os
pm = pagemap.PageMap(int(sys.argv[1]), engine=sys.argv[2])
before = pm.scan(pagemap.Query.PRESENT)
os.setresuid(65534, 65534, 65534)
assert len(pm.scan(pagemap.Query.PRESENT)) and len(before)
pm.close()
""",
            target.pid,
            engine,
        )


def test_refusals_leave_no_descriptor_behind(engine):
    before = sorted(os.listdir("/proc/self/fd"))
    with children.idle() as target:
        target.kill()
        inside = sorted(os.listdir("/proc/self/fd"))
        for _ in range(100):
            with pytest.raises(ProcessLookupError):
                PageMap(target.pid, engine=engine)
        assert sorted(os.listdir("/proc/self/fd")) == inside
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("question", ["scan", "iter_scan", "entries", "vmas"])
def test_no_pages_are_asked_for_without_a_system_call(engine, question):
    """max_pages 0 of a process that is gone: an empty array. Everything else has to ask, and says so."""
    with children.idle() as target, PageMap(target.pid, engine=engine) as pm:
        target.kill()
        assert pm.scan(max_pages=0).tolist() == []
        assert pm.scan(max_pages=0).dtype == pagemap.REGION_DTYPE
        assert pm.scan(max_pages=0, workers=2).tolist() == []
        ask = {
            "scan": pm.scan,
            "iter_scan": lambda: list(pm.iter_scan()),
            "entries": lambda: pm.entries(0, 1 << 20),
            "vmas": pm.vmas,
        }[question]
        with pytest.raises(ProcessLookupError, match=f"process {target.pid}") as caught:
            ask()
        assert caught.value.filename.startswith(f"/proc/{target.pid}/")
        assert caught.value.__cause__ is not caught.value


def test_a_thread_is_shown_as_its_process(engine):
    """/proc/TID exists for every thread, though no list shows it."""
    code = """
import threading, sys
thread = threading.Thread(target=sys.stdin.read, daemon=True)
thread.start()
print(thread.native_id, flush=True)
thread.join()
"""
    with children.target(code) as target:
        thread = int(target.first_words)
        with PageMap(thread, engine=engine) as pm, PageMap(target.pid, engine=engine) as whole:
            assert pm.pid == thread
            start = witness.maps(target.pid)[0][0]
            area = {"start": start, "end": witness.maps(target.pid)[1][1]}
            assert pm.scan(**area).tolist() == whole.scan(**area).tolist()
