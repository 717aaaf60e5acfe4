"""Types of the command line's arguments."""

from __future__ import annotations

import os
from functools import reduce
from operator import or_
from typing import Any

import click

from pagemap import PAGE_SIZE, Category

MAX_PID = (1 << 31) - 1
"""What a pid_t can hold."""

_LABELS = {Category.PFNZERO: "zero"}


def label(category: Category) -> str:
    """What people read and type for a category: its name in lower case, "zero" for PFNZERO."""
    return _LABELS.get(category) or str(category.name).lower()


class ProcessId(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.5
    """The number of a process, or `self` for this command's own."""

    name = "PID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "self":
            return os.getpid()
        try:
            pid = int(value)
        except ValueError:
            self.fail(f"{value!r} is no process id: give a number (see pgrep, ps), or `self`", param, ctx)
        if pid <= 0:
            self.fail(f"a process id is positive, not {pid}", param, ctx)
        if pid > MAX_PID:
            self.fail(f"a process id is at most {MAX_PID}, not {pid}", param, ctx)
        return pid


class Mebibytes(click.IntRange):
    """MiB to allocate: not more than the machine has."""

    name = "MiB"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        wanted = super().convert(value, param, ctx)
        there = os.sysconf("SC_PHYS_PAGES") * PAGE_SIZE >> 20
        if wanted > there:
            self.fail(f"{wanted} MiB are more than this machine has, {there}", param, ctx)
        return wanted


class Address(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.5
    """A page-aligned address in bytes: 0x7f00…, or decimal."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            address = int(str(value), 0)
        except ValueError:
            self.fail(f"{value!r} is no address: give 0x7f… or a decimal number of bytes", param, ctx)
        if address < 0 or address % PAGE_SIZE:
            self.fail(f"{value} is no multiple of the page size, {PAGE_SIZE}", param, ctx)
        return address


class CategoryName(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.5
    """A category by its name, in either case."""

    name = "category"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Category:
        if isinstance(value, Category):
            return value
        known = {
            text: category for category in Category for text in (label(category), str(category.name).lower())
        }
        if str(value).lower() not in known:
            listed = ", ".join(label(category) for category in Category)
            self.fail(f"{value!r} is no category; the categories are: {listed}", param, ctx)
        return known[str(value).lower()]


def combined(categories: tuple[Category, ...]) -> Category:
    """All of them in one."""
    return reduce(or_, categories, Category(0))
