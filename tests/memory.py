"""Known memory of every kind, made with mmap(2) and madvise(2) alone."""

import contextlib
import ctypes
import fcntl
import mmap
import os
import struct
import tempfile
import time
from dataclasses import dataclass

import witness
from witness import (
    FILE,
    GUARD,
    HUGE,
    PAGE,
    PFNZERO,
    PMD,
    PRESENT,
    SOFT_DIRTY,
    SWAPPED,
    WPALLOWED,
    WRITTEN,
)

NONE, READ, WRITE = 0, mmap.PROT_READ, mmap.PROT_WRITE
PRIVATE, SHARED, ANONYMOUS = mmap.MAP_PRIVATE, mmap.MAP_SHARED, mmap.MAP_ANONYMOUS
FIXED, NORESERVE, HUGETLB, FIXED_NOREPLACE = 0x10, 0x4000, 0x40000, 0x100000
DONTNEED, HUGEPAGE, NOHUGEPAGE, PAGEOUT, GUARD_INSTALL = 4, 14, 15, 21, 102
MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mprotect.argtypes = _libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.syscall.restype = ctypes.c_long


def _check(result):
    if result in (-1, MAP_FAILED):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def map_at(address, length, prot, flags, fd=-1, offset=0):
    return _check(_libc.mmap(address, length, prot, flags, fd, offset))


def unmap(address, length):
    _check(_libc.munmap(address, length))


def clear_soft_dirty():
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("4")


class Memory:
    """`pages` pages between two that nobody may touch, so that no VMA merges with a neighbour.

    It lies far below where the kernel puts mappings by itself: none gets into a hole of it.
    """

    _next = 1 << 45

    def __init__(
        self, pages, prot=READ | WRITE, flags=PRIVATE | ANONYMOUS, *, fd=-1, align=PAGE, huge_pages=False
    ):
        self.pages = pages
        self._keep = contextlib.ExitStack()
        length = pages * PAGE
        self._room = length + align + 2 * PAGE
        self._base = map_at(Memory._next, self._room, NONE, PRIVATE | ANONYMOUS | NORESERVE)
        Memory._next = self._base + self._room + PMD
        self._keep.callback(unmap, self._base, self._room)
        self.start = -(-(self._base + PAGE) // align) * align
        self.end = self.start + length
        try:
            map_at(self.start, length, prot, flags | FIXED, fd)
            if not huge_pages and not flags & HUGETLB:
                self.advise(NOHUGEPAGE)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        self._keep.close()

    def keep(self, resource):
        return self._keep.enter_context(resource)

    def at(self, page):
        return self.start + page * PAGE

    def write(self, *pages):
        for page in pages:
            ctypes.c_char.from_address(self.at(page)).value = b"x"

    def read(self, *pages):
        return [ctypes.c_char.from_address(self.at(page)).value for page in pages]

    def advise(self, advice, first=0, count=None):
        _check(_libc.madvise(self.at(first), (self.pages - first if count is None else count) * PAGE, advice))

    def protect(self, prot, first=0, count=None):
        _check(_libc.mprotect(self.at(first), (self.pages - first if count is None else count) * PAGE, prot))

    def unmap(self, first, count):
        unmap(self.at(first), count * PAGE)

    def replace(self, first, count, prot, flags, fd=-1, offset=0):
        map_at(self.at(first), count * PAGE, prot, flags | FIXED, fd, offset)

    def swap_out(self, first=0, count=None):
        """Pages that sit in another CPU's list of new ones are passed over: ask again until all are out."""
        count = self.pages - first if count is None else count
        deadline = time.monotonic() + 5
        while True:
            self.advise(PAGEOUT, first, count)
            if not any(word >> 63 for word in witness.entries(self.at(first), self.at(first + count))):
                return
            if time.monotonic() > deadline:
                raise TimeoutError("MADV_PAGEOUT leaves pages in memory")

    def write_protect(self):
        """Registers all of it for asynchronous write protection, and protects it. (userfaultfd.h)"""
        fd = userfaultfd(1 << 15 | 1 << 13 | 1 << 12)  # WP_ASYNC, WP_UNPOPULATED, WP_HUGETLBFS_SHMEM
        self._keep.callback(os.close, fd)
        length = self.pages * PAGE
        fcntl.ioctl(fd, 0xC020AA00, bytearray(struct.pack("<QQQQ", self.start, length, 2, 0)))
        fcntl.ioctl(fd, 0xC018AA06, bytearray(struct.pack("<QQQ", self.start, length, 1)))


def userfaultfd(features):
    """The descriptor of one that has these features (linux/userfaultfd.h); the caller closes it."""
    fd = _check(_libc.syscall(323, os.O_CLOEXEC | os.O_NONBLOCK | 1))
    try:
        fcntl.ioctl(fd, 0xC018AA3F, bytearray(struct.pack("<QQQ", 0xAA, features, 0)))
    except OSError:
        os.close(fd)
        raise
    return fd


@dataclass(frozen=True)
class Kind:
    build: object
    needs: tuple
    shows: tuple
    """Combinations of categories that its pages must show, by the witness's word: else it was not made."""


KINDS: dict[str, Kind] = {}


def _kind(*shows, needs=()):
    def register(build):
        KINDS[build.__name__] = Kind(build, tuple(needs), shows)
        return build

    return register


def _file(pages):
    """A file of so many pages without a name."""
    descriptor = os.open(tempfile.gettempdir(), os.O_RDWR | os.O_TMPFILE, 0o600)
    os.write(descriptor, b"page" * (pages * PAGE // 4))
    return os.fdopen(descriptor, "r+b")


def _backed(prot, flags, file, pages):
    memory = Memory(pages, prot, flags, fd=file.fileno())
    memory.keep(file)
    return memory


@_kind(PRESENT, 0)
def anonymous():
    memory = Memory(24)
    memory.write(0, 1, 2, 5, 7, 9, 23)
    return memory


@_kind(0)
def untouched():
    return Memory(9)


@_kind(PRESENT, 0)
def dropped():
    memory = Memory(12)
    memory.write(*range(12))
    memory.advise(DONTNEED, 3, 4)
    return memory


@_kind(PRESENT)
def with_a_hole():
    memory = Memory(12)
    memory.write(*range(12))
    memory.unmap(4, 3)
    return memory


@_kind(PRESENT | FILE, 0)
def shared_anonymous():
    memory = Memory(16, flags=SHARED | ANONYMOUS)
    memory.write(*range(0, 16, 3))
    return memory


@_kind(PRESENT | FILE, 0)
def memfd():
    file = os.fdopen(os.memfd_create("pagemap test"), "r+b")
    file.truncate(16 * PAGE)
    memory = _backed(READ | WRITE, SHARED, file, 16)
    memory.write(0, 1, 8, 15)
    return memory


@_kind(PRESENT | FILE, PRESENT)
def file_private():
    """Written pages are copies, which lose FILE."""
    memory = _backed(READ | WRITE, PRIVATE, _file(16), 16)
    memory.read(0, 4, 8)
    memory.write(1, 4)
    return memory


@_kind(PRESENT | FILE)
def file_shared():
    memory = _backed(READ | WRITE, SHARED, _file(16), 16)
    memory.read(0)
    memory.write(2, 3)
    return memory


@_kind(PRESENT)
def read_only():
    memory = Memory(8)
    memory.write(1, 2, 3)
    memory.protect(READ)
    return memory


@_kind(PRESENT)
def not_readable():
    memory = Memory(8)
    memory.write(1, 2, 3)
    memory.protect(NONE)
    return memory


@_kind(PRESENT | PFNZERO, PRESENT, needs=["frames"])
def zero_page():
    memory = Memory(8)
    memory.read(0, 1, 2, 6)
    memory.write(1)
    return memory


@_kind(PRESENT | FILE, needs=["vdso"])
def vdso():
    start, end, _ = next(vma for vma in witness.maps() if vma[2].endswith("[vdso]"))

    @contextlib.contextmanager
    def build():
        ctypes.string_at(start, end - start)
        yield type("Mapped", (), {"start": start, "end": end})

    return build()


@_kind(PRESENT | HUGE, PRESENT, 0, needs=["thp", "frames"])
def transparent_huge():
    """A huge page, one that was split by a hole in it, one that nobody touched, and a tail."""
    memory = Memory(3 * 512 + 8, align=PMD, huge_pages=True)
    memory.advise(HUGEPAGE)
    memory.write(0, 512, 1536 + 3)
    memory.advise(NOHUGEPAGE)  # khugepaged would put the split one together again
    memory.advise(DONTNEED, 512 + 100, 3)
    return memory


@_kind(PRESENT | HUGE, PRESENT, needs=["thp", "frames"])
def huge_mapped_in_parts():
    """Half of a huge page has another protection: the same frames, but 512 entries."""
    memory = Memory(2 * 512, align=PMD, huge_pages=True)
    memory.advise(HUGEPAGE)
    memory.write(0, 512)
    memory.protect(READ, 256, 256)
    return memory


@_kind(PRESENT | PFNZERO | HUGE, needs=["thp", "huge_zero", "frames"])
def huge_zero_page():
    memory = Memory(2 * 512, align=PMD, huge_pages=True)
    memory.advise(HUGEPAGE)
    memory.read(0)
    memory.write(512)
    return memory


@_kind(PRESENT | FILE | HUGE, needs=["shmem_thp", "frames"])
def shared_transparent_huge():
    memory = Memory(2 * 512, flags=SHARED | ANONYMOUS, align=PMD, huge_pages=True)
    memory.advise(HUGEPAGE)
    memory.write(0)
    return memory


@_kind(PRESENT | HUGE, HUGE, needs=["hugetlb"])
def hugetlb_private():
    memory = Memory(2 * 512, flags=PRIVATE | ANONYMOUS | HUGETLB, align=PMD)
    memory.write(512)
    return memory


@_kind(PRESENT | FILE | HUGE, HUGE, needs=["hugetlb"])
def hugetlb_shared():
    memory = Memory(2 * 512, flags=SHARED | ANONYMOUS | HUGETLB, align=PMD)
    memory.write(0)
    return memory


@_kind(PRESENT | SOFT_DIRTY, PRESENT, needs=["soft_dirty"])
def soft_dirty():
    """Pages written before and after the bits of all of this process were cleared."""
    memory = Memory(16)
    memory.write(*range(12))
    clear_soft_dirty()
    memory.write(1, 2, 7)
    return memory


@_kind(SWAPPED | GUARD, PRESENT, needs=["guard"])
def guard_regions():
    memory = Memory(16)
    memory.write(*range(8))
    memory.advise(GUARD_INSTALL, 2, 3)
    memory.advise(GUARD_INSTALL, 10, 1)
    return memory


@_kind(SWAPPED, PRESENT, 0, needs=["swap"])
def swapped():
    memory = Memory(32)
    memory.write(*range(24))
    memory.swap_out(4, 12)
    memory.read(7)
    return memory


@_kind(0, needs=["swap"])
def swapped_shared():
    """What is swapped out of shared memory is out of the page tables, and not reported."""
    memory = Memory(16, flags=SHARED | ANONYMOUS)
    memory.write(*range(16))
    memory.swap_out(4, 8)
    return memory


@_kind(
    WPALLOWED | WRITTEN | PRESENT,
    WPALLOWED | PRESENT,
    WPALLOWED | SWAPPED,
    needs=["wp_async"],
)
def write_protected():
    """Pages that were there and pages that were not, each partly written since: markers show as swapped."""
    memory = Memory(24)
    memory.write(*range(12))
    memory.write_protect()
    memory.write(2, 3, 8, 16, 17)
    return memory
