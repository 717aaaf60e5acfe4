"""A fork of the tracking process: the parent goes on, the child is refused and holds nothing back."""

import textwrap

import children
import pytest

START = """
import ctypes, os, pathlib, signal, threading, time
import pagemap, witness
from memory import Memory
from tracked import bounds, is_registered, pages_in

def fork(child):
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it does not outlive a failure here
        try:
            child()
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
        os._exit(0)
    return pid

def is_good(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

def refused(call):
    try:
        call()
    except RuntimeError as error:
        assert "fork" in str(error), error
        return True
    return False
"""


def test_the_parents_tracking_goes_on(need):
    """Exactly, although all of its memory is copy-on-write now; what the child writes is the child's."""
    need("wp_async")
    code = """
    with Memory(64) as memory, pagemap.track(bounds(memory)) as tracker:
        memory.write(*range(40))
        tracker.collect()
        memory.write(1, 2)
        turn, told = os.pipe()

        def child():
            memory.write(*range(10, 20))
            os.read(turn, 1)
            memory.write(*range(20, 30))

        pid = fork(child)
        memory.write(5, 50)
        assert pages_in(tracker.peek(), memory) == {1, 2, 5, 50}
        assert pages_in(tracker.collect(), memory) == {1, 2, 5, 50}
        os.write(told, b"!")
        assert is_good(pid)
        memory.write(6)
        assert pages_in(tracker.collect(), memory) == {6}
    """
    children.run(START + textwrap.dedent(code))


def test_the_child_is_refused(need):
    need("wp_async")
    code = """
    with Memory(16) as memory, pagemap.track(bounds(memory)) as tracker:
        def child():
            assert refused(tracker.collect) and refused(tracker.peek) and refused(tracker.reset)
            assert refused(lambda: next(tracker.rounds(0))) and refused(tracker.__enter__)
            assert "pid" in repr(tracker)
            opened = [file for file in pathlib.Path("/proc/self/fd").iterdir() if file.is_symlink()]
            assert not [file for file in opened if os.readlink(file).endswith(("/pagemap", "/maps"))]
            with pagemap.track(bounds(memory)) as own:  # nothing of the parent's is in the way
                memory.write(3)
                assert pages_in(own.collect(), memory) == {3}
            tracker.close()
            tracker.close()

        assert is_good(fork(child))
        memory.write(9)
        assert pages_in(tracker.collect(), memory) == {9}
    """
    children.run(START + textwrap.dedent(code))


def test_closing_unregisters_while_a_child_lives(need):
    """A userfaultfd protects until its last copy is closed: the children's copies must not count."""
    need("wp_async")
    code = """
    for busy, pages in ((False, 16), (True, 1 << 12), (True, 1 << 15)):
        with Memory(pages) as memory:
            memory.write(*range(0, pages, 64))
            tracker = pagemap.track(bounds(memory))
            assert is_registered(memory)
            stop = threading.Event()

            def collect(tracker=tracker):
                while busy and not stop.is_set():
                    tracker.collect()

            thread = threading.Thread(target=collect)
            thread.start()
            here, there = os.pipe()

            def child(there=there):
                os.write(there, b"!")
                signal.pause()

            pids = [fork(child) for _ in range(20)]  # some while the descriptor is in use
            for _ in pids:
                os.read(here, 1)
            stop.set()
            thread.join()
            tracker.close()
            assert not is_registered(memory)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
    """
    children.run(START + textwrap.dedent(code))


@pytest.mark.parametrize(
    "place",
    [
        "pagemap.uffd.Userfault, '__init__'",
        "pagemap.tracking.Tracker, '__init__'",
        "pagemap.DirtyTracker, '_start'",
    ],
    ids=["userfaultfd", "tracker", "start"],
)
def test_another_thread_makes_a_tracker_meanwhile(need, place):
    """Nothing of it stays open in the child, and nothing of the trackers that there are already."""
    need("wp_async")
    code = """
    what, name = PLACE
    there, go_on = threading.Event(), threading.Event()
    real = getattr(what, name)

    def slow(self, *arguments, **named):
        real(self, *arguments, **named)
        there.set()
        assert go_on.wait(30)

    def userfaultfds():
        files = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return [file for file in files if os.path.islink(file) and "userfaultfd" in os.readlink(file)]

    memories = [Memory(16) for _ in range(4)]
    trackers = [pagemap.track(bounds(memory)) for memory in memories[:3]]
    setattr(what, name, slow)
    thread = threading.Thread(target=lambda: trackers.append(pagemap.track(bounds(memories[3]))))
    thread.start()
    assert there.wait(30)
    assert len(userfaultfds()) == 4

    def child():
        assert userfaultfds() == []
        signal.pause()

    pid = fork(child)
    go_on.set()
    thread.join()
    for memory, tracker in zip(memories, trackers, strict=True):
        memory.write(5)
        assert pages_in(tracker.collect(), memory) == {5}
        tracker.close()
    deadline = time.monotonic() + 20
    while any(map(is_registered, memories)):  # until the child has begun
        assert time.monotonic() < deadline
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    """
    children.run(START + textwrap.dedent(code).replace("PLACE", place))


def test_a_new_program_inherits_nothing(need):
    need("wp_async")
    code = """
    import subprocess, sys
    with Memory(16) as memory:
        tracker = pagemap.track(bounds(memory))
        other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
        tracker.close()
        deadline = time.monotonic() + 20
        while is_registered(memory):  # the kernel gives up inherited files as the program begins to run
            assert time.monotonic() < deadline and other.poll() is None
        other.communicate(b"go on")
    """
    children.run(START + textwrap.dedent(code))
