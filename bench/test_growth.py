"""How cost grows with size: from one page to what the machine holds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pagemap import PAGE_SIZE, PageMap, Query

from . import alternatives as alt
from .conftest import Pair, Scale
from .memory import GIB, Memory, anonymous, available

PAGES = [1, 16, 256, 4096, 1 << 16, 1 << 18, 1 << 20, 1 << 21, 1 << 22]
MANY = 256
"""Small ranges are looked at several times in one run, so many pages in all."""


@pytest.fixture(scope="module")
def large(scale: Scale) -> Iterator[Memory]:
    """16 GiB, or what may be used: three quarters of what is available, in powers of two."""
    size = scale.size(16 * GIB)
    while size > available() * 3 // 4:
        size //= 2
    with anonymous(size) as memory:
        yield memory


@pytest.mark.parametrize("other", ["c", "numpy", "mincore"])
@pytest.mark.parametrize("pages", PAGES)
def test_growth(pair: Pair, pm: PageMap, large: Memory, pages: int, other: str) -> None:
    if pages > large.pages:
        pytest.skip(f"{pages * PAGE_SIZE / GIB:.0f} GiB are more than this run may use")
    size = pages * PAGE_SIZE
    memory = Memory(large.array[:size], large.start, large.start + size)
    times = max(1, MANY // pages)
    others = {
        "c": lambda: alt.c_ioctl(pm, memory, Query.PRESENT, times),
        "numpy": lambda: alt.repeated(alt.numpy_pread(pm, memory), times),
        "mincore": lambda: alt.mincore(memory, times),
    }
    ours = alt.repeated(alt.scan(pm, memory, Query.PRESENT), times)
    pair(f"growth: {pages} pages", ours, others[other](), pages=pages, each=times)
