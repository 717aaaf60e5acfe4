"""Another process that stands still: what the engines say is what its smaps and its entries say."""

import children
import numpy as np
import pytest
import witness

import pagemap
from pagemap import Category, PageMap, Query

HOLDS_A_LOT = """
import mmap, sys
memory = mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(0, 64 << 20, 3 * 4096):
    memory[page] = 1
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def target():
    with children.target(HOLDS_A_LOT) as started:
        started.stands_still()
        yield started


def test_as_much_is_resident_as_smaps_says(target, engine):
    """VMA by VMA, in bytes. smaps does not count the zero page, which only root's witness knows."""
    with PageMap(target.pid, engine=engine) as pm:
        vmas = witness.smaps(0, 1 << 47, target.pid)
        whole = pm.scan(Query.PRESENT)
        assert witness.is_canonical(whole.tolist())
        for start, end, fields in vmas:
            answer = pm.scan(Query.PRESENT, start=start, end=end)
            resident = int(np.sum(answer["end"] - answer["start"]))
            told = witness.pages(start, end, pid=target.pid) if end - start < 16 << 20 else {}
            zero = sum(witness.PAGE for bits in told.values() if bits & witness.PFNZERO)
            rss = int(fields["Rss"].split()[0]) * 1024
            assert resident - zero == rss if witness.sees_frames() else resident >= rss, (hex(start), fields)
        total = sum(int(np.sum(r["end"] - r["start"])) for r in pm.iter_scan(Query.PRESENT, batch_size=7))
        assert total == int(np.sum(whole["end"] - whole["start"])) > (20 << 20)


def test_every_page_is_as_the_witness_says(target, engine):
    """All VMAs but the largest, page by page."""
    known = Category.PRESENT | Category.SWAPPED | Category.FILE
    with PageMap(target.pid, engine=engine) as pm:
        for vma in pm.vmas():
            if vma.end - vma.start > (4 << 20) or vma.start >= 1 << 47:
                continue
            told = witness.pages(vma.start, vma.end, engine, target.pid)
            answer = pm.scan(Query(report=known), start=vma.start, end=vma.end)
            assert answer.tolist() == witness.regions(told, report=int(known)), vma


def test_the_engines_agree_about_all_of_it(target, need):
    need("scan")
    known = Category.PRESENT | Category.SWAPPED | Category.FILE
    with PageMap(target.pid, engine="scan") as scan, PageMap(target.pid, engine="read") as read:
        for query in (Query.POPULATED, Query(Category.PRESENT, report=known), Query(Category.FILE)):
            assert np.array_equal(scan.scan(query), read.scan(query))
            assert np.array_equal(scan.scan(query, workers=2), read.scan(query, workers=2))
            assert np.array_equal(scan.scan(query, max_pages=1234), read.scan(query, max_pages=1234))


def test_the_one_liner(target, engine):
    with PageMap(target.pid, engine=engine) as pm:
        assert np.array_equal(pagemap.scan(pid=target.pid, engine=engine), pm.scan())
        start = int(pm.scan()[3]["start"])
        assert np.array_equal(
            pagemap.scan(Query.PRESENT, pid=target.pid, engine=engine, start=start, max_pages=5, workers=2),
            pm.scan(Query.PRESENT, start=start, max_pages=5),
        )


def test_auto_is_the_ioctl_where_there_is_one(target):
    with PageMap(target.pid) as pm:
        assert pm.engine == ("scan" if pagemap.features().scan else "read")
        assert pm.pid == target.pid
