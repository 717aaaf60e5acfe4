"""Which pages are present: every alternative on the same memory, pattern by pattern."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from pagemap import Category, PageMap, Query, features

from . import alternatives as alt
from .alternatives import Alternative
from .conftest import Pair, Scale
from .memory import GIB, Memory, anonymous, split_vmas

PRESENT = Query.PRESENT
EIGHT_BYTES_PAGES = 4096
VMAS = 10_000


@dataclass(frozen=True)
class Workload:
    label: str
    memory: Memory
    query: Query


@dataclass(frozen=True)
class Pattern:
    label: str
    size: int
    step: int = 1
    huge: bool = False
    vmas: int = 1
    scattered: bool = False
    query: Query = PRESENT


PATTERNS = {
    "dense": Pattern("dense, 4 KiB pages", 4 * GIB),
    "huge": Pattern("dense, huge pages", 4 * GIB, huge=True),
    "sparse": Pattern("1 page in 1,000", 4 * GIB, step=1000),
    "alternating": Pattern("every second page", 2 * GIB, step=2),
    "scattered": Pattern("dense, scattered frames", 2 * GIB, scattered=True),
    "vmas": Pattern("dense, 10,000 VMAs", 2 * GIB, vmas=VMAS),
}
ALL = Query(require=Category.PRESENT, report=Category(features().categories & ~Category.WRITTEN))

Maker = Callable[[PageMap, PageMap, Workload], Alternative]
MAKERS: dict[str, Maker] = {
    "scan": lambda pm, _, w: alt.scan(pm, w.memory, w.query),
    "workers": lambda pm, _, w: alt.scan(pm, w.memory, w.query, workers=2),
    "iter": lambda pm, _, w: alt.iter_scan(pm, w.memory, w.query),
    "read": lambda _, reader, w: alt.scan(reader, w.memory, w.query),
    "read_workers": lambda _, reader, w: alt.scan(reader, w.memory, w.query, workers=2),
    "c_ioctl": lambda pm, _, w: alt.c_ioctl(pm, w.memory, w.query),
    "fcntl": lambda pm, _, w: alt.fcntl_ioctl(pm, w.memory, w.query),
    "ctypes": lambda pm, _, w: alt.ctypes_ioctl(pm, w.memory, w.query),
    "c_pread": lambda pm, _, w: alt.c_pread(pm, w.memory),
    "numpy_pread": lambda pm, _, w: alt.numpy_pread(pm, w.memory),
    "eight": lambda pm, _, w: alt.eight_bytes(pm, w.memory, EIGHT_BYTES_PAGES),
    "mincore": lambda _, __, w: alt.mincore(w.memory),
}
OTHERS = ["c_ioctl", "fcntl", "ctypes", "mincore", "c_pread", "numpy_pread", "eight"]
PAIRS = [("scan", other) for other in OTHERS] + [
    ("iter", "c_ioctl"),
    ("workers", "scan"),
    ("read", "c_pread"),
    ("read_workers", "read"),
]


@pytest.fixture(scope="module", params=PATTERNS)
def workload(request: pytest.FixtureRequest, scale: Scale) -> Iterator[Workload]:
    pattern = PATTERNS[request.param]
    size = scale.size(pattern.size)
    with anonymous(size, huge=pattern.huge, step=pattern.step, scattered=pattern.scattered) as memory:
        if pattern.vmas > 1:
            split_vmas(memory, pattern.vmas)
        yield Workload(pattern.label, memory, pattern.query)


@pytest.mark.parametrize(("ours", "other"), PAIRS)
def test_present(pair: Pair, pm: PageMap, reader: PageMap, workload: Workload, ours: str, other: str) -> None:
    a, b = MAKERS[ours](pm, reader, workload), MAKERS[other](pm, reader, workload)
    pair(workload.label, a, b, pages=workload.memory.pages)


@pytest.fixture(scope="module")
def all_categories(scale: Scale) -> Iterator[Workload]:
    with anonymous(scale.size(4 * GIB)) as memory:
        yield Workload("dense, all categories reported", memory, ALL)


@pytest.mark.parametrize("other", ["c_ioctl", "c_pread", "numpy_pread"])
def test_all_categories(
    pair: Pair, pm: PageMap, reader: PageMap, all_categories: Workload, other: str
) -> None:
    a, b = MAKERS["scan"](pm, reader, all_categories), MAKERS[other](pm, reader, all_categories)
    pair(all_categories.label, a, b, pages=all_categories.memory.pages)
