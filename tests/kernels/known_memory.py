"""The registry of facts, and memory in a known state for them."""

from __future__ import annotations

import os
from collections.abc import Callable

from kernel_api import (
    HUGE,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
    PAGE,
    PRESENT,
    SWAPPED,
    WRITTEN,
    Area,
    Scanner,
    Userfault,
)

FACTS: dict[str, Callable[[], dict[str, object]]] = {}


DANGEROUS: dict[str, Callable[[], dict[str, object]]] = {}


EXACT = {"mask": WRITTEN, "returned": WRITTEN}  # the kernel's fast path


GENERAL = {"mask": WRITTEN, "returned": WRITTEN | PRESENT | SWAPPED}


class Skipped(Exception):
    pass


def fact(name, registry=FACTS):
    def register(function):
        registry[name] = function
        return function

    return register


def tracked(area: Area) -> Scanner:
    uffd = Userfault()
    uffd.register(area)
    area.uffd = uffd
    return Scanner()


def small() -> Area:
    area = Area(3 * 512)
    area.advise(MADV_NOHUGEPAGE)
    area.write()
    return area


def huge() -> Area:
    area = Area(3 * 512)
    area.advise(MADV_HUGEPAGE)
    area.write()
    pages = Scanner().count(area, mask=HUGE, returned=HUGE)
    if pages != area.pages:
        raise Skipped(f"{pages}_of_{area.pages}_pages_huge")
    return area


def memory_file(pages: int) -> int:
    fd = os.memfd_create("facts")
    os.write(fd, bytes([9]) * (pages * PAGE))
    return fd


def shmem() -> Area:
    area = Area(3 * 512, shared=True, file=memory_file(3 * 512))
    area.write()
    return area


def private_file() -> Area:
    area = Area(3 * 512, file=memory_file(3 * 512))
    area.write()
    return area


def swapped_pages(area: Area, scanner: Scanner) -> int:
    return scanner.count(area, mask=SWAPPED, returned=SWAPPED)


def swap_out(area: Area, scanner: Scanner) -> None:
    for _ in range(5):
        area.advise(MADV_PAGEOUT)
        if swapped_pages(area, scanner) > area.pages * 9 // 10:
            return
    raise Skipped(f"{swapped_pages(area, scanner)}_of_{area.pages}_pages_swapped")


def pages_in(regions, first, count) -> str:
    return f"{sum(max(0, min(end, first + count) - max(start, first)) for start, end, _ in regions)}/{count}"
