"""Ctrl-C at any moment of a collect() loses nothing: what was found before it is in the next answer."""

import sys

import children
import pytest
from memory import Memory
from tracked import bounds, huge, pages_in

import pagemap


class Strike(Exception):
    pass


class Strikes:
    """Raises where CPython looks for signals: as a function begins, and as one written in C returns.

    The first comes at such a place number `first`; the second, if any, at number `second` from there on.
    """

    def __init__(self, first, second=None):
        self.first, self.second = first, second
        self.left = first

    def _profile(self, frame, event, argument):
        if event in ("call", "c_return"):
            self.left -= 1
            if self.left < 0:
                raise Strike  # which ends the profiling, too

    def _trace(self, frame, event, argument):
        if event == "exception" and argument[0] is Strike and self.second is not None:
            self.left, self.second = self.second, None
            sys.setprofile(self._profile)
        frame.f_trace_lines = False
        return self._trace

    def hit(self, function, *arguments):
        """(answer, None), or (None, Strike)."""
        try:
            sys.settrace(None if self.second is None else self._trace)
            sys.setprofile(self._profile)
            try:
                return function(*arguments), None
            finally:
                sys.setprofile(None)
                sys.settrace(None)
        except Strike as strike:
            sys.setprofile(None)
            sys.settrace(None)
            return None, strike


def small_buffers(monkeypatch):
    """What a walk finds does not fit: the buffer grows in the middle of it."""
    monkeypatch.setattr(pagemap.tracker, "FIRST", 4)
    monkeypatch.setattr(pagemap.tracker, "HUGE_REGIONS", 8)


MADE = {
    "plain": (lambda: Memory(64), "native", None),
    "budget": (lambda: Memory(64), "native", 2),
    "split": (lambda: huge(1), "page", None),
    "overflow": (lambda: Memory(64), "native", None),
}


# Struck in a destructor, or before a file was closed: said by warnings.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("peek", [False, True])
@pytest.mark.parametrize("made", MADE)
def test_struck_at_every_place(need, monkeypatch, made, peek, twice):
    """With `peek`, somebody looks before the next collect(): what is seen is all there, and stays there."""
    make, granularity, budget = MADE[made]
    need("wp_async")
    if made == "overflow":
        small_buffers(monkeypatch)
    with make() as memory, pagemap.track(bounds(memory), granularity=granularity) as tracker:
        first, struck = 0, True
        while struck:
            written = {first % 50, 55, 60 + first % 3}
            if made == "overflow":
                written |= set(range(first % 2, 50, 2))
            memory.write(*written)
            second = first * 7 % 6 if twice else None
            answer, struck = Strikes(first, second).hit(tracker.collect, budget)
            seen = set() if struck else pages_in(answer, memory)
            if peek:
                shown = seen | pages_in(tracker.peek(), memory)
                assert shown >= written, (first, second, written - shown)
            seen |= pages_in(tracker.collect(), memory)
            assert seen >= written, (first, second, written - seen)
            first += 1
        assert first > 20
        assert pages_in(tracker.collect(), memory) == set()


CODE = """
import random, signal, sys
import pagemap
from memory import Memory
from tracked import bounds, pages_in

pick = random.Random(5)

class Strike(Exception):
    pass

def strike(number, frame):
    global strikes
    if armed:
        strikes += 1
        signal.setitimer(signal.ITIMER_REAL, pick.uniform(1e-6, 60e-6))
        raise Strike

armed, strikes = False, 0
signal.signal(signal.SIGALRM, strike)
with Memory(4096) as memory, pagemap.track(bounds(memory)) as tracker:
    for number in range(250):
        written = set(pick.sample(range(memory.pages), pick.choice([1, 40, 900])))
        memory.write(*written)
        seen = []
        for attempt in range(4):
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, pick.uniform(1e-6, 400e-6))
                seen.append(tracker.collect({budget}))
            except Strike:
                pass
            finally:
                armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        seen.append(tracker.collect())
        assert written <= set().union(*(pages_in(found, memory) for found in seen))
print(strikes)
"""


@pytest.mark.parametrize("budget", [None, 50])
def test_struck_by_real_signals(need, budget):
    need("wp_async")
    strikes = int(children.run(CODE.format(budget=budget)))
    assert strikes > 50


HANDLED = """
import sys
import pagemap, witness
from memory import Memory
from tracked import bounds, is_registered, pages_in

class Call:
    def __init__(self, place, call):
        self.left, self.call, self.came = place, call, False

    def __call__(self, frame, event, argument):  # as a signal handler: between two steps of the same thread
        if event in ("call", "c_return"):
            self.left -= 1
            if self.left < 0:
                sys.setprofile(None)
                self.came = True
                self.call()

def interrupted(place, tracker, call):
    handler = Call(place, call)
    sys.setprofile(handler)
    try:
        return handler, tracker.{method}()
    except ValueError as error:
        assert "closed" in str(error), error
        return handler, None
    finally:
        sys.setprofile(None)

with Memory(64) as memory:
    place, came = 0, True
{body}
    assert place > 20, place
"""

CLOSES = """
    while came:
        tracker = pagemap.track(bounds(memory))
        memory.write(3, place % 64)
        handler, answer = interrupted(place, tracker, tracker.close)
        came = handler.came
        if answer is not None:
            assert pages_in(answer, memory) == {3, place % 64}
        assert tracker.closed == came
        assert is_registered(memory) != came, place
        tracker.close()
        place += 1
"""

ASKS = """
    refusals = 0
    with pagemap.track(bounds(memory)) as tracker:
        def ask():
            global refusals
            for call in (tracker.collect, tracker.peek, tracker.populated, tracker.reset):
                try:
                    call()
                except RuntimeError as error:
                    assert "signal handler" in str(error), error
                    refusals += 1

        while came:
            tracker.collect()
            handler, answer = interrupted(place, tracker, ask)
            came = handler.came
            place += 1
            memory.write(3, place % 64)
            assert pages_in(tracker.collect(), memory) == {3, place % 64}
    assert refusals > 60, refusals
"""


@pytest.mark.parametrize("method", ["collect", "peek"])
@pytest.mark.parametrize("body", [CLOSES, ASKS], ids=["close", "other"])
def test_called_from_a_handler_of_a_signal_that_interrupts_it(need, body, method):
    """It does not wait for itself: close() comes as the interrupted call ends, all else is refused."""
    need("wp_async")
    children.run(HANDLED.replace("{method}", method).replace("{body}", body))
