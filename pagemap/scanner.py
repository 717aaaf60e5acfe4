"""PageMap: the pages of one process, asked for in one call, however large the process."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Literal, NoReturn, SupportsIndex

import numpy as np
import numpy.typing as npt

from . import _pagemap, errors, process
from ._pagemap import scan_small
from .arguments import as_count, page_range
from .categories import PAGE_SIZE, REGION_DTYPE
from .features import address_space_end, features
from .maps import VmaTable, read_text
from .parallel import scan_parallel
from .query import Query, category_names, check_query
from .walk import HUGE, IoctlWalk, ReadWalk, Walk, batches, collect, regions_of

RegionArray = npt.NDArray[np.void]
Engine = Literal["auto", "scan", "read"]

BATCH = 65536
"""Regions in a batch of iter_scan() (1.5 MiB): enough of them to forget what a batch costs."""
FIRST = 8192
"""Regions in the buffer of a scan (192 KiB), kept warm from scan to scan; more are appended to huge pages."""
SMALL_RANGE = _pagemap.SMALL_PAGES * PAGE_SIZE
"""Ranges of so many bytes are one system call, and no buffer."""
IN_PAGE = PAGE_SIZE - 1
ENTRIES = 8 << 20
"""Entries that entries() reads in one call (64 MiB): Ctrl-C comes between two of them."""
MIN_CHUNK = 16 << 20
"""Bytes of mapped memory that are worth handing to another thread."""
CHUNKS_PER_WORKER = 24


class PageMap:
    """The pages of a process: which are resident, swapped, huge, written.

    pid: the process, None for this one. engine: "scan" is the PAGEMAP_SCAN ioctl (Linux 6.7), "read"
    gives the same answers from /proc/PID/pagemap and the VMA list (but that it calls the huge zero page
    a FILE, and sees holes where devices are mapped, which the ioctl passes over), "auto" the better one
    that works here. A context manager; the descriptors are freed by close().

    The descriptors belong to the memory that the process had when they were opened: a recycled pid
    never shows, and after execve or exit every call says ProcessLookupError. A PageMap of this process
    refuses to work in a fork of it, where it would still show the parent. Threads may share it.

    Raises ProcessLookupError (no such process, a kernel thread, a zombie), PermissionError (same rules
    as ptrace: ptrace(2)), UnsupportedError (engine "scan" on a kernel without it), TypeError, ValueError.
    """

    def __init__(self, pid: SupportsIndex | None = None, *, engine: Engine = "auto") -> None:
        self._pagemap: process.Descriptor | None = None
        self._maps: process.Descriptor | None = None
        if engine not in ("auto", "scan", "read"):
            raise ValueError(f"engine must be 'auto', 'scan' or 'read', not {engine!r}")
        self._pid = process.check_pid(pid)
        self._is_self = self._pid == os.getpid()
        self._forks = process.fork_count
        has_scan = features().scan
        if engine == "scan" and not has_scan:
            raise errors.UnsupportedError(features().why["scan"])
        self._engine: Literal["scan", "read"] = "scan" if has_scan and engine != "read" else "read"
        self._categories = int(
            features().categories if self._engine == "scan" else features().read_categories
        )
        # Asked now: a process that gives up its rights later may not be able to ask any more.
        self._procmap_query = features().procmap_query
        self._limit = address_space_end()
        self._asked = (Query.PRESENT, Query.PRESENT.masks())  # the last query that was checked
        self._spare: list[_pagemap.RegionBuffer] = []
        self._spare_pools: list[list[_pagemap.RegionBuffer]] = []
        self._maps_locks = {self._forks: threading.Lock()}
        pagemap, self._maps = process.open_proc(self._pid, "pagemap", "maps")
        self._pagemap = pagemap

    # The life of it

    @property
    def pid(self) -> int:
        """The process id."""
        return self._pid

    @property
    def engine(self) -> Literal["scan", "read"]:
        """The engine in use."""
        return self._engine

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._pagemap is None

    def fileno(self) -> int:
        """The descriptor of /proc/PID/pagemap, open until close(). ValueError once closed."""
        return self._open().fd

    def close(self) -> None:
        """Frees the descriptors; arrays that were returned stay valid. May be called twice."""
        self._pagemap = None
        self._maps = None
        self._spare.clear()
        self._spare_pools.clear()

    def __enter__(self) -> PageMap:
        self._open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_pagemap", None) is not None:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<PageMap pid={self._pid} engine={self._engine!r}{state}>"

    def _open(self) -> process.Descriptor:
        pagemap = self._pagemap
        if pagemap is None:
            raise ValueError("this PageMap is closed: open a new one")
        if self._is_self and self._forks != process.fork_count:
            raise RuntimeError(
                f"this PageMap belongs to process {self._pid}, of which this one is a fork: it would show"
                " the parent's pages; open a new PageMap here"
            )
        return pagemap

    def _open_maps(self) -> process.Descriptor:
        maps = self._maps
        self._open()
        if maps is None:
            raise ValueError("this PageMap is closed: open a new one")
        return maps

    # Arguments

    def _masks(self, query: Query) -> tuple[int, int, int, int]:
        asked, masks = self._asked
        if asked is query:
            return masks
        check_query(query)
        masks = query.masks()
        unknown = (masks[1] | masks[2] | masks[3]) & ~self._categories
        if unknown:
            who = (
                "this kernel"
                if self._engine == "scan"
                else "the `read` engine, which has just the pagemap entries,"
            )
            raise errors.UnsupportedError(
                f"{who} cannot tell {category_names(unknown)}: see pagemap.features()"
            )
        self._asked = (query, masks)
        return masks

    def _range(self, start: SupportsIndex, end: SupportsIndex | None) -> tuple[int, int]:
        limit = self._limit
        if end is None:
            end = limit
        if type(start) is type(end) is int and 0 <= start <= end <= limit and not (start | end) & IN_PAGE:
            return start, end
        return page_range(start, end, limit)

    def _walk(
        self,
        pagemap: process.Descriptor,
        query: Query,
        start: int,
        end: int,
        budget: int | None,
        ranges: npt.NDArray[np.uint64] | None = None,
    ) -> Walk:
        masks = self._masks(query)
        if self._engine == "scan":
            return IoctlWalk(pagemap, masks, start, end, budget)
        if ranges is None:
            ranges = self._mapped(start, end)
        return ReadWalk(pagemap, masks, start, end, budget, ranges)

    def _explain(self, error: OSError) -> OSError:
        """What the kernel said in words; an error that has its words already as it is."""
        if isinstance(error, errors.UnsupportedError | errors.StalledScanError) or error.filename:
            return error
        return errors.explain(error, self._pid, f"/proc/{self._pid}/pagemap")

    def _raise(self, error: OSError) -> NoReturn:
        explained = self._explain(error)
        try:
            if explained is error:
                raise error
            raise explained from error
        finally:
            # A frame that holds its own exception is a cycle, and descriptors in its callers' frames would
            # stay open past close(), until the garbage is collected.
            del explained, error

    # Questions

    def scan(
        self,
        query: Query = Query.POPULATED,
        *,
        start: SupportsIndex = 0,
        end: SupportsIndex | None = None,
        max_pages: SupportsIndex | None = None,
        workers: SupportsIndex = 1,
    ) -> RegionArray:
        """The pages that a query selects, as an array of REGION_DTYPE, shape (n,).

        start, end: page-aligned addresses in bytes, end exclusive; the whole address space by default.
        max_pages: the first so many matching pages, the last region cut short; 0 for none.
        workers: threads that walk parts of the range at the same time.

        The regions are sorted and disjoint, and neighbours that touch report different categories,
        whatever the batching. A process that changes meanwhile is seen smeared over the time of the
        scan. The array is the caller's own, and stays valid after close().

        Raises ValueError and TypeError for bad arguments, UnsupportedError for a category that the
        engine cannot tell, ProcessLookupError when the process has gone, StalledScanError.
        """
        pagemap = self._open()
        masks = self._masks(query)
        start, end = self._range(start, end)
        budget = None if max_pages is None else as_count(max_pages, "max_pages", 0)
        threads = workers if type(workers) is int and workers > 0 else as_count(workers, "workers", 1)
        if budget == 0:
            return np.empty(0, REGION_DTYPE)
        try:
            if end - start <= SMALL_RANGE and budget is None and self._engine == "scan":
                found = np.frombuffer(scan_small(pagemap.fd, start, end, masks), REGION_DTYPE)
            elif threads > 1 and budget is None:
                found = self._scan_parallel(pagemap, query, start, end, threads)
            else:
                found = self._collect(pagemap, query, start, end, budget)
            if not self._is_self:
                self._check_alive(pagemap)
            return found
        except OSError as error:
            self._raise(error)

    def iter_scan(
        self,
        query: Query = Query.POPULATED,
        *,
        start: SupportsIndex = 0,
        end: SupportsIndex | None = None,
        batch_size: SupportsIndex = BATCH,
    ) -> Iterator[RegionArray]:
        """The same answer as scan() in arrays of at most `batch_size` regions, none empty.

        Memory stays bounded: a batch's buffer is used again when nobody holds its array any more.
        Each array stays valid, and unchanged, for as long as it is held. Raises as scan() does: for bad
        arguments at once, for a process that goes away when the next batch is asked for.
        """
        pagemap = self._open()
        size = as_count(batch_size, "batch_size", 1)
        first, last = self._range(start, end)
        if size > BATCH:
            size = max(BATCH, min(size, (last - first) // PAGE_SIZE))  # there is no longer answer
        try:
            walk = self._walk(pagemap, query, first, last, None)
        except OSError as error:
            self._raise(error)

        def iterate() -> Iterator[RegionArray]:
            pool: list[_pagemap.RegionBuffer] = []
            if size == BATCH:
                # Only pop and append: each pool has one user, also where threads share this PageMap.
                with contextlib.suppress(IndexError):
                    pool = self._spare_pools.pop()
            try:
                for batch in batches(walk, size, pool):
                    yield batch
                    self._open()
                if not self._is_self:
                    self._check_alive(pagemap)
            except OSError as error:
                self._raise(error)
            finally:
                if size == BATCH and not self._spare_pools and not self.closed:
                    self._spare_pools.append(pool)

        return iterate()

    def entries(self, start: SupportsIndex, end: SupportsIndex) -> npt.NDArray[np.uint64]:
        """The raw 64-bit entries of /proc/PID/pagemap, one a page, shape (pages,).

        Bits 0-54 PFN (0 without CAP_SYS_ADMIN) or swap location, 55 soft-dirty, 56 exclusively mapped,
        57 uffd-wp, 58 guard region, 61 file or shared anonymous, 62 swapped, 63 present.
        Source: Documentation/admin-guide/mm/pagemap.rst. Raises as scan() does.
        """
        pagemap = self._open()
        first, last = self._range(start, end)
        out = np.empty((last - first) // PAGE_SIZE, np.uint64)
        try:
            for i in range(0, len(out), ENTRIES):
                _pagemap.read_entries(pagemap.fd, first + i * PAGE_SIZE, out[i : i + ENTRIES])
        except OSError as error:
            self._raise(error)
        return out

    def vmas(self) -> VmaTable:
        """The VMAs of the process. Raises ProcessLookupError when it has gone."""
        return VmaTable.parse(self._maps_text())

    # How

    def _check_alive(self, pagemap: process.Descriptor) -> None:
        """After a scan: of a process that has gone, some kernels (6.12) find no pages, and no error.

        Reading tells. Asked last, it says that the process was there all the time.
        """
        if self._engine == "scan" and not os.pread(pagemap.fd, 8, 0):
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))

    def _maps_text(self) -> bytes:
        maps = self._open_maps()
        # One reader at a time: concurrent readers of a seq_file make it start over for each other. A fork has
        # locks of its own: nobody there ever releases one that another thread held.
        with self._maps_locks.setdefault(process.fork_count, threading.Lock()):
            try:
                return read_text(maps.fd, self._pid)
            except OSError as error:
                self._raise(error)

    def _vma_from(self, address: int) -> tuple[int, int, int, int] | None:
        """Bounds, page size and inode of the VMA that covers an address or follows it, by PROCMAP_QUERY."""
        maps = self._open_maps()
        try:
            return _pagemap.query_vma(maps.fd, address)
        except OSError as error:
            self._raise(error)

    def _mapped(self, start: int, end: int) -> npt.NDArray[np.uint64]:
        """The mapped ranges between two addresses, shape (n, 2). One VMA is found without the list of all."""
        if self._procmap_query and start < end:
            vma = self._vma_from(start)
            if vma is not None and vma[0] <= start and end <= vma[1]:
                return np.array([[start, end]], np.uint64)
        return self.vmas().ranges(start, end)

    def _take_buffer(self) -> _pagemap.RegionBuffer:
        try:
            return self._spare.pop()
        except IndexError:
            return _pagemap.RegionBuffer(FIRST)

    def _collect(
        self, pagemap: process.Descriptor, query: Query, start: int, end: int, budget: int | None
    ) -> RegionArray:
        spare, length = self._take_buffer(), 0
        if budget is None and self._engine == "scan":
            found = spare.scan_whole(pagemap.fd, start, end, self._masks(query))
            if not isinstance(found, int):
                self._keep([spare])
                return np.frombuffer(found, REGION_DTYPE)
            start, length = found, spare.length
        walk = self._walk(pagemap, query, start, end, budget)
        return self._hand_over([spare], *collect(walk, spare, length))

    def _hand_over(
        self, spares: list[_pagemap.RegionBuffer], buffer: _pagemap.RegionBuffer, length: int
    ) -> RegionArray:
        if buffer is spares[0]:
            result = regions_of(buffer, length).copy()
        else:
            buffer.resize(length)
            result = regions_of(buffer, length)
        self._keep(spares)
        return result

    def _keep(self, spares: list[_pagemap.RegionBuffer]) -> None:
        if not self.closed:
            self._spare += spares

    def _scan_parallel(
        self, pagemap: process.Descriptor, query: Query, start: int, end: int, threads: int
    ) -> RegionArray:
        ranges = self._mapped(start, end)
        bounds = list(itertools.pairwise(_cut_points(ranges, start, end, threads)))
        walks = [self._walk(pagemap, query, *part, None, ranges) for part in bounds]
        spares = [self._take_buffer() for _ in range(min(threads, len(walks)))]
        return self._hand_over(spares, *scan_parallel(walks, spares))


def _cut_points(ranges: npt.NDArray[np.uint64], start: int, end: int, threads: int) -> list[int]:
    """Addresses that cut [start, end) into parts with about as much mapped memory each.

    At multiples of HUGE: no huge page belongs to two parts.
    """
    if len(ranges) == 1:
        first, last = ranges[0].tolist()
        parts = min(threads * CHUNKS_PER_WORKER, (last - first) // MIN_CHUNK)
        inner = [(first + (last - first) * k // parts) // HUGE * HUGE for k in range(1, parts)]
        return [start, *(a for a in inner if start < a < end), end]
    sizes = (ranges[:, 1] - ranges[:, 0]).astype(np.float64)
    mapped = float(sizes.sum())
    parts = int(min(threads * CHUNKS_PER_WORKER, mapped // MIN_CHUNK))
    if parts < 2:
        return [start, end]
    before = np.concatenate(([0.0], np.cumsum(sizes)))
    targets = mapped / parts * np.arange(1, parts)
    i = np.searchsorted(before, targets, side="right") - 1
    cuts = (ranges[i, 0] + (targets - before[i]).astype(np.uint64)) // np.uint64(HUGE) * np.uint64(HUGE)
    return [start, *sorted({a for a in cuts.tolist() if start < a < end}), end]


def scan(
    query: Query = Query.POPULATED,
    *,
    pid: SupportsIndex | None = None,
    engine: Engine = "auto",
    start: SupportsIndex = 0,
    end: SupportsIndex | None = None,
    max_pages: SupportsIndex | None = None,
    workers: SupportsIndex = 1,
) -> RegionArray:
    """The pages of a process (None: this one) that a query selects: PageMap(pid).scan(query), in one call."""
    with PageMap(pid, engine=engine) as pm:
        return pm.scan(query, start=start, end=end, max_pages=max_pages, workers=workers)
