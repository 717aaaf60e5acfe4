"""The life of a tracker: rounds, closing, what it keeps alive, and threads that share it."""

import errno
import gc
import mmap
import os
import sys
import textwrap
import threading
import time
import weakref

import children
import numpy as np
import pytest
import witness
from memory import PRIVATE, Memory
from tracked import PAGES, bounds, huge, hugetlb, is_registered, pages_in, plain, whole
from witness import PAGE

import pagemap


@pytest.fixture(autouse=True)
def kernel(need):
    need("wp_async")


def test_what_it_says_of_itself():
    with plain() as memory, pagemap.track(bounds(memory)) as tracker:
        assert isinstance(tracker, pagemap.Tracker)
        assert isinstance(tracker, pagemap.DirtyTracker)
        assert (tracker.pid, tracker.category) == (os.getpid(), pagemap.Category.WRITTEN)
        assert tracker.stopped_us is None
        assert tracker.refused == []
        assert "WRITTEN" in repr(tracker)
        assert "closed" not in repr(tracker)
    assert "closed" in repr(tracker)


def test_closing_lifts_all_protection():
    with plain() as memory:
        tracker = pagemap.track(bounds(memory))
        assert is_registered(memory)
        assert not tracker.closed
        tracker.close()
        tracker.close()
        assert tracker.closed
        assert not is_registered(memory)
        assert all(entry & witness.ENTRY_WRITE_PROTECTED == 0 for entry in witness.entries(*bounds(memory)))


@pytest.mark.parametrize(
    "ask",
    [
        lambda t: t.collect(),
        lambda t: t.collect(3),
        lambda t: t.peek(),
        lambda t: t.reset(),
        lambda t: next(t.rounds(0)),
        lambda t: t.__enter__(),
    ],
)
def test_closed_is_closed(ask):
    with plain() as memory:
        tracker = pagemap.track(bounds(memory))
        tracker.close()
        with pytest.raises(ValueError, match="closed"):
            ask(tracker)


def test_an_exception_leaves_the_context_closed():
    with plain() as memory:
        with pytest.raises(ZeroDivisionError), pagemap.track(bounds(memory)) as tracker:
            raise ZeroDivisionError
        assert tracker.closed


def test_one_after_the_other():
    with plain() as memory:
        for _ in range(50):
            with pagemap.track(bounds(memory)) as tracker:
                memory.write(3)
                assert pages_in(tracker.collect(), memory) == {3}


def test_forgotten_is_said():
    with plain() as memory:
        tracker = pagemap.track(bounds(memory))
        with pytest.warns(ResourceWarning, match="unclosed <DirtyTracker"):
            del tracker
        assert not is_registered(memory)


def test_forgotten_at_the_end_of_the_interpreter():
    code = """
    import warnings, pagemap
    warnings.simplefilter("ignore")
    buffer = bytearray(1 << 20)
    tracker = pagemap.track(buffer)
    buffer[0] = 1
    """
    assert children.run(code) == ""


def test_answers_outlive_the_tracker():
    with plain() as memory:
        with pagemap.track(bounds(memory)) as tracker:
            memory.write(*range(0, PAGES, 2))
            found = tracker.collect()
        gc.collect()
        assert pages_in(found, memory) == set(range(0, PAGES, 2))


def test_answers_are_the_callers_own():
    with plain() as memory, pagemap.track(bounds(memory)) as tracker:
        memory.write(1)
        first = tracker.collect()
        memory.write(2, 5)
        before = first.copy()
        second = tracker.peek()
        second["start"] = 0
        assert first.tolist() == before.tolist()
        assert pages_in(tracker.collect(), memory) == {2, 5}


# What it keeps alive


def test_buffers_live_until_it_is_closed():
    class Array(np.ndarray):
        pass

    array = np.zeros(1 << 20, np.uint8).view(Array)
    gone = weakref.ref(array)
    tracker = pagemap.track(array)
    del array
    gc.collect()
    assert gone() is not None
    tracker.close()
    gc.collect()
    assert gone() is None


def test_buffers_cannot_move_until_it_is_closed():
    array, mapping = bytearray(1 << 20), mmap.mmap(-1, 1 << 20)
    tracker = pagemap.track(array, mapping)
    with pytest.raises(BufferError):
        array.extend(b"more")
    with pytest.raises(BufferError):
        mapping.close()
    tracker.close()
    array.extend(b"more")
    mapping.close()


def test_a_refused_tracker_keeps_nothing():
    array = bytearray(1 << 20)
    with pagemap.track(array), pytest.raises(OSError, match="another userfaultfd"):
        pagemap.track(array)
    gc.collect()
    array.extend(b"more")


# Rounds


def test_rounds():
    with plain() as memory, pagemap.track(bounds(memory)) as tracker:
        begin = time.monotonic_ns()
        seen, stamps = [], []
        for number, (stamp, found) in enumerate(tracker.rounds(0.02, 5)):
            stamps.append(stamp)
            seen.append(pages_in(found, memory))
            memory.write(number)
        assert seen == [set(), {0}, {1}, {2}, {3}]
        assert all(stamp - begin >= 19.9e6 * number for number, stamp in enumerate(stamps, 1))
        assert stamps[-1] <= time.monotonic_ns()
        assert pages_in(tracker.collect(), memory) == {4}


def test_a_late_round_is_not_made_up_for():
    with plain() as memory, pagemap.track(bounds(memory)) as tracker:
        rounds = tracker.rounds(0.02)
        next(rounds)
        time.sleep(0.2)
        begin = time.monotonic_ns()
        stamps = [next(rounds)[0] for _ in range(4)]  # at once, then each 20 ms: not ten in a row
        assert stamps[-1] - begin >= 55e6


def test_rounds_end_as_they_are_told():
    with plain() as memory, pagemap.track(bounds(memory)) as tracker:
        assert list(tracker.rounds(0, 0)) == []
        assert len(list(tracker.rounds(0, 3))) == 3
        endless = tracker.rounds(0)
        for _ in range(20):
            next(endless)
        endless.close()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((-1,), ValueError), ((float("nan"),), ValueError), ((0, -1), ValueError), ((0, 1.5), TypeError)],
)
def test_bad_rounds_are_refused_at_once(arguments, error):
    with plain() as memory, pagemap.track(bounds(memory)) as tracker, pytest.raises(error):
        tracker.rounds(*arguments)


# Threads


def test_threads_share_one():
    """What several threads collect is together what was written: no page gets lost between them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with Memory(2048) as memory, pagemap.track(bounds(memory)) as tracker:
            seen, errors, done = [[] for _ in range(3)], [], threading.Event()

            def collect(mine, budget):
                try:
                    while not done.is_set():
                        mine.append(tracker.collect(budget))
                        tracker.peek()
                except BaseException as error:
                    errors.append(error)

            threads = [
                threading.Thread(target=collect, args=pair)
                for pair in zip(seen, (None, None, 50), strict=True)
            ]
            for thread in threads:
                thread.start()
            for page in range(2048):
                memory.write(page)
                if page % 100 == 0:
                    time.sleep(0.002)
            done.set()
            for thread in threads:
                thread.join(30)
                assert not thread.is_alive()
            assert errors == []
            rest = pages_in(tracker.collect(), memory)
            parts = [set().union(*(pages_in(found, memory) for found in mine)) for mine in seen]
            assert rest.union(*parts) == set(range(2048))
    finally:
        sys.setswitchinterval(before)


def test_what_is_refused_while_another_thread_is_in_a_round():
    with children.idle() as target, pagemap.attach(target.pid) as tracker:
        registration = tracker._registration
        refused = tracker.refused
        assert refused

        class Meanwhile(list):
            def __iter__(self):
                for vma in super().__iter__():
                    if (vma.start, vma.end) in registration.refused:
                        registration.refused = {}
                    yield vma

        registration.table = Meanwhile(registration.table)
        assert {vma.start for vma, _ in tracker.refused} == {vma.start for vma, _ in refused}


def test_what_lies_between_two_ranges_is_left_alone():
    with plain(24) as memory:
        first, middle, last = range(8), range(8, 16), range(16, 24)
        parts = [(memory.start + r.start * PAGE, memory.start + r.stop * PAGE) for r in (first, middle, last)]
        with pagemap.track(parts[0], parts[2]) as outer, pagemap.track(parts[1]) as inner:
            assert outer.refused == inner.refused == []
            memory.write(*range(24))
            assert pages_in(outer.collect(), memory) == {*first, *last}
            assert pages_in(inner.collect(), memory) == {*middle}


def test_closed_by_another_thread():
    for turn in range(30):
        with plain() as memory:
            tracker = pagemap.track(bounds(memory))
            outcomes = []

            def collect(tracker=tracker, outcomes=outcomes):
                try:
                    while True:
                        tracker.collect()
                except ValueError as error:
                    outcomes.append(str(error))

            thread = threading.Thread(target=collect)
            thread.start()
            time.sleep(turn * 1e-4)
            tracker.close()
            thread.join(30)
            assert outcomes == ["this tracker is closed"]
            assert not is_registered(memory)


# Memory that vanishes in the middle of a call


@pytest.fixture
def before_protecting(monkeypatch):
    """Things to do before the userfaultfd is asked to protect one page, in their order."""
    do = []
    protect = pagemap.uffd.Userfault.protect

    def interfering(self, start, end):
        if do and end - start == witness.PAGE:
            do.pop(0)()
        protect(self, start, end)

    monkeypatch.setattr(pagemap.uffd.Userfault, "protect", interfering)
    return do


def test_a_huge_page_unmapped_before_it_is_split(need, before_protecting):
    need("thp")
    with huge(3) as memory:
        before_protecting.append(lambda: memory.unmap(0, 512))
        with pagemap.track(bounds(memory), granularity="page") as tracker:
            assert before_protecting == []
            tracker.collect()
            memory.write(700, 1100)
            assert pages_in(tracker.collect(), memory) == {700, 1100}


def test_hugetlb_unmapped_before_it_is_protected(need, monkeypatch):
    need("hugetlb")
    with hugetlb(PRIVATE, 3) as memory:
        memory.write(0, 1024)
        with pagemap.track(bounds(memory)) as tracker:
            memory.write(0, 1024)
            registration = pagemap.registration.Registration
            protect = registration.protect

            def interfering(self, start, end):
                monkeypatch.setattr(registration, "protect", protect)
                memory.unmap(0, 512)
                protect(self, start, end)

            monkeypatch.setattr(registration, "protect", interfering)
            assert pages_in(tracker.collect(), memory) == whole(0, 2)
            memory.write(1030)
            assert pages_in(tracker.collect(), memory) >= whole(2)


def test_a_refusal_is_not_its_own_cause(monkeypatch):
    refusal = OSError(errno.ENOMEM, "no memory")

    def refuse(*_):
        raise refusal

    monkeypatch.setattr(pagemap.uffd.Userfault, "register", refuse)
    with plain() as memory, pytest.raises(OSError, match="no memory") as raised:
        pagemap.track(bounds(memory))
    assert raised.value is refusal
    assert refusal.__cause__ is None


# Rights that come and go


def test_rights_given_up_after_the_start(need):
    """All descriptors are open: nothing is asked anew that this user may not ask."""
    need("root")
    code = """
    import subprocess, sys
    from tracked import bounds, file_private, pages_in, plain
    target = subprocess.Popen([sys.executable, "-S", "-E", "-c", "input()"], stdin=subprocess.PIPE)
    with plain() as memory, file_private() as file, pagemap.attach(target.pid) as other:
        with pagemap.track(bounds(memory)) as one, pagemap.track(bounds(file), granularity="page") as two:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            for tracker in (one, two, other):
                tracker.collect()
            memory.write(3, 4)
            file.write(5, 9)
            assert pages_in(one.peek(), memory) == {3, 4}
            assert pages_in(two.peek(), file) == {5, 9}
            for tracker in (one, two, other):
                assert len(tracker.populated())
            assert pages_in(one.collect(), memory) == {3, 4}
            assert pages_in(two.collect(), file) == {5, 9}
            other.collect()
    target.communicate(b"the end")
    """
    children.run("import os, pagemap\n" + textwrap.dedent(code))


def test_rights_taken_back_after_the_start(need):
    """Frame numbers are shown to who may see them as the file is opened, not as it is read."""
    need("root")
    code = """
    import ctypes
    from memory import DONTNEED
    from tracked import bounds, file_private, pages_in
    assert pagemap.features()
    with file_private() as file:
        os.setresuid(65534, 65534, 0)
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, which the change of user cleared
        with pagemap.track(bounds(file)) as tracker:
            os.setresuid(0, 0, 0)
            ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
            file.write(0, 3)
            assert pages_in(tracker.collect(), file) >= {0, 3}
            file.advise(DONTNEED)
            assert pages_in(tracker.collect(), file) >= {0, 3}
    """
    children.run("import os, pagemap\n" + textwrap.dedent(code))
