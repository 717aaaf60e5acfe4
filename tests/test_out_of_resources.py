"""Without descriptors or memory: a clear error, nothing left behind, and the next question is answered."""

import children
import pytest


def test_no_descriptors_left(engine):
    """At each of the places where a PageMap opens something."""
    children.run(
        """
import errno, os, resource, sys, pagemap
pagemap.features()
pm = pagemap.PageMap(engine=sys.argv[1])
before = sorted(os.listdir("/proc/self/fd"))
highest = max(map(int, before))
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
for free in range(4):
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + free, hard))
    try:
        pagemap.PageMap(engine=sys.argv[1]).close()
    except OSError as error:
        assert error.errno == errno.EMFILE, error
        assert error.filename.startswith(f"/proc/{os.getpid()}"), error
        assert free < 3, free
    else:
        assert free == 3, free
    assert len(pm.scan()) and len(pm.vmas())
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sorted(os.listdir("/proc/self/fd")) == before
pm.close()
""",
        engine,
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_no_memory_left(engine, workers):
    """An answer that does not fit: MemoryError, its memory given back, smaller ones as before."""
    children.run(
        """
import ctypes, gc, mmap, resource, sys, pagemap
from pagemap import PageMap, Query

engine, workers = sys.argv[1], int(sys.argv[2])
pages = 1 << 20
memory = mmap.mmap(-1, pages * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(15)  # MADV_NOHUGEPAGE
for page in range(0, pages, 4):
    memory[page * 4096] = 1
start, end = pagemap.span(memory)

def size():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * 4096

with PageMap(engine=engine) as pm:
    few = {"start": start, "end": start + 400 * 4096}
    truth = pm.scan(Query.PRESENT, **few).tolist()
    pm.scan(Query.PRESENT, **few, workers=workers)
    resource.setrlimit(resource.RLIMIT_AS, (size() + (4 << 20), resource.RLIM_INFINITY))
    for _ in range(3):
        before = size()
        try:
            pm.scan(Query.PRESENT, start=start, end=end, workers=workers)
        except (MemoryError, RuntimeError) as error:  # "can't start new thread"
            assert isinstance(error, MemoryError) or workers > 1, error
        else:
            raise AssertionError("the answer of 6 MiB fits")
        gc.collect()
        assert size() - before < 2 << 20
        assert pm.scan(Query.PRESENT, **few).tolist() == truth
        found = sum(map(len, pm.iter_scan(Query.PRESENT, start=start, end=end, batch_size=10_000)))
        assert found == pages // 4
        try:
            next(pm.iter_scan(Query.PRESENT, batch_size=1 << 100))
        except MemoryError as error:
            assert "no memory for a buffer of" in str(error), error
        else:
            raise AssertionError("a batch of all pages that there may be fits")
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert len(pm.scan(Query.PRESENT, start=start, end=end, workers=workers)) == pages // 4
""",
        engine,
        workers,
    )


def test_a_buffer_that_is_refused_takes_no_address_space():
    children.run(
        """
import re, resource
from pagemap import _pagemap

def kibibytes(name):
    with open("/proc/self/status") as status:
        return int(re.search(name + r":\\s*(\\d+)", status.read())[1])

small = _pagemap.RegionBuffer(1000)
limit = (kibibytes("VmData") << 10) + (1 << 30)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
before = kibibytes("VmSize")
for _ in range(5):
    for allocate in (_pagemap.RegionBuffer, small.resize):
        try:
            allocate((4 << 30) // 24)
        except MemoryError:
            pass
        else:
            raise AssertionError("the limit does not work")
assert kibibytes("VmSize") < before + (64 << 10), (before, kibibytes("VmSize"))
assert small.capacity == 1000
small.resize((64 << 20) // 24)
assert small.capacity == (64 << 20) // 24
"""
    )
