"""Bad arguments have an error of their own, which says what was wrong, and change nothing."""

import os

import numpy as np
import pytest
from memory import Memory

import pagemap
from pagemap import PAGE_SIZE, Category, PageMap, Query, ScanFlag, UnsupportedError


@pytest.fixture
def pm(engine):
    with PageMap(engine=engine) as opened:
        yield opened


@pytest.fixture(params=["scan", "iter_scan", "entries"])
def ask(request, pm):
    """A question with a range, asked in each of the ways that there are."""
    if request.param == "entries":
        return lambda start=0, end=PAGE_SIZE: pm.entries(start, end)
    method = getattr(pm, request.param)
    return lambda **area: method(Query.PRESENT, **area)


@pytest.mark.parametrize(
    ("area", "error", "words"),
    [
        ({"start": PAGE_SIZE + 1}, ValueError, r"start must be a multiple of the page size.*0x1001.*span"),
        ({"end": PAGE_SIZE - 1}, ValueError, "end must be a multiple of the page size"),
        (
            {"start": 2 * PAGE_SIZE, "end": PAGE_SIZE},
            ValueError,
            "reversed: start 0x2000 is above end 0x1000",
        ),
        ({"start": -PAGE_SIZE}, ValueError, "start must not be negative"),
        ({"end": -1}, ValueError, "end must not be negative"),
        ({"end": 1 << 63}, ValueError, "end 0x8000000000000000 is beyond the address space"),
        ({"start": 1 << 63, "end": 1 << 63}, ValueError, "start 0x8000000000000000 is beyond"),
        ({"end": 1 << 64}, ValueError, "beyond the address space"),
        ({"end": 1 << 200}, ValueError, "beyond the address space"),
        ({"start": 0.0}, TypeError, "start must be an address .an int., not float"),
        ({"end": 4096.0}, TypeError, "end must be an address .an int., not float"),
        ({"start": "0"}, TypeError, "not str"),
        ({"start": None, "end": PAGE_SIZE}, TypeError, "not NoneType"),
        ({"start": np.float64(0)}, TypeError, "not float64"),
    ],
)
def test_bad_ranges(ask, area, error, words):
    with pytest.raises(error, match=words):
        ask(**area)


def test_what_looks_like_an_integer_is_one(pm):
    with Memory(4) as memory:
        memory.write(0, 1, 2, 3)
        truth = pm.scan(start=memory.start, end=memory.end)
        area = {"start": np.uint64(memory.start), "end": np.int64(memory.end)}
        assert np.array_equal(pm.scan(**area, max_pages=np.int8(100), workers=np.uint8(1)), truth)
        assert np.array_equal(next(pm.iter_scan(**area, batch_size=np.int16(9))), truth)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"max_pages": -1}, ValueError, "max_pages must be at least 0, not -1"),
        ({"max_pages": 1.0}, TypeError, "max_pages must be an int, not float"),
        ({"max_pages": "1"}, TypeError, "max_pages must be an int, not str"),
        ({"workers": 0}, ValueError, "workers must be at least 1, not 0"),
        ({"workers": -3}, ValueError, "workers must be at least 1, not -3"),
        ({"workers": 1.5}, TypeError, "workers must be an int, not float"),
        ({"workers": None}, TypeError, "workers must be an int, not NoneType"),
    ],
)
def test_bad_counts(pm, arguments, error, words):
    with pytest.raises(error, match=words):
        pm.scan(**arguments)
    with pytest.raises(error, match=words):
        pagemap.scan(**arguments)


@pytest.mark.parametrize(
    ("batch_size", "error", "words"),
    [
        (0, ValueError, "batch_size must be at least 1, not 0"),
        (-1, ValueError, "batch_size must be at least 1, not -1"),
        (1.0, TypeError, "batch_size must be an int, not float"),
    ],
)
def test_bad_batches_are_an_error_at_once(pm, batch_size, error, words):
    """At once: not when the first batch is asked for."""
    with pytest.raises(error, match=words):
        pm.iter_scan(batch_size=batch_size)


def test_a_batch_is_no_longer_than_an_answer(pm):
    with Memory(64) as memory:
        memory.write(*range(0, 64, 2))
        bounds = {"start": memory.start, "end": memory.end}
        (batch,) = pm.iter_scan(batch_size=1 << 100, **bounds)
        assert batch.tolist() == pm.scan(**bounds).tolist()


def test_budgets_that_no_counter_holds(pm):
    with Memory(4) as memory:
        memory.write(0)
        area = {"start": memory.start, "end": memory.end}
        for huge in (2**63, 2**64 - 1, 2**64, 2**100):
            try:
                assert len(pm.scan(**area, max_pages=huge)) == 1
            except ValueError as error:
                assert "max_pages" in str(error)  # noqa: PT017


@pytest.mark.parametrize("query", [None, 8, Category.PRESENT, "PRESENT", Query])
def test_what_is_no_query(pm, query):
    for method in (pm.scan, pm.iter_scan):
        with pytest.raises(TypeError, match="query must be a Query, not"):
            method(query)


@pytest.mark.parametrize("bit", [9, 10, 40, 63])
@pytest.mark.parametrize("name", ["require", "exclude", "any_of", "report"])
def test_a_category_that_nobody_knows(pm, name, bit):
    if bit == 9 and pm.engine == "scan" and Category.ACCESSED in pagemap.features().categories:
        pytest.skip("this kernel knows ACCESSED")
    query = Query(**{name: 1 << bit})
    named = "ACCESSED" if bit == 9 else hex(1 << bit)
    for method in (pm.scan, pm.iter_scan):
        with pytest.raises(UnsupportedError, match=f"cannot tell {named}: see pagemap.features"):
            method(query)


@pytest.mark.parametrize("category", [Category.HUGE, Category.PFNZERO, Category.WRITTEN, Category.WPALLOWED])
def test_what_entries_do_not_say_is_an_error_and_never_a_zero(category):
    with PageMap(engine="read") as pm:
        for query in (
            Query(category),
            Query(exclude=category),
            Query(report=category),
            Query(any_of=category | 8),
        ):
            with pytest.raises(UnsupportedError, match=f"`read` engine.*cannot tell {category.name}"):
                pm.scan(query)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"require": 8, "exclude": 8}, "PRESENT is both required and excluded"),
        ({"require": 8 | 4, "exclude": 8 | 4 | 1}, r"FILE\|PRESENT is both required and excluded"),
        ({"any_of": 8, "exclude": 8}, "every category of any_of .PRESENT. is excluded"),
        ({"any_of": 8 | 16, "exclude": 8 | 16 | 32}, r"any_of .PRESENT\|SWAPPED. is excluded"),
        ({"require": 1 << 20, "exclude": 1 << 20}, "0x100000 is both required and excluded"),
    ],
)
def test_queries_that_no_page_can_match(arguments, words):
    with pytest.raises(ValueError, match=words):
        Query(**arguments)


@pytest.mark.parametrize("name", ["require", "exclude", "any_of", "report"])
def test_masks_that_are_none(name):
    for value in (-1, 1 << 64):
        with pytest.raises(ValueError, match=f"{name} must be a combination of categories.*not {value}"):
            Query(**{name: value})
    for value in (1.0, "PRESENT", [Category.PRESENT]):
        with pytest.raises(TypeError, match=f"{name} must be a Category"):
            Query(**{name: value})


@pytest.mark.parametrize("engine", ["ioctl", "", None, 1])
def test_engines_that_do_not_exist(engine):
    with pytest.raises(ValueError, match="engine must be 'auto', 'scan' or 'read', not"):
        PageMap(engine=engine)


def closed_by_close():
    pm = PageMap()
    pm.close()
    return pm


def closed_by_with():
    with PageMap() as pm:
        pass
    return pm


@pytest.mark.parametrize("make", [closed_by_close, closed_by_with])
def test_a_closed_pagemap(make):
    pm = make()
    assert pm.closed
    pm.close()  # a second time is no error
    for question in (
        pm.scan,
        pm.iter_scan,
        pm.vmas,
        pm.fileno,
        pm.__enter__,
        lambda: pm.entries(0, PAGE_SIZE),
        lambda: pm.scan(max_pages=0),
        lambda: pagemap.pagemap_scan(pm, 0, PAGE_SIZE),
    ):
        with pytest.raises(ValueError, match="this PageMap is closed: open a new one"):
            question()
    assert "closed" in repr(pm)
    assert pm.pid == os.getpid()


def test_one_that_is_closed_between_two_batches(pm):
    with Memory(8) as memory:
        memory.write(0, 2, 4, 6)
        batches = pm.iter_scan(start=memory.start, end=memory.end, batch_size=1)
        first = next(batches)
        pm.close()
        with pytest.raises(ValueError, match="closed"):
            next(batches)
        assert first["start"].tolist() == [memory.start]


def test_one_that_is_forgotten_open_says_so():
    with pytest.warns(ResourceWarning, match=f"unclosed <PageMap pid={os.getpid()}"):
        PageMap()


@pytest.mark.parametrize(
    ("argument", "error", "words"),
    [
        (5, TypeError, "int has no memory"),
        (None, TypeError, "NoneType has no memory"),
        ("text", TypeError, "str has no memory"),
        ([1, 2], TypeError, "list has no memory"),
        (b"", ValueError, "an empty buffer touches no page"),
        (np.empty(0), ValueError, "an empty buffer"),
        (np.empty((5, 0, 3)), ValueError, "an empty buffer"),
    ],
)
def test_spans_of_nothing(argument, error, words):
    with pytest.raises(error, match=words):
        pagemap.span(argument)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "words"),
    [
        ((), {}, TypeError, "takes fd, start, end and vec by position, 0 arguments"),
        ((0, 0), {}, TypeError, "2 arguments given"),
        ((0, 0, 0, None, 0), {}, TypeError, "5 arguments given"),
        ((0, 0, 0), {"size": 96}, TypeError, "unexpected keyword argument 'size'"),
        ((0, 0, 0, None), {"vec": None}, TypeError, "repeated keyword argument 'vec'"),
        (("0", 0, 0), {}, TypeError, "fileno"),
        ((1.0, 0, 0), {}, TypeError, "fileno"),
        ((-1, 0, 0), {}, ValueError, "file descriptor cannot be a negative integer"),
        ((1 << 40, 0, 0), {}, ValueError, "fd must be at most 2147483647"),
        ((0, -1, 0), {}, ValueError, r"start must be between 0 and 2\*\*64 - 1, not -1"),
        ((0, 0, 1 << 64), {}, ValueError, r"end must be between 0 and 2\*\*64 - 1"),
        ((0, 0.5, 1), {}, TypeError, "start must be an integer, not <class 'float'>"),
        ((0, 0, 0), {"flags": 1.0}, TypeError, "flags must be an integer"),
        ((0, 0, 0), {"max_pages": -1}, ValueError, "max_pages must be between"),
        ((0, 0, 0), {"return_mask": "x"}, TypeError, "return_mask must be an integer"),
        ((0, 0, 0), {"category_mask": 1 << 64}, ValueError, "category_mask must be between"),
        ((0, 0, 0), {"category_inverted": None}, TypeError, "category_inverted must be an integer"),
        ((0, 0, 0), {"category_anyof_mask": -5}, ValueError, "category_anyof_mask must be between"),
        ((0, 0, 0), {"flags": ScanFlag.WP_MATCHING, "category_mask": 2}, ValueError, "needs a vec"),
        (
            (0, 0, 0, bytearray(24)),
            {"flags": ScanFlag.WP_MATCHING},
            ValueError,
            "needs WRITTEN in category_mask",
        ),
        (
            (0, 0, 0, bytearray(24)),
            {"flags": 3, "category_mask": 2, "category_inverted": 2},
            ValueError,
            "not in category_inverted",
        ),
    ],
)
def test_the_raw_call_refuses(arguments, keywords, error, words):
    with pytest.raises(error, match=words):
        pagemap.pagemap_scan(*arguments, **keywords)


def test_integers_that_fail_keep_their_own_error():
    class Angry:
        def __index__(self):
            raise RuntimeError("not today")

    with PageMap() as pm:
        with pytest.raises(RuntimeError, match="not today"):
            pagemap.pagemap_scan(pm, Angry(), 0)
        with pytest.raises(RuntimeError, match="not today"):
            pm.scan(start=Angry())


@pytest.mark.parametrize(
    ("flags", "masks"),
    [(4, {}), (1 << 63, {}), (0, {"return_mask": 1 << 40}), (0, {"category_inverted": 1 << 63})],
)
def test_what_the_kernel_does_not_know_is_its_own_einval(need, flags, masks):
    need("scan")
    with PageMap() as pm, pytest.raises(OSError, match="Invalid argument"):
        pagemap.pagemap_scan(pm, 0, 0, bytearray(24), flags=flags, **masks)


def test_descriptors_of_other_files(need):
    need("scan")
    reader, writer = os.pipe()
    zero = os.open("/dev/zero", os.O_RDONLY)
    maps = os.open("/proc/self/maps", os.O_RDONLY)
    try:
        for fd in (reader, writer, zero, maps):
            with pytest.raises(OSError, match=r"Inappropriate ioctl|Invalid argument") as caught:
                pagemap.pagemap_scan(fd, 0, PAGE_SIZE)
            assert caught.value.errno in (22, 25)
    finally:
        for fd in (reader, writer, zero, maps):
            os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        pagemap.pagemap_scan(maps, 0, PAGE_SIZE)


ONE = np.array([(0, 4096, 8)], pagemap.REGION_DTYPE)
TABLE = pagemap.maps.VmaTable.parse(b"10000-20000 rw-p 00000000 00:00 0\n")


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: pagemap.regions.select(ONE, 8), TypeError, "must be a Query, not int"),
        (lambda: pagemap.regions.to_mask(ONE, 0, 4096, 8), TypeError, "must be a Query, not int"),
        (lambda: pagemap.Query.PRESENT.matches(np.array([8.7])), TypeError, "integers, not float64"),
        (lambda: pagemap.Query.PRESENT.matches(np.array(["8"])), TypeError, "integers, not <U1"),
        (lambda: TABLE.ranges(-1, 5), ValueError, "64 bits"),
        (lambda: TABLE.ranges(0, 1 << 64), ValueError, "64 bits"),
        (lambda: pagemap.PageMap(True), TypeError, "not bool"),
    ],
)
def test_what_would_pass_for_something_else(call, error, says):
    with pytest.raises(error, match=says):
        call()


@pytest.mark.parametrize("address", [-1, 0, 0xFFFF, 0x20000, 1 << 64, 1 << 70])
def test_nothing_is_mapped_at_what_is_no_address(address):
    assert TABLE.find(address) is None
    assert TABLE.find(0x10000) == 0
