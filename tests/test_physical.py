"""The physical view against smaps, and against memory whose sharing is known."""

import mmap
import os
import re
import time
from pathlib import Path

import children
import numpy as np
import pytest

import pagemap
from pagemap import PAGE_SIZE, features, physical
from pagemap.physical import PageFlag


@pytest.fixture(autouse=True)
def root():
    if not features().pfn:
        pytest.skip(features().why["pfn"])
    if not os.access("/proc/kpageflags", os.R_OK):
        pytest.skip("no /proc/kpageflags here")


def rollup(pid, file="smaps_rollup"):
    text = Path(f"/proc/{pid}/{file}").read_text()
    return [
        {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+): +(\d+) kB", block, re.MULTILINE)}
        for block in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", text)
        if block
    ]


SHARING = """
import mmap, os, sys, time
own = mmap.mmap(-1, 256 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
own.madvise(mmap.MADV_NOHUGEPAGE)
own.write(b"o" * len(own))
shared = mmap.mmap(-1, 128 * 4096)
shared.write(b"s" * len(shared))
for _ in range(2):
    if os.fork() == 0:
        for page in range(0, len(shared), 4096):
            shared[page] = 1
        sys.stdin.read()
        os._exit(0)
print("ready", flush=True)
sys.stdin.read()
"""


def steadily(pid, file, look):
    """What `look` says between two equal answers of smaps: nobody has come or gone meanwhile."""
    for _ in range(50):
        before = rollup(pid, file)
        found = look()
        if rollup(pid, file) == before:
            return before, found
        time.sleep(0.05)
    pytest.skip("other processes come and go all the time: what is shared does not hold still")


def test_sizes_are_those_of_smaps():
    """Rss, Uss exactly; Pss to the rounding of smaps."""
    with children.target(SHARING) as target:
        target.stands_still()
        time.sleep(0.2)
        (kernel,), found = steadily(target.pid, "smaps_rollup", lambda: physical.physical(target.pid))
    total = found.total
    assert total["rss"] == kernel["Rss"]
    assert total["uss"] == kernel["Private_Clean"] + kernel["Private_Dirty"]
    assert total["rss"] - total["uss"] == kernel["Shared_Clean"] + kernel["Shared_Dirty"]
    assert total["anonymous"] == kernel["Anonymous"]
    assert total["ksm"] == kernel.get("KSM", 0)  # Linux 6.7 has the field; here nobody merges pages
    assert abs(total["pss"] - kernel["Pss"]) < 1024 + len(found.vmas)
    assert total["dirty"] <= kernel["Private_Dirty"] + kernel["Shared_Dirty"]
    assert total["referenced"] <= kernel["Referenced"]


def test_each_vma_is_that_of_smaps():
    with children.target(SHARING) as target:
        target.stands_still()
        time.sleep(0.2)
        kernel, found = steadily(target.pid, "smaps", lambda: physical.physical(target.pid))
    assert len(kernel) == len(found.vmas)
    for vma, row, theirs in zip(found.vmas, found.table, kernel, strict=True):
        assert row["rss"] == theirs["Rss"], vma
        assert row["uss"] == theirs["Private_Clean"] + theirs["Private_Dirty"], vma
        assert abs(int(row["pss"]) - theirs["Pss"]) < 1025, vma


def test_three_processes_share_a_page():
    """128 pages in three page tables: each has a third of them."""
    with children.target(SHARING) as target:
        target.stands_still()
        time.sleep(0.2)
        found = physical.physical(target.pid)
        (index,) = [i for i, vma in enumerate(found.vmas) if vma.name.startswith("/dev/zero")]
        vma, row = found.vmas[index], found.table[index]
        seen = physical.frames(target.pid, start=vma.start, end=vma.end)
    assert row["rss"] == 128 * PAGE_SIZE
    assert row["uss"] == 0
    assert row["pss"] == ((PAGE_SIZE << 12) // 3 * 128) >> 12
    assert seen.mappings.tolist() == [3] * 128
    assert len(set(seen.pfn.tolist())) == 128
    assert np.array_equal(seen.address, np.arange(vma.start, vma.end, PAGE_SIZE, np.uint64))


def test_frames_against_one_read_after_another():
    memory = mmap.mmap(-1, 700 * PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for page in range(0, 700, 3):
        memory[page * PAGE_SIZE] = 1
    start, end = pagemap.span(memory)
    found = physical.frames(start=start, end=end)
    assert len(found.address) == 234
    with open("/proc/kpagecount", "rb", 0) as counts, open("/proc/kpageflags", "rb", 0) as flags:
        for pfn, mappings, bits in zip(
            found.pfn.tolist(), found.mappings.tolist(), found.flags.tolist(), strict=True
        ):
            assert int.from_bytes(os.pread(counts.fileno(), 8, pfn * 8), "little") == mappings == 1
            # Which list a page is on changes behind one's back, and KSM is on every page in Linux 6.12.
            told = ~(PageFlag.LRU | PageFlag.ACTIVE | PageFlag.REFERENCED | PageFlag.KSM)
            assert int.from_bytes(os.pread(flags.fileno(), 8, pfn * 8), "little") & told == bits & told
    assert found.having(PageFlag.ANON).all()
    assert not found.having(PageFlag.KSM | PageFlag.THP | PageFlag.HUGE).any()


def test_transparent_huge_pages_and_the_zero_page(need):
    need("thp")
    memory = mmap.mmap(-1, 4 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    start, _ = pagemap.span(memory)
    offset = -start % (2 << 20)
    memory[offset] = 1
    zeros = mmap.mmap(-1, 16 * PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    zeros.madvise(mmap.MADV_NOHUGEPAGE)
    assert sum(zeros[::PAGE_SIZE]) == 0
    huge = physical.frames(start=start + offset, end=start + offset + (2 << 20))
    if len(huge.address) != 512:
        pytest.skip("the kernel has no huge page to give")
    assert huge.having(PageFlag.THP).all()
    zero = physical.frames(start=pagemap.span(zeros)[0], end=pagemap.span(zeros)[1])
    assert zero.having(PageFlag.ZERO_PAGE).all()
    assert len(set(zero.pfn.tolist())) == 1
    assert zero.mappings.tolist() == [0] * 16


def test_dirty_pages_of_a_file(tmp_path):
    """Only a file's own pages know to be dirty; a page table's bit is not the frame's."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 8 * PAGE_SIZE)
    with open(path, "r+b", 0) as file:
        os.fsync(file.fileno())
        with mmap.mmap(file.fileno(), 0) as memory:
            assert sum(memory[::PAGE_SIZE]) == 8 * ord("x")
            start, end = pagemap.span(memory)
            os.pwrite(file.fileno(), b"y", 3 * PAGE_SIZE)
            dirty = physical.frames(start=start, end=end).having(PageFlag.DIRTY)
    assert dirty.sum() >= 1
    assert dirty[3]


def test_pieces_are_the_whole(monkeypatch):
    with children.target(SHARING) as target:
        target.stands_still()
        whole = physical.frames(target.pid)
        monkeypatch.setattr(physical, "CHUNK_PAGES", 100)
        pieces = list(physical.iter_frames(target.pid))
        cut = physical.physical(target.pid)
    assert max(len(piece.address) for piece in pieces) <= 100
    assert np.array_equal(np.concatenate([piece.pfn for piece in pieces]), whole.pfn)
    assert np.array_equal(np.concatenate([piece.address for piece in pieces]), whole.address)
    assert cut.total["rss"] > 384 * PAGE_SIZE


def test_without_privilege():
    code = """
    import pagemap.physical as physical
    try:
        physical.physical()
    except PermissionError as error:
        print(error)
    """
    assert "CAP_SYS_ADMIN" in children.run(children.BECOME_NOBODY + children.textwrap.dedent(code))


def test_bad_arguments():
    with pytest.raises(TypeError):
        physical.physical("me")
    with pytest.raises(ProcessLookupError):
        physical.frames(2**22 + 1)
