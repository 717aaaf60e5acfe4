"""Memory to look at: mapped for the purpose, populated in known patterns, freed again."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pagemap import PAGE_SIZE

from . import baseline

HUGE = 2 << 20
GIB = 1 << 30

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Memory:
    """A mapping: its bytes, and their addresses, aligned to huge pages, end exclusive."""

    array: npt.NDArray[np.uint8]
    start: int
    end: int

    @property
    def pages(self) -> int:
        return (self.end - self.start) // PAGE_SIZE

    @property
    def size(self) -> int:
        return self.end - self.start


@contextmanager
def anonymous(size: int, *, huge: bool = False, step: int = 1, scattered: bool = False) -> Iterator[Memory]:
    """Private anonymous memory with every `step`-th page populated (0: none), in pages of one size only.

    scattered: neighbours are not populated one after the other, so that their frames, and what the kernel
    knows of these, lie far apart: as in a program that has run for long.
    """
    mapping = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    whole = np.frombuffer(mapping, np.uint8)
    start = -(-whole.ctypes.data // HUGE) * HUGE
    memory = Memory(whole[start - whole.ctypes.data :][:size], start, start + size)
    if scattered:
        order = np.random.default_rng(1).permutation(memory.pages)
        for part in np.array_split(order * PAGE_SIZE, 64):
            memory.array[part] = 1
    elif step:
        baseline.touch(memory.start, memory.end, step)
    try:
        yield memory
    finally:
        # Unmapped when the last array dies, whoever holds it; its pages are freed now.
        mapping.madvise(mmap.MADV_DONTNEED)


def split_vmas(memory: Memory, count: int) -> None:
    """Cuts a mapping into `count` VMAs by making every other part read-only."""
    part = memory.size // count // PAGE_SIZE * PAGE_SIZE
    for k in range(0, count, 2):
        at = ctypes.c_void_p(memory.start + k * part)
        if _libc.mprotect(at, ctypes.c_size_t(part), mmap.PROT_READ) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"mprotect: {os.strerror(code)} (see vm.max_map_count)")


def available() -> int:
    """Bytes of memory that may be used without swapping."""
    with open("/proc/meminfo", encoding="ascii") as meminfo:
        for line in meminfo:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0
