"""Lives of PageMaps and trackers in any order: opened, asked, shared with forks, closed, their target dying
at any step. A model says which calls answer and which refuse; nothing is left behind at the end.

No scan begins at address 0: under a sanitizer, terabytes of shadow would take the `read` engine a minute."""

import contextlib
import gc
import os
import traceback

import children
import machine
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from memory import Memory
from witness import PAGE

import pagemap
from pagemap import PageMap, Query

PAGES = 16


def descriptors():
    return sorted(os.listdir("/proc/self/fd"))


def in_a_fork(task):
    """Runs it in a fork of this process, which must find it true, within a minute."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if task() else 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def refuses(error, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except error:
        return True
    return False


class Lives(RuleBasedStateMachine):
    """`mine` and `theirs`: PageMaps of this process and of a target; `trackers`: of this process's memory;
    `attached`: of the target's."""

    mine = Bundle("mine")
    theirs = Bundle("theirs")
    trackers = Bundle("trackers")
    attached = Bundle("attached")
    pages = st.sets(st.integers(0, PAGES - 1), min_size=1, max_size=5)
    engines = st.sampled_from(["read"] if machine.PROBES["scan"]() else ["scan", "read"])
    may_track = machine.PROBES["scan"]() is None and machine.PROBES["wp_async"]() is None

    def __init__(self):
        super().__init__()
        gc.collect()
        self.before = descriptors()
        self.keep = contextlib.ExitStack()
        self.memory = self.keep.enter_context(Memory(PAGES))
        self.memory.write(*range(PAGES))
        self.area = {"start": self.memory.start, "end": self.memory.end}
        self.target = self.keep.enter_context(children.idle())
        self.alive = True
        self.tracker = None  # one tracker at a time holds the memory
        self.written = set()
        self.follower = None  # and one userfaultfd the target's
        self.everything = []

    def teardown(self):
        for thing in self.everything:
            thing.close()
        assert self.tracker is None or self.tracker.closed
        self.keep.close()
        self.everything.clear()
        self.tracker = self.follower = None
        gc.collect()
        assert descriptors() == self.before

    def opened(self, thing):
        self.everything.append(thing)
        return thing

    # PageMaps

    @rule(target=mine, engine=engines)
    def open_mine(self, engine):
        return self.opened(PageMap(engine=engine))

    @rule(target=theirs, engine=engines)
    def open_theirs(self, engine):
        if self.alive:
            return self.opened(PageMap(self.target.pid, engine=engine))
        assert refuses(ProcessLookupError, PageMap, self.target.pid, engine=engine)
        return multiple()

    @rule(pm=mine, batch=st.integers(1, PAGES))
    def ask_mine(self, pm, batch):
        if pm.closed:
            assert refuses(ValueError, pm.scan)
            assert refuses(ValueError, pm.iter_scan)
            assert refuses(ValueError, pm.vmas)
            return
        assert pagemap.regions.page_count(pm.scan(Query.PRESENT, **self.area)) == PAGES
        assert sum(map(len, pm.iter_scan(Query.PRESENT, **self.area, batch_size=batch))) >= 1
        assert pm.vmas().find(self.memory.start) is not None

    @rule(pm=theirs)
    def ask_theirs(self, pm):
        if pm.closed:
            assert refuses(ValueError, pm.scan)
        elif self.alive:
            vmas = pm.vmas()
            stack = vmas[vmas.names.index("[stack]")]
            assert len(pm.scan(start=stack.start, max_pages=50)) > 0
        else:
            assert refuses(ProcessLookupError, pm.vmas)
            assert refuses(ProcessLookupError, pm.entries, 0, PAGE)
            if pm.engine == "scan":
                assert refuses(ProcessLookupError, pm.scan)

    @rule(pm=mine)
    def close_in_mid_iteration(self, pm):
        if not pm.closed:
            batches = pm.iter_scan(Query.PRESENT, start=self.memory.start, batch_size=1)
            first = next(batches)
            copy = first.copy()
            pm.close()
            assert refuses(ValueError, next, batches)
            assert (first == copy).all()

    @rule(pm=consumes(mine))
    def close_mine(self, pm):
        pm.close()
        pm.close()

    @rule(pm=consumes(theirs))
    def close_theirs(self, pm):
        pm.close()

    # Forks

    @rule(pm=mine)
    def a_fork_asks_the_parents(self, pm):
        error = ValueError if pm.closed else RuntimeError
        in_a_fork(lambda: refuses(error, pm.scan) and pagemap.scan(**self.area).size > 0)
        in_a_fork(lambda: pm.close() is None)
        self.ask_mine(pm, 3)

    @rule(pm=theirs)
    def a_fork_asks_the_target(self, pm):
        def ask():
            self.ask_theirs(pm)
            pm.close()
            return True

        in_a_fork(ask)

    # Trackers of this process

    @precondition(lambda self: self.may_track)
    @rule(target=trackers)
    def track(self):
        bounds = (self.memory.start, self.memory.end)
        if self.tracker is not None and not self.tracker.closed:
            assert refuses(OSError, pagemap.track, bounds)
            return multiple()
        self.tracker = self.opened(pagemap.track(bounds))
        self.written = set()
        return self.tracker

    @rule(pages=pages)
    def write(self, pages):
        self.memory.write(*pages)
        self.written |= pages

    def pages_of(self, found):
        return {
            (address - self.memory.start) // PAGE
            for region in found
            for address in range(int(region["start"]), int(region["end"]), PAGE)
        }

    @rule(tracker=trackers, few=st.none() | st.integers(0, 4))
    def collect(self, tracker, few):
        if tracker.closed:
            assert refuses(ValueError, tracker.collect)
            assert refuses(ValueError, tracker.peek)
            return
        assert self.pages_of(tracker.peek()) == self.written
        found = self.pages_of(tracker.collect(few))
        assert found <= self.written
        assert len(found) == len(self.written) if few is None else len(found) == min(few, len(self.written))
        self.written -= found

    @rule(tracker=trackers)
    def forget(self, tracker):
        if tracker.closed:
            assert refuses(ValueError, tracker.reset)
        else:
            tracker.reset()
            self.written = set()

    @rule(tracker=trackers, pages=pages, close=st.booleans())
    def a_fork_uses_the_tracker(self, tracker, pages, close):
        """What it writes is its own, and the parent goes on as if there had been none."""

        def use():
            self.memory.write(*pages)
            refused = refuses((RuntimeError, ValueError), tracker.collect)
            if close:
                tracker.close()
            with pagemap.track((self.memory.start, self.memory.end)) as own:
                self.memory.write(1)
                return refused and self.pages_of(own.collect()) == {1}

        in_a_fork(use)
        if not tracker.closed:
            assert self.pages_of(tracker.peek()) == self.written

    @rule(tracker=consumes(trackers))
    def stop(self, tracker):
        tracker.close()
        tracker.close()

    # Trackers of the target

    @precondition(lambda self: self.may_track)
    @rule(target=attached)
    def attach(self):
        if not self.alive:
            assert refuses(ProcessLookupError, pagemap.attach, self.target.pid)
            return multiple()
        if self.follower is not None and not self.follower.closed:
            return multiple()
        self.follower = self.opened(pagemap.attach(self.target.pid))
        return self.follower

    @rule(tracker=attached)
    def collect_theirs(self, tracker):
        if tracker.closed:
            assert refuses(ValueError, tracker.collect)
        elif self.alive:
            tracker.collect()
            self.target.ask("word")
            assert len(tracker.collect()) > 0
        else:
            assert refuses(ProcessLookupError, tracker.collect)

    @rule(tracker=consumes(attached))
    def detach(self, tracker):
        tracker.close()

    # The target

    @precondition(lambda self: self.alive)
    @rule()
    def speak(self):
        assert self.target.ask("hello") == "hello"

    @precondition(lambda self: self.alive)
    @rule(reap=st.booleans())
    def die(self, reap):
        self.target.kill()
        if reap:
            self.target.reap()
        self.alive = False

    @invariant()
    def descriptors_are_bounded(self):
        still_open = sum(not thing.closed for thing in self.everything)
        assert len(descriptors()) <= len(self.before) + 2 + 3 * still_open


def test_lives():
    run_state_machine_as_test(
        Lives, settings=settings(max_examples=25, stateful_step_count=25, deadline=None)
    )


def test_close_closes_at_once_whatever_was_refused_before():
    """With no help of the garbage collector: no exception that was caught keeps a file open."""
    with children.idle() as target:
        pagemap.features()
        before = descriptors()
        gc.disable()
        try:
            pm = PageMap(target.pid)
            target.kill()
            for call in (pm.scan, pm.vmas, lambda: pm.entries(0, PAGE), lambda: list(pm.iter_scan())):
                assert refuses(ProcessLookupError, call)
            pm.close()
            assert descriptors() == before
        finally:
            gc.enable()
