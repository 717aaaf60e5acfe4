"""The VMAs of a process: a table of arrays, its names made when somebody asks."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _pagemap, process

_LAST = (1 << 64) - 1
_RECORD_DTYPE = np.dtype(
    {
        "names": ["start", "end", "offset", "inode", "dev", "name_at", "name_length", "prot", "shared"],
        "formats": ["<u8", "<u8", "<u8", "<u8", "<u8", "<u4", "<u4", "u1", "?"],
        "offsets": [0, 8, 16, 24, 32, 40, 44, 48, 49],
        "itemsize": 56,
    }
)

VMA_DTYPE = np.dtype(
    {
        "names": ["start", "end", "offset", "inode", "dev", "prot", "shared"],
        "formats": ["<u8", "<u8", "<u8", "<u8", "<u8", "u1", "?"],
        "offsets": [0, 8, 16, 24, 32, 48, 49],
        "itemsize": 56,
    }
)
"""start, end, offset: bytes; inode, dev: as in os.stat(); prot: PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4."""


def printable(text: str) -> str:
    """A name that somebody else chose, without what a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Vma(NamedTuple):
    """One VMA: start, end, offset in bytes, end exclusive; prot: PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4."""

    start: int
    end: int
    offset: int
    inode: int
    dev: int
    prot: int
    shared: bool
    name: str

    @property
    def permissions(self) -> str:
        """As in /proc/PID/maps: ``rw-p``."""
        flags = (self.prot & 1, self.prot & 2, self.prot & 4)
        return "".join(c if on else "-" for c, on in zip("rwx", flags, strict=True)) + "ps"[self.shared]


class VmaTable:
    """The VMAs of a process, sorted and disjoint, as listed by /proc/PID/maps (proc_pid_maps(5)).

    `array`: a structured array of VMA_DTYPE, one item a VMA. `names`: as many str; "" for anonymous
    memory. An index gives a Vma, a slice a VmaTable.
    """

    __slots__ = ("_names", "_records", "_text")

    def __init__(self, records: npt.NDArray[Any], text: bytes) -> None:
        self._records = records
        self._text = text
        self._names: list[str] | None = None

    @classmethod
    def parse(cls, text: bytes) -> VmaTable:
        """From the text of a /proc/PID/maps. ValueError where it is none."""
        return cls(np.frombuffer(_pagemap.parse_maps(text), _RECORD_DTYPE), text)

    @property
    def array(self) -> npt.NDArray[Any]:
        return self._records.view(VMA_DTYPE)

    @property
    def names(self) -> list[str]:
        if self._names is None:
            begins = self._records["name_at"].astype(np.int64)
            ends = begins + self._records["name_length"]
            text = self._text
            self._names = [
                os.fsdecode(text[begin:end]) if end > begin else ""
                for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
            ]
        return self._names

    def find(self, address: int) -> int | None:
        """The index of the VMA that contains an address, or None."""
        if not 0 <= address <= _LAST:
            return None
        index = int(np.searchsorted(self._records["start"], np.uint64(address), side="right")) - 1
        if index >= 0 and address < int(self._records["end"][index]):
            return index
        return None

    def ranges(self, start: int, end: int) -> npt.NDArray[np.uint64]:
        """The mapped ranges between two addresses, adjacent VMAs joined: shape (n, 2), in bytes.

        ValueError for what is no address.
        """
        if start < 0 or end > _LAST:
            raise ValueError(f"the range is not within 64 bits: {start:#x} to {end:#x}")
        if start >= end:
            return np.empty((0, 2), np.uint64)
        starts, ends = self._records["start"], self._records["end"]
        inside = (ends > np.uint64(start)) & (starts < np.uint64(end))
        starts, ends = starts[inside], ends[inside]
        heads = np.ones(len(starts), np.bool_)
        heads[1:] = starts[1:] != ends[:-1]
        tails = np.ones(len(starts), np.bool_)
        tails[:-1] = heads[1:]
        joined = np.empty((int(heads.sum()), 2), np.uint64)
        joined[:, 0] = starts[heads]
        joined[:, 1] = ends[tails]
        return np.clip(joined, np.uint64(start), np.uint64(end), out=joined)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return VmaTable(self._records[index], self._text)
        return Vma._make((*self.array[index].item(), self.names[index]))

    def __iter__(self) -> Iterator[Vma]:
        rows = self.array.tolist()
        for row, name in zip(rows, self.names, strict=True):
            yield Vma._make((*row, name))

    def __repr__(self) -> str:
        return f"<VmaTable of {len(self)} VMAs>"


def read_text(fd: int, pid: int) -> bytes:
    """The text of an open /proc/PID/maps, from its beginning. ProcessLookupError once the process is gone."""
    text = _pagemap.read_maps(fd)
    if not text:
        raise ProcessLookupError(errno.ESRCH, process.why_no_memory(pid), f"/proc/{pid}/maps")
    return text
