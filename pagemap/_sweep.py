"""Step functions over addresses: the one algorithm behind the algebra on regions and the analyses.

A sorted set of disjoint intervals is stored as its *bounds*, ``start0, end0, start1, end1, …``, one flat
non-decreasing array: the number of bounds at or below an address is odd inside an interval and even outside.
Two such arrays are two sorted runs, which a stable sort (timsort) merges in one pass without sorting.
The work goes block by block, so that what is in between stays in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_BLOCK = 1 << 15


class HasArray(Protocol):
    """A VmaTable, or what looks like one: `array` has the fields start and end, in bytes."""

    @property
    def array(self) -> Array: ...


def ranges_of(vmas: HasArray | Array) -> tuple[U64, U64]:
    """(start, end) of each VMA, in bytes; TypeError for what has none."""
    array = vmas if isinstance(vmas, np.ndarray) else getattr(vmas, "array", None)
    names = getattr(getattr(array, "dtype", None), "names", None) or ()
    if array is None or not {"start", "end"} <= set(names):
        raise TypeError("vmas must be a VmaTable or a structured array with the fields start and end")
    return np.ascontiguousarray(array["start"], np.uint64), np.ascontiguousarray(array["end"], np.uint64)


def sweep(a: Array, b: Array) -> Iterator[tuple[Array, I64, I64]]:
    """The bounds `a` and `b`, of one dtype, on one axis: blocks (at, in_a, in_b), in order.

    at[k] are the distinct bounds, ascending; in_a[k] is how many bounds of `a` are at or below at[k]. Where
    that is odd, one is inside interval ``in_a[k] // 2`` of `a` from at[k] to the next bound. in_b likewise.
    Empty intervals leave a bound, but nothing inside.
    """
    longer = a if a.size >= b.size else b
    # Equal bounds never fall into two blocks.
    pivots = longer[_BLOCK::_BLOCK]
    cuts_a = [0, *np.searchsorted(a, pivots).tolist(), a.size]
    cuts_b = [0, *np.searchsorted(b, pivots).tolist(), b.size]
    for (a0, a1), (b0, b1) in zip(pairwise(cuts_a), pairwise(cuts_b), strict=True):
        both = np.concatenate((a[a0:a1], b[b0:b1]))
        order = np.argsort(both, kind="stable")
        at = both[order]
        last = np.flatnonzero(last_of_equal(at))
        from_b = np.cumsum(order >= a1 - a0)[last]
        yield at[last], last + (1 + a0) - from_b, from_b + b0


def last_of_equal(sorted_values: Array) -> Bools:
    """Marks the last of each run of equal values."""
    last = np.ones(sorted_values.size, np.bool_)
    np.not_equal(sorted_values[1:], sorted_values[:-1], out=last[:-1])
    return last


def measure(bounds: U64, weights: Sequence[U64], low: U64, high: U64) -> U64:
    """The weighted length of the intervals within each range [low, high): shape ``(len(weights), low.size)``.

    Each of `weights` gives every interval its weight for a unit of length. What lies below an address is all
    intervals before, and a part of the one that holds it. Sums may wrap: their differences are right all the
    same, as long as the answer fits.
    """
    if not bounds.size:
        return np.zeros((len(weights), low.size), np.uint64)
    starts, ends = bounds[::2], bounds[1::2]
    limits = np.concatenate((low, high))
    holder = np.maximum(np.searchsorted(starts, limits, "right"), 1) - 1
    part = limits.clip(starts[holder], ends[holder]) - starts[holder]
    lengths = ends - starts
    below = np.empty((len(weights), limits.size), np.uint64)
    for row, weight in zip(below, weights, strict=True):
        before = np.zeros(lengths.size, np.uint64)
        np.cumsum(lengths[:-1] * weight[:-1], out=before[1:])
        row[:] = before[holder] + part * weight[holder]
    return below[:, low.size :] - below[:, : low.size]


def values_at(values: Array, counts: I64) -> Array:
    """For in_a or in_b of a block: values[i] inside interval i, 0 outside."""
    if not counts.size:
        return np.empty(0, values.dtype)
    first, stop = int(counts[0]) // 2, int(counts[-1]) // 2 + 1
    near = values[first:stop]
    stairs = np.zeros(2 * near.size + 1, values.dtype)
    stairs[1::2] = near
    return stairs[counts - 2 * first]


class Runs:
    """Collects the maximal intervals on which a step function is defined and constant, from blocks in order.

    From at[k] to the next bound the function is defined where inside[k], with values[…][k]; elsewhere the
    values must be 0. After the very last bound it must be undefined.
    """

    def __init__(self, *dtypes: npt.DTypeLike) -> None:
        """`dtypes`: of the bounds, and of each value."""
        empty = [np.empty(0, dtype) for dtype in dtypes]
        self._blocks: list[list[Array]] = [[empty[0], *empty]]
        self._last: tuple[Any, ...] = (False,) * len(dtypes)

    def add(self, at: Array, inside: Bools, *values: Array) -> None:
        if not at.size:
            return
        columns = (inside, *values)
        change = np.zeros(at.size, np.bool_)
        for column, last in zip(columns, self._last, strict=True):
            change[0] |= column[0] != last
            change[1:] |= column[1:] != column[:-1]
        steps = np.flatnonzero(change)
        opens = inside[steps]
        closes = np.empty_like(opens)
        closes[:1], closes[1:] = self._last[0], opens[:-1]
        starts = steps.compress(opens)
        self._keep([at[starts], at[steps.compress(closes)], *(value[starts] for value in values)])
        self._last = tuple(column[-1] for column in columns)

    def _keep(self, columns: list[Array]) -> None:
        self._blocks.append(columns)

    def result(self) -> list[Array]:
        """[start, end, value…], ascending and disjoint; neighbours that touch differ in a value."""
        return [np.concatenate(column) for column in zip(*self._blocks, strict=True)]


class RunTable(Runs):
    """The same as one array of a structured dtype, whose fields are start, end, value….

    Written where it stays: fresh memory costs more than the arithmetic. What of `capacity` is not used is
    never touched.
    """

    def __init__(self, dtype: np.dtype[Any], capacity: int) -> None:
        start, _, *values = (dtype[name] for name in dtype.names or ())
        super().__init__(start, *values)
        self._table = np.empty(capacity, dtype)
        self._columns = [self._table[name] for name in dtype.names or ()]
        self._filled = [0] * len(self._columns)

    def _keep(self, columns: list[Array]) -> None:
        for k, column in enumerate(columns):
            stop = self._filled[k] + column.size
            self._columns[k][self._filled[k] : stop] = column
            self._filled[k] = stop

    def table(self) -> Array:
        """All of it, once and at the end."""
        self._columns.clear()
        self._table.resize(self._filled[0], refcheck=False)
        return self._table
