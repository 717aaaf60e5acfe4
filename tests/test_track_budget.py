"""max_pages: a budget that goes on where it stopped, and holds nothing back for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory import Memory
from tracked import PAGES, bounds, pages_in, plain

import pagemap


@pytest.fixture(autouse=True)
def kernel(need):
    need("wp_async")


def test_in_portions():
    with plain() as memory, pagemap.track(bounds(memory)) as tracker:
        memory.write(*range(10, 40))
        seen = [pages_in(tracker.collect(7), memory) for _ in range(6)]
        assert [len(part) for part in seen] == [7, 7, 7, 7, 2, 0]
        assert set().union(*seen) == set(range(10, 40))


def test_no_pages_is_no_pages_and_not_all():
    with plain() as memory, pagemap.track(bounds(memory)) as tracker:
        memory.write(1, 2, 3)
        assert len(tracker.collect(0)) == 0
        assert len(tracker.collect(max_pages=0)) == 0
        assert pages_in(tracker.peek(), memory) == {1, 2, 3}
        assert pages_in(tracker.collect(), memory) == {1, 2, 3}


def test_what_the_budget_left_is_seen_by_all_the_others():
    with plain() as memory, pagemap.track(bounds(memory)) as tracker:
        memory.write(*range(8))
        first = pages_in(tracker.collect(3), memory)
        assert pages_in(tracker.peek(), memory) == set(range(8)) - first
        memory.write(30)
        assert pages_in(tracker.collect(), memory) == (set(range(8)) | {30}) - first
        memory.write(*range(8))
        tracker.collect(3)
        tracker.reset()
        assert len(tracker.peek()) == len(tracker.collect()) == 0


def test_busy_pages_at_low_addresses_do_not_starve_the_others():
    with Memory(PAGES) as memory, pagemap.track(bounds(memory)) as tracker:
        memory.write(*range(PAGES))
        seen = set()
        for _ in range(PAGES // 4):
            seen |= pages_in(tracker.collect(4), memory)
            memory.write(*range(8))
        assert seen == set(range(PAGES))


TURNS = st.tuples(st.sets(st.integers(0, PAGES - 1), max_size=10), st.integers(0, 12))


@given(st.lists(TURNS, min_size=1, max_size=30))
def test_against_a_queue(turns):
    """Each written page comes, none twice for one write unless it was waiting as it was written again."""
    with Memory(PAGES) as memory, pagemap.track(bounds(memory)) as tracker:
        waiting, again = set(), set()
        for written, budget in [*turns, *[(set(), 1)] * PAGES]:
            memory.write(*written)
            again |= waiting & written
            waiting |= written
            found = pages_in(tracker.collect(budget), memory)
            assert found <= waiting | again
            assert len(found) == budget or waiting <= found
            assert len(found) <= budget
            again -= found - waiting
            waiting -= found
        assert not waiting
        assert len(tracker.collect()) == 0


@pytest.mark.parametrize(
    ("budget", "error"), [(-1, ValueError), (1.0, TypeError), ("3", TypeError), (2**80, None), (True, None)]
)
def test_what_is_a_budget(budget, error):
    with plain() as memory, pagemap.track(bounds(memory)) as tracker:
        memory.write(1)
        if error is None:
            assert pages_in(tracker.collect(budget), memory) == {1}
        else:
            with pytest.raises(error, match="max_pages"):
                tracker.collect(budget)
            assert pages_in(tracker.collect(), memory) == {1}  # and nothing was lost to it
