"""A userfaultfd that tracks accesses without a handler: what it is asked for, and what refusals mean.

The kernel resolves the fault of a protected page by itself (asynchronous mode), and PAGEMAP_SCAN tells
which pages that happened to. Source: Documentation/admin-guide/mm/userfaultfd.rst; mm/userfaultfd.c.
"""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from dataclasses import dataclass

from . import _pagemap
from .categories import Category
from .errors import UnsupportedError
from .process import Descriptor


@dataclass(frozen=True)
class Mode:
    """What to watch for: how memory is registered, and which category tells."""

    category: Category
    register: int
    features: int
    feature: str
    """The field of Features that says whether the kernel can."""


WRITE = Mode(
    Category.WRITTEN,
    _pagemap.UFFDIO_REGISTER_MODE_WP,
    _pagemap.UFFD_FEATURE_WP_ASYNC
    | _pagemap.UFFD_FEATURE_WP_UNPOPULATED
    | _pagemap.UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
    "wp_async",
)
ACCESS = Mode(
    Category.ACCESSED,
    _pagemap.UFFDIO_REGISTER_MODE_RWP,
    _pagemap.UFFD_FEATURE_RWP | _pagemap.UFFD_FEATURE_RWP_ASYNC,
    "rwp_async",
)
MODES = {"write": WRITE, "access": ACCESS}

_ZEROPAGE = 1 << 0x04

REFUSALS = {
    errno.EINVAL: "the kernel cannot track this kind of memory, or it is not mapped",
    errno.EPERM: "a shared mapping of a file that may not be written",
    errno.EBUSY: "another userfaultfd already holds it (another tracker, a checkpoint, a hypervisor)",
}


def new_descriptor() -> Descriptor:
    """A userfaultfd of this process, for user-mode faults only: that needs no privilege."""
    uffd = Descriptor()
    _pagemap.userfaultfd(_pagemap.UFFD_USER_MODE_ONLY, uffd)
    return uffd


class Userfault:
    """A userfaultfd in one mode. Closing its last copy lifts all protection: nothing stays behind."""

    def __init__(self, descriptor: Descriptor, mode: Mode) -> None:
        self._descriptor: Descriptor | None = descriptor
        self.mode = mode
        _open.add(self)  # before there is a tracker: another thread may fork meanwhile
        granted, _ = _pagemap.uffd_api(descriptor.fd, mode.features)
        if granted & mode.features != mode.features:
            raise UnsupportedError("the kernel grants fewer userfaultfd features than it announced")

    def _fd(self) -> Descriptor:
        descriptor = self._descriptor
        if descriptor is None:
            raise ValueError("this tracker is closed")
        return descriptor

    def register(self, start: int, end: int) -> bool:
        """Registers a range of whole VMAs or parts, and says whether hugetlb is among them.

        The kernel's word, given under the lock under which it registers: for hugetlb it offers no
        UFFDIO_ZEROPAGE (fs/userfaultfd.c, userfaultfd_register). OSError: see REFUSALS.
        """
        descriptor = self._fd()
        return not _pagemap.uffd_register(descriptor.fd, start, end, self.mode.register) & _ZEROPAGE

    def protect(self, start: int, end: int) -> None:
        """Protects a mapped, registered range, aligned to its huge pages. Retries after a fork."""
        descriptor = self._fd()
        while True:
            try:
                _pagemap.uffd_protect(descriptor.fd, start, end, self.mode.register, 1)
            except BlockingIOError:
                continue
            return

    def unprotect(self, start: int, end: int) -> None:
        """Lifts the protection of a registered range. Retries after a fork."""
        descriptor = self._fd()
        while True:
            try:
                _pagemap.uffd_protect(descriptor.fd, start, end, self.mode.register, 0)
            except BlockingIOError:
                continue
            return

    def unregister(self, start: int, end: int) -> None:
        descriptor = self._fd()
        _pagemap.uffd_unregister(descriptor.fd, start, end)

    def close(self) -> None:
        self._descriptor = None

    def close_copy(self) -> None:
        """In a forked child: closes its copy at once, also where a thread that is not here held it."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            close, descriptor._close = descriptor._close, lambda fd: None
            close(descriptor.fd)


_open: weakref.WeakSet[Userfault] = weakref.WeakSet()


def _close_copies() -> None:
    """In a forked child: a copy left open there would keep the parent's close() from being the last."""
    for uffd in list(_open):
        with contextlib.suppress(Exception):
            uffd.close_copy()


os.register_at_fork(after_in_child=_close_copies)
