"""The typed contract of the extension module.

Memory that is handed over is Any: it is whatever speaks the buffer protocol, which NumPy's own stubs
do not declare.
"""

from typing import Any, Final, Protocol, SupportsIndex, final

from _typeshed import FileDescriptorLike

# A new descriptor is stored in one before anything can interrupt: a number that is returned may be lost.
class _Owner(Protocol):
    fd: int

SMALL_PAGES: Final[int]
UFFD_USER_MODE_ONLY: Final[int]
UFFD_FEATURE_WP_HUGETLBFS_SHMEM: Final[int]
UFFD_FEATURE_WP_UNPOPULATED: Final[int]
UFFD_FEATURE_WP_ASYNC: Final[int]
UFFD_FEATURE_RWP: Final[int]
UFFD_FEATURE_RWP_ASYNC: Final[int]
UFFDIO_REGISTER_MODE_WP: Final[int]
UFFDIO_REGISTER_MODE_RWP: Final[int]

def pagemap_scan(
    fd: FileDescriptorLike,
    start: SupportsIndex,
    end: SupportsIndex,
    /,
    vec: Any = None,
    *,
    flags: SupportsIndex = 0,
    max_pages: SupportsIndex = 0,
    category_inverted: SupportsIndex = 0,
    category_mask: SupportsIndex = 0,
    category_anyof_mask: SupportsIndex = 0,
    return_mask: SupportsIndex = 0,
) -> tuple[int, int]: ...
def scan_small(fd: int, start: int, end: int, masks: tuple[int, int, int, int], /) -> bytearray: ...
def decode_entries(
    entries: Any,
    start: int,
    vec: Any,
    max_pages: int,
    inverted: int,
    mask: int,
    anyof: int,
    report: int,
    /,
) -> tuple[int, int]: ...
def read_entries(fd: int, start: int, out: Any, /) -> None: ...
def read_maps(fd: int, /) -> bytes: ...
def parse_maps(text: Any, /) -> bytes: ...
def query_vma(fd: int, address: int, /) -> tuple[int, int, int, int] | None: ...
def userfaultfd(flags: int, owner: _Owner, /) -> None: ...
def uffd_api(fd: int, features: int, /) -> tuple[int, int]: ...
def uffd_register(fd: int, start: int, end: int, mode: int, /) -> int: ...
def uffd_unregister(fd: int, start: int, end: int, /) -> None: ...
def uffd_protect(fd: int, start: int, end: int, mode: int, protect: int, /) -> None: ...
def inject_userfaultfd(pid: int, flags: int, owner: _Owner, /) -> int: ...

@final
class RegionBuffer:
    def __new__(cls, capacity: int, /) -> RegionBuffer: ...
    @property
    def capacity(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def exports(self) -> int: ...
    def scan(
        self,
        at: int,
        fd: int,
        start: int,
        end: int,
        max_pages: int,
        flags: int,
        inverted: int,
        mask: int,
        anyof: int,
        report: int,
        /,
    ) -> tuple[int, int, int]: ...
    def read(
        self,
        at: int,
        fd: int,
        ranges: Any,
        start: int,
        end: int,
        max_pages: int,
        inverted: int,
        mask: int,
        anyof: int,
        report: int,
        /,
    ) -> tuple[int, int, int]: ...
    def scan_whole(
        self, fd: int, start: int, end: int, masks: tuple[int, int, int, int], /
    ) -> bytearray | int: ...
    def append(self, at: int, other: RegionBuffer, first: int, count: int, /) -> int: ...
    def clear(self) -> None: ...
    def resize(self, capacity: int, /) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
