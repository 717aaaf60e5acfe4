"""baseline.c, built when it is needed, and its functions."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pagemap import PAGE_SIZE, REGION_DTYPE

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "bench"
U64 = ctypes.c_uint64
Masks = U64 * 4

WARM_REGIONS = 65536
"""Regions in the buffer of the C loops: 1.5 MiB, used again and again."""
CHUNK = 8192
"""Entries that the C loop reads at a time: 64 KiB, which stays in the cache."""
VMA = np.dtype(
    [
        ("start", "<u8"),
        ("end", "<u8"),
        ("offset", "<u8"),
        ("inode", "<u8"),
        ("dev", "<u8"),
        ("name_at", "<u4"),
        ("name_length", "<u4"),
        ("prot", "<u4"),
        ("shared", "<u4"),
    ]
)


def _load() -> ctypes.CDLL:
    sources = [HERE / "baseline.c", HERE.parent / "src" / "pagemap_uapi.h"]
    library = BUILD / "baseline.so"
    if not library.exists() or library.stat().st_mtime < max(s.stat().st_mtime for s in sources):
        BUILD.mkdir(parents=True, exist_ok=True)
        fresh = BUILD / f"baseline-{os.getpid()}.so"
        compiler = os.environ.get("CC", "cc")
        command = [compiler, "-O3", "-std=gnu11", "-shared", "-fPIC", "-o", str(fresh), str(sources[0])]
        subprocess.run(command, check=True)
        fresh.rename(library)
    return ctypes.CDLL(str(library))


_lib = _load()


def address(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    """Where an array is; keeps it alive."""
    return array.ctypes.data_as(ctypes.c_void_p)


def bind(name: str, *args: Any) -> Callable[[], int]:
    """A call with its arguments converted beforehand: what is timed is the C function."""
    function = getattr(_lib, f"baseline_{name}")
    function.restype = ctypes.c_long

    def call() -> int:
        result = int(function(*args))
        if result < 0:
            raise OSError(-result, f"baseline_{name}: {os.strerror(-result)}")
        return result

    return call


warm = np.zeros(WARM_REGIONS, REGION_DTYPE)
_entries = np.zeros(CHUNK, np.uint64)


def scan(
    fd: int,
    start: int,
    end: int,
    masks: tuple[int, ...],
    flags: int = 0,
    vec: npt.NDArray[Any] = warm,
    times: int = 1,
) -> Callable[[], int]:
    return bind(
        "scan",
        ctypes.c_int(fd),
        U64(start),
        U64(end),
        U64(flags),
        Masks(*masks),
        address(vec),
        U64(len(vec)),
        ctypes.c_long(times),
    )


def scan_one(fd: int, start: int, masks: tuple[int, ...], times: int) -> Callable[[], int]:
    return bind("scan_one", ctypes.c_int(fd), U64(start), Masks(*masks), address(warm), ctypes.c_long(times))


def pread(fd: int, start: int, end: int, vec: npt.NDArray[Any] = warm) -> Callable[[], int]:
    return bind(
        "pread",
        ctypes.c_int(fd),
        U64(start),
        U64(end),
        address(_entries),
        U64(CHUNK),
        address(vec),
        U64(len(vec)),
    )


def pread_one(fd: int, start: int, times: int) -> Callable[[], int]:
    return bind("pread_one", ctypes.c_int(fd), U64(start), address(_entries), ctypes.c_long(times))


def mincore(start: int, end: int, residency: npt.NDArray[np.uint8], times: int = 1) -> Callable[[], int]:
    return bind(
        "mincore", U64(start), U64(end), address(residency), U64(len(residency)), ctypes.c_long(times)
    )


def touch(start: int, end: int, step: int = 1, value: int = 1) -> int:
    """Writes to every `step`-th page; returns the nanoseconds that the stores took."""
    return bind("touch", U64(start), U64(end), U64(step), ctypes.c_int(value))()


def maps(fd: int, text: npt.NDArray[np.uint8], vmas: npt.NDArray[Any]) -> Callable[[], int]:
    return bind("maps", ctypes.c_int(fd), address(text), U64(len(text)), address(vmas), U64(len(vmas)))


class Barrier:
    """mprotect and a SIGSEGV handler in C: the write barrier of before userfaultfd. One at a time."""

    def __init__(self, start: int, end: int) -> None:
        self._dirty = np.zeros((end - start) // PAGE_SIZE, np.uint8)
        self.vec = np.zeros(max(len(self._dirty), 1), REGION_DTYPE)
        self._start = bind("barrier_start", U64(start), U64(end), address(self._dirty))
        self.collect = bind("barrier_collect", address(self.vec), U64(len(self.vec)))
        self._stop = bind("barrier_stop")

    def __enter__(self) -> Barrier:
        self._start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop()
