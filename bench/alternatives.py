"""The other ways to get the same answer, as one would write them by hand.

Each has `run`, which is timed, and `answer`, which is not: the regions that it finds, shape (n, 2), start
and end addresses in bytes, for the comparison with all others.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pagemap import PAGE_SIZE, REGION_DTYPE, PageMap, Query

from . import baseline
from .memory import Memory

Spans = npt.NDArray[np.uint64]
PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)
PRESENT_BIT = np.uint64(63)


@dataclass(frozen=True)
class Alternative:
    name: str
    run: Callable[[], Any]
    answer: Callable[[], Spans]
    part: float = 1.0
    """The part of the range that it ran on; its time is extrapolated to the whole."""


def spans(regions: npt.NDArray[Any]) -> Spans:
    """The extent of regions, whatever they report."""
    return joined(regions["start"], regions["end"])


def joined(start: npt.NDArray[Any], end: npt.NDArray[Any]) -> Spans:
    heads = np.ones(len(start), np.bool_)
    heads[1:] = start[1:] != end[:-1]
    tails = np.ones(len(start), np.bool_)
    tails[:-1] = heads[1:]
    return np.stack([start[heads], end[tails]], axis=1).astype(np.uint64)


def runs(flags: npt.NDArray[np.bool_], start: int) -> Spans:
    """One flag a page, from `start` on, as spans."""
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False)).astype(np.uint64)
    return (edges * np.uint64(PAGE_SIZE) + np.uint64(start)).reshape(-1, 2)


def repeated(one: Alternative, times: int) -> Alternative:
    """The same, so many times in one run; the loop around it costs 10 ns a turn."""
    if times == 1:
        return one
    call = one.run

    def run() -> None:
        for _ in range(times):
            call()

    return Alternative(one.name, run, one.answer, one.part)


# PAGEMAP_SCAN without this library


def c_ioctl(pm: PageMap, memory: Memory, query: Query, times: int = 1) -> Alternative:
    def answer() -> Spans:
        vec = np.zeros(memory.pages, REGION_DTYPE)
        found = baseline.scan(pm.fileno(), memory.start, memory.end, query.masks(), vec=vec)()
        return spans(vec[:found])

    run = baseline.scan(pm.fileno(), memory.start, memory.end, query.masks(), times=times)
    return Alternative("C, ioctl in a loop", run, answer)


def _loop(call: Callable[[Any], int], memory: Memory, query: Query) -> list[npt.NDArray[Any]]:
    """The ioctl until the range is done, a new array for each batch."""
    inverted, mask, anyof, report = query.masks()
    start, parts = memory.start, []
    while start < memory.end:
        vec = np.empty(baseline.WARM_REGIONS, REGION_DTYPE)
        arg = np.array(
            [96, 0, start, memory.end, 0, vec.ctypes.data, len(vec), 0, inverted, mask, anyof, report],
            np.uint64,
        )
        n = call(arg)
        parts.append(vec[:n])
        if n < len(vec):
            break
        start = max(int(arg[4]), int(vec[-1]["end"]))
    return parts


def fcntl_ioctl(pm: PageMap, memory: Memory, query: Query) -> Alternative:
    fd = pm.fileno()

    def run() -> npt.NDArray[Any]:
        return np.concatenate(_loop(lambda arg: fcntl.ioctl(fd, PAGEMAP_SCAN, arg, True), memory, query))

    return Alternative("Python, fcntl.ioctl + NumPy", run, lambda: spans(run()))


def ctypes_ioctl(pm: PageMap, memory: Memory, query: Query) -> Alternative:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = pm.fileno()

    def call(arg: npt.NDArray[np.uint64]) -> int:
        n = int(libc.ioctl(fd, ctypes.c_ulong(PAGEMAP_SCAN), arg.ctypes.data_as(ctypes.c_void_p)))
        if n < 0:
            raise OSError(ctypes.get_errno(), "ioctl")
        return n

    def run() -> npt.NDArray[Any]:
        return np.concatenate(_loop(call, memory, query))

    return Alternative("Python, ctypes + NumPy", run, lambda: spans(run()))


# The entries of /proc/PID/pagemap


def c_pread(pm: PageMap, memory: Memory) -> Alternative:
    def answer() -> Spans:
        vec = np.zeros(memory.pages, REGION_DTYPE)
        return spans(vec[: baseline.pread(pm.fileno(), memory.start, memory.end, vec)()])

    return Alternative("C, pread of pagemap", baseline.pread(pm.fileno(), memory.start, memory.end), answer)


def numpy_pread(pm: PageMap, memory: Memory, bit: np.uint64 = PRESENT_BIT) -> Alternative:
    fd, offset, size = pm.fileno(), memory.start // PAGE_SIZE * 8, memory.pages * 8

    def run() -> Spans:
        entries = np.frombuffer(os.pread(fd, size, offset), np.uint64)
        return runs((entries >> bit & np.uint64(1)).astype(np.bool_), memory.start)

    return Alternative("Python, os.pread + NumPy", run, run)


def eight_bytes(pm: PageMap, memory: Memory, pages: int) -> Alternative:
    """The loop of existing packages: seek, read 8 bytes, unpack, for each page. The first `pages` only."""
    part = min(pages, memory.pages)
    first = memory.start // PAGE_SIZE

    def run() -> list[bool]:
        present = []
        with open(f"/proc/{pm.pid}/pagemap", "rb", buffering=0) as pagemap:
            for page in range(first, first + part):
                pagemap.seek(page * 8)
                (entry,) = struct.unpack("Q", pagemap.read(8))
                present.append(bool(entry >> 63 & 1))
        return present

    def answer() -> Spans:
        return runs(np.array(run(), np.bool_), memory.start)

    return Alternative("Python, 8 bytes at a time", run, answer, part / memory.pages)


# Without pagemap


def mincore(memory: Memory, times: int = 1) -> Alternative:
    """mincore(2): own memory only; residency and nothing else."""
    chunk = np.zeros(min(memory.pages, 1 << 16), np.uint8)
    whole = np.zeros(memory.pages, np.uint8)

    def answer() -> Spans:
        baseline.mincore(memory.start, memory.end, whole)()
        return runs((whole & 1).astype(np.bool_), memory.start)

    return Alternative("C, mincore", baseline.mincore(memory.start, memory.end, chunk, times), answer)


# This library


def scan(pm: PageMap, memory: Memory, query: Query, workers: int = 1) -> Alternative:
    def run() -> npt.NDArray[Any]:
        return pm.scan(query, start=memory.start, end=memory.end, workers=workers)

    name = "scan" if pm.engine == "scan" else "scan, read engine"
    return Alternative(name + (f", {workers} workers" if workers > 1 else ""), run, lambda: spans(run()))


def iter_scan(pm: PageMap, memory: Memory, query: Query) -> Alternative:
    def run() -> int:
        return sum(len(batch) for batch in pm.iter_scan(query, start=memory.start, end=memory.end))

    def answer() -> Spans:
        parts = [b.copy() for b in pm.iter_scan(query, start=memory.start, end=memory.end)]
        return spans(np.concatenate(parts))

    return Alternative("iter_scan", run, answer)
