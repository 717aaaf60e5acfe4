"""A userfaultfd created inside another process, which goes on as if nobody had been there."""

import contextlib
import ctypes
import errno
import os
import random
import select
import signal
import statistics
import threading
import time
from pathlib import Path

import children
import injection
import pytest

from pagemap import _pagemap
from pagemap.process import Descriptor

_libc = ctypes.CDLL(None, use_errno=True)


def _send(pid, number, value):
    while _libc.sigqueue(pid, number, ctypes.c_void_p(value & 0xFFFFFFFF)) != 0:
        assert ctypes.get_errno() == errno.EAGAIN  # the queue is full
        time.sleep(0.001)


@contextlib.contextmanager
def _meanwhile(action):
    """Repeats an action in another thread; an exception in it is ours."""
    stop, failures = threading.Event(), []

    def repeat():
        try:
            while not stop.is_set():
                action()
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


def test_a_real_time_thread_does_not_keep_the_tracer_from_its_processor():
    """The kernel lets ordinary threads have a twentieth of each second there."""
    processors = sorted(os.sched_getaffinity(0))
    throttle = Path("/proc/sys/kernel/sched_rt_runtime_us")
    if len(processors) < 2:
        pytest.skip("one processor")
    if not throttle.exists() or int(throttle.read_text()) < 0:
        pytest.skip("real-time threads are not limited here")
    with injection.start("busy", 1) as target:
        os.sched_setaffinity(target.pid, processors[-1:])
        try:
            os.sched_setscheduler(target.pid, os.SCHED_FIFO, os.sched_param(1))
        except PermissionError:
            pytest.skip("real-time scheduling needs CAP_SYS_NICE")
        times = []
        for _ in range(5):
            time.sleep(0.1)
            begin = time.monotonic()
            stopped = injection.inject(target.pid)[0]
            times.append(time.monotonic() - begin)
            assert stopped < 1e9 * times[-1]
        os.sched_setscheduler(target.pid, os.SCHED_OTHER, os.sched_param(0))
        assert injection.end(target)[1] == 0
    assert statistics.median(times) < 0.2, times


@pytest.mark.parametrize("threads", [1, 4])
def test_a_busy_process_computes_on_correctly(threads):
    """General, x87 and vector registers; the answers of its own system calls; its descriptor numbers."""
    with injection.start("busy", threads) as target:
        mask = injection.status(target.pid, "SigBlk")
        stopped = injection.inject(target.pid, 300)
        assert injection.status(target.pid, "TracerPid") == "0"
        assert injection.status(target.pid, "SigBlk") == mask
        assert injection.userfaultfds(target.pid) == 0
        words, status = injection.end(target)
        assert (words.split()[0], status) == ("ok", 0), words
    # The aim is below 200 µs; a loaded machine cannot prove it, but the best of many can come near.
    assert min(stopped) < max(1_000_000, 20 * _a_word_with_an_idle_process())


def _a_word_with_an_idle_process():
    """Nanoseconds, the best of many: what a few switches between processes take on this machine."""

    def one():
        begin = time.perf_counter_ns()
        target.ask("word")
        return time.perf_counter_ns() - begin

    with children.idle() as target:
        return min(one() for _ in range(50))


def test_the_descriptor_belongs_to_the_memory_of_the_target(need):
    need("wp_async")
    with injection.start("busy", 1) as target:
        uffd = Descriptor()
        _pagemap.inject_userfaultfd(target.pid, injection.FLAGS, uffd)
        _pagemap.uffd_api(uffd.fd, _pagemap.UFFD_FEATURE_WP_ASYNC)
        maps = Path(f"/proc/{target.pid}/maps").read_text().splitlines()
        (stack,) = (line.split()[0] for line in maps if line.endswith("[stack]"))
        start, end = (int(address, 16) for address in stack.split("-"))
        assert stack not in Path("/proc/self/maps").read_text()
        _pagemap.uffd_register(uffd.fd, start, end, _pagemap.UFFDIO_REGISTER_MODE_WP)
        smaps = Path(f"/proc/{target.pid}/smaps").read_text()
        flags = smaps.partition(stack)[2].partition("VmFlags:")[2].partition("\n")[0].split()
        assert "uw" in flags
        del uffd
        assert injection.end(target)[1] == 0


ENDLESS = {"epoll": "1 0", "read": "1 0", "waitpid": "1 0"}
SIGNALLED = {
    "sigwaitinfo": f"{signal.SIGUSR1.value} 0",
    "sigsuspend": f"1 {errno.EINTR}",
    "pause": f"1 {errno.EINTR}",
    "semop": f"1 {errno.EINTR}",
    "semtimedop": f"1 {errno.EINTR}",
    "io_getevents": f"1 {errno.EINTR}",
    "io_pgetevents": f"1 {errno.EINTR}",
    "io_uring_enter": f"1 {errno.EINTR}",
}
LIMITED = {
    "nanosleep": "0 0",
    "clock_nanosleep": "0 0",
    "futex": f"-1 {errno.ETIMEDOUT}",
    "poll": "0 0",
    "ppoll": "0 0",
    "select": "0 0",
}


@pytest.fixture
def limit():
    """Milliseconds: many times what it takes here to start a target and to get into it."""
    injection.program("waits")
    begin = time.monotonic()
    with injection.start("waits", "read", 0) as target:
        target.stands_still()
        injection.inject(target.pid)
    return max(950, round(40_000 * (time.monotonic() - begin)))


def test_waiting_system_calls_go_on_as_if_nothing_had_happened(limit):
    """Each in a process of its own, all at once. A limit counts from when the wait began."""
    with contextlib.ExitStack() as stack:
        targets = {
            kind: stack.enter_context(injection.start("waits", kind, limit, first_words=None))
            for kind in ENDLESS | SIGNALLED | LIMITED
        }
        for kind in list(targets):
            words = targets[kind].hear()
            if words == "not here":  # a kernel without System V semaphores, aio or io_uring
                assert kind.startswith(("sem", "io_"))
                del targets[kind]
            else:
                assert words == "ready"
        for target in targets.values():
            target.stands_still()
        begin = time.monotonic()
        while time.monotonic() < begin + limit / 2000:
            for kind, target in targets.items():
                assert target.process.poll() is None, kind
                injection.inject(target.pid)
        for kind in SIGNALLED.keys() & targets:
            os.kill(targets[kind].pid, signal.SIGUSR1)
        for kind, target in targets.items():
            words = target.ask("x") if kind in ENDLESS else target.hear()
            result, _, elapsed = words.rpartition(" ")
            assert result == (ENDLESS | SIGNALLED | LIMITED)[kind], (kind, words)
            if kind in LIMITED:
                assert limit <= int(elapsed) + 1 < limit * 1.4, (kind, words)


def test_a_limited_epoll_wait_answers_as_to_any_stop(limit):
    """EINTR, signal(7): what was left of the limit is not to be known from outside."""
    with injection.start("waits", "epoll_limited", limit) as target:
        target.stands_still()
        injection.inject(target.pid)
        assert target.hear().startswith(f"-1 {errno.EINTR} ")


def test_every_signal_arrives_once_in_order_and_whole():
    sent = 0

    def send():
        nonlocal sent
        _send(target.pid, signal.SIGRTMIN, sent)
        sent += 1

    with injection.start("signals") as target:
        with _meanwhile(send):
            injection.inject(target.pid, 300)
        _send(target.pid, signal.SIGRTMIN, -1)
        assert sent > 300
        assert injection.end(target) == (f"ok {sent}", 0)


def test_a_stopped_process_stays_stopped():
    with injection.start("busy", 2) as target:
        os.kill(target.pid, signal.SIGSTOP)
        while not injection.status(target.pid, "State").startswith("T (stopped)"):
            time.sleep(0.001)
        injection.inject(target.pid, 50)
        deadline = time.monotonic() + children.LIMIT
        while not injection.status(target.pid, "State").startswith("T (stopped)"):
            assert time.monotonic() < deadline
        for task in Path(f"/proc/{target.pid}/task").iterdir():
            assert "T (stopped)" in (task / "status").read_text()
        os.kill(target.pid, signal.SIGCONT)
        assert injection.end(target)[1] == 0


def test_stops_and_continues_at_random_moments():
    def stop_and_continue():
        os.kill(target.pid, signal.SIGSTOP)
        time.sleep(random.random() * 0.0005)
        os.kill(target.pid, signal.SIGCONT)
        time.sleep(random.random() * 0.0005)

    with injection.start("busy", 2) as target:
        with _meanwhile(stop_and_continue):
            injection.inject(target.pid, 200)
        assert injection.end(target)[1] == 0


def test_a_thread_with_all_signals_blocked_and_traps_ignored():
    with injection.start("odd", "deaf") as target:
        injection.inject(target.pid, 100)
        assert target.ask("?") == "0"
        assert injection.end(target)[1] == 0


def test_a_process_whose_main_thread_has_exited():
    with injection.start("odd", "leaderless") as target:
        while not injection.status(target.pid, "State").startswith("Z"):
            time.sleep(0.001)
        injection.inject(target.pid, 20)
        assert target.ask("?") == "0"
        assert injection.end(target)[1] == 0


def test_a_process_whose_main_thread_ends_at_a_random_moment():
    """It is taken by the main thread or by the other one; it is never reported dead."""
    refusals = set()
    for _ in range(100):
        with injection.start("odd", "leaderless", random.randrange(700_000)) as target:
            begin = time.monotonic()
            try:
                injection.inject(target.pid)
            except OSError as error:
                refusals.add((error.errno, error.stage))
            assert time.monotonic() - begin < 1.5
            assert target.ask("?") == "0"
    assert refusals <= {(errno.EOPNOTSUPP, "target")}  # before Linux 6.9


def test_a_process_of_which_another_thread_executes_is_not_reported_dead():
    taken, refusals = 0, []
    with injection.start("odd", "handing_over", 400, first_words=None) as target:
        while not select.select([target.process.stdout], [], [], 0)[0]:
            try:
                injection.inject(target.pid)
                taken += 1
            except OSError as error:
                refusals.append(error.errno)
        assert target.hear() == "ready"
        assert injection.end(target)[1] == 0
    assert taken > 0
    assert refusals.count(errno.ESRCH) < 5 + taken / 20, (refusals, taken)  # five times in a row each
    assert errno.ETIMEDOUT not in refusals


def test_a_restartable_sequence_is_aborted_not_resumed():
    with injection.start("odd", "restartable") as target:
        for _ in range(50):
            before = int(target.ask("?"))
            injection.inject(target.pid)
            deadline = time.monotonic() + children.LIMIT
            while int(target.ask("?")) == before:
                assert time.monotonic() < deadline, "the sequence went on, and can no longer be aborted"
        assert injection.end(target)[1] == 0


def test_syscall_user_dispatch_is_put_back():
    with injection.start("odd", "dispatching") as target:
        injection.inject(target.pid, 50)
        assert target.ask("?") == "0"
        assert injection.end(target) == ("1", 0)


def test_inclusive_syscall_user_dispatch_is_put_back():
    """The kernel reports it as the other kind with the range turned round, and takes that from nobody."""
    with injection.start("odd", "dispatching", "inclusive", first_words=None) as target:
        words = target.hear()
        if words == os.strerror(errno.EINVAL):
            pytest.skip("this kernel has no PR_SYS_DISPATCH_INCLUSIVE_ON")
        assert words == "ready"
        injection.inject(target.pid, 50)
        assert target.ask("?") == "0"
        assert injection.end(target) == ("1", 0)


def test_a_seccomp_filter_is_suspended_for_the_call_only():
    if os.geteuid() != 0:
        pytest.skip("PTRACE_O_SUSPEND_SECCOMP needs CAP_SYS_ADMIN")
    with injection.start("odd", "filtered") as target:
        assert target.ask("?") == "0"
        injection.inject(target.pid, 50)
        assert target.ask("?") == "0"
        target.say("x")
        assert target.process.wait(children.LIMIT) == -signal.SIGSYS


def test_a_process_that_executes_itself_all_the_time():
    """It is taken between two programs or refused for now; no program gets to feel it."""
    taken, refusals = 0, set()
    with injection.start("odd", "executing", 300, first_words=None) as target:
        while not select.select([target.process.stdout], [], [], 0)[0]:
            try:
                injection.inject(target.pid)
                taken += 1
            except OSError as error:
                refusals.add((error.errno, error.stage))
        assert target.hear() == "ready"
        assert injection.end(target)[1] == 0
    assert taken > 0
    assert refusals <= {(errno.EBUSY, "vdso"), (errno.EOPNOTSUPP, "vdso"), (errno.EFAULT, "vdso")}


def test_a_child_traced_from_a_thread_while_another_of_its_threads_executes(monkeypatch):
    """Its number then is that thread's, which is our child, but not traced: nothing more is to come."""
    library, reason = injection.compiled("no_helper", "-shared", "-fPIC")
    if library is None:
        pytest.skip(reason)
    program = injection.program("odd")
    preloaded = os.environ.get("LD_PRELOAD", "")
    monkeypatch.setenv("LD_PRELOAD", f"{preloaded}:{library}".lstrip(":"))
    attempts = children.run(
        """
        import errno, os, select, subprocess, sys
        from pagemap import _pagemap
        from pagemap.process import Descriptor
        del os.environ["LD_PRELOAD"]
        target = subprocess.Popen([sys.argv[1], "handing_over", "600"], stdout=subprocess.PIPE,
                                  stdin=subprocess.PIPE)
        attempts = 0
        while not select.select([target.stdout], [], [], 0)[0]:
            attempts += 1
            try:
                _pagemap.inject_userfaultfd(target.pid, _pagemap.UFFD_USER_MODE_ONLY, Descriptor())
            except OSError as error:
                assert error.errno != errno.ETIMEDOUT, error
        assert target.communicate()[0] == b"ready\\n" and target.returncode == 0
        print(attempts)
        """,
        program,
        limit=20,
    )
    assert int(attempts) > 0


def test_this_process_sees_no_signal_and_no_child():
    children.run(
        """
        import os, signal, sys, threading
        from pagemap import _pagemap
        from pagemap.process import Descriptor
        signals, waited = [], []
        signal.signal(signal.SIGCHLD, lambda *_: signals.append(1))
        def wait():
            waited.append(os.waitpid(-1, 0))
        child = os.fork()
        if child == 0:
            signal.pause()
        thread = threading.Thread(target=wait)
        thread.start()
        threads = len(os.listdir("/proc/self/task"))
        descriptors = len(os.listdir("/proc/self/fd"))
        for _ in range(100):
            _pagemap.inject_userfaultfd(child, _pagemap.UFFD_USER_MODE_ONLY, Descriptor())
            _pagemap.inject_userfaultfd(int(sys.argv[1]), _pagemap.UFFD_USER_MODE_ONLY, Descriptor())
        assert not signals and not waited
        assert len(os.listdir("/proc/self/task")) == threads
        assert len(os.listdir("/proc/self/fd")) == descriptors
        os.kill(child, signal.SIGKILL)
        thread.join()
        assert waited == [(child, signal.SIGKILL)]
        """,
        os.getpid(),
    )


def test_as_an_ordinary_user_on_a_child_of_ones_own():
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    children.run(
        "import subprocess, sys\nfrom pagemap import _pagemap\nfrom pagemap.process import Descriptor\n"
        + children.BECOME_NOBODY
        + """
busy, filtered, other = sys.argv[1:]
child = subprocess.Popen([busy, "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
assert child.stdout.readline() == "ready\\n"
for _ in range(50):
    uffd = Descriptor()
    _pagemap.inject_userfaultfd(child.pid, _pagemap.UFFD_USER_MODE_ONLY, uffd)
    _pagemap.uffd_api(uffd.fd, 0)
assert child.communicate(timeout=20)[0].startswith("ok ")
assert child.returncode == 0

child = subprocess.Popen([filtered, "filtered"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
assert child.stdout.readline() == "ready\\n"
child.stdin.write("?\\n"); child.stdin.flush()
assert child.stdout.readline() == "0\\n"
try:
    _pagemap.inject_userfaultfd(child.pid, _pagemap.UFFD_USER_MODE_ONLY, Descriptor())
except PermissionError as error:
    assert error.stage == "seccomp", error
else:
    raise AssertionError("the filter would have killed it")
assert child.communicate("?\\n", timeout=20) == ("0\\n", None)
assert child.returncode == 0

try:
    _pagemap.inject_userfaultfd(int(other), _pagemap.UFFD_USER_MODE_ONLY, Descriptor())
except PermissionError as error:
    assert error.stage == "seize", error
else:
    raise AssertionError("a process of root")
""",
        injection.program("busy"),
        injection.program("odd"),
        os.getpid(),
    )


def test_a_signal_whose_handler_raises_leaves_no_descriptor():
    """Signals are blocked during an injection: they arrive when it returns."""
    with injection.start("busy", 1) as target:
        interrupted, descriptors = children.run(
            """
            import os, random, signal, sys
            from pagemap.attach import Injection

            class Interrupt(Exception):
                pass

            def interrupt(*_):
                raise Interrupt

            signal.signal(signal.SIGALRM, interrupt)
            create = Injection(int(sys.argv[1]))
            create()
            before = len(os.listdir("/proc/self/fd"))
            interrupted = 0
            for _ in range(400):
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(2e-5, 4e-4))
                    uffd = create()
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except Interrupt:
                    interrupted += 1
                uffd = None
            print(interrupted, len(os.listdir("/proc/self/fd")) - before)
            """,
            target.pid,
        ).split()
        assert int(interrupted) > 0
        assert int(descriptors) == 0


def test_an_owner_that_takes_no_descriptor():
    with injection.start("busy", 1) as target:
        before = len(os.listdir("/proc/self/fd"))
        for owner in (None, 5, object()):
            with pytest.raises(TypeError, match="owner must take an attribute fd"):
                _pagemap.inject_userfaultfd(target.pid, injection.FLAGS, owner)
            with pytest.raises(TypeError, match="owner must take an attribute fd"):
                _pagemap.userfaultfd(injection.FLAGS, owner)
        assert len(os.listdir("/proc/self/fd")) == before
        assert injection.end(target)[1] == 0


# Somebody dies


def test_a_tracker_killed_at_random_moments_leaves_the_target_alone():
    """With its whole process group every other time."""
    with injection.start("busy", 1) as target:
        children.run(
            """
            import os, random, signal, sys, time
            from pagemap import _pagemap
            from pagemap.process import Descriptor
            pid = int(sys.argv[1])
            for turn in range(120):
                ours, theirs = os.pipe()
                tracker = os.fork()
                if tracker == 0:
                    os.setpgid(0, 0)
                    os.write(theirs, b"x")
                    while True:
                        try:
                            _pagemap.inject_userfaultfd(pid, _pagemap.UFFD_USER_MODE_ONLY, Descriptor())
                        except PermissionError as error:  # the one before is being completed
                            if error.stage != "traced":
                                os._exit(1)
                os.read(ours, 1)
                time.sleep(random.random() * 0.002)
                (os.killpg if turn % 2 else os.kill)(tracker, signal.SIGKILL)
                os.waitpid(tracker, 0)
                os.close(ours)
                os.close(theirs)
                with open(f"/proc/{pid}/stat") as stat:
                    assert stat.read().rpartition(")")[2].split()[0] != "Z", f"died in turn {turn}"
            """,
            target.pid,
        )
        deadline = time.monotonic() + children.LIMIT
        while injection.status(target.pid, "TracerPid") != "0":
            assert time.monotonic() < deadline
        words, status = injection.end(target)
        assert (words.split()[0], status) == ("ok", 0), words


def test_a_target_killed_at_random_moments_is_reported_and_reaped_by_its_parent():
    for turn in range(30):
        with injection.start("busy", 1 + turn % 3) as target:
            threading.Timer(random.random() * 0.004, os.kill, [target.pid, signal.SIGKILL]).start()
            with pytest.raises(ProcessLookupError):
                injection.inject(target.pid, 100000)
            assert target.process.wait(children.LIMIT) == -signal.SIGKILL
