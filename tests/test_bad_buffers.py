"""The kernel writes into memory that fits, and into no other: what is refused stays as it was."""

import array
import ctypes
import gc
import mmap
import sys

import numpy as np
import pytest
from memory import Memory
from witness import PAGE, PRESENT

import pagemap
from pagemap import REGION_DTYPE, PageMap

OBJECTS = np.dtype([("start", "O"), ("end", "O"), ("categories", "O")])
NAMED_LIKE_AN_OBJECT = np.dtype([("O", "<u8"), ("Order", "<u8"), ("NO", "<u8")])


@pytest.fixture
def call(need):
    """pagemap_scan into a buffer, from a page that is there and one behind a hole."""
    need("scan")
    with Memory(3) as memory, PageMap(engine="scan") as pm:
        memory.write(0, 2)
        masks = {"category_mask": PRESENT, "return_mask": PRESENT}

        def call(vec):
            return pagemap.pagemap_scan(pm, memory.start, memory.end, vec, **masks)

        call.truth = [(memory.start, memory.start + PAGE, PRESENT), (memory.at(2), memory.end, PRESENT)]
        yield call


ACCEPTED = {
    "array of regions": lambda: np.zeros(5, REGION_DTYPE),
    "array of bytes": lambda: np.zeros(5 * 24, np.uint8),
    "array of 24-byte strings": lambda: np.zeros(5, "S24"),
    "part of an array": lambda: np.zeros(50, REGION_DTYPE)[7:12],
    "two dimensions": lambda: np.zeros((2, 3), REGION_DTYPE),
    "fields with names like an object's code": lambda: np.zeros(5, NAMED_LIKE_AN_OBJECT),
    "bytearray": lambda: bytearray(5 * 24),
    "memoryview": lambda: memoryview(bytearray(5 * 24)),
    "array.array": lambda: array.array("B", bytes(5 * 24)),
    "mmap": lambda: mmap.mmap(-1, 24 * 512),
    "ctypes": lambda: (ctypes.c_uint64 * 3 * 5)(),
    "ctypes structure": lambda: (
        type("Region", (ctypes.Structure,), {"_fields_": [("f", ctypes.c_uint64 * 3)]}) * 5
    )(),
    "RegionBuffer": lambda: pagemap._pagemap.RegionBuffer(5),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_every_sort_of_fitting_buffer(call, name):
    vec = ACCEPTED[name]()
    if name == "ctypes":
        vec = memoryview(vec).cast("B")  # items of 8 bytes otherwise
    n, _ = call(vec)
    assert n == 2
    assert np.frombuffer(memoryview(vec).tobytes(), REGION_DTYPE)[:3].tolist() == [*call.truth, (0, 0, 0)]


def read_only_array():
    vec = np.zeros(2, REGION_DTYPE)
    vec.flags.writeable = False
    return vec


REFUSED = {
    "read-only array": (read_only_array, ValueError, "vec must be writable"),
    "bytes": (lambda: bytes(48), ValueError, "vec must be writable"),
    "read-only view": (lambda: memoryview(bytearray(48)).toreadonly(), ValueError, "vec must be writable"),
    "every second item": (lambda: np.zeros(8, REGION_DTYPE)[::2], ValueError, "C-contiguous"),
    "backwards": (lambda: np.zeros(4, REGION_DTYPE)[::-1], ValueError, "C-contiguous"),
    "columns first": (lambda: np.zeros((4, 4), REGION_DTYPE, "F"), ValueError, "C-contiguous"),
    "a field of a structure": (lambda: np.zeros(4, REGION_DTYPE)["start"], ValueError, "C-contiguous"),
    "strided view": (lambda: memoryview(bytearray(96))[::2], ValueError, "C-contiguous"),
    "too short": (lambda: bytearray(23), ValueError, "vec has 23 bytes: .* whole regions of 24 bytes"),
    "not whole": (lambda: bytearray(49), ValueError, "vec has 49 bytes"),
    "no item": (lambda: np.zeros(0, REGION_DTYPE), ValueError, "vec has 0 bytes"),
    "no byte": (bytearray, ValueError, "vec has 0 bytes: .*None for no output"),
    "words": (lambda: np.zeros(3, np.uint64), ValueError, "vec has items of 8 bytes: .*REGION_DTYPE"),
    "wider items": (lambda: np.zeros(3, "V48"), ValueError, "vec has items of 48 bytes"),
    "objects": (lambda: np.array([object()] * 24), ValueError, "vec holds Python objects"),
    "fields of objects": (
        lambda: np.array([(object(),) * 3] * 2, OBJECTS),
        ValueError,
        "holds Python objects",
    ),
    "a view of fields of objects": (
        lambda: memoryview(np.array([(object(),) * 3] * 2, OBJECTS)),
        ValueError,
        "vec holds Python objects",
    ),
    "ctypes objects": (
        lambda: (ctypes.py_object * 3 * 2)(),
        ValueError,
        "vec holds Python objects|items of 8 bytes",
    ),
    "a list": (
        lambda: [0] * 48,
        TypeError,
        "vec must be a writable buffer of 24-byte items, not <class 'list'>",
    ),
    "a number": (lambda: 24, TypeError, "not <class 'int'>"),
    "a string": (lambda: "x" * 48, TypeError, "not <class 'str'>"),
    "a dtype": (lambda: REGION_DTYPE, TypeError, "vec must be a writable buffer"),
}


def contents(vec):
    try:
        return memoryview(vec).tobytes()
    except (TypeError, NotImplementedError, ValueError):
        return repr(vec)


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_and_untouched(call, name):
    make, error, words = REFUSED[name]
    vec = make()
    before = contents(vec)
    references = sys.getrefcount(vec)
    for _ in range(10):
        with pytest.raises(error, match=words):
            call(vec)
    gc.collect()
    assert contents(vec) == before
    assert sys.getrefcount(vec) == references
    if isinstance(vec, bytearray):
        vec.append(0)  # BufferError if a view were left
        assert len(vec)


def test_a_buffer_that_was_closed(call):
    closed = mmap.mmap(-1, PAGE)
    closed.close()
    with pytest.raises(ValueError, match=r"vec must be writable|closed"):
        call(closed)
    released = memoryview(bytearray(24))
    released.release()
    with pytest.raises(ValueError, match=r"vec must be writable|released"):
        call(released)


def test_objects_that_lie_about_their_dtype(call):
    """`dtype` is only asked of the object: what it says of a buffer that it is not must not matter."""

    class Array(bytearray):
        dtype = None

    class Raises(bytearray):
        @property
        def dtype(self):
            raise RuntimeError("not today")

    class NoBuffer:
        dtype = REGION_DTYPE

    assert call(Array(48))[0] == 2
    with pytest.raises(TypeError, match="vec must be a writable buffer"):
        call(NoBuffer())
    assert call(Raises(48))[0] == 2


def test_memory_that_may_not_be_written_is_the_kernels_efault(need):
    """A buffer may lie: the kernel refuses, and the process lives on."""
    need("scan")
    with Memory(1) as target, Memory(1) as gone, PageMap(engine="scan") as pm:
        target.write(0)
        vec = (ctypes.c_char * 48).from_address(gone.start)
        gone.protect(0)
        with pytest.raises(OSError, match="Bad address"):
            pagemap.pagemap_scan(
                pm, target.start, target.end, memoryview(vec).cast("B"), category_mask=PRESENT
            )


def test_a_small_range_that_ends_within_a_page_includes_it(need):
    need("scan")
    with Memory(3) as memory, PageMap(engine="scan") as pm:
        memory.write(0, 1, 2)
        masks = (0, PRESENT, 0, PRESENT)
        for end, pages in ((memory.start + 1, 1), (memory.start + PAGE, 1), (memory.at(2) + 1, 3)):
            found = np.frombuffer(
                pagemap._pagemap.scan_small(pm.fileno(), memory.start, end, masks), REGION_DTYPE
            )
            assert found.tolist() == [(memory.start, memory.at(pages), PRESENT)]
        limit = memory.start + pagemap._pagemap.SMALL_PAGES * PAGE
        with pytest.raises(ValueError, match="pages at most"):
            pagemap._pagemap.scan_small(pm.fileno(), memory.start, limit + 1, masks)


def test_only_the_regions_that_were_found_are_written(call):
    vec = np.full(5, 7, np.dtype(np.uint8)).repeat(24)
    assert call(vec)[0] == 2
    assert (vec[48:] == 7).all()


def test_without_a_buffer_nothing_is_returned(call):
    assert call(None)[0] == 0


def test_keywords_are_found_by_value_too(need):
    """Interned names match by identity; others must not be refused."""
    need("scan")
    with Memory(1) as memory, PageMap(engine="scan") as pm:
        memory.write(0)
        keywords = {"".join(["category", "_mask"]): PRESENT, "".join(["v", "ec"]): bytearray(24)}
        assert pagemap.pagemap_scan(pm, memory.start, memory.end, **keywords)[0] == 1


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((1, 2), TypeError, "read_entries.. takes 3 positional arguments, 2 given"),
        ((0, 0, np.zeros(3, np.uint32)), ValueError, "out must hold items of 8 bytes"),
        ((0, 0, bytes(8)), (BufferError, ValueError, TypeError), "writable|read-only|not"),
        ((0.0, 0, np.zeros(1, np.uint64)), TypeError, "fd must be an integer"),
        ((1 << 40, 0, np.zeros(1, np.uint64)), ValueError, "fd must be at most"),
        ((0, -1, np.zeros(1, np.uint64)), ValueError, "start must be between"),
    ],
)
def test_reading_entries_refuses(arguments, error, words):
    with pytest.raises(error, match=words):
        pagemap._pagemap.read_entries(*arguments)


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.array([object(), object()]),
        lambda: np.array([(object(),)], np.dtype([("field", "O")])),
        lambda: memoryview(np.array([object()])),
        lambda: (ctypes.py_object * 2)(),
    ],
)
def test_reading_entries_does_not_overwrite_objects(make):
    out = make()
    before = bytes(memoryview(out).cast("B")) if isinstance(out, ctypes.Array) else out.tobytes()
    with (
        open("/proc/self/pagemap", "rb", buffering=0) as entries,
        pytest.raises(TypeError, match="out holds Python objects"),
    ):
        pagemap._pagemap.read_entries(entries.fileno(), 0, out)
    assert (bytes(memoryview(out).cast("B")) if isinstance(out, ctypes.Array) else out.tobytes()) == before


def test_reading_entries_into_fields_named_like_an_objects_code():
    out = np.zeros(2, np.dtype([("O", "<u8")]))
    with open("/proc/self/pagemap", "rb", buffering=0) as entries:
        pagemap._pagemap.read_entries(entries.fileno(), out.ctypes.data // PAGE * PAGE, out)
    assert out["O"][0] >> 63


@pytest.mark.parametrize(
    ("entries", "vec", "words"),
    [
        (bytes(7), bytearray(24), "entries must be aligned and hold whole entries"),
        (memoryview(bytes(17))[1:], bytearray(24), "entries must be aligned"),
        (bytes(8), bytearray(25), "vec has 25 bytes"),
        (bytes(8), bytes(24), "vec must be writable"),
    ],
)
def test_decoding_entries_refuses(entries, vec, words):
    with pytest.raises(ValueError, match=words):
        pagemap._pagemap.decode_entries(entries, 0, vec, 0, 0, 0, 0, 0)
