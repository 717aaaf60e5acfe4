"""Checks of what the caller gave: every refusal names the argument, and comes before anything is changed."""

from __future__ import annotations

import operator
from typing import Any, SupportsIndex

from .categories import PAGE_SIZE


def as_count(value: SupportsIndex, name: str, minimum: int) -> int:
    """An integer of at least `minimum`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, not {type(value).__name__}") from None
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {number}")
    return number


def page_range(start: Any, end: Any, limit: int) -> tuple[int, int]:
    """Checked addresses of a range: page-aligned, ordered, inside an address space that ends at `limit`."""
    checked = []
    for name, value in (("start", start), ("end", end)):
        try:
            address = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} must be an address (an int), not {type(value).__name__}") from None
        if address < 0:
            raise ValueError(f"{name} must not be negative, but is {address}")
        if address % PAGE_SIZE:
            raise ValueError(
                f"{name} must be a multiple of the page size {PAGE_SIZE}, but is {address:#x}"
                " (pagemap.span(obj) gives the whole pages of a buffer)"
            )
        if address > limit:
            raise ValueError(f"{name} {address:#x} is beyond the address space, which ends at {limit:#x}")
        checked.append(address)
    if checked[0] > checked[1]:
        raise ValueError(f"the range is reversed: start {checked[0]:#x} is above end {checked[1]:#x}")
    return checked[0], checked[1]
