"""What /proc says of the pages of a process, and the rules of selection in plain Python.

Nothing here uses the package under test, nor NumPy: entries are read eight bytes at a time, and a page is a
key of a dict. What an entry cannot tell comes from other witnesses: the zero page from /proc/kpageflags, huge
mappings from page frame numbers and smaps, write protection from the VMA's flags.
"""

import ctypes
import mmap
import os
import struct
from itertools import pairwise

PAGE = mmap.PAGESIZE
PMD = 2 << 20

WPALLOWED, WRITTEN, FILE, PRESENT, SWAPPED, PFNZERO, HUGE, SOFT_DIRTY, GUARD = (1 << bit for bit in range(9))
NAMES = {
    "WPALLOWED": WPALLOWED,
    "WRITTEN": WRITTEN,
    "FILE": FILE,
    "PRESENT": PRESENT,
    "SWAPPED": SWAPPED,
    "PFNZERO": PFNZERO,
    "HUGE": HUGE,
    "SOFT_DIRTY": SOFT_DIRTY,
    "GUARD": GUARD,
}

IN_ENTRIES = {1 << 63: PRESENT, 1 << 62: SWAPPED, 1 << 61: FILE, 1 << 58: GUARD, 1 << 55: SOFT_DIRTY}
ENTRY_WRITE_PROTECTED = 1 << 57
PFN = (1 << 55) - 1
KPF_ZERO_PAGE = 1 << 24  # include/uapi/linux/kernel-page-flags.h


class CannotTell(Exception):
    """The witness saw something that it cannot judge."""


def words(path, index, count):
    """`count` words of 64 bits of a file, each read on its own."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return [struct.unpack("<Q", os.pread(fd, 8, (index + i) * 8))[0] for i in range(count)]
    finally:
        os.close(fd)


def entries(start, end, pid="self"):
    return words(f"/proc/{pid}/pagemap", start // PAGE, (end - start) // PAGE)


def maps(pid="self"):
    """(start, end, line) of each VMA."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        found = []
        for line in lines:
            start, _, end = line.split(" ", 1)[0].partition("-")
            found.append((int(start, 16), int(end, 16), line.rstrip("\n")))
        return found


def smaps(start, end, pid="self"):
    """(start, end, {field: text}) of each VMA between two addresses."""
    found = []
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for line in lines:
            head = line.split(" ", 1)[0]
            if head.endswith(":"):
                found[-1][2][head[:-1]] = line.partition(":")[2].strip()
            else:
                low, _, high = head.partition("-")
                found.append((int(low, 16), int(high, 16), {}))
    return [vma for vma in found if vma[0] < end and start < vma[1]]


def sees_frames():
    """Whether this process may see page frame numbers: without them, PFNZERO and HUGE cannot be told."""
    byte = ctypes.create_string_buffer(b"here")
    page = ctypes.addressof(byte) // PAGE * PAGE
    return bool(entries(page, page + PAGE)[0] & PFN) and os.access("/proc/kpageflags", os.R_OK)


def pages(start, end, engine="scan", pid="self"):
    """{address: categories} of each mapped page between two addresses: what an engine is to see.

    WRITTEN is told inside registered memory only: elsewhere it means nothing. The engines differ in one
    page: the entries of the huge zero page say FILE (pagemap_pmd_range), PAGEMAP_SCAN does not
    (pagemap_thp_category).
    """
    entry = {}
    for low, high, _ in maps(pid):
        low, high = max(low, start), min(high, end)
        if low < high:
            entry.update(zip(range(low, high, PAGE), entries(low, high, pid), strict=True))
    told = {
        address: sum(category for bit, category in IN_ENTRIES.items() if word & bit)
        for address, word in entry.items()
    }
    vmas = smaps(start, end, pid)
    for low, high, fields in vmas:
        inside = range(max(low, start), min(high, end), PAGE)
        if fields["KernelPageSize"] == "2048 kB":
            for address in inside:
                told[address] |= HUGE
        elif huge := _huge_blocks(low, high, fields, pid):
            for address in inside:
                if address // PMD * PMD in huge:
                    told[address] |= HUGE
        if "uw" in fields["VmFlags"].split():
            for address in inside:
                told[address] |= WPALLOWED | (0 if entry[address] & ENTRY_WRITE_PROTECTED else WRITTEN)
    zero = {}
    for address, word in entry.items():
        if word >> 63 and word & PFN:
            frame = word & PFN
            if frame not in zero:
                zero[frame] = bool(words("/proc/kpageflags", frame, 1)[0] & KPF_ZERO_PAGE)
            if zero[frame]:
                told[address] = told[address] & ~(FILE if engine == "scan" else 0) | PFNZERO
    return told


def _huge_blocks(low, high, fields, pid):
    """The 2 MiB blocks of a VMA that one page-table entry maps.

    Frames in a row, from a frame that is a multiple of 512 on, may also be 512 entries. smaps counts in bytes
    how much is really mapped huge; the huge zero page it leaves out, but that is never mapped in parts.
    """
    whole, zero = set(), set()
    for block in range(-(-low // PMD) * PMD, high // PMD * PMD, PMD):
        first = entries(block, block + PAGE, pid)[0]
        if not first >> 63 or first & PFN == 0 or (first & PFN) % 512:
            continue
        frames = [word & PFN for word in entries(block, block + PMD, pid)]
        if all(b == a + 1 for a, b in pairwise(frames)):
            is_zero = words("/proc/kpageflags", frames[0], 1)[0] & KPF_ZERO_PAGE
            (zero if is_zero else whole).add(block)
    said = sum(
        int(fields.get(name, "0 kB").split()[0]) * 1024
        for name in ("AnonHugePages", "ShmemPmdMapped", "FilePmdMapped")
    )
    if said == 0:
        return zero
    if said != len(whole) * PMD:
        raise CannotTell(f"smaps says {said} bytes of huge pages, frames say {len(whole)} blocks")
    return whole | zero


def selected(categories, require=0, exclude=0, any_of=0):
    """The rule: every required one, no excluded one, and one of any_of, if that names some."""
    for bit in NAMES.values():
        if require & bit and not categories & bit:
            return False
        if exclude & bit and categories & bit:
            return False
    return any_of == 0 or any(categories & any_of & bit for bit in NAMES.values())


def regions(told, require=0, exclude=0, any_of=0, report=None, max_pages=None):
    """What a scan has to answer: [(start, end, categories)], from the pages that a witness told."""
    if report is None:
        report = require | any_of & ~exclude
    found = []
    for address in sorted(told):
        if max_pages == 0:
            break
        if not selected(told[address], require, exclude, any_of):
            continue
        if max_pages is not None:
            max_pages -= 1
        shown = told[address] & report
        if found and found[-1][1] == address and found[-1][2] == shown:
            found[-1] = (found[-1][0], address + PAGE, shown)
        else:
            found.append((address, address + PAGE, shown))
    return found


def is_canonical(found):
    """Sorted, disjoint, none empty, and neighbours that touch differ."""
    return all(start < end for start, end, _ in found) and all(
        a[1] < b[0] or (a[1] == b[0] and a[2] != b[2]) for a, b in pairwise(found)
    )
