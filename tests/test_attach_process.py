"""attach() to programs at work: they stay correct, nobody notices, and every death is survived."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time

import children
import injection
import pytest

import pagemap
from pagemap import Category, PageMap, Query, regions

ATTACHES = 100
TRACKED = Query(require=Category.WPALLOWED)

# Computes and compares until its input ends; the heap is written in every turn.
BUSY_PYTHON = """
import hashlib, sys, threading
def work():
    values = {number: str(number) * 3 for number in range(3000)}
    return hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()
done = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), done.set())).start()
expected, rounds = work(), 0
print("ready", flush=True)
while not done.is_set():
    assert work() == expected
    rounds += 1
print("ok", rounds, flush=True)
"""


@pytest.fixture(autouse=True)
def tracking(need):
    need("wp_async")


def tracked_pages(pid):
    with PageMap(pid) as memory:
        return regions.page_count(memory.scan(TRACKED))


def is_untracked(pid):
    """Now or soon: what a killed tracker had begun is completed by its helper."""
    deadline = time.monotonic() + children.LIMIT
    while tracked_pages(pid) or injection.status(pid, "TracerPid") != "0":
        assert time.monotonic() < deadline, "the target stays tracked"
        time.sleep(0.001)


def attach_often(pid):
    """Each tracker sees the target write something; returns for how long it stood still each time."""
    stopped = []
    for _ in range(ATTACHES):
        deadline = time.monotonic() + children.LIMIT
        with pagemap.attach(pid) as tracker:
            stopped.append(tracker.stopped_us)
            while not len(tracker.collect()):
                assert time.monotonic() < deadline, "a busy process writes nothing"
                time.sleep(0.0005)
    assert tracked_pages(pid) == 0
    assert injection.userfaultfds(pid) == 0
    return stopped


def test_a_busy_python():
    with children.target(BUSY_PYTHON) as target:
        stopped = attach_often(target.pid)
        words, status = injection.end(target)
        assert (words.split()[0], status) == ("ok", 0), words
        assert int(words.split()[1]) > 0
        assert min(stopped) < 1_000


def test_a_c_program_with_many_threads():
    with injection.start("busy", 4) as target:
        attach_often(target.pid)
        words, status = injection.end(target)
        assert (words.split()[0], status) == ("ok", 0), words


# A real server


def install_redis():
    """Debian's packages, where they are missing and root may install them."""
    programs = ("redis-server", "redis-benchmark")
    if all(map(shutil.which, programs)):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.skip("needs redis-server and redis-benchmark (Debian: redis-server, redis-tools)")
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "redis-server", "redis-tools"]
    # RUNLEVEL: the package does not start a server of its own.
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    done = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=100, check=False)
    if not all(map(shutil.which, programs)):
        pytest.skip(f"apt-get installs no redis-server: {done.stderr.strip()[-200:]}")


def command(connection, *words):
    """One command in Redis's protocol, and the first line of the answer, or its bulk string."""
    parts = [word.encode() for word in words]
    wire = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
    connection.write(b"*%d\r\n%s" % (len(parts), wire))
    connection.flush()
    line = connection.readline().strip()
    if line.startswith(b"$") and line != b"$-1":
        return connection.read(int(line[1:]) + 2)[:-2].decode()
    return line.decode()


@contextlib.contextmanager
def redis(directory):
    """A server of one's own on a free port: its process and its port."""
    install_redis()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + children.LIMIT
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert server.poll() is None, "the server ends at once"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield server, port
    finally:
        server.terminate()
        server.wait(children.LIMIT)


def benchmark(port, stop, reports):
    """Bounded loads, at least one, until it is told to stop; the server's errors end one."""
    load = ["redis-benchmark", "-p", str(port), "-q", "-c", "8", "-d", "64", "-r", "20000"]
    while not reports or not stop.is_set():
        done = subprocess.run(
            [*load, "-t", "set,get,incr,lpush", "-n", "20000"],
            capture_output=True,
            text=True,
            timeout=children.LIMIT,
            check=False,
        )
        reports.append((done.returncode, done.stdout + done.stderr))


def test_redis_under_load(tmp_path):
    """No client sees an error, and no value is another one afterwards."""
    with redis(tmp_path) as (server, port):
        values = {f"known:{number}": f"{number * 7919:x}" * 20 for number in range(2000)}
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            connection = client.makefile("rwb")
            assert {command(connection, "SET", *item) for item in values.items()} == {"+OK"}
            stop, reports = threading.Event(), []
            load = threading.Thread(target=benchmark, args=(port, stop, reports))
            load.start()
            try:
                attach_often(server.pid)
            finally:
                stop.set()
                load.join()
            assert server.poll() is None
            assert {key: command(connection, "GET", key) for key in values} == values
            assert command(connection, "PING") == "+PONG"
            connection.close()
        for status, text in reports:
            assert status == 0, text
            assert "Error" not in text, text
            assert text.count("requests per second") == 4, text
        is_untracked(server.pid)


# Its ends


def test_closed_is_untracked():
    with children.idle() as target:
        tracker = pagemap.attach(target.pid)
        assert tracked_pages(target.pid) > 0
        tracker.close()
        tracker.close()
        assert tracked_pages(target.pid) == 0
        assert target.ask("still there") == "still there"


def collect_for_ever(tracker):
    deadline = time.monotonic() + children.LIMIT
    while time.monotonic() < deadline:
        tracker.collect()


def attach_for_ever(pid):
    deadline = time.monotonic() + children.LIMIT
    while time.monotonic() < deadline:
        with pagemap.attach(pid) as tracker:
            tracker.collect()
            tracker.peek()
            tracker.collect(max_pages=3)


@pytest.mark.parametrize("how", ["os._exit(0)", "os.execv('/bin/sleep', ['sleep', '60'])"])
def test_one_that_exits_or_executes_another_program(how):
    code = f"import os, sys\nprint('ready', flush=True)\nsys.stdin.readline()\n{how}"
    with children.target(code) as target, pagemap.attach(target.pid) as tracker:
        tracker.collect()
        target.say("go")
        with pytest.raises(ProcessLookupError) as caught:
            collect_for_ever(tracker)
        assert str(target.pid) in str(caught.value)
        for method in (tracker.collect, tracker.peek, tracker.reset, tracker.populated):
            with pytest.raises(ProcessLookupError):
                method()
        if "exec" in how:
            assert tracked_pages(target.pid) == 0
            assert target.process.poll() is None


def test_a_target_killed_at_random_moments():
    """While it is attached to, collected from, looked at, or let go."""
    for turn in range(40):
        with injection.start("busy", 1 + turn % 3) as target:
            timer = threading.Timer(random.random() * 0.02, os.kill, [target.pid, signal.SIGKILL])
            timer.start()
            with pytest.raises(ProcessLookupError):
                attach_for_ever(target.pid)
            timer.join()
            assert target.process.wait(children.LIMIT) == -signal.SIGKILL


def test_a_tracker_killed_at_random_moments():
    """While it attaches or tracks: the target goes on, untracked."""
    with injection.start("busy", 2) as target:
        children.run(
            """
            import os, random, signal, sys, time, pagemap
            pid = int(sys.argv[1])
            for turn in range(60):
                ours, theirs = os.pipe()
                tracker = os.fork()
                if tracker == 0:
                    try:
                        while True:
                            try:
                                attached = pagemap.attach(pid)
                                break
                            except PermissionError:  # what the one before had begun is being completed
                                pass
                            finally:
                                os.write(theirs, b"x")
                        while True:
                            attached.collect()
                    finally:
                        os._exit(1)
                if turn % 3:
                    os.read(ours, 1)
                time.sleep(random.random() * 0.01)
                os.kill(tracker, signal.SIGKILL)
                _, status = os.waitpid(tracker, 0)
                assert os.WIFSIGNALED(status), f"the tracker itself failed in turn {turn}"
                os.close(ours)
                os.close(theirs)
                query = pagemap.Query(require=pagemap.Category.WPALLOWED)
                deadline = time.monotonic() + 20
                while len(pagemap.scan(query, pid=pid)):
                    assert time.monotonic() < deadline, f"still tracked after turn {turn}"
            """,
            target.pid,
        )
        is_untracked(target.pid)
        words, status = injection.end(target)
        assert (words.split()[0], status) == ("ok", 0), words


def test_as_an_ordinary_user_on_a_child_of_ones_own(need):
    need("root")
    children.run(
        "import subprocess, sys, time\n"
        + children.BECOME_NOBODY
        + """
busy, other = sys.argv[1:]
child = subprocess.Popen([busy, "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
assert child.stdout.readline() == "ready\\n"
query = pagemap.Query(require=pagemap.Category.WPALLOWED)
for _ in range(20):
    with pagemap.attach(child.pid) as tracker:
        assert len(pagemap.scan(query, pid=child.pid))
        deadline = time.monotonic() + 20
        while not len(tracker.collect()):
            assert time.monotonic() < deadline
    assert not len(pagemap.scan(query, pid=child.pid))
assert child.communicate(timeout=20)[0].startswith("ok ")
assert child.returncode == 0
try:
    pagemap.attach(int(other))
except PermissionError as error:
    assert other in str(error), error
else:
    raise AssertionError("a process of root")
""",
        injection.program("busy"),
        os.getpid(),
    )
