"""Which pages to select, and what to report of them: two separate questions, as in the kernel's interface."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any, ClassVar, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from .categories import Category

_U64 = (1 << 64) - 1


def _as_bits(value: SupportsIndex, name: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a Category (or an int), not {type(value).__name__}") from None
    if not 0 <= number <= _U64:
        raise ValueError(f"{name} must be a combination of categories, 0 to 2**64 - 1, not {number}")
    return number


def check_query(query: object) -> None:
    """TypeError unless it is a Query."""
    if not isinstance(query, Query):
        raise TypeError(f"query must be a Query, not {type(query).__name__}")


def category_names(bits: int) -> str:
    """PRESENT|SWAPPED; what has no name here as a number. (Iterating over an IntFlag leaves that out.)"""
    known = [category for category in Category if bits & category]
    rest = bits & ~sum(known)
    return "|".join([*(str(category.name) for category in known), *([hex(rest)] if rest else [])])


@dataclass(frozen=True)
class Query:
    """A selection of pages and a choice of what to report of them. Immutable and hashable.

    A page is selected when it has every category of `require`, none of `exclude` and, unless `any_of`
    is empty, one of `any_of`. A region reports those of its categories that are in `report`; None reports
    just those that the selection names. Asking for more costs: for FILE the kernel looks at every page's
    descriptor, three times the time. Neighbours that report the same are one region.

    Raises TypeError for anything but integers, ValueError for selections that nothing can match.
    Source: Documentation/admin-guide/mm/pagemap.rst, "Pagemap Scan IOCTL".
    """

    require: Category = Category(0)
    exclude: Category = Category(0)
    any_of: Category = Category(0)
    report: Category | None = None
    _masks: tuple[int, int, int, int] = field(init=False, repr=False, compare=False)

    POPULATED: ClassVar[Query]
    """Present or swapped."""
    PRESENT: ClassVar[Query]
    SWAPPED: ClassVar[Query]
    HUGE: ClassVar[Query]
    """Mapped huge, or hugetlb (also where that is not populated)."""
    WRITTEN: ClassVar[Query]
    """Exactly the masks of the kernel's fast path for dirty pages."""

    def __post_init__(self) -> None:
        # Numbers, not flags: ~ of an IntFlag loses the bits that have no name.
        require = _as_bits(self.require, "require")
        exclude = _as_bits(self.exclude, "exclude")
        any_of = _as_bits(self.any_of, "any_of")
        report = None if self.report is None else _as_bits(self.report, "report")
        if both := require & exclude:
            raise ValueError(f"{category_names(both)} is both required and excluded: no page can match")
        # The kernel compares any_of after inverting, where an excluded bit would match by being absent.
        wanted = any_of & ~exclude
        if any_of and not wanted:
            raise ValueError(
                f"every category of any_of ({category_names(any_of)}) is excluded: no page can match"
            )
        reported = require | wanted if report is None else report
        for name, value in (("require", require), ("exclude", exclude), ("any_of", any_of)):
            object.__setattr__(self, name, Category(value))
        object.__setattr__(self, "report", None if report is None else Category(report))
        object.__setattr__(self, "_masks", (exclude, require | exclude, wanted, reported))

    def masks(self) -> tuple[int, int, int, int]:
        """(category_inverted, category_mask, category_anyof_mask, return_mask) of ``struct pm_scan_arg``."""
        return self._masks

    @overload
    def matches(self, categories: int) -> bool: ...
    @overload
    def matches(self, categories: npt.NDArray[Any]) -> npt.NDArray[np.bool_]: ...
    def matches(self, categories: int | npt.NDArray[Any]) -> bool | npt.NDArray[np.bool_]:
        """Whether a page with these categories is selected: bool for an int, a bool array for an array."""
        if isinstance(categories, np.ndarray):
            if categories.dtype.kind not in "ui":
                raise TypeError(f"categories must be integers, not {categories.dtype}")
            bits = categories.astype(np.uint64, copy=False)
            selected = (bits & np.uint64(self.require)) == np.uint64(self.require)
            selected &= (bits & np.uint64(self.exclude)) == 0
            if self.any_of:
                selected &= (bits & np.uint64(self.any_of)) != 0
            return np.asarray(selected, dtype=np.bool_)
        bit = operator.index(categories)
        return (
            bit & self.require == self.require
            and not bit & self.exclude
            and (not self.any_of or bool(bit & self.any_of))
        )


Query.POPULATED = Query(any_of=Category.PRESENT | Category.SWAPPED)
Query.PRESENT = Query(require=Category.PRESENT)
Query.SWAPPED = Query(require=Category.SWAPPED)
Query.HUGE = Query(require=Category.HUGE)
Query.WRITTEN = Query(require=Category.WRITTEN)
