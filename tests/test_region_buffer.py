"""RegionBuffer: memory that grows in place of being copied, never moves under a view, and is given back."""

import gc
import sys
import threading

import numpy as np
import pytest
import witness
from memory import Memory
from witness import PAGE, PRESENT

from pagemap import REGION_DTYPE, PageMap, _pagemap
from pagemap._pagemap import RegionBuffer

LARGE = 1 << 20  # regions: 24 MiB


def address(buffer):
    return np.frombuffer(buffer, np.uint8).ctypes.data


def mapped(at):
    return any(start <= at < end for start, end, _ in witness.maps())


def resident():
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * PAGE


def test_it_is_page_aligned_memory_of_regions():
    buffer = RegionBuffer(1000)
    view = memoryview(buffer)
    assert (view.nbytes, view.itemsize, view.shape, view.strides) == (24_000, 24, (1000,), (24,))
    assert view.contiguous
    assert not view.readonly
    assert np.frombuffer(buffer, REGION_DTYPE).shape == (1000,)
    assert np.asarray(view).dtype == REGION_DTYPE
    assert address(buffer) % PAGE == 0
    assert bytes(view) == bytes(24_000)


def test_it_counts_its_views():
    buffer = RegionBuffer(8)
    assert buffer.exports == 0
    one, two = memoryview(buffer), np.frombuffer(buffer, REGION_DTYPE)
    assert buffer.exports == 2
    part = two[2:4]
    del two
    assert buffer.exports == 2
    one.release()
    del part
    assert buffer.exports == 0


@pytest.mark.parametrize("capacity", [1, 3, 99, LARGE])
def test_it_never_moves_under_a_view(capacity):
    buffer = RegionBuffer(10)
    view = np.frombuffer(buffer, REGION_DTYPE)
    where = view.ctypes.data
    with pytest.raises(BufferError, match="has views: release them first"):
        buffer.resize(capacity)
    assert buffer.capacity == 10
    assert address(buffer) == where
    view["start"] = 5
    del view
    buffer.resize(capacity)
    assert buffer.capacity == capacity
    assert np.frombuffer(buffer, REGION_DTYPE)["start"][: min(capacity, 10)].tolist() == [5] * min(
        capacity, 10
    )


def test_nothing_is_written_under_a_view(need):
    need("scan")
    with Memory(1) as memory, PageMap(engine="scan") as pm:
        memory.write(0)
        buffer = RegionBuffer(4)
        arguments = (pm.fileno(), memory.start, memory.end, 0, 0, 0, PRESENT, 0, PRESENT)
        view = memoryview(buffer)
        with pytest.raises(BufferError, match="has views"):
            buffer.scan(0, *arguments)
        assert bytes(view) == bytes(96)
        view.release()
        assert buffer.scan(0, *arguments)[:2] == (1, memory.end)


def test_growing_keeps_what_is_there_and_does_not_copy_it():
    """As many page faults as there are new pages to touch, not as old ones to copy."""
    buffer = RegionBuffer(LARGE)
    np.frombuffer(buffer, np.uint64)[:] = np.arange(LARGE * 3, dtype=np.uint64)
    before = resident()
    buffer.resize(LARGE * 2)
    assert resident() - before < LARGE * 24 // 2
    words = np.frombuffer(buffer, np.uint64)
    assert np.array_equal(words[: LARGE * 3], np.arange(LARGE * 3, dtype=np.uint64))
    assert not words[LARGE * 3 :: 512].any()


def test_shrinking_gives_memory_back():
    buffer = RegionBuffer(LARGE)
    np.frombuffer(buffer, np.uint8)[::PAGE] = 1
    before = resident()
    buffer.resize(10)
    assert before - resident() > LARGE * 24 * 3 // 4
    assert np.frombuffer(buffer, np.uint8)[0] == 1


def test_its_memory_goes_with_the_last_view():
    buffer = RegionBuffer(LARGE)
    view = np.frombuffer(buffer, REGION_DTYPE)
    view["end"] = 9
    where = view.ctypes.data
    before = resident()
    del buffer
    gc.collect()
    assert view["end"][-1] == 9
    assert mapped(where)
    last = view[5:6]
    del view
    assert mapped(where)
    del last
    assert before - resident() > LARGE * 24 * 3 // 4


@pytest.mark.parametrize("capacity", [0, 1 << 60, (1 << 63) - 1, (1 << 64) - 1])
def test_sizes_that_cannot_be(capacity):
    with pytest.raises((ValueError, MemoryError)):
        RegionBuffer(capacity)
    buffer = RegionBuffer(7)
    with pytest.raises((ValueError, MemoryError)):
        buffer.resize(capacity)
    assert buffer.capacity == 7
    assert bytes(memoryview(buffer)) == bytes(7 * 24)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error"),
    [
        ((), {}, TypeError),
        ((1, 2), {}, TypeError),
        ((1,), {"capacity": 1}, TypeError),
        ((1.0,), {}, TypeError),
        (("1",), {}, TypeError),
        ((-1,), {}, ValueError),
        ((1 << 64,), {}, ValueError),
    ],
)
def test_wrong_arguments(arguments, keywords, error):
    with pytest.raises(error):
        RegionBuffer(*arguments, **keywords)


def test_it_is_not_a_base_class():
    with pytest.raises(TypeError, match="not an acceptable base type"):
        type("Mine", (RegionBuffer,), {})
    with pytest.raises(TypeError):
        RegionBuffer.capacity = 5
    with pytest.raises(AttributeError):
        RegionBuffer(1).capacity = 5


@pytest.mark.parametrize("at", [4, 5, 1 << 63])
def test_places_behind_its_end(need, at):
    need("scan")
    buffer = RegionBuffer(4)
    with PageMap(engine="scan") as pm:
        with pytest.raises(ValueError, match=f"at is {at}, but the RegionBuffer has room for 4 regions"):
            buffer.scan(at, pm.fileno(), 0, 0, 0, 0, 0, 0, 0, 0)
        with pytest.raises(ValueError, match=f"at is {at}"):
            buffer.read(at, pm.fileno(), np.zeros((1, 2), np.uint64), 0, 0, 0, 0, 0, 0, 0)
    buffer.resize(9)  # it is not held by the calls that failed


def test_a_place_is_asked_for_its_number_once(need):
    """And not while the buffer is held: what is asked may want to use it."""
    need("scan")
    buffer = RegionBuffer(4)
    asked = []

    class Place:
        def __index__(self):
            asked.append(self)
            buffer.clear()
            return 0

    with PageMap(engine="scan") as pm:
        buffer.scan(Place(), pm.fileno(), 0, 0, 0, 0, 0, 0, 0, 0)
        buffer.read(Place(), pm.fileno(), np.zeros((1, 2), np.uint64), 0, 0, 0, 0, 0, 0, 0)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((0, RegionBuffer(3)), TypeError, "takes 4 positional arguments, 2 given"),
        ((0, bytearray(24), 0, 1), TypeError, "another RegionBuffer"),
        ((0, RegionBuffer(3), 0, 4), ValueError, "do not fit"),
        ((0, RegionBuffer(3), 2, 2), ValueError, "do not fit"),
        ((0, RegionBuffer(3), 4, 0), ValueError, "do not fit"),
        ((3, RegionBuffer(3), 0, 2), ValueError, "do not fit"),
        ((5, RegionBuffer(3), 0, 1), ValueError, "do not fit"),
        ((0, RegionBuffer(3), (1 << 64) - 1, 2), ValueError, "do not fit"),
        ((1 << 64, RegionBuffer(3), 0, 1), ValueError, "at must be between"),
    ],
)
def test_appending_refuses(arguments, error, words):
    buffer = RegionBuffer(4)
    with pytest.raises(error, match=words):
        buffer.append(*arguments)
    buffer.resize(5)


def test_appending_to_itself_is_refused():
    buffer = RegionBuffer(4)
    with pytest.raises(TypeError, match="another RegionBuffer"):
        buffer.append(0, buffer, 0, 1)


def filled(capacity, *regions):
    buffer = RegionBuffer(capacity)
    np.frombuffer(buffer, REGION_DTYPE)[: len(regions)] = list(regions)
    return buffer


def test_appending_merges_at_the_border():
    buffer = filled(8, (0, PAGE, 8), (2 * PAGE, 3 * PAGE, 8))
    more = filled(5, (0, PAGE, 1), (3 * PAGE, 5 * PAGE, 8), (5 * PAGE, 6 * PAGE, 4), (9 * PAGE, 10 * PAGE, 4))
    assert buffer.append(2, more, 1, 3) == 4
    assert np.frombuffer(buffer, REGION_DTYPE)[:4].tolist() == [
        (0, PAGE, 8),
        (2 * PAGE, 5 * PAGE, 8),
        (5 * PAGE, 6 * PAGE, 4),
        (9 * PAGE, 10 * PAGE, 4),
    ]


def test_a_scan_and_a_view_exclude_each_other(need):
    """One thread scans into a buffer while another takes views and resizes it: BufferError at worst."""
    need("scan")
    stop = threading.Event()
    seen = {"scans": 0, "refused": 0}
    with Memory(2000) as memory, PageMap(engine="scan") as pm:
        memory.write(*range(0, 2000, 2))
        buffer = RegionBuffer(1200)
        arguments = (0, pm.fileno(), memory.start, memory.end, 0, 0, 0, PRESENT, 0, PRESENT)

        def scan():
            while not stop.is_set():
                try:
                    assert buffer.scan(*arguments)[0] == 1000
                    seen["scans"] += 1
                except BufferError:
                    seen["refused"] += 1

        thread = threading.Thread(target=scan)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        thread.start()
        try:
            for turn in range(3000):
                try:
                    if turn % 3:
                        view = np.frombuffer(buffer, REGION_DTYPE)
                        first = view[:1000].copy()
                        assert np.array_equal(view[:1000], first)
                        del view
                    else:
                        buffer.resize(1200 + turn)
                except BufferError:
                    seen["refused"] += 1
        finally:
            stop.set()
            thread.join(30)
            sys.setswitchinterval(interval)
    assert not thread.is_alive()
    assert seen["scans"] > 0
    assert buffer.exports == 0


def test_the_type_belongs_to_the_module():
    assert RegionBuffer.__module__ == "pagemap._pagemap"
    assert _pagemap.RegionBuffer is RegionBuffer
