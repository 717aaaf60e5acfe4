"""span(): the whole pages that a buffer touches, and no other."""

import array
import ctypes
import mmap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory import Memory

import pagemap
from pagemap import PAGE_SIZE, PageMap, Query


def pages(low, high):
    return low // PAGE_SIZE * PAGE_SIZE, -(-high // PAGE_SIZE) * PAGE_SIZE


def address(obj):
    return ctypes.addressof(ctypes.c_char.from_buffer(obj))


@pytest.mark.parametrize("size", [1, 100, PAGE_SIZE, PAGE_SIZE + 1, 5 * PAGE_SIZE])
@pytest.mark.parametrize(
    "make",
    [
        bytearray,
        lambda n: mmap.mmap(-1, n),
        lambda n: array.array("B", bytes(n)),
        lambda n: (ctypes.c_char * n)(),
    ],
)
def test_buffers(make, size):
    buffer = make(size)
    where = address(buffer)
    assert pagemap.span(buffer) == pages(where, where + len(buffer))
    view = memoryview(buffer)
    assert pagemap.span(view) == pagemap.span(buffer)
    assert pagemap.span(view[size // 2 : size // 2 + 1]) == pages(where + size // 2, where + size // 2 + 1)
    view.release()


def test_bytes_that_nobody_may_write():
    text = bytes(10_000)
    start, end = pagemap.span(text)
    assert start <= id(text) + 32 < end


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.lists(
        st.sampled_from([slice(None), slice(None, None, -1), slice(None, None, 2), slice(1, None)]),
        max_size=3,
    ),
    st.sampled_from(["u1", "<u8", "S700", "S5000"]),
)
def test_arrays_with_strides(shape, cuts, dtype):
    """Every byte of every element lies inside, and the first and last page hold one."""
    whole = np.zeros(shape, dtype)
    part = whole[tuple(cuts[: len(shape)])]
    if part.size == 0:
        with pytest.raises(ValueError, match="empty"):
            pagemap.span(part)
        return
    low, high = np.lib.array_utils.byte_bounds(part)
    assert pagemap.span(part) == pages(low, high)


def test_a_written_array_is_resident_where_span_says():
    if pagemap.features().scan:
        with Memory(64) as memory, PageMap() as pm:
            memory.write(*range(64))
            values = np.frombuffer((ctypes.c_char * (64 * PAGE_SIZE)).from_address(memory.start), np.uint8)
            start, end = pagemap.span(values[5 * PAGE_SIZE + 1 : 9 * PAGE_SIZE - 1])
            assert (start, end) == (memory.at(5), memory.at(9))
            assert pm.scan(Query.PRESENT, start=start, end=end).tolist() == [(start, end, 8)]
