"""Memory that keeps its content: swapped, moved, registered again; and what the kernel knows at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from kernel_api import (
    MADV_NOHUGEPAGE,
    PAGE,
    PRESENT,
    WP_MATCHING,
    WPALLOWED,
    WRITTEN,
    Area,
    Scanner,
    Userfault,
    userfault_features,
)
from known_memory import (
    EXACT,
    FACTS,
    GENERAL,
    fact,
    huge,
    pages_in,
    shmem,
    small,
    swap_out,
    swapped_pages,
    tracked,
)


@fact("swap.clean")
def swap_clean():
    area = small()
    scanner = tracked(area)
    scanner.count(area, flags=WP_MATCHING)
    swap_out(area, scanner)
    found = {"swapped": swapped_pages(area, scanner), "out": scanner.count(area, flags=WP_MATCHING)}
    area.read()
    found["in"] = scanner.count(area, flags=WP_MATCHING)
    swap_out(area, scanner)
    area.write()
    return found | {"written": scanner.count(area, flags=WP_MATCHING)}


@fact("swap.dirty")
def swap_dirty():
    area = small()
    scanner = tracked(area)
    scanner.count(area, flags=WP_MATCHING)
    area.write()
    swap_out(area, scanner)
    found = {"swapped": swapped_pages(area, scanner)}
    found |= {"out": scanner.count(area, flags=WP_MATCHING), "again": scanner.count(area, flags=WP_MATCHING)}
    area.read()
    found["in"] = scanner.count(area, flags=WP_MATCHING)
    area.write()
    return found | {"written": scanner.count(area, flags=WP_MATCHING)}


def moved(make, swap: bool, write: bool) -> dict[str, object]:
    """Protected memory is moved with mremap and, perhaps, written there before it is registered again."""
    area = make()
    scanner = tracked(area)
    scanner.count(area, flags=WP_MATCHING)
    if swap:
        swap_out(area, scanner)
    area.move()
    found: dict[str, object] = {"swapped": swapped_pages(area, scanner)}
    for name, category in (("wpallowed", WPALLOWED), ("written", WRITTEN)):
        found[name] = f"{scanner.count(area, mask=category, returned=category)}/{area.pages}"
    if write:
        area.write(600, 16, 7)
    area.uffd.register(area)
    regions = scanner.regions(area, flags=WP_MATCHING)
    found["registered"] = pages_in(regions, 0, area.pages)
    if write:
        found["registered_written"] = pages_in(regions, 600, 16)
    found["idle"] = pages_in(scanner.regions(area, flags=WP_MATCHING), 0, area.pages)
    area.write(600, 16, 8)
    return found | {"later_written": pages_in(scanner.regions(area, flags=WP_MATCHING), 600, 16)}


for kind, make in (("anon", small), ("thp", huge), ("shmem", shmem)):
    for write in (False, True):
        FACTS[f"mremap.{kind}.{'written' if write else 'clean'}"] = lambda a=(make, False, write): moved(*a)


FACTS["mremap.swapped.clean"] = lambda: moved(small, True, False)


FACTS["mremap.swapped.written"] = lambda: moved(small, True, True)


def reattached(make, close: bool, swap: bool) -> dict[str, object]:
    """Unregistering, or closing, and registering again: is a write in between reported?"""
    area = make()
    scanner = tracked(area)
    scanner.count(area, flags=WP_MATCHING)
    if swap:
        swap_out(area, scanner)
    if close:
        area.uffd.close()
    else:
        area.uffd.unregister(area)
    area.write(600, 16, 7)
    again = Userfault()
    again.register(area)
    regions = scanner.regions(area, flags=WP_MATCHING)
    return {"all": pages_in(regions, 0, area.pages), "written": pages_in(regions, 600, 16)}


for kind, make in (("anon", small), ("thp", huge), ("shmem", shmem)):
    for close in (False, True):
        FACTS[f"reattach.{kind}.{'close' if close else 'unregister'}"] = lambda a=(make, close, False): (
            reattached(*a)
        )


FACTS["reattach.swapped.unregister"] = lambda: reattached(small, False, True)


@fact("unregistered")
def unregistered():
    """Is WRITTEN reported in memory that nobody registered?"""
    area = Area(3 * 512)
    area.advise(MADV_NOHUGEPAGE)
    area.write(0, 16)
    scanner = Scanner()
    found = {}
    for path, rule in (("exact", EXACT), ("general", GENERAL)):
        for place, first, count in (("present", 0, 16), ("hole", 16, 496), ("no_table", 512, 1024)):
            found[f"{place}.{path}"] = f"{scanner.count(area, first, count, **rule)}/{count}"
    big = huge()
    found["thp.exact"] = f"{scanner.count(big)}/{big.pages}"
    return found


@fact("registered")
def registered():
    """What the first scan after registering reports, before anything was protected."""
    area = Area(3 * 512)
    area.advise(MADV_NOHUGEPAGE)
    area.write(0, 16)
    area.read(16, 16)
    scanner = tracked(area)
    found = {}
    for path, rule in (("exact", EXACT), ("general", GENERAL)):
        for place, first, count in (
            ("present", 0, 16),
            ("zero", 16, 16),
            ("hole", 32, 480),
            ("no_table", 512, 1024),
        ):
            found[f"{place}.{path}"] = f"{scanner.count(area, first, count, **rule)}/{count}"
    return found


@fact("stale_walk_end")
def stale_walk_end():
    area = Area(4096)
    area.advise(MADV_NOHUGEPAGE)
    for page in range(0, 1026, 2):
        area.write(page, 1)
    count, walk_end = Scanner().raw(area.start, area.end, 4096, PRESENT, PRESENT)
    return {"regions": count, "walk_end_page": (walk_end - area.start) // PAGE, "end_page": area.pages}


@fact("features")
def features():
    scanner = Scanner()
    known = []
    for bit in range(16):
        try:
            scanner.raw(0, 0, 0, 1 << bit, 0)
            known.append(str(bit))
        except OSError as error:
            if error.errno == errno.ENOTTY:
                raise
    return {"categories": ",".join(known), "uffd": hex(userfault_features())}


@fact("soft_dirty")
def soft_dirty():
    """Bit 55 of the entry: before and after clear_refs, and after a write."""
    area = Area(1)
    bits = []
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        for step in (area.write, lambda: Path("/proc/self/clear_refs").write_text("4"), area.write):
            step()
            bits.append(
                str(int.from_bytes(os.pread(file.fileno(), 8, area.start // PAGE * 8), "little") >> 55 & 1)
            )
    return {"bits": ",".join(bits)}
