"""The VMAs beside a trace: written as a table, and several of them read as one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from .. import regions
from ..categories import REGION_DTYPE
from ..maps import VmaTable
from .metadata import arrow, from_numpy

VMA_COLUMNS = ("start", "end", "offset", "inode", "dev", "prot", "shared", "name")
"""The columns of a VMA file: as VMA_DTYPE, and the name (string; bytes that are not UTF-8 are escaped)."""


def to_arrow(vmas: VmaTable) -> Any:
    """A VmaTable as a pyarrow.Table of VMA_COLUMNS."""
    pa, array = arrow(), vmas.array
    kinds = {name: pa.uint8() if name == "prot" else pa.uint64() for name in VMA_COLUMNS[:-2]}
    columns = {name: from_numpy(kind, np.ascontiguousarray(array[name])) for name, kind in kinds.items()}
    columns["shared"] = pa.array(array["shared"].tolist(), pa.bool_())
    names = (os.fsencode(name).decode("utf-8", "backslashreplace") for name in vmas.names)
    return pa.table({**columns, "name": pa.array(list(names), pa.string())})


def read(path: Path) -> Any:
    """The table in a VMA file; None where it cannot be read."""
    pa = arrow()
    try:
        with pa.parquet.ParquetFile(path) as file:
            table = file.read(list(VMA_COLUMNS))
        merged([table])
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError):
        return None
    return table


def as_regions(start: Any, end: Any) -> regions.Regions:
    """Address ranges (bytes) as a region array without categories."""
    r = np.zeros(len(start), REGION_DTYPE)
    r["start"], r["end"] = start, end
    return r


def merged(tables: list[Any]) -> VmaTable:
    """One VmaTable of several tables of VMA_COLUMNS, the newest last; of older VMAs, what no newer covers."""
    known = as_regions([], [])
    lines: list[tuple[int, str]] = []
    for table in reversed(tables):
        values = table.to_pydict()
        numbered = as_regions(values["start"], values["end"])
        here = regions.coalesce(numbered)
        # Neighbours stay apart: the number of its VMA is what a piece has for categories.
        numbered["categories"] = np.arange(1, len(numbered) + 1)
        for start, end, number in regions.difference(numbered, known).tolist():
            lines.append((start, _maps_line(values, number - 1, start, end)))
        known = regions.union(known, here)
    lines.sort()
    return VmaTable.parse("".join(line for _, line in lines).encode())


def _maps_line(values: dict[str, list[Any]], row: int, start: int, end: int) -> str:
    """A line of /proc/PID/maps, which is what VmaTable reads, for a piece of a VMA."""
    prot, dev, inode = (values[name][row] for name in ("prot", "dev", "inode"))
    flags = "".join(letter if prot & bit else "-" for letter, bit in (("r", 1), ("w", 2), ("x", 4)))
    offset = values["offset"][row] + (start - values["start"][row] if inode else 0)
    return (
        f"{start:08x}-{end:08x} {flags}{'s' if values['shared'][row] else 'p'} {offset:08x}"
        f" {os.major(dev):02x}:{os.minor(dev):02x} {inode} {values['name'][row]}\n"
    )
