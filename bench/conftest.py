"""The pair: two alternatives on the same memory, in turns, so that what disturbs one disturbs both."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pagemap import PageMap

from .alternatives import Alternative


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="small memory, few rounds: under a minute")


@dataclass(frozen=True)
class Scale:
    quick: bool

    def size(self, nbytes: int) -> int:
        return nbytes // 32 if self.quick else nbytes

    @property
    def seconds(self) -> float:
        """What a pair may take."""
        return 0.12 if self.quick else 2.5


@pytest.fixture(scope="session")
def scale(request: pytest.FixtureRequest) -> Scale:
    return Scale(request.config.getoption("--quick"))


@pytest.fixture(scope="session")
def pm() -> Iterator[PageMap]:
    with PageMap(engine="scan") as pagemap:
        yield pagemap


@pytest.fixture(scope="session")
def reader() -> Iterator[PageMap]:
    with PageMap(engine="read") as pagemap:
        yield pagemap


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def same_answer(ours: Alternative, other: Alternative) -> None:
    """Where one ran on a part of the range, that part is compared."""
    a, b = ours.answer(), other.answer()
    if other.part < 1 and len(b):
        end = b[-1, 1]
        a = a[a[:, 0] < end]
        a = np.minimum(a, end)
    np.testing.assert_array_equal(a, b, err_msg=f"{ours.name} and {other.name} differ")


_peaks: list[dict[str, Any]] = []


@pytest.fixture(scope="session")
def peaks() -> list[dict[str, Any]]:
    return _peaks


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    output_json["peaks"] = _peaks


Pair = Callable[..., dict[str, Any]]
MIN_ROUNDS, MAX_ROUNDS = 3, 400


@pytest.fixture
def pair(benchmark: BenchmarkFixture, scale: Scale) -> Pair:
    """pair(group, ours, other): runs both in turns and records other / ours, round by round.

    pytest-benchmark times `other`; `ours` is timed in the set-up of each round. Each is timed right after
    an untimed run of its own, so that neither pays for what the other did to the caches, or after `before`,
    which brings the memory into the same state. `each`: calls in one run. `pages`: what a run looks at.
    """

    def run(
        group: str,
        ours: Alternative,
        other: Alternative,
        *,
        before: Callable[[], object] | None = None,
        compare: Callable[[Alternative, Alternative], None] | None = same_answer,
        each: int = 1,
        pages: int | None = None,
    ) -> dict[str, Any]:
        if compare is not None:
            compare(ours, other)
        mine: list[float] = []

        def ready(alternative: Alternative) -> None:
            if before is None:
                alternative.run()
            else:
                before()

        def turn() -> None:
            ready(ours)
            began = time.perf_counter()
            result = ours.run()
            mine.append(time.perf_counter() - began)
            del result
            ready(other)

        began = time.perf_counter()
        turn()
        other.run()
        once = time.perf_counter() - began
        rounds = int(min(max(scale.seconds / once, MIN_ROUNDS), MAX_ROUNDS))
        mine.clear()
        gc.collect()
        benchmark.group = group
        pedantic: Callable[..., object] = benchmark.pedantic
        pedantic(other.run, setup=turn, rounds=rounds, iterations=1, warmup_rounds=1)
        assert benchmark.stats is not None
        theirs = [t / other.part for t in benchmark.stats.stats.data]
        mine = mine[-len(theirs) :]
        benchmark.extra_info.update(
            ours=ours.name,
            other=other.name,
            part=other.part,
            pages=pages,
            rounds=rounds,
            ours_seconds=spread([t / each for t in mine]),
            other_seconds=spread([t / each for t in theirs]),
            ratio=spread([b / a for a, b in zip(mine, theirs, strict=True)]),
        )
        return benchmark.extra_info

    return run
