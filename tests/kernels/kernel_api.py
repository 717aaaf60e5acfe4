"""The raw kernel interface in ctypes, for facts.py: independent of the package under test, on purpose."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
from dataclasses import dataclass, field

PAGE = mmap.PAGESIZE
TABLE = 512 * PAGE  # what one page table, or one transparent huge page, covers
DIRECTORY = 512 * TABLE  # what one directory of page tables covers

WPALLOWED, WRITTEN, FILE, PRESENT, SWAPPED, PFNZERO, HUGE, SOFT_DIRTY, GUARD, ACCESSED = (
    1 << bit for bit in range(10)
)
WP_MATCHING, CHECK_WPASYNC = 1, 2

MADV_FREE, MADV_REMOVE, MADV_PAGEOUT = 8, 9, 21
MADV_DONTNEED, MADV_HUGEPAGE, MADV_NOHUGEPAGE = 4, 14, 15
MADV_POPULATE_READ, MADV_COLLAPSE = 22, 25
MADV_GUARD_INSTALL, MADV_GUARD_REMOVE = 102, 103

UFFD_USER_MODE_ONLY = 1
UFFD_WP_ASYNC, UFFD_WP_UNPOPULATED, UFFD_WP_HUGETLBFS_SHMEM = 1 << 15, 1 << 13, 1 << 12

_PAGEMAP_SCAN = 0xC0606610
_UFFDIO_API, _UFFDIO_REGISTER, _UFFDIO_UNREGISTER = 0xC018AA3F, 0xC020AA00, 0x8010AA01
_UFFDIO_WRITEPROTECT = 0xC018AA06
_SYS_USERFAULTFD = 323
_MAP_FIXED, _MAP_HUGETLB = 0x10, 0x40000
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = _libc.mremap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_FAILED = ctypes.c_void_p(-1).value


def _checked(result: int) -> int:
    if result in (-1, _FAILED):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


@dataclass
class Area:
    """`pages` pages that begin at a multiple of `align`; never unmapped: each fact has its own process."""

    pages: int
    shared: bool = False
    file: int = -1
    hugetlb: bool = False
    align: int = TABLE
    start: int = field(init=False)

    def __post_init__(self) -> None:
        size = self.pages * PAGE
        room = size + 2 * self.align
        reserve = _checked(_libc.mmap(None, room, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0))
        self.start = (reserve + self.align - 1) // self.align * self.align
        self.map()

    def map(self) -> None:
        """Puts new memory there."""
        flags = (mmap.MAP_SHARED if self.shared else mmap.MAP_PRIVATE) | _MAP_FIXED
        flags |= mmap.MAP_ANONYMOUS if self.file < 0 else 0
        flags |= _MAP_HUGETLB if self.hugetlb else 0
        size = self.pages * PAGE
        _checked(_libc.mmap(self.start, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, self.file, 0))

    @property
    def end(self) -> int:
        return self.start + self.pages * PAGE

    def write(self, first: int = 0, count: int | None = None, value: int = 1) -> None:
        for page in range(first, first + (self.pages - first if count is None else count)):
            ctypes.c_ubyte.from_address(self.start + page * PAGE).value = value

    def read(self, first: int = 0, count: int | None = None) -> int:
        pages = range(first, first + (self.pages - first if count is None else count))
        return sum(ctypes.c_ubyte.from_address(self.start + page * PAGE).value for page in pages)

    def advise(self, advice: int, first: int = 0, count: int | None = None) -> None:
        size = (self.pages - first if count is None else count) * PAGE
        _checked(_libc.madvise(self.start + first * PAGE, size, advice))

    def move(self) -> None:
        """mremap to another place."""
        target = Area(self.pages)
        size = self.pages * PAGE
        self.start = _checked(
            _libc.mremap(self.start, size, size, _MREMAP_MAYMOVE | _MREMAP_FIXED, target.start)
        )


class Scanner:
    """PAGEMAP_SCAN on this process."""

    def __init__(self) -> None:
        self.fd = os.open("/proc/self/pagemap", os.O_RDONLY)
        self._vec = mmap.mmap(-1, 24 * 65536)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._vec))

    def raw(
        self, start, end, vec_len, mask, returned, flags=0, inverted=0, anyof=0, max_pages=0
    ) -> tuple[int, int]:
        vec = self._address if vec_len else 0
        arg = bytearray(
            struct.pack(
                "12Q", 96, flags, start, end, 0, vec, vec_len, max_pages, inverted, mask, anyof, returned
            )
        )
        count = fcntl.ioctl(self.fd, _PAGEMAP_SCAN, arg)
        return count, struct.unpack_from("Q", arg, 32)[0]

    def regions(
        self, area: Area, mask=WRITTEN, returned=WRITTEN, flags=0, inverted=0
    ) -> list[tuple[int, int, int]]:
        """(first page, end page, categories) within the area."""
        count, _ = self.raw(area.start, area.end, 65536, mask, returned, flags, inverted)
        found = struct.iter_unpack("3Q", self._vec[: 24 * count])
        return [((start - area.start) // PAGE, (end - area.start) // PAGE, c) for start, end, c in found]

    def count(self, area: Area, first: int = 0, count: int | None = None, **rule) -> int:
        """Matching pages among `count` pages from `first` on; the whole area is walked."""
        last = area.pages if count is None else first + count
        return sum(max(0, min(end, last) - max(start, first)) for start, end, _ in self.regions(area, **rule))


class Userfault:
    """A userfaultfd with asynchronous write protection."""

    def __init__(self) -> None:
        self.fd = _checked(
            _libc.syscall(_SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | UFFD_USER_MODE_ONLY)
        )
        features = UFFD_WP_ASYNC | UFFD_WP_UNPOPULATED | UFFD_WP_HUGETLBFS_SHMEM
        fcntl.ioctl(self.fd, _UFFDIO_API, bytearray(struct.pack("3Q", 0xAA, features, 0)))

    def register(self, area: Area) -> None:
        fcntl.ioctl(
            self.fd, _UFFDIO_REGISTER, bytearray(struct.pack("4Q", area.start, area.pages * PAGE, 2, 0))
        )

    def unregister(self, area: Area) -> None:
        fcntl.ioctl(self.fd, _UFFDIO_UNREGISTER, bytearray(struct.pack("2Q", area.start, area.pages * PAGE)))

    def protect(self, start: int, end: int) -> None:
        fcntl.ioctl(self.fd, _UFFDIO_WRITEPROTECT, bytearray(struct.pack("3Q", start, end - start, 1)))

    def close(self) -> None:
        os.close(self.fd)


def userfault_features() -> int:
    fd = _checked(_libc.syscall(_SYS_USERFAULTFD, os.O_CLOEXEC | UFFD_USER_MODE_ONLY))
    arg = bytearray(struct.pack("3Q", 0xAA, 0, 0))
    fcntl.ioctl(fd, _UFFDIO_API, arg)
    os.close(fd)
    return struct.unpack_from("Q", arg, 8)[0]
