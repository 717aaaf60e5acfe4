"""The algebra on regions against plain Python: a region array is a dict from page number to categories."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagemap import regions
from pagemap.categories import PAGE_SIZE, REGION_DTYPE, Category
from pagemap.query import Query

Pages = dict[int, int]
SPAN = 64
"""The pages that examples live in, from one of these bases on: overlaps are frequent."""
BASES = [0, 0x7F12_3456_7000, (1 << 47) - 32 * PAGE_SIZE, 1 << 56, (1 << 64) - (SPAN + 1) * PAGE_SIZE]
UNNAMED = 1 << 40
PALETTE = [0, 1, 2, 3, int(Category.PRESENT | Category.HUGE), UNNAMED, UNNAMED | 2, 1 << 63]


def array(rows: list[tuple[int, int, int]]) -> np.ndarray:
    return np.array(rows, REGION_DTYPE)


def pages_of(r: np.ndarray) -> Pages:
    """What `r` says, page by page; fails where two regions speak of one page."""
    pages: Pages = {}
    for start, end, categories in r.tolist():
        for page in range(start // PAGE_SIZE, end // PAGE_SIZE):
            assert page not in pages
            pages[page] = categories
    return pages


def canonical(pages: Pages) -> np.ndarray:
    """The one canonical array for these pages, built without the code under test."""
    rows: list[list[int]] = []
    for page in sorted(pages):
        start, end = page * PAGE_SIZE, (page + 1) * PAGE_SIZE
        if rows and rows[-1][1] == start and rows[-1][2] == pages[page]:
            rows[-1][1] = end
        else:
            rows.append([start, end, pages[page]])
    return array([tuple(row) for row in rows])


def check(result: np.ndarray, expected: Pages) -> None:
    assert result.dtype == REGION_DTYPE
    assert result.tolist() == canonical(expected).tolist()
    assert result.flags.writeable


bases = st.sampled_from(BASES)


@st.composite
def region_arrays(draw: st.DrawFn, base: int) -> np.ndarray:
    """Sorted and disjoint, but not always canonical: touching equals, empty regions, any memory layout."""
    marks = draw(st.lists(st.integers(0, SPAN), max_size=24).map(sorted))
    rows = []
    for first, last in zip(marks[::2], marks[1::2], strict=False):
        rows.append((base + first * PAGE_SIZE, base + last * PAGE_SIZE, draw(st.sampled_from(PALETTE))))
    r = array(rows)
    layout = draw(st.sampled_from(["own", "strided", "readonly", "unaligned"]))
    if layout == "strided":
        return np.repeat(r, 3)[1::3]
    if layout == "unaligned":
        return np.frombuffer(b"x" + r.tobytes(), REGION_DTYPE, offset=1)
    r.flags.writeable = layout == "own"
    return r


pairs = bases.flatmap(lambda base: st.tuples(st.just(base), region_arrays(base), region_arrays(base)))
singles = bases.flatmap(lambda base: st.tuples(st.just(base), region_arrays(base)))


@given(pairs)
def test_set_operations(case: tuple[int, np.ndarray, np.ndarray]) -> None:
    _, a, b = case
    before = a.tobytes(), b.tobytes()
    pa, pb = pages_of(a), pages_of(b)
    both = {page: pa.get(page, 0) | pb.get(page, 0) for page in pa.keys() | pb.keys()}
    check(regions.union(a, b), both)
    check(regions.intersection(a, b), {page: both[page] for page in pa.keys() & pb.keys()})
    check(regions.difference(a, b), {page: pa[page] for page in pa.keys() - pb.keys()})
    check(regions.symmetric_difference(a, b), {page: both[page] for page in pa.keys() ^ pb.keys()})
    check(regions.intersection(a, regions.relabel(b, 0)), {page: pa[page] for page in pa.keys() & pb.keys()})
    assert (a.tobytes(), b.tobytes()) == before


@given(pairs)
def test_union_is_its_three_parts(case: tuple[int, np.ndarray, np.ndarray]) -> None:
    _, a, b = case
    parts = [regions.difference(a, b), regions.intersection(a, b), regions.difference(b, a)]
    whole = regions.union(a, b)
    assert regions.coalesce(np.concatenate(parts)).tolist() == whole.tolist()
    assert sum(map(regions.page_count, parts)) == regions.page_count(whole)
    assert regions.coalesce(np.concatenate((b, a))).tolist() == whole.tolist()


@given(
    bases,
    st.lists(st.tuples(st.integers(0, SPAN), st.integers(0, 20), st.sampled_from(PALETTE)), max_size=30),
)
def test_coalesce_takes_any_order_and_overlaps(base: int, rows: list[tuple[int, int, int]]) -> None:
    expected: Pages = {}
    for first, length, categories in rows:
        for page in range(first, min(first + length, SPAN)):
            number = base // PAGE_SIZE + page
            expected[number] = expected.get(number, 0) | categories
    r = array(
        [
            (base + first * PAGE_SIZE, base + min(first + length, SPAN) * PAGE_SIZE, categories)
            for first, length, categories in rows
        ]
    )
    check(regions.coalesce(r), expected)


@given(singles, st.integers(0, SPAN), st.integers(0, SPAN), st.sampled_from(PALETTE))
def test_ranges_and_masks(case: tuple[int, np.ndarray], one: int, other: int, category: int) -> None:
    base, r = case
    first, last = sorted((one, other))
    start, end = base + first * PAGE_SIZE, base + last * PAGE_SIZE
    window = range(start // PAGE_SIZE, end // PAGE_SIZE)
    pages = pages_of(r)
    inside = {page: pages[page] for page in pages.keys() & set(window)}
    check(regions.clip(r, start, end), inside)
    check(
        regions.complement(r, start, end, category), {page: category for page in window if page not in pages}
    )
    mask = regions.to_mask(r, start, end)
    assert mask.dtype == np.bool_
    assert mask.tolist() == [page in pages for page in window]
    check(regions.from_mask(mask, start, category), dict.fromkeys(inside, category))
    query = Query(exclude=Category.WRITTEN)
    assert regions.to_mask(r, start, end, query).tolist() == [
        page in pages and query.matches(pages[page]) for page in window
    ]


@given(singles, st.sampled_from(PALETTE))
def test_select_is_what_a_scan_would_return(case: tuple[int, np.ndarray], report: int) -> None:
    _, r = case
    for query in (
        Query.WRITTEN,
        Query(any_of=Category.PRESENT | Category(UNNAMED), exclude=Category.WRITTEN),
        Query(require=Category.HUGE, report=Category(report)),
        Query(report=Category(report)),
    ):
        kept = query.masks()[3]
        pages = pages_of(r).items()
        check(regions.select(r, query), {page: c & kept for page, c in pages if query.matches(c)})
    check(regions.relabel(r, report), dict.fromkeys(pages_of(r), report))


@given(singles)
def test_counts(case: tuple[int, np.ndarray]) -> None:
    _, r = case
    pages = pages_of(r)
    assert regions.page_count(r) == len(pages)
    assert regions.nbytes(r) == len(pages) * PAGE_SIZE
    totals = regions.totals(r)
    assert list(totals)[: len(Category)] == list(Category)
    for bit in range(64):
        expected = sum(1 for c in pages.values() if c >> bit & 1)
        assert totals.get(Category(1 << bit), 0) == expected
        if expected:
            assert Category(1 << bit) in totals


@given(singles, st.lists(st.tuples(st.integers(0, SPAN), st.integers(0, 20)), max_size=12))
def test_by_vma(case: tuple[int, np.ndarray], spans: list[tuple[int, int]]) -> None:
    base, r = case
    pages = pages_of(r)
    vmas = np.zeros(len(spans), [("name", "S4"), ("end", "<u8"), ("start", "<u8")])
    for i, (first, length) in enumerate(spans):
        vmas[i] = (b"heap", base + min(first + length, SPAN) * PAGE_SIZE, base + first * PAGE_SIZE)
    table = regions.by_vma(r, SimpleNamespace(array=vmas))
    assert table.dtype == regions.VMA_PAGES_DTYPE
    assert table.tolist() == regions.by_vma(r, vmas).tolist()
    for row, vma in zip(table, vmas, strict=True):
        assert (row["start"], row["end"]) == (vma["start"], vma["end"])
        window = range(int(vma["start"]) // PAGE_SIZE, int(vma["end"]) // PAGE_SIZE)
        inside = [pages[page] for page in window if page in pages]
        assert row["pages"] == len(inside)
        for category in Category:
            assert row[category.name] == sum(1 for c in inside if c & category), category


def test_blocks_of_a_long_sweep_join_up() -> None:
    """Longer than a block of the sweep, with bounds that are equal across the seams."""
    n = 100_000
    rng = np.random.default_rng(7)
    pages = 4 * n
    for density in (0.5, 0.02, 1.0):
        mask_a, mask_b = rng.random(pages) < 0.5, rng.random(pages) < density
        a, b = regions.from_mask(mask_a, 1 << 40, 1), regions.from_mask(mask_b, 1 << 40, 2)
        for name, expected in (
            ("union", mask_a | mask_b),
            ("intersection", mask_a & mask_b),
            ("difference", mask_a & ~mask_b),
            ("symmetric_difference", mask_a ^ mask_b),
        ):
            for first, second in ((a, b), (b, a)) if name != "difference" else ((a, b),):
                result = getattr(regions, name)(first, second)
                assert np.array_equal(
                    regions.to_mask(result, 1 << 40, (1 << 40) + pages * PAGE_SIZE), expected
                )
                assert np.array_equal(regions.coalesce(result), result)
        shared = np.flatnonzero(mask_a & mask_b)
        assert regions.totals(regions.intersection(a, b))[Category.WRITTEN] == shared.size
        # Touching regions that differ in nothing, in pairs of two: all of them are one.
        touching = np.empty(pages, REGION_DTYPE)
        touching["start"] = np.arange(pages) * PAGE_SIZE
        touching["end"] = touching["start"] + PAGE_SIZE
        touching["categories"] = 5
        assert regions.union(touching[::2].copy(), touching[1::2].copy()).tolist() == [
            (0, pages * PAGE_SIZE, 5)
        ]


def test_a_whole_address_space_is_no_page_table() -> None:
    top = (1 << 64) - PAGE_SIZE
    whole = regions.complement(np.empty(0, REGION_DTYPE), 0, top, Category.PRESENT)
    assert whole.tolist() == [(0, top, int(Category.PRESENT))]
    assert regions.page_count(whole) == top // PAGE_SIZE
    assert regions.nbytes(regions.union(whole, whole)) == top
    assert regions.by_vma(whole, whole)["PRESENT"].tolist() == [top // PAGE_SIZE]


EMPTY = np.empty(0, REGION_DTYPE)
UNSORTED = array([(8 * PAGE_SIZE, 9 * PAGE_SIZE, 1), (0, PAGE_SIZE, 1)])
OVERLAPPING = array([(0, 2 * PAGE_SIZE, 1), (PAGE_SIZE, 3 * PAGE_SIZE, 1)])
REVERSED = array([(0, PAGE_SIZE, 0), (9 * PAGE_SIZE, 8 * PAGE_SIZE, 1)])
UNALIGNED = array([(0, PAGE_SIZE, 0), (2 * PAGE_SIZE, 2 * PAGE_SIZE + 7, 1)])

EVERY_FUNCTION: dict[str, Callable[[Any], Any]] = {
    "page_count": regions.page_count,
    "nbytes": regions.nbytes,
    "coalesce": regions.coalesce,
    "union_a": lambda r: regions.union(r, EMPTY),
    "union_b": lambda r: regions.union(EMPTY, r),
    "intersection": lambda r: regions.intersection(EMPTY, r),
    "difference": lambda r: regions.difference(EMPTY, r),
    "symmetric_difference": lambda r: regions.symmetric_difference(r, EMPTY),
    "complement": lambda r: regions.complement(r, 0, PAGE_SIZE),
    "clip": lambda r: regions.clip(r, 0, PAGE_SIZE),
    "select": lambda r: regions.select(r, Query.WRITTEN),
    "relabel": lambda r: regions.relabel(r, 1),
    "to_mask": lambda r: regions.to_mask(r, 0, PAGE_SIZE),
    "totals": regions.totals,
    "by_vma": lambda r: regions.by_vma(r, UNSORTED),
}


@pytest.mark.parametrize("function", EVERY_FUNCTION.values(), ids=EVERY_FUNCTION)
def test_what_is_no_region_array_is_refused(function: Callable[[Any], Any]) -> None:
    for wrong in ([(0, 4096, 1)], None, np.zeros(3, "u8"), np.zeros(2, REGION_DTYPE.newbyteorder())):
        with pytest.raises(TypeError, match="REGION_DTYPE"):
            function(wrong)
    with pytest.raises(ValueError, match="one-dimensional"):
        function(np.zeros((2, 2), REGION_DTYPE))
    with pytest.raises(ValueError, match=r"region 1 .*ends before it starts|region 1 .*starts before"):
        function(REVERSED)
    if function is not regions.coalesce:
        for wrong in (UNSORTED, OVERLAPPING):
            with pytest.raises(ValueError, match="coalesce"):
                function(wrong)
    function(EMPTY)


@pytest.mark.parametrize("name", ["page_count", "totals", "to_mask", "by_vma"])
def test_counting_pages_needs_whole_pages(name: str) -> None:
    with pytest.raises(ValueError, match="region 1 has an address off the page boundary"):
        EVERY_FUNCTION[name](UNALIGNED)


def test_bytes_that_are_no_whole_pages_are_fine_elsewhere() -> None:
    assert regions.nbytes(UNALIGNED) == PAGE_SIZE + 7
    assert regions.clip(UNALIGNED, 5, 9).tolist() == [(5, 9, 0)]
    assert regions.union(UNALIGNED, EMPTY).tolist() == UNALIGNED.tolist()


def test_bad_ranges() -> None:
    for function in (regions.clip, regions.to_mask, regions.complement):
        for start, end in ((PAGE_SIZE, 0), (-PAGE_SIZE, 0), (0, 1 << 64)):
            with pytest.raises(ValueError, match="0 <= start <= end"):
                function(EMPTY, start, end)
        with pytest.raises(TypeError):
            function(EMPTY, 0.0, PAGE_SIZE)  # type: ignore[arg-type]
    for start, end in ((1, PAGE_SIZE), (0, PAGE_SIZE + 1)):
        with pytest.raises(ValueError, match="page size"):
            regions.to_mask(EMPTY, start, end)
    with pytest.raises(ValueError, match="page size"):
        regions.from_mask(np.ones(1, np.bool_), 7, 0)
    with pytest.raises(ValueError, match="2\\*\\*64"):
        regions.from_mask(np.ones(2, np.bool_), (1 << 64) - PAGE_SIZE, 0)
    for mask in ([True], np.ones(3), np.ones((2, 2), np.bool_)):
        with pytest.raises(TypeError, match="bool"):
            regions.from_mask(mask, 0, 0)  # type: ignore[arg-type]
    for category in (-1, 1 << 64):
        with pytest.raises(ValueError, match="category"):
            regions.relabel(EMPTY, category)
    with pytest.raises(TypeError):
        regions.relabel(EMPTY, "WRITTEN")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="start and end"):
        regions.by_vma(EMPTY, np.zeros(3))
    with pytest.raises(TypeError, match="VmaTable"):
        regions.by_vma(EMPTY, "self")  # type: ignore[arg-type]


def million(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    bounds = rng.integers(1, 20, 2_000_000).astype(np.uint64).cumsum() * np.uint64(PAGE_SIZE)
    r = np.empty(1_000_000, REGION_DTYPE)
    r["start"], r["end"], r["categories"] = bounds[::2], bounds[1::2], rng.integers(0, 16, r.size)
    return r


@pytest.mark.benchmark(group="union of 2 × 10⁶ regions, sort of 2 × 10⁶ uint64")
@pytest.mark.parametrize("what", ["sort", "union", "intersection", "difference"])
def test_speed(benchmark: Any, what: str) -> None:
    """Bound: union at most twice the sort."""
    if what == "sort":
        values = np.random.default_rng(3).integers(0, 1 << 47, 2_000_000, dtype=np.uint64)
        result = benchmark.pedantic(np.sort, (values,), rounds=5, warmup_rounds=1)
        assert result.size == 2_000_000
        return
    a, b = million(1), million(2)
    result = benchmark.pedantic(getattr(regions, what), (a, b), rounds=5, warmup_rounds=1)
    if what == "union":
        shared = regions.page_count(regions.intersection(a, b))
        assert regions.page_count(result) == regions.page_count(a) + regions.page_count(b) - shared
