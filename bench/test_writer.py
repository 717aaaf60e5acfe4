"""What tracking costs the writer: the first store to a page in each round."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

import pagemap
from pagemap import features

from . import baseline
from .alternatives import Alternative, Spans
from .conftest import Pair, Scale
from .memory import GIB, Memory, anonymous

NO_ANSWER: Spans = np.empty((0, 2), np.uint64)
STEPS = {"4 KiB pages": (1, False), "huge pages, one store in each": (512, True)}


def stores(name: str, memory: Memory, step: int) -> Alternative:
    def run() -> None:
        baseline.touch(memory.start, memory.end, step)

    return Alternative(name, run, lambda: NO_ANSWER)


@contextmanager
def tracked(memory: Memory) -> Iterator[pagemap.Tracker]:
    with pagemap.track(memory.array) as tracker:
        yield tracker


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("barrier", ["track", "mprotect"])
def test_first_store(pair: Pair, scale: Scale, kind: str, barrier: str) -> None:
    """Against stores to the same memory that nobody tracks; both are stores to memory that is populated."""
    if not features().wp_async:
        pytest.skip(features().why["wp_async"])
    step, huge = STEPS[kind]
    size = scale.size((4 if huge else 1) * GIB)
    with anonymous(size, huge=huge) as memory, anonymous(size, huge=huge) as free:
        count = memory.pages // step
        plain = stores("store, not tracked", free, step)
        if barrier == "track":
            with tracked(memory) as tracker:
                other = stores("first store, tracked", memory, step)
                pair(f"writer: {kind}", plain, other, before=tracker.collect, compare=None, each=count)
        else:
            with baseline.Barrier(memory.start, memory.end) as protected:
                other = stores("first store, mprotect + SIGSEGV", memory, step)
                pair(f"writer: {kind}", plain, other, before=protected.collect, compare=None, each=count)
