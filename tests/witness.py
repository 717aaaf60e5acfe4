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
                if int(low, 16) >= end:
                    break
                found.append((int(low, 16), int(high, 16), {"range": (int(low, 16), int(high, 16))}))
    return [vma for vma in found if start < vma[1]]


def sees_frames():
    """Whether this process may see page frame numbers: without them, PFNZERO and HUGE cannot be told."""
    byte = ctypes.create_string_buffer(b"here")
    page = ctypes.addressof(byte) // PAGE * PAGE
    return bool(entries(page, page + PAGE)[0] & PFN) and os.access("/proc/kpageflags", os.R_OK)


def pages(start, end, engine="scan", pid="self"):
    """{address: categories} of each mapped page between two addresses: what an engine is to see.

    WRITTEN is told inside registered memory only: elsewhere it means nothing. The engines differ in two
    things: the entries of the huge zero page say FILE (pagemap_pmd_range), PAGEMAP_SCAN does not
    (pagemap_thp_category); and PAGEMAP_SCAN passes over mappings of bare frames such as vvar
    (pagemap_scan_test_walk), where the entries are zeros.
    """
    told = {}
    frames = {}
    for low, high, fields in smaps(start, end, pid):
        flags = fields["VmFlags"].split()
        low, high = max(low, start), min(high, end)
        if "pf" in flags and engine == "scan":
            continue
        hugetlb = fields["KernelPageSize"] == "2048 kB"
        huge = set() if hugetlb else _huge_blocks(fields, pid)
        for address, entry in zip(range(low, high, PAGE), entries(low, high, pid), strict=True):
            bits = sum(category for bit, category in IN_ENTRIES.items() if entry & bit)
            if hugetlb or address // PMD * PMD in huge:
                bits |= HUGE
            if "uw" in flags:
                bits |= WPALLOWED | (0 if entry & ENTRY_WRITE_PROTECTED else WRITTEN)
            frame = entry & PFN if entry >> 63 else 0
            if frame not in frames:
                frames[frame] = frame and words("/proc/kpageflags", frame, 1)[0]
            if frames[frame] & KPF_ZERO_PAGE:
                bits = bits & ~(FILE if engine == "scan" else 0) | PFNZERO
            told[address] = bits
    return told


def _huge_blocks(fields, pid):
    """The 2 MiB blocks of a VMA that one page-table entry maps.

    Frames in a row, from a frame that is a multiple of 512 on, may also be 512 entries. smaps counts in bytes
    how much is really mapped huge; the huge zero page it leaves out, but that is never mapped in parts.
    """
    low, high = fields["range"]
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
