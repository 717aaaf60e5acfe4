"""Memory to be tracked, of every kind, and the answers of trackers as sets of page numbers."""

import ctypes
import os
import tempfile

import witness
from memory import ANONYMOUS, HUGEPAGE, HUGETLB, PRIVATE, READ, SHARED, WRITE, Memory
from witness import PAGE, PMD, is_canonical

import pagemap

PAGES = 64


def plain(pages=PAGES):
    """Every second run of four pages is populated: the others are holes."""
    memory = Memory(pages)
    memory.write(*(page for page in range(pages) if page % 8 < 4))
    return memory


def shared(pages=PAGES):
    memory = Memory(pages, flags=SHARED | ANONYMOUS)
    memory.write(*(page for page in range(pages) if page % 8 < 4))
    return memory


def _of_file(flags, pages, descriptor):
    with os.fdopen(descriptor, "r+b") as file:
        file.write(b"page" * (pages * PAGE // 4))
        file.flush()
        return Memory(pages, READ | WRITE, flags, fd=file.fileno())


def memfd(pages=PAGES):
    memory = _of_file(SHARED, pages, os.memfd_create("pagemap test"))
    memory.write(*(page for page in range(pages) if page % 8 < 4))
    return memory


def _nameless():
    return os.open(tempfile.gettempdir(), os.O_RDWR | os.O_TMPFILE, 0o600)


def file_private(pages=PAGES):
    """Pages of the file that were never touched, read ones, and copies of its own."""
    memory = _of_file(PRIVATE, pages, _nameless())
    memory.read(*(page for page in range(pages) if page % 8 < 4))
    memory.write(*(page for page in range(pages) if page % 4 < 2))
    return memory


def file_shared(pages=PAGES):
    memory = _of_file(SHARED, pages, _nameless())
    memory.read(*(page for page in range(pages) if page % 8 < 4))
    memory.write(*(page for page in range(pages) if page % 4 < 2))
    return memory


def zeros(pages=PAGES):
    """Read, but never written: the shared zero page."""
    memory = Memory(pages)
    memory.read(*range(pages))
    return memory


SMALL_PAGES = {make.__name__: make for make in (plain, shared, memfd, file_private, file_shared, zeros)}


def huge(count=2):
    """`count` transparent huge pages."""
    memory = Memory(count * 512, align=PMD, huge_pages=True)
    memory.advise(HUGEPAGE)
    memory.write(*range(0, count * 512, 512))
    return memory


def huge_bytes(memory):
    """How much of it is mapped by huge pages, by the word of smaps."""
    fields = ("AnonHugePages", "ShmemPmdMapped")
    vmas = witness.smaps(*bounds(memory))
    return sum(int(vma[2][field].split()[0]) * 1024 for vma in vmas for field in fields)


def hugetlb(flags, count=2):
    """hugetlb pages, none of them touched."""
    return Memory(count * 512, flags=flags | ANONYMOUS | HUGETLB, align=PMD)


def bounds(memory):
    return memory.start, memory.end


def is_registered(memory):
    """Whether any of it is, by the word of smaps."""
    return any("uw" in vma[2]["VmFlags"].split() for vma in witness.smaps(*bounds(memory)))


def pages_in(found, memory, category=pagemap.Category.WRITTEN):
    """The pages that an answer names, counted from the first of `memory`; it has to be canonical."""
    assert found.dtype == pagemap.REGION_DTYPE
    assert is_canonical(found.tolist())
    assert set(found["categories"].tolist()) <= {int(category)}
    assert not len(found) or (memory.start <= found["start"][0] and found["end"][-1] <= memory.end)
    return {
        page
        for start, end, _ in found.tolist()
        for page in range((start - memory.start) // PAGE, (end - memory.start) // PAGE)
    }


def whole(*huge_pages):
    """The pages that make up some huge pages."""
    return {page for number in huge_pages for page in range(number * 512, number * 512 + 512)}


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
_libc.mremap.restype = ctypes.c_void_p
_MAYMOVE_FIXED = 3


def remap(source, length, to):
    """Moves a mapping to a given address, over what is there."""
    if _libc.mremap(source, length, length, _MAYMOVE_FIXED, to) != to:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def view(memory, first, count):
    """Some of its pages as a writable buffer."""
    return (ctypes.c_char * (count * PAGE)).from_address(memory.at(first))
