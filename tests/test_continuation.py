"""A scan is complete and without a duplicate, however many calls of the kernel it takes."""

from itertools import chain

import numpy as np
import pytest
import witness
from memory import FIXED_NOREPLACE, NONE, READ, WRITE, Memory, map_at, unmap
from witness import PAGE, PRESENT

import pagemap
from pagemap import PageMap, Query, StalledScanError, _pagemap
from pagemap.walk import Walk


def alternating(regions):
    """Memory with so many regions of one page each, and a page between them that is not there."""
    memory = Memory(2 * regions)
    memory.write(*range(0, 2 * regions, 2))
    return memory


def one_page_regions(memory):
    return [(page, page + PAGE, PRESENT) for page in range(memory.start, memory.end, 2 * PAGE)]


@pytest.mark.parametrize("regions", [1, 511, 512, 513, 514, 1023, 1024, 1025, 1026, 5000])
def test_more_regions_than_the_kernels_bounce_buffer(engine, regions):
    with alternating(regions) as memory, PageMap(engine=engine) as pm:
        area = {"start": memory.start, "end": memory.end}
        truth = one_page_regions(memory)
        assert pm.scan(Query.PRESENT, **area).tolist() == truth
        for batch_size in (1, 511, 512, 513, 1024, regions, regions + 1):
            if regions // batch_size < 1100:
                found = [r.tolist() for r in pm.iter_scan(Query.PRESENT, **area, batch_size=batch_size)]
                assert list(chain.from_iterable(found)) == truth
                assert [len(batch) for batch in found[:-1]] == [batch_size] * (len(found) - 1)


@pytest.mark.parametrize("regions", [512, 513, 1025, 4000])
def test_the_raw_call_finds_all_even_where_walk_end_is_stale(need, regions, record_property):
    """The kernel's walk_end is that of its last flush: a loop that trusts it scans the rest again."""
    need("scan")
    with alternating(regions) as memory, PageMap(engine="scan") as pm:
        vec = np.zeros(regions + 1, pagemap.REGION_DTYPE)
        masks = {"category_mask": PRESENT, "return_mask": PRESENT}
        n, walk_end = pagemap.pagemap_scan(pm, memory.start, memory.end, vec, **masks)
        assert n == regions
        assert vec[:n].tolist() == one_page_regions(memory)
        assert memory.start <= walk_end <= memory.end
        record_property("walk_end_is_stale", walk_end < memory.end)
        if walk_end < memory.end:
            # What a caller that believes it would get a second time; scan() must not.
            again, _ = pagemap.pagemap_scan(pm, walk_end, memory.end, vec, **masks)
            assert again > 0
        answer = pm.scan(Query.PRESENT, start=memory.start, end=memory.end)
        assert len(np.unique(answer["start"])) == len(answer) == regions


@pytest.mark.parametrize("regions", [1, 2, 512, 513, 700])
def test_exactly_as_many_regions_as_there_is_room_for(need, regions):
    need("scan")
    with alternating(regions) as memory, PageMap(engine="scan") as pm:
        vec = np.zeros(regions, pagemap.REGION_DTYPE)
        n, _ = pagemap.pagemap_scan(
            pm, memory.start, memory.end, vec, category_mask=PRESENT, return_mask=PRESENT
        )
        assert n == regions
        assert vec.tolist() == one_page_regions(memory)


def test_room_for_one_region(engine):
    """Each step of the walk returns one region: mixed lengths, nothing lost, nothing cut."""
    with Memory(64) as memory, PageMap(engine=engine) as pm:
        memory.write(*range(3), 5, *range(9, 40), 41, 63)
        truth = witness.regions(witness.pages(memory.start, memory.end), require=PRESENT)
        found = list(pm.iter_scan(Query.PRESENT, start=memory.start, end=memory.end, batch_size=1))
        assert [len(batch) for batch in found] == [1] * len(truth)
        assert [tuple(batch[0].item()) for batch in found] == truth


def test_a_region_that_many_steps_find_is_one(engine, need):
    """Neighbours that report the same are merged across steps, workers and VMAs."""
    with Memory(64) as memory, PageMap(engine=engine) as pm:
        memory.write(*range(64))
        memory.protect(READ, 16, 16)
        area = {"start": memory.start, "end": memory.end}
        assert pm.scan(Query.PRESENT, **area).tolist() == [(memory.start, memory.end, PRESENT)]
        assert len(list(pm.iter_scan(Query.PRESENT, **area, batch_size=1))) == 1


def test_parts_that_several_workers_scan_meet_without_a_seam(engine):
    with Memory((128 << 20) // PAGE, huge_pages=False) as memory, PageMap(engine=engine) as pm:
        memory.write(*range(0, memory.pages, 1024), *range(20000, 20600))
        area = {"start": memory.start, "end": memory.end}
        alone = pm.scan(Query.PRESENT, **area)
        assert alone.tolist() == witness.regions(dict.fromkeys(resident(memory), PRESENT), require=PRESENT)
        for workers in (2, 3, 7):
            assert np.array_equal(pm.scan(Query.PRESENT, **area, workers=workers), alone)
        holes = pm.scan(Query(exclude=pagemap.Category.PRESENT), **area, workers=4)
        assert holes.tolist() == pm.scan(Query(exclude=pagemap.Category.PRESENT), **area).tolist()
        assert len(holes) < len(alone) + 2


def resident(memory):
    words = witness.entries(memory.start, memory.end)
    return [memory.at(page) for page, word in enumerate(words) if word >> 63]


def test_empty_ranges(engine):
    with Memory(2) as memory, PageMap(engine=engine) as pm:
        memory.write(0, 1)
        for at in (0, memory.start, memory.end, pagemap.scanner.address_space_end()):
            assert pm.scan(Query.PRESENT, start=at, end=at).tolist() == []
            assert list(pm.iter_scan(Query.PRESENT, start=at, end=at)) == []
            assert pm.scan(Query.PRESENT, start=at, end=at, workers=2).dtype == pagemap.REGION_DTYPE
            assert pm.entries(at, at).tolist() == []


def test_ranges_without_a_mapping(engine):
    with Memory(8) as memory, PageMap(engine=engine) as pm:
        memory.unmap(0, 8)
        assert pm.scan(Query(), start=memory.start, end=memory.end).tolist() == []


def test_up_to_the_last_page_of_the_address_space(engine):
    limit = pagemap.scanner.address_space_end()
    assert witness.words("/proc/self/pagemap", limit // PAGE - 1, 1) is not None  # the last entry is there
    try:
        last = map_at(limit - PAGE, PAGE, READ | WRITE, 0x22 | FIXED_NOREPLACE)
    except OSError as error:
        pytest.skip(f"the last page is taken, by the stack perhaps: {error}")
    try:
        with PageMap(engine=engine) as pm:
            query = Query(report=pagemap.Category.PRESENT)
            assert pm.scan(query, start=last).tolist() == [(last, limit, 0)]
            assert pm.scan(query, start=last, end=limit).tolist() == [(last, limit, 0)]
            assert pm.scan(query, workers=2)[-1].tolist() == (last, limit, 0)
            assert [b.tolist() for b in pm.iter_scan(query, start=last, batch_size=1)] == [[(last, limit, 0)]]
            assert pm.entries(limit - PAGE, limit).tolist() == witness.entries(limit - PAGE, limit)
            with pytest.raises(ValueError, match="beyond the address space"):
                pm.scan(start=last, end=limit + PAGE)
    finally:
        unmap(last, PAGE)


@pytest.fixture(scope="module")
def ten_thousand_vmas():
    """Every second page may be touched, and every fourth was."""
    with Memory(10_000, prot=NONE) as memory:
        for page in range(0, memory.pages, 2):
            memory.protect(READ | WRITE, page, 1)
        memory.write(*range(0, memory.pages, 4))
        yield memory


def test_ten_thousand_vmas(ten_thousand_vmas, engine):
    memory = ten_thousand_vmas
    truth = [(page, page + PAGE, PRESENT) for page in range(memory.start, memory.end, 4 * PAGE)]
    area = {"start": memory.start, "end": memory.end}
    with PageMap(engine=engine) as pm:
        vmas = pm.vmas()
        assert len([v for v in vmas if memory.start <= v.start and v.end <= memory.end]) >= 9_999
        assert pm.scan(Query.PRESENT, **area).tolist() == truth
        assert pm.scan(Query.PRESENT, **area, workers=3).tolist() == truth
        whole = pm.scan(Query.PRESENT)
        inside = whole[(whole["start"] >= memory.start) & (whole["end"] <= memory.end)]
        assert inside.tolist() == truth
        assert witness.is_canonical(whole.tolist())
        batches = list(pm.iter_scan(Query.PRESENT, **area, batch_size=100))
        assert np.concatenate(batches).tolist() == truth
        assert pm.scan(Query(), **area).tolist() == [(memory.start, memory.end, 0)]


def test_max_pages_cuts_the_last_region(engine):
    with Memory(1200) as memory, PageMap(engine=engine) as pm:
        memory.write(*range(10), *range(20, 30), *range(100, 1200, 2))
        told = witness.pages(memory.start, memory.end)
        area = {"start": memory.start, "end": memory.end}
        for max_pages in (0, 1, 9, 10, 11, 20, 21, 540, 569, 570, 571, 10**12):
            truth = witness.regions(told, require=PRESENT, max_pages=max_pages)
            assert pm.scan(Query.PRESENT, **area, max_pages=max_pages).tolist() == truth
            assert pm.scan(Query.PRESENT, **area, max_pages=max_pages, workers=2).tolist() == truth


class Stuck(Walk):
    """A kernel that finds a region, and says that it has to be asked again from the same place."""

    def step(self, buffer, at):
        self.steps = getattr(self, "steps", 0) + 1
        assert self.steps < 100, "the walk goes on for ever"
        return at, self.position, 0


def test_a_walk_that_does_not_move_is_an_error():
    walk = Stuck((0, 0, 0, 0), PAGE, 9 * PAGE, None)
    with pytest.raises(StalledScanError, match=f"stays at {PAGE:#x}") as caught:
        walk.fill(_pagemap.RegionBuffer(16))
    assert isinstance(caught.value, OSError)


def test_entries_are_read_in_parts_between_which_ctrl_c_comes(monkeypatch):
    """The answer is the same."""
    monkeypatch.setattr(pagemap.scanner, "ENTRIES", 5)
    read, calls = pagemap._pagemap.read_entries, []

    def counted(fd, address, out):
        calls.append((address, len(out)))
        read(fd, address, out)
        if len(calls) == interrupted_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(pagemap._pagemap, "read_entries", counted)
    with Memory(17) as memory, PageMap() as pm:
        memory.write(0, 4, 5, 11, 16)
        interrupted_at = None
        entries = pm.entries(memory.start, memory.end)
        assert (entries >> np.uint64(63)).nonzero()[0].tolist() == [0, 4, 5, 11, 16]
        assert calls == [(memory.at(0), 5), (memory.at(5), 5), (memory.at(10), 5), (memory.at(15), 2)]
        calls.clear()
        interrupted_at = 2
        with pytest.raises(KeyboardInterrupt):
            pm.entries(memory.start, memory.end)
        assert len(calls) == 2
