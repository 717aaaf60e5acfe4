"""Memory whose content goes without a write: dropped, reclaimed, guarded, and memory that never was."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path

from kernel_api import (
    MADV_DONTNEED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
    MADV_REMOVE,
    PAGE,
    PRESENT,
    SWAPPED,
    WP_MATCHING,
    WPALLOWED,
    WRITTEN,
    Area,
)
from known_memory import (
    EXACT,
    FACTS,
    GENERAL,
    Skipped,
    fact,
    huge,
    pages_in,
    private_file,
    shmem,
    small,
    swap_out,
    tracked,
)


def dropped(make: Callable[[], Area], first: int, count: int, drop: int, rule: dict) -> dict[str, object]:
    """Protects populated memory, drops pages of it, and asks what the next scans report of these."""
    area = make()
    scanner = tracked(area)

    def scan() -> str:
        return f"{scanner.count(area, first, count, flags=WP_MATCHING, **rule)}/{count}"

    found = {"start": scan(), "idle": scan()}
    area.advise(drop, first, count)
    found |= {"dropped": scan(), "again": scan()}
    area.write(first, count, 2)
    found |= {"written": scan(), "idle2": scan()}
    area.advise(drop, first, count)
    area.read(first, count)
    found |= {"dropped_read": scan()}
    area.advise(drop, first, count)
    area.write(first, count, 3)
    found |= {"dropped_written": scan()}
    return found


for kind, make, drops in (
    ("anon", small, {"dontneed": MADV_DONTNEED}),
    ("thp", huge, {"dontneed": MADV_DONTNEED}),
    ("private_file", private_file, {"dontneed": MADV_DONTNEED}),
    ("shmem", shmem, {"dontneed": MADV_DONTNEED, "remove": MADV_REMOVE}),
):
    for drop, advice in drops.items():
        for extent, first, count in (("some", 600, 16), ("table", 512, 512), ("all", 0, 1536)):
            for path, rule in (("exact", EXACT), ("general", GENERAL)):
                arguments = (make, first, count, advice, rule)
                FACTS[f"drop.{kind}.{drop}.{extent}.{path}"] = lambda arguments=arguments: dropped(*arguments)


def never(populated: range, first: int, count: int, rule: dict) -> dict[str, object]:
    """Registers memory of which only some pages were populated, and asks about the others."""
    area = Area(3 * 512)
    area.advise(MADV_NOHUGEPAGE)
    for page in populated:
        if not first <= page < first + count:
            area.write(page, 1)
    scanner = tracked(area)

    def scan(flags=WP_MATCHING) -> str:
        return f"{scanner.count(area, first, count, flags=flags, **rule)}/{count}"

    found = {"get": scan(0), "start": scan(), "again": scan()}
    area.read(first, count)
    found |= {"read": scan(), "idle": scan()}
    area.write(first, count)
    return found | {"written": scan(), "idle2": scan()}


for extent, populated, first, count in (
    ("some", range(1536), 600, 16),
    ("table", range(512), 512, 512),
    ("all", range(0), 0, 1536),
):
    for path, rule in (("exact", EXACT), ("general", GENERAL)):
        arguments = (populated, first, count, rule)
        FACTS[f"never.{extent}.{path}"] = lambda arguments=arguments: never(*arguments)


def repaired(make: Callable[[], Area], first: int, count: int, protect: bool) -> dict[str, object]:
    """`dropped` for kernels that lose pages: after each scan another one asks for the unprotected holes.

    These are protected by hand and reported (`protect`), or compared with the holes of the last round: a new
    one was dropped. The latter allocates no page tables.
    """
    area = make()
    scanner = tracked(area)
    hole = {
        "mask": WPALLOWED | WRITTEN | PRESENT | SWAPPED,
        "inverted": WRITTEN | PRESENT | SWAPPED,
        "returned": 0,
    }
    known: set[int] = set()

    def scan() -> str:
        changed = _pages(scanner.regions(area, flags=WP_MATCHING))
        holes = scanner.regions(area, **hole)
        if protect:
            for start, end, _ in holes:
                area.uffd.protect(area.start + start * PAGE, area.start + end * PAGE)
        changed |= _pages(holes) - known
        known.clear()
        known.update(() if protect else _pages(holes))
        return f"{len(changed & set(range(first, first + count)))}/{count}"

    found = {"start": scan(), "idle": scan()}
    area.advise(MADV_DONTNEED, first, count)
    found |= {"dropped": scan(), "again": scan()}
    area.read(first, count)
    found["read"] = scan()
    area.write(first, count, 2)
    found |= {"written": scan(), "idle2": scan()}
    area.advise(MADV_DONTNEED, first, count)
    area.write(first, count // 2, 2)
    return found | {"half_written": scan(), "idle3": scan()}


def _pages(regions) -> set[int]:
    return {page for start, end, _ in regions for page in range(start, end)}


for kind, make in (("anon", small), ("thp", huge), ("untouched", lambda: Area(3 * 512))):
    for extent, first, count in (("some", 600, 16), ("table", 512, 512), ("all", 0, 1536)):
        for way, protect in (("protect", True), ("history", False)):
            FACTS[f"repair.{kind}.{extent}.{way}"] = lambda a=(make, first, count, protect): repaired(*a)


@fact("swap.dropped")
def swap_dropped():
    area = small()
    scanner = tracked(area)
    scanner.count(area, flags=WP_MATCHING)
    swap_out(area, scanner)
    area.advise(MADV_DONTNEED, 512, 512)
    area.advise(MADV_DONTNEED, 16, 16)
    regions = scanner.regions(area, flags=WP_MATCHING)
    return {
        "some": pages_in(regions, 16, 16),
        "table": pages_in(regions, 512, 512),
        "others": pages_in(regions, 1024, 512),
    }


@fact("free.reclaimed")
def free_reclaimed():
    """MADV_FREE and reclaim: the content is lost without a write."""
    area = small()
    scanner = tracked(area)
    scanner.count(area, flags=WP_MATCHING)
    area.advise(MADV_FREE, 512, 64)
    found = {"freed": f"{scanner.count(area, 512, 64, flags=WP_MATCHING)}/64"}
    area.advise(MADV_PAGEOUT, 512, 64)
    found["present"] = scanner.count(area, 512, 64, mask=PRESENT, returned=PRESENT)
    found["reclaimed"] = f"{scanner.count(area, 512, 64, flags=WP_MATCHING)}/64"
    return found


def guarded(remove: bool) -> dict[str, object]:
    area = small()
    scanner = tracked(area)
    scanner.count(area, flags=WP_MATCHING)
    try:
        area.advise(MADV_GUARD_INSTALL, 600, 16)
    except OSError as error:
        raise Skipped(errno.errorcode[error.errno]) from None
    if remove:
        area.advise(MADV_GUARD_REMOVE, 600, 16)
    regions = scanner.regions(area, flags=WP_MATCHING)
    found = {"written": pages_in(regions, 600, 16)}
    found["again"] = pages_in(scanner.regions(area, flags=WP_MATCHING), 600, 16)
    found["swapped"] = scanner.count(area, 600, 16, mask=SWAPPED, returned=SWAPPED)
    if not remove:
        area.advise(MADV_GUARD_REMOVE, 600, 16)
        found["removed"] = pages_in(scanner.regions(area, flags=WP_MATCHING), 600, 16)
    return found


FACTS["guard.installed"] = lambda: guarded(False)


FACTS["guard.removed"] = lambda: guarded(True)


@fact("hole_cost")
def hole_cost():
    """Page tables that the first scan of 1 GiB of untouched memory allocates, in KiB."""
    area = Area(1 << 18)
    scanner = tracked(area)
    tables = [_page_tables()]
    found = scanner.count(area, flags=WP_MATCHING)
    tables.append(_page_tables())
    return {"reported": f"{found}/{area.pages}", "kib": tables[1] - tables[0]}


def _page_tables() -> int:
    return int(re.search(r"VmPTE:\s*(\d+)", Path("/proc/self/status").read_text())[1])
