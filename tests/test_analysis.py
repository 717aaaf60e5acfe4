"""Analyses of series: known answers, the definitions in plain Python, and any way to cut a series."""

from __future__ import annotations

import pickle
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagemap import analysis, regions
from pagemap.analysis import Series
from pagemap.categories import PAGE_SIZE, REGION_DTYPE, Category
from pagemap.query import Query

SECOND = 1_000_000_000
BASE = 0x7F00_0000_0000
WRITTEN = int(Category.WRITTEN)


def pages_to_regions(pages: set[int], base: int = BASE) -> np.ndarray:
    rows = [(base + p * PAGE_SIZE, base + (p + 1) * PAGE_SIZE, WRITTEN) for p in sorted(pages)]
    return regions.coalesce(np.array(rows, REGION_DTYPE))


def series_of(samples: list[set[int]], step: int = SECOND, base: int = BASE) -> Series:
    """Sample i, of these pages, is taken at (i + 1) * step; the first interval begins at 0."""
    return Series.from_samples(
        [((i + 1) * step, pages_to_regions(pages, base)) for i, pages in enumerate(samples)], begin_ns=0
    )


def square_wave(periods: int, on: int, off: int, pages: int) -> list[set[int]]:
    """`pages` pages written in each of `on` samples, then nothing in `off` samples."""
    return ([set(range(pages))] * on + [set()] * off) * periods


def moving_window(samples: int, width: int) -> list[set[int]]:
    """`width` new pages in every sample, next to the ones before: no page is ever written twice."""
    return [set(range(i * width, (i + 1) * width)) for i in range(samples)]


def random_walk(samples: int, seed: int = 5) -> list[set[int]]:
    rng = np.random.default_rng(seed)
    position, result = 100, []
    for _ in range(samples):
        steps = position + np.cumsum(rng.integers(-3, 4, rng.integers(0, 12)))
        position = int(steps[-1]) if steps.size else position
        result.append({int(abs(p)) for p in steps})
    return result


# ---- the definitions in plain Python, page by page ----


def windows_by_definition(times: list[int], begin: int, samples: list[set[int]], tau: int) -> list[int]:
    begins = [begin, *times[:-1]]
    sizes = []
    for i, now in enumerate(times):
        written = set(samples[i])
        for j in range(i):
            if begins[j] + times[j] > 2 * (now - tau):
                written |= samples[j]
        sizes.append(len(written))
    return sizes


def gaps_by_definition(times: list[int], samples: list[set[int]]) -> list[int]:
    last: dict[int, int] = {}
    gaps = []
    for now, pages in zip(times, samples, strict=True):
        for page in pages:
            if page in last:
                gaps.append(now - last[page])
            last[page] = now
    return gaps


def runs_by_definition(samples: list[set[int]]) -> Counter[int]:
    lengths: Counter[int] = Counter()
    for pages in samples:
        for page in pages:
            if page - 1 not in pages:
                length = 1
                while page + length in pages:
                    length += 1
                lengths[length] += 1
    return lengths


@st.composite
def random_series(draw: st.DrawFn) -> tuple[Series, list[set[int]]]:
    base = draw(st.sampled_from([0, BASE, (1 << 47) - 64 * PAGE_SIZE, 1 << 56]))
    steps = draw(st.lists(st.integers(1, 10), max_size=12))
    samples = [draw(st.sets(st.integers(0, 40), max_size=25)) for _ in steps]
    lead = draw(st.integers(0, 5))
    times = [lead + t for t in np.cumsum(steps).tolist()]
    begin = draw(st.sampled_from([times[0], times[0] - lead, times[0] - 7])) if times else 0
    pairs = []
    for t, pages in zip(times, samples, strict=True):
        # Two categories, so that pages which touch may be in two regions.
        r = np.concatenate(
            [
                pages_to_regions({p for p in pages if p % 3}, base),
                regions.relabel(pages_to_regions({p for p in pages if p % 3 == 0}, base), 9),
            ]
        )
        pairs.append((t, regions.coalesce(r)))
    return Series.from_samples(pairs, begin_ns=begin), samples


@given(random_series(), st.integers(1, 9))
@settings(max_examples=150)
def test_every_definition(case: tuple[Series, list[set[int]]], tau: int) -> None:
    series, samples = case
    times, begin = series.time_ns.tolist(), series.begin_ns
    taus = [tau, tau * 3, tau * 3 + 1]

    rate = analysis.dirty_rate(series)
    assert rate.pages.tolist() == [len(pages) for pages in samples]
    assert rate.duration_ns.tolist() == np.diff([begin, *times]).tolist()

    curve = analysis.working_set(series, taus)
    for k, length in enumerate(taus):
        sizes = windows_by_definition(times, begin, samples, length)
        assert curve.sizes[k].tolist() == sizes
        complete = [size for size, now in zip(sizes, times, strict=True) if now - begin >= length]
        assert curve.windows[k] == len(complete)
        assert curve.total_pages[k] == sum(complete)
        assert curve.max_pages[k] == max(complete, default=0)
        assert curve.min_pages[k] == min(complete, default=0)

    intervals = analysis.redirty_intervals(series, taus)
    gaps = gaps_by_definition(times, samples)
    expected = np.histogram(gaps, [0, *taus, 1 << 62])[0].tolist()
    assert intervals.writes.tolist() == expected
    seen = Counter(page for pages in samples for page in pages)
    assert intervals.pages == len(seen)
    assert intervals.once == sum(1 for count in seen.values() if count == 1)

    lengths = analysis.run_lengths(series)
    counted = runs_by_definition(samples)
    for low, high, runs, pages in zip(
        lengths.edges, lengths.edges[1:], lengths.runs, lengths.pages, strict=False
    ):
        inside = {length: count for length, count in counted.items() if low <= length < high}
        assert (runs, pages) == (sum(inside.values()), sum(k * v for k, v in inside.items()))
    assert lengths.runs.sum() == sum(counted.values())

    heat = analysis.heat(series)
    found = Counter(
        {
            page: count
            for start, end, count in zip(
                heat.start.tolist(), heat.end.tolist(), heat.samples.tolist(), strict=True
            )
            for page in range(start // PAGE_SIZE, end // PAGE_SIZE)
        }
    )
    assert sorted(found.values()) == sorted(seen.values())
    assert found.total() == sum(map(len, samples))


ANALYSES: list[Callable[[Any], Any]] = [
    analysis.dirty_rate,
    analysis.run_lengths,
    analysis.redirty_intervals,
    analysis.heat,
    lambda s: analysis.working_set(s, [2, 5, 11]),
    lambda s: analysis.redirty_intervals(s, [3, 6]),
    lambda s: analysis.heatmap(s, rows=3, columns=5, min_hole=PAGE_SIZE),
    lambda s: analysis.snapshots(s, 7),
    lambda s: analysis.migrate(
        s, memory_bytes=40 * PAGE_SIZE, bandwidth=8 * SECOND * PAGE_SIZE, max_downtime_ns=2
    ),
]


def plain(value: Any) -> Any:
    """A result as plain data, to compare."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.tolist()
    if hasattr(value, "__slots__") or hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


@given(random_series(), st.data())
@settings(max_examples=60)
def test_chunks_give_the_same_answer(case: tuple[Series, list[set[int]]], data: st.DataObject) -> None:
    series, _ = case
    cuts = sorted(data.draw(st.lists(st.integers(0, len(series)), max_size=5)))
    limits = [0, *cuts, len(series)]
    pieces = [series.samples(a, b) for a, b in pairwise(limits)]
    for ask in ANALYSES:
        assert plain(ask(pieces)) == plain(ask(series))
    assert plain(analysis.dirty_rate(iter(pieces))) == plain(analysis.dirty_rate(series))


@given(random_series(), st.randoms())
@settings(max_examples=60)
def test_partial_results_join_in_any_shape_and_travel(
    case: tuple[Series, list[set[int]]], random: Any
) -> None:
    series, _ = case
    axes = analysis.HeatAxes.fit(analysis.heat(series), rows=4, columns=3, min_hole=0)
    for kind in (
        analysis.DirtyRate(),
        analysis.Contiguity(),
        analysis.WorkingSets((3, 8)),
        analysis.RedirtyIntervals((2, 4)),
        analysis.HeatCount(),
        analysis.HeatGrid(axes),
    ):
        kind = pickle.loads(pickle.dumps(kind))
        partials = [kind.map(pickle.loads(pickle.dumps(chunk))) for chunk in series.chunks(4)]
        if not partials:
            continue
        while len(partials) > 1:
            i = random.randrange(len(partials) - 1)
            partials[i : i + 2] = [pickle.loads(pickle.dumps(kind.join(partials[i], partials[i + 1])))]
        assert plain(kind.finish(partials[0])) == plain(analysis.run(kind, series))


# ---- known answers ----


def test_square_wave() -> None:
    series = series_of(square_wave(periods=6, on=2, off=3, pages=50))
    rate = analysis.dirty_rate(series)
    assert rate.pages_per_s.tolist() == [50.0, 50.0, 0.0, 0.0, 0.0] * 6
    assert rate.bytes_per_s.max() == 50 * PAGE_SIZE
    curve = analysis.working_set(series, [SECOND, 4 * SECOND, 30 * SECOND])
    assert curve.mean_pages.tolist() == [20.0, 50.0, 50.0]
    assert curve.min_pages.tolist() == [0, 50, 50]
    assert curve.windows.tolist() == [30, 27, 1]
    intervals = analysis.redirty_intervals(series, [SECOND, 2 * SECOND, 4 * SECOND, 5 * SECOND])
    assert intervals.writes.tolist() == [0, 6 * 50, 0, 5 * 50, 0]
    assert (intervals.pages, intervals.once) == (50, 0)
    heat = analysis.heat(series)
    assert (heat.start.tolist(), heat.samples.tolist()) == ([BASE], [12])


def test_moving_window() -> None:
    series = series_of(moving_window(samples=40, width=8))
    curve = analysis.working_set(series, [k * SECOND for k in (1, 2, 10, 40, 41)])
    assert curve.mean_pages[:4].tolist() == [8.0, 16.0, 80.0, 320.0]
    assert np.isnan(curve.mean_pages[4])
    assert curve.windows[4] == 0
    intervals = analysis.redirty_intervals(series)
    assert (intervals.writes.sum(), intervals.pages, intervals.once) == (0, 320, 320)
    lengths = analysis.run_lengths(series)
    assert dict(zip(lengths.edges.tolist(), lengths.runs.tolist(), strict=False)) == {1: 0, 2: 0, 4: 0, 8: 40}
    grid = analysis.heatmap(series, rows=40, columns=40)
    assert np.array_equal(grid.fraction, np.eye(40))


def test_random_walk_by_brute_force() -> None:
    samples = random_walk(300)
    series = series_of(samples)
    times = series.time_ns.tolist()
    taus = [SECOND, 5 * SECOND, 50 * SECOND, 200 * SECOND]
    curve = analysis.working_set(series, taus)
    for k, tau in enumerate(taus):
        assert curve.sizes[k].tolist() == windows_by_definition(times, 0, samples, tau)
    assert (np.diff(curve.mean_pages) > 0).all()
    gaps = gaps_by_definition(times, samples)
    assert analysis.redirty_intervals(series).writes.sum() == len(gaps)


def test_samples_that_come_late_change_nothing() -> None:
    """A recorder wakes up late: the window of five seconds holds five samples all the same."""
    rng = np.random.default_rng(2)
    exact = moving_window(60, 4)
    late = [(i + 1) * SECOND + int(rng.integers(0, SECOND // 20)) for i in range(60)]
    series = Series.from_samples(
        [(t, pages_to_regions(pages)) for t, pages in zip(late, exact, strict=True)], begin_ns=0
    )
    curve = analysis.working_set(series, [5 * SECOND])
    assert set(curve.sizes[0, 5:].tolist()) == {20}
    assert set(analysis.snapshots(series, 5 * SECOND).pages.tolist()) == {20}


def test_heat_of_pages_and_vmas() -> None:
    samples = [{0, 1, 2}, {1, 2, 9}, {2, 9}, {2}]
    series = series_of(samples)
    heat = analysis.heat(series)
    top = heat.hottest(2)
    assert top.start.tolist() == [BASE + 2 * PAGE_SIZE, BASE + 1 * PAGE_SIZE]
    assert top.samples.tolist() == [4, 2]
    vmas = np.array(
        [(BASE, BASE + 2 * PAGE_SIZE), (BASE + 2 * PAGE_SIZE, BASE + 20 * PAGE_SIZE), (0, PAGE_SIZE)],
        [("start", "<u8"), ("end", "<u8")],
    )
    table = heat.by_vma(SimpleNamespace(array=vmas))
    assert table["pages"].tolist() == [2, 2, 0]
    assert table["writes"].tolist() == [1 + 2, 4 + 2, 0]


def test_heatmap_leaves_out_holes() -> None:
    far = 1 << 40
    near, away = pages_to_regions(set(range(8))), pages_to_regions(set(range(8)), BASE + far)
    samples = [(10, near), (20, away), (30, np.concatenate((near, away))), (40, near[:0])]
    series = Series.from_samples(samples, begin_ns=0)
    grid = analysis.heatmap(series, rows=4, columns=8)
    axes = grid.axes
    assert axes.shape == grid.counts.shape == (4, 8)
    assert grid.counts.tolist() == [[2] * 4 + [0] * 4, [0] * 4 + [2] * 4, [2] * 8, [0] * 8]
    assert axes.time_ns.tolist() == [0, 10, 20, 30, 40]
    assert axes.start.tolist() == [BASE, BASE + far]
    assert axes.position.tolist() == [0, 8, 16]
    assert axes.address(np.array([0, 7, 8, 16])).tolist() == [
        BASE,
        BASE + 7 * PAGE_SIZE,
        BASE + far,
        BASE + far + 8 * PAGE_SIZE,
    ]
    coarse = analysis.heatmap(series, rows=2, columns=3)
    assert coarse.axes.capacity.tolist() == [6, 6, 4]
    assert coarse.samples.tolist() == [2, 2]
    assert coarse.counts.tolist() == [[6, 6, 4], [6, 6, 4]]
    assert coarse.fraction[0].tolist() == [0.5, 0.5, 0.5]
    kept = analysis.heatmap(series, rows=1, columns=16, min_hole=far)
    assert kept.axes.start.size == 1
    # Axes may be those of another series; what lies outside is left out.
    other = series_of([set(range(4))])
    narrow = analysis.run(analysis.HeatGrid(analysis.HeatAxes.fit(analysis.heat(other))), series)
    assert narrow.counts.sum() == 4 + 4
    with pytest.raises(TypeError, match="twice"):
        analysis.heatmap(iter([series]))
    with pytest.raises(ValueError, match="positive"):
        analysis.heatmap(series, rows=0)


@given(random_series(), st.integers(1, 6), st.integers(1, 6), st.integers(0, 30))
@settings(max_examples=60)
def test_heatmap_counts_pages(
    case: tuple[Series, list[set[int]]], rows: int, columns: int, hole: int
) -> None:
    series, samples = case
    grid = analysis.heatmap(series, rows=rows, columns=columns, min_hole=hole * PAGE_SIZE)
    axes = grid.axes
    expected = np.zeros(axes.shape, np.int64)
    for i in range(len(series)):
        row = next(r for r in range(axes.shape[0]) if series.time_ns[i] <= axes.time_ns[r + 1])
        for start, end, _ in series.regions(i).tolist():
            for address in range(start, end, PAGE_SIZE):
                piece = max(k for k in range(axes.start.size) if axes.start[k] <= address)
                assert address < axes.end[piece]
                place = int(axes.position[piece]) + (address - int(axes.start[piece])) // PAGE_SIZE
                expected[row, place // axes.column_pages] += 1
    assert grid.counts.tolist() == expected.tolist()
    assert grid.samples.sum() == len(samples)
    assert axes.shape[0] <= rows
    assert axes.shape[1] <= columns


def test_snapshots() -> None:
    series = series_of([*square_wave(periods=3, on=2, off=2, pages=10), {1, 2, 3}])
    rounds = analysis.snapshots(series, 4 * SECOND)
    assert rounds.pages.tolist() == [10, 10, 10]
    assert rounds.nbytes.tolist() == [10 * PAGE_SIZE] * 3
    assert rounds.end_ns.tolist() == [4 * SECOND, 8 * SECOND, 12 * SECOND]
    assert analysis.snapshots(series, SECOND).pages.tolist() == [10, 10, 0, 0] * 3 + [3]
    # A snapshot once in many seconds sends each page once, however often it was written.
    assert analysis.snapshots(series_of(moving_window(9, 5)), 3 * SECOND).pages.tolist() == [15, 15, 15]
    with pytest.raises(ValueError, match="positive"):
        analysis.snapshots(series, 0)


def test_migration_that_converges() -> None:
    """1000 pages, 10 dirty in each second, 100 pages/s: 10 s, 10 dirty pages left, 0.1 s downtime."""
    hot = [set(range(10))] * 100
    result = analysis.migrate(series_of(hot), memory_bytes=1000 * PAGE_SIZE, bandwidth=100 * PAGE_SIZE)
    assert result.converged is True
    assert result.rounds.pages.tolist() == [10]
    assert result.rounds.end_ns.tolist() == [10 * SECOND]
    assert result.downtime_ns == SECOND // 10
    assert result.sent_bytes == 1010 * PAGE_SIZE
    strict = analysis.migrate(
        series_of(hot), memory_bytes=1000 * PAGE_SIZE, bandwidth=100 * PAGE_SIZE, max_downtime_ns=1
    )
    assert strict.converged is False
    assert strict.rounds.pages.tolist() == [10] * 29
    assert strict.downtime_ns is None


def test_migration_that_shrinks_round_by_round() -> None:
    """New pages at 50 a second, sent at 100 a second: each round is half of the one before."""
    result = analysis.migrate(
        series_of(moving_window(100, 50)),
        memory_bytes=3200 * PAGE_SIZE,
        bandwidth=100 * PAGE_SIZE,
        max_downtime_ns=SECOND,
    )
    assert result.rounds.pages.tolist() == [1600, 800, 400, 200, 100]
    assert (result.converged, result.downtime_ns) == (True, SECOND)
    assert result.sent_bytes == 6300 * PAGE_SIZE


def test_migration_that_never_converges() -> None:
    series = series_of(moving_window(400, 200))
    result = analysis.migrate(series, memory_bytes=1000 * PAGE_SIZE, bandwidth=100 * PAGE_SIZE)
    assert result.converged is False
    assert "3 times" in result.why
    assert result.rounds.pages.tolist() == [2000, 4000]
    cut = analysis.migrate(series.samples(0, 5), memory_bytes=1000 * PAGE_SIZE, bandwidth=100 * PAGE_SIZE)
    assert cut.converged is None
    assert "round 1" in cut.why
    assert cut.rounds.pages.size == 0
    endless = analysis.migrate(series, memory_bytes=1 << 60, bandwidth=1)
    assert endless.converged is None
    for bad in ({"bandwidth": 0}, {"memory_bytes": -1}, {"max_rounds": 0}, {"max_downtime_ns": -1}):
        with pytest.raises(ValueError, match="positive"):
            analysis.migrate(series, **({"memory_bytes": 1, "bandwidth": 1} | bad))


# ---- little, and wrong, data ----


def test_nothing_at_all() -> None:
    for empty in (Series.from_samples([]), [], iter([]), [Series.from_samples([])]):
        for ask in ANALYSES[:6]:
            ask([] if isinstance(empty, Iterator) else empty)
    nothing = Series.from_samples([])
    assert analysis.dirty_rate(nothing).pages.size == 0
    assert analysis.working_set(nothing).windows.tolist() == [0]
    assert analysis.run_lengths(nothing).runs.size == 0
    assert analysis.heat(nothing).hottest().start.size == 0
    assert analysis.heatmap(nothing).counts.shape == (0, 0)
    assert analysis.snapshots(nothing, 1).pages.size == 0
    assert analysis.migrate(nothing, memory_bytes=1, bandwidth=1).converged is None
    silent = series_of([set(), set()])
    assert analysis.heatmap(silent).counts.shape == (2, 0)
    assert analysis.dirty_rate(silent).pages_per_s.tolist() == [0.0, 0.0]


def test_one_sample() -> None:
    known = series_of([{1, 2}])
    assert analysis.dirty_rate(known).pages_per_s.tolist() == [2.0]
    assert analysis.working_set(known).mean_pages.tolist() == [2.0]
    unknown = Series.from_samples([(5, pages_to_regions({1, 2}))])
    rate = analysis.dirty_rate(unknown)
    assert rate.pages.tolist() == [2]
    assert np.isnan(rate.pages_per_s).all()
    assert analysis.working_set(unknown).sizes.tolist() == [[2]]
    assert analysis.heatmap(unknown).counts.tolist() == [[1, 1]]
    assert analysis.snapshots(unknown, 1).pages.size == 0


def test_a_clock_that_jumps() -> None:
    r = pages_to_regions({1})
    with pytest.raises(ValueError, match=r"sample 2, 5 ns, is not after that of sample 1, 10 ns.*monotonic"):
        Series.from_samples([(1, r), (10, r), (5, r)])
    time = np.array([1, 1, 9, 4], np.int64)
    address = np.arange(4, dtype=np.uint64) * np.uint64(PAGE_SIZE)
    with pytest.raises(ValueError, match="sample 2, 4 ns"):
        Series.from_rows(time, address, address + np.uint64(PAGE_SIZE), address * np.uint64(0))
    with pytest.raises(ValueError, match="begin_ns"):
        Series.from_samples([(1, r)], begin_ns=2)
    # A jump forward, as after a suspend, is one long interval.
    rate = analysis.dirty_rate(Series.from_samples([(SECOND, r), (3601 * SECOND, r)], begin_ns=0))
    assert rate.pages_per_s.tolist() == [1.0, 1 / 3600]


def test_chunks_out_of_order() -> None:
    series = series_of(moving_window(6, 2))
    first, second, third = series.samples(0, 2), series.samples(2, 4), series.samples(4, 6)
    for wrong in ([second, first], [first, third], [first, first]):
        for ask in (
            ANALYSES[0],
            ANALYSES[2],
            ANALYSES[3],
            ANALYSES[4],
            lambda s: analysis.snapshots(s, 9 * SECOND),
        ):
            with pytest.raises(ValueError, match="cannot follow"):
                ask(wrong)
    other = Series.from_samples(
        [(3 * SECOND, series.regions(0))], begin_ns=2 * SECOND, page_size=PAGE_SIZE // 2
    )
    with pytest.raises(ValueError, match="page size"):
        analysis.dirty_rate([first, other])
    with pytest.raises(TypeError, match="iterable of Series"):
        analysis.dirty_rate([series.regions(0)])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="taus_ns"):
        analysis.working_set(iter([first, second]))
    for bad in ([], [1.5], "1s"):
        with pytest.raises(TypeError, match="taus_ns"):
            analysis.working_set(series, bad)
    for bad in ([0], [-1, 2], [5, 5], [7, 3]):
        with pytest.raises(ValueError, match="increasing"):
            analysis.working_set(series, bad)


def test_bad_columns() -> None:
    good = series_of([{1}, {2}])
    columns = {name: getattr(good, name) for name in ("time_ns", "offsets", "start", "end", "categories")}
    for name, value in columns.items():
        with pytest.raises(TypeError, match=name):
            Series(**(columns | {name: value.astype(np.float64)}))
        with pytest.raises(TypeError, match=name):
            Series(**(columns | {name: value.tolist()}))
        with pytest.raises(ValueError, match=r"do not fit|offsets"):
            Series(**(columns | {name: value[:-1]}))
    page = np.uint64(PAGE_SIZE)
    for start, end in (([2, 0], [3, 1]), ([0, 1], [2, 3]), ([0, 5], [1, 4])):
        with pytest.raises(ValueError, match=r"row 1 \(sample 0\)"):
            Series(
                np.array([1], np.int64),
                np.array([0, 2], np.int64),
                np.array(start, np.uint64) * page,
                np.array(end, np.uint64) * page,
                np.zeros(2, np.uint64),
            )
    with pytest.raises(ValueError, match="whole pages"):
        Series(**(columns | {"end": columns["end"] + np.uint64(1)}))
    with pytest.raises(ValueError, match="power of two"):
        Series(**columns, page_size=3000)
    with pytest.raises(TypeError, match="REGION_DTYPE"):
        Series.from_samples([(1, np.zeros(3))])


def test_rows_of_a_file_are_used_where_they_are() -> None:
    time = np.array([3, 5, 5, 9], np.int64)
    start = np.array([0, 1, 5, 0], np.uint64) * np.uint64(PAGE_SIZE)
    end = np.array([0, 2, 7, 4], np.uint64) * np.uint64(PAGE_SIZE)
    categories = np.full(4, WRITTEN, np.uint64)
    series = Series.from_rows(time, start, end, categories)
    assert all(np.shares_memory(a, b) for a, b in ((series.start, start), (series.end, end)))
    assert series.time_ns.tolist() == [3, 5, 9]
    assert analysis.dirty_rate(series).pages.tolist() == [0, 3, 4]
    # The empty region that marks the first sample counts for nothing anywhere.
    assert analysis.run_lengths(series).runs.sum() == 3
    assert analysis.redirty_intervals(series).pages == 6
    assert analysis.heat(series).pages.sum() == 6
    assert regions.page_count(series.regions(1)) == 3
    assert analysis.dirty_rate(series.select(Query.PRESENT)).pages.tolist() == [0, 0, 0]
    assert analysis.dirty_rate(series.select(Query.WRITTEN)).pages.tolist() == [0, 3, 4]


def test_page_size_of_another_machine() -> None:
    big = 4 * PAGE_SIZE
    start = np.array([0], np.uint64)
    series = Series.from_rows(
        np.array([SECOND], np.int64), start, start + np.uint64(2 * big), start, begin_ns=0, page_size=big
    )
    assert analysis.dirty_rate(series).bytes_per_s.tolist() == [2 * big]
    assert analysis.dirty_rate(series).pages.tolist() == [2]
    assert analysis.working_set(series).max_pages.tolist() == [2]
    assert analysis.heatmap(series).counts.tolist() == [[1, 1]]


def test_results_as_tables() -> None:
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    series = series_of(moving_window(10, 3))
    for table in (
        analysis.dirty_rate(series),
        analysis.working_set(series),
        analysis.redirty_intervals(series),
        analysis.run_lengths(series),
        analysis.heat(series),
        analysis.snapshots(series, SECOND),
    ):
        columns = table.columns()
        frame, arrow = table.to_pandas(), table.to_arrow()
        assert isinstance(frame, pandas.DataFrame)
        assert isinstance(arrow, pyarrow.Table)
        assert list(frame) == arrow.column_names == list(columns)
        for name, values in columns.items():
            assert np.array_equal(frame[name].to_numpy(), values, equal_nan=True)
            assert np.array_equal(arrow[name].to_numpy(), values, equal_nan=True)
    rate = analysis.dirty_rate(series)
    assert np.shares_memory(rate.to_pandas()["pages"].to_numpy(), rate.pages)
    assert np.shares_memory(rate.to_arrow()["pages"].chunk(0).to_numpy(), rate.pages)


def test_a_span_too_wide_for_one_axis() -> None:
    """Pages from both ends of a 64-bit address space, in more samples than fit beside them."""
    low, high = pages_to_regions({0, 1}, 0), pages_to_regions({3, 4}, (1 << 64) - 16 * PAGE_SIZE)
    pairs = [(i + 1, np.concatenate((low[: i % 2], high))) for i in range(3000)]
    series = Series.from_samples(pairs, begin_ns=0)
    intervals = analysis.redirty_intervals(series, [2, 3])
    assert intervals.writes.tolist() == [2 * 2999, 2 * 1499, 0]
    assert analysis.working_set(series, [1, 2]).mean_pages.tolist() == [3.0, 4.0]


def long_series(rows: int) -> Iterator[Series]:
    """A sample each second, 100 runs of pages in each, all over 60 MiB that move on and come back."""
    rng = np.random.default_rng(1)
    per, at_once = 100, 1000
    for first in range(0, rows // per, at_once):
        gaps = rng.integers(1, 150, (at_once, 2 * per), dtype=np.uint64)
        gaps[:, 0] += np.arange(first, first + at_once, dtype=np.uint64) % np.uint64(1000) * np.uint64(5)
        bounds = np.cumsum(gaps, axis=1) * np.uint64(PAGE_SIZE) + np.uint64(BASE)
        start, end = bounds[:, ::2].ravel(), bounds[:, 1::2].ravel()
        times = np.arange(first + 1, first + at_once + 1) * SECOND
        offsets = np.arange(at_once + 1) * per
        yield Series(times, offsets, start, end, np.full_like(start, WRITTEN), first * SECOND)


@pytest.mark.parametrize(
    "ask",
    [
        analysis.dirty_rate,
        analysis.run_lengths,
        analysis.heat,
        analysis.redirty_intervals,
        lambda s: analysis.working_set(s, [SECOND, 60 * SECOND, 3600 * SECOND]),
        lambda s: analysis.snapshots(s, 60 * SECOND),
    ],
    ids=["dirty_rate", "run_lengths", "heat", "redirty_intervals", "working_set", "snapshots"],
)
def test_memory_does_not_grow_with_the_regions(ask: Callable[[Any], Any]) -> None:
    """Only with the chunk, the footprint and, by some bytes, the number of samples."""
    peaks = []
    for rows in (250_000, 1_000_000):
        source = long_series(rows)
        tracemalloc.start()
        try:
            ask(source)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] - peaks[0] < 7_500 * 512


def test_ladder() -> None:
    assert analysis.ladder(3, 200).tolist() == [5, 10, 20, 50, 100, 200]
    assert analysis.ladder(7, 8).size == 0
    assert analysis.ladder(1, (1 << 63) - 1)[-1] == 5 * 10**18
