"""track(): dirty tracking of this process's own memory, and the tracker that a kernel can offer."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from . import regions
from .arguments import page_range
from .buffers import as_array, span
from .categories import Category
from .errors import UnsupportedError
from .features import address_space_end, features
from .layout import huge_aligned, huge_devices, region_array
from .registration import page_size_finder
from .scanner import Engine, PageMap
from .softdirty import SoftDirtyTracker
from .tracker import DirtyTracker, Granularity
from .tracking import Regions, Tracker
from .uffd import MODES, Userfault, new_descriptor

TrackMode = Literal["write", "access"]


def _is_address(bound: Any) -> bool:
    """An integer, of NumPy's too. (Arrays have __index__ as well, and memory of their own.)"""
    return hasattr(bound, "__index__") and not isinstance(bound, np.ndarray)


def _flatten(objs: tuple[Any, ...]) -> list[Any]:
    flat: list[Any] = []
    for obj in objs:
        if isinstance(obj, tuple) and len(obj) == 2 and all(map(_is_address, obj)):
            flat.append(obj)
        elif isinstance(obj, list | tuple):
            flat += _flatten(tuple(obj))
        else:
            flat.append(obj)
    return flat


def _bounds(targets: list[Any]) -> tuple[Regions, bool]:
    """The pages of buffers and (start, end) ranges, and whether all of it is held by buffers."""
    ranges = []
    pinned = True
    for target in targets:
        if isinstance(target, tuple):
            start, end = page_range(target[0], target[1], address_space_end())
            if start == end:
                raise ValueError(f"the range at {start:#x} is empty")
            pinned = False
        else:
            array = as_array(target)
            if not array.flags.writeable:
                raise ValueError(f"{type(target).__name__} is read-only: nothing in it can be written")
            start, end = span(array)
        ranges.append((start, end))
    return regions.coalesce(region_array([r[0] for r in ranges], [r[1] for r in ranges])), pinned


def _check_choice(value: str, name: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, not {value!r}")


def start_tracker(
    pid: int | None,
    new_uffd: Any,
    bounds: Regions | None,
    *,
    pinned: bool,
    granularity: Granularity,
    mode: TrackMode,
    keep_alive: tuple[Any, ...] = (),
) -> Tracker:
    """The tracker that this kernel can offer: by userfaultfd, else by soft-dirty bits."""
    _check_choice(granularity, "granularity", ("native", "page"))
    _check_choice(mode, "mode", tuple(MODES))
    known = features()
    chosen = MODES[mode]
    if not (known.scan and getattr(known, chosen.feature)):
        reason = known.why.get(chosen.feature) or known.why["scan"]
        if mode == "access" or not known.soft_dirty:
            more = "" if mode == "access" else f"; and {known.why['soft_dirty']}"
            raise UnsupportedError(reason + more)
        # Linux 6.7 has PAGEMAP_SCAN, but only 6.8 tells soft-dirty pages by it.
        engine: Engine = "scan" if Category.SOFT_DIRTY in known.categories else "read"
        return SoftDirtyTracker(PageMap(pid, engine=engine), bounds, keep_alive)
    pagemap = PageMap(pid)
    try:
        if bounds is not None:
            table = pagemap.vmas()
            bounds = huge_aligned(table, huge_devices(table, page_size_finder(pagemap)), bounds)
        uffd = Userfault(new_uffd(), chosen)
        return DirtyTracker(
            pagemap,
            uffd,
            bounds,
            pinned=pinned,
            sparse=bounds is None,
            granularity=granularity,
            keep_alive=keep_alive,
        )
    except BaseException:
        pagemap.close()
        raise


def track(*objs: Any, granularity: Granularity = "native", mode: TrackMode = "write") -> Tracker:
    """Starts tracking memory of this process: which pages are written from now on.

    objs: writable buffers (NumPy array, mmap, bytearray, …), (start, end) ranges of page-aligned
    addresses in bytes, or sequences of these. Whole pages are tracked: a small buffer shares its first
    and last page with its neighbours. Buffers are kept alive until close().

    granularity: how much one written byte dirties. The kernel splits a protected transparent huge page
    at its first write, which is 4 KiB of dirt then; one that comes into being while it is tracked, and
    one of shared memory, is 2 MiB of dirt once. "page" splits those as well, and the others at once, at
    the price of the huge page's speed for readers. hugetlb pages are never split. mode: "write", or
    "access" for reads and writes (Linux 7.3).

    Holes get protection markers, so that their first write is reported exactly: 4 KiB of page table for
    each 2 MiB, and no new transparent huge pages in them.

    Writes by this process's own mappings are seen, also those of system calls. Not seen are writes to
    shared memory through another mapping, by write(2) to its file, and holes punched into that; what a
    device writes to pages that were pinned before the last collect() (O_DIRECT and io_uring under way,
    RDMA); and private hugetlb pages that MADV_DONTNEED drops and somebody reads before the next collect().

    Raises TypeError and ValueError for what is no writable, mapped memory, PermissionError for memory
    that may never be written, OSError EBUSY for memory that another userfaultfd holds, UnsupportedError
    where the kernel can neither protect asynchronously nor record soft-dirty bits.
    """
    targets = _flatten(objs)
    if not targets:
        raise TypeError("track() needs memory: a writable buffer or a (start, end) range")
    bounds, pinned = _bounds(targets)
    # An array that somebody holds does not resize, and there are dtypes that no buffer can have (datetime64).
    keep = tuple(
        target if isinstance(target, np.ndarray) else memoryview(target)
        for target in targets
        if not isinstance(target, tuple)
    )
    return start_tracker(
        None, new_descriptor, bounds, pinned=pinned, granularity=granularity, mode=mode, keep_alive=keep
    )
