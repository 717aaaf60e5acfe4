"""Algebra on region arrays, as sets of pages that carry categories. Pure NumPy, no system call.

A region array is one-dimensional, of REGION_DTYPE: addresses in bytes, end exclusive, sorted, disjoint; empty
arrays included. What `PageMap.scan` returns is one. Categories are facts about a page; this becomes of them:

============================  ===========================  ===============================================
operation                     pages                        categories
============================  ===========================  ===============================================
``union(a, b)``               in `a` or `b`                OR-ed where both have the page
``intersection(a, b)``        in both                      OR-ed: all that either of them says of the page
``difference(a, b)``          in `a`, not in `b`           those of `a`
``symmetric_difference``      in just one                  those of the one
``complement(r, …)``          of a range, not in `r`       as given
============================  ===========================  ===============================================

So the written pages of one scan and the resident ones of another intersect to WRITTEN|PRESENT, and
``union(a, b)`` is ``difference(a, b)``, ``intersection(a, b)`` and ``difference(b, a)`` side by side. To
keep the categories of `a` alone, give `b` none: ``intersection(a, relabel(b, 0))``.

Every result is a new, *canonical* array: sorted, disjoint, no empty region, neighbours that touch differ in
their categories. So results compose, and two equal sets of pages are equal arrays.

Every function raises TypeError for what is no region array, and ValueError for one that is not sorted and
disjoint; `coalesce` makes it so. Those that count pages raise ValueError for addresses off the page boundary.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from ._sweep import U64, Bools, HasArray, RunTable, last_of_equal, measure, ranges_of, sweep, values_at
from .categories import PAGE_SIZE, REGION_DTYPE, Category
from .query import Query, check_query

Regions = npt.NDArray[Any]
"""A one-dimensional array of REGION_DTYPE."""

_NAMED = tuple(Category)

VMA_PAGES_DTYPE = np.dtype(
    [("start", "<u8"), ("end", "<u8"), ("pages", "<u8"), *((str(c.name), "<u8") for c in _NAMED)]
)
"""A row of `by_vma`: start, end (bytes); pages, PRESENT, SWAPPED, … (pages, one field for each Category)."""


def page_count(r: Regions) -> int:
    """Pages in `r`."""
    return int(_pages(_columns(r)[0]).sum())


def nbytes(r: Regions) -> int:
    """Bytes of memory in `r` (the array itself has ``r.nbytes``)."""
    bounds, _ = _columns(r)
    return int((bounds[1::2] - bounds[::2]).sum())


def coalesce(r: Regions) -> Regions:
    """`r` in canonical form: accepts any order and overlaps, whose categories are OR-ed.

    ``coalesce(np.concatenate(arrays))`` is the union of many arrays. ValueError where a region ends before it
    starts. An array that is sorted and disjoint already costs one pass.
    """
    bounds, categories = _raw_columns(r)
    if not (bounds[1:] < bounds[:-1]).any():
        return _merge(bounds, categories)

    starts, ends = bounds[::2], bounds[1::2]
    if (ends < starts).any():
        i = int(np.argmax(ends < starts))
        raise ValueError(f"region {i} ends before it starts: {int(starts[i]):#x} to {int(ends[i]):#x}")
    real = starts < ends
    bounds, categories = bounds[np.repeat(real, 2)], categories[real]

    order = np.argsort(bounds, kind="stable")
    at = bounds[order]
    step = 1 - 2 * (order & 1)
    last = last_of_equal(at)
    inside = np.cumsum(step)[last] > 0
    merged = np.zeros(inside.size, np.uint64)
    owner = categories[order >> 1]
    for bit in _bits(categories):
        # How many of the regions around an address carry this category.
        depth = np.cumsum(np.where(owner & bit, step, 0))[last]
        merged |= np.where(depth > 0, bit, np.uint64(0))
    return _assemble(at[last], inside, merged)


def union(a: Regions, b: Regions) -> Regions:
    """Pages in `a` or in `b`; categories OR-ed where both have the page."""
    return _combine(a, b, np.logical_or)


def intersection(a: Regions, b: Regions) -> Regions:
    """Pages in both `a` and `b`, with the categories of both (OR).

    ``intersection(a, relabel(b, 0))`` keeps those of `a` alone.
    """
    return _combine(a, b, np.logical_and)


def difference(a: Regions, b: Regions) -> Regions:
    """Pages in `a` and not in `b`, with the categories of `a`."""
    return _combine(a, b, np.greater)


def symmetric_difference(a: Regions, b: Regions) -> Regions:
    """Pages in just one of `a` and `b`, with its categories."""
    return _combine(a, b, np.not_equal)


def complement(r: Regions, start: SupportsIndex, end: SupportsIndex, category: SupportsIndex = 0) -> Regions:
    """The part of [start, end) that is not in `r`, with categories `category`. Addresses in bytes."""
    whole = np.array([(*_range(start, end), _category(category))], REGION_DTYPE)
    return difference(whole, r)


def clip(r: Regions, start: SupportsIndex, end: SupportsIndex) -> Regions:
    """The part of `r` in [start, end), addresses in bytes; regions across a limit are cut."""
    low, high = _range(start, end)
    bounds, categories = _columns(r)
    first = int(np.searchsorted(bounds[1::2], np.uint64(low), "right"))
    stop = max(first, int(np.searchsorted(bounds[::2], np.uint64(high), "left")))
    inner = bounds[2 * first : 2 * stop].clip(np.uint64(low), np.uint64(high))
    return _merge(inner, categories[first:stop])


def select(r: Regions, query: Query) -> Regions:
    """What a scan with `query` would have returned, had the pages the categories that `r` says.

    Selects by ``query.matches``, keeps the categories that the query reports, merges neighbours.
    """
    check_query(query)
    bounds, categories = _columns(r)
    chosen = query.matches(categories)
    report = np.uint64(query.masks()[3])
    return _merge(bounds[np.repeat(chosen, 2)], categories[chosen] & report)


def relabel(r: Regions, category: SupportsIndex) -> Regions:
    """The pages of `r`, each with just the categories `category` (0 for none)."""
    bounds, categories = _columns(r)
    return _merge(bounds, np.full_like(categories, _category(category)))


def to_mask(r: Regions, start: SupportsIndex, end: SupportsIndex, query: Query | None = None) -> Bools:
    """One bool for each page of [start, end): whether it is in `r` (and matches `query`).

    Shape ``((end - start) // PAGE_SIZE,)``, a byte a page: give it a range that you can afford.
    ValueError for a range or regions off the page boundary.
    """
    low, high = _page_range(start, end)
    bounds, categories = _columns(r)
    _check_aligned(bounds)
    if query is not None:
        check_query(query)
        bounds = bounds[np.repeat(query.matches(categories), 2)]
    page = (bounds.clip(np.uint64(low), np.uint64(high)) - np.uint64(low)) // np.uint64(PAGE_SIZE)
    edges = np.concatenate((page.astype(np.intp), [(high - low) // PAGE_SIZE]))
    inside = np.zeros(edges.size, np.bool_)
    inside[1::2] = True
    return np.repeat(inside, np.diff(edges, prepend=0))


def from_mask(mask: Bools, start: SupportsIndex, category: SupportsIndex) -> Regions:
    """The pages where `mask` is True, one bool a page from address `start` (bytes) on, as `category`.

    The inverse of `to_mask`. TypeError unless `mask` is a one-dimensional bool array.
    """
    if not (isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.ndim == 1):
        raise TypeError("mask must be a one-dimensional NumPy array of bool, one a page")
    low, _ = _page_range(start, operator.index(start) + mask.size * PAGE_SIZE)
    number = _category(category)
    edges = np.zeros(mask.size + 2, np.bool_)
    edges[1:-1] = mask
    bounds = np.flatnonzero(edges[1:] != edges[:-1]).astype(np.uint64) * np.uint64(PAGE_SIZE) + np.uint64(low)
    r = np.empty(bounds.size // 2, REGION_DTYPE)
    r["start"], r["end"], r["categories"] = bounds[::2], bounds[1::2], number
    return r


def totals(r: Regions) -> dict[Category, int]:
    """Pages by category: every named Category in order of its bit, then unnamed bits that occur in `r`.

    A page counts once for each of its categories, so the sum is no number of pages: that is `page_count`.
    0 says that no region carries the category; a scan that did not report it looks the same.
    """
    bounds, categories = _columns(r)
    pages = _pages(bounds)
    counts = dict.fromkeys(_NAMED, 0)
    for bit in _bits(categories):
        counts[Category(int(bit))] = int(pages[(categories & bit) != 0].sum())
    return counts


def by_vma(r: Regions, vmas: HasArray | npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Pages by category for each VMA: an array of VMA_PAGES_DTYPE, row i for VMA i of `vmas`.

    `vmas` is a VmaTable, any object with such an `array`, or a structured array with the fields start and end
    (bytes), in any order. Fields: start, end; `pages`, those of `r` in the VMA; one count for each named
    Category, so ``table["PRESENT"]``. A region that reaches across VMAs counts in each with its part there.
    The cost is a pass over `r` for each category that occurs, and a search for each VMA.
    """
    start, end = ranges_of(vmas)
    bounds, categories = _columns(r)
    _check_aligned(bounds)
    table = np.zeros(start.size, VMA_PAGES_DTYPE)
    table["start"], table["end"] = start, end
    weights = {"pages": np.ones_like(categories)}
    for category in _NAMED:
        weight = (categories & np.uint64(category)) // np.uint64(category)
        if weight.any():
            weights[str(category.name)] = weight
    for name, lengths in zip(weights, measure(bounds, [*weights.values()], start, end), strict=True):
        table[name] = lengths // np.uint64(PAGE_SIZE)
    return table


def _raw_columns(r: Regions) -> tuple[U64, U64]:
    if not isinstance(r, np.ndarray) or r.dtype != REGION_DTYPE:
        what = r.dtype if isinstance(r, np.ndarray) else type(r).__name__
        raise TypeError(f"regions must be a NumPy array of REGION_DTYPE, not {what}")
    if r.ndim != 1:
        raise ValueError(f"regions must be one-dimensional, not of shape {r.shape}")
    rows = np.ascontiguousarray(r).view("<u8").reshape(-1, 3)
    return rows[:, :2].reshape(-1), rows[:, 2]


def _columns(r: Regions) -> tuple[U64, U64]:
    """(bounds, categories) of a sorted, disjoint array: shapes (2n,), contiguous, and (n,), a view."""
    bounds, categories = _raw_columns(r)
    wrong = bounds[1:] < bounds[:-1]
    if wrong.any():
        i = int(np.argmax(wrong))
        if i % 2 == 0:
            low, high = int(bounds[i]), int(bounds[i + 1])
            raise ValueError(f"region {i // 2} ends before it starts: {low:#x} to {high:#x}")
        raise ValueError(
            f"regions must be sorted and disjoint, but region {i // 2 + 1} starts before region {i // 2}"
            " ends; pagemap.regions.coalesce() makes them so"
        )
    return bounds, categories


def _combine(a: Regions, b: Regions, rule: Callable[[Bools, Bools], Bools]) -> Regions:
    """The pages for which ``rule(in a, in b)`` holds, with all the categories that `a` and `b` give them."""
    bounds_a, categories_a = _columns(a)
    bounds_b, categories_b = _columns(b)
    # A run begins at a bound.
    out = RunTable(REGION_DTYPE, bounds_a.size + bounds_b.size)
    for at, in_a, in_b in sweep(bounds_a, bounds_b):
        inside = rule((in_a & 1).astype(np.bool_), (in_b & 1).astype(np.bool_))
        out.add(at, inside, (values_at(categories_a, in_a) | values_at(categories_b, in_b)) * inside)
    return out.table()


def _merge(bounds: U64, categories: U64) -> Regions:
    last = np.flatnonzero(last_of_equal(bounds))
    counts = last + 1
    return _assemble(bounds[last], (counts & 1).astype(np.bool_), values_at(categories, counts))


def _assemble(at: U64, inside: Bools, categories: U64) -> Regions:
    out = RunTable(REGION_DTYPE, at.size)
    out.add(at, inside, categories)
    return out.table()


def _bits(categories: U64) -> list[np.uint64]:
    seen = int(np.bitwise_or.reduce(categories)) if categories.size else 0
    return [np.uint64(1 << i) for i in range(seen.bit_length()) if seen >> i & 1]


def _pages(bounds: U64) -> U64:
    _check_aligned(bounds)
    return (bounds[1::2] - bounds[::2]) // np.uint64(PAGE_SIZE)


def _check_aligned(bounds: U64) -> None:
    if bounds.size and int(np.bitwise_or.reduce(bounds)) % PAGE_SIZE:
        i = int(np.argmax(bounds % np.uint64(PAGE_SIZE) != 0))
        raise ValueError(
            f"region {i // 2} has an address off the page boundary ({PAGE_SIZE} bytes), {int(bounds[i]):#x},"
            " so it has no whole number of pages"
        )


def _range(start: SupportsIndex, end: SupportsIndex) -> tuple[int, int]:
    low, high = operator.index(start), operator.index(end)
    if not 0 <= low <= high < 1 << 64:
        raise ValueError(f"a range needs 0 <= start <= end < 2**64, in bytes, not {low:#x} to {high:#x}")
    return low, high


def _page_range(start: SupportsIndex, end: SupportsIndex) -> tuple[int, int]:
    low, high = _range(start, end)
    if (low | high) % PAGE_SIZE:
        raise ValueError(
            f"start and end must be multiples of the page size, {PAGE_SIZE}, not {low:#x} and {high:#x}"
        )
    return low, high


def _category(category: SupportsIndex) -> int:
    number = operator.index(category)
    if not 0 <= number < 1 << 64:
        raise ValueError(f"category must be a combination of categories, 0 to 2**64 - 1, not {number}")
    return number
