"""What cannot be tracked is refused before anything is changed, with what was wrong."""

import mmap
import os
import tempfile
import textwrap

import children
import numpy as np
import pytest
import witness
from memory import READ, SHARED, Memory
from tracked import PAGES, bounds, is_registered, pages_in, plain
from witness import PAGE

import pagemap


@pytest.fixture(autouse=True)
def kernel(need):
    need("wp_async")


READ_ONLY = np.zeros(1 << 16)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("objects", "error", "says"),
    [
        ((), TypeError, "needs memory"),
        (([],), TypeError, "needs memory"),
        ((17,), TypeError, "int has no memory"),
        ((None,), TypeError, "NoneType has no memory"),
        ((b"constant" * 1000,), ValueError, "read-only"),
        (("text",), TypeError, "str has no memory"),
        ((READ_ONLY,), ValueError, "read-only"),
        ((memoryview(bytearray(9)).toreadonly(),), ValueError, "read-only"),
        ((np.zeros(0),), ValueError, "empty"),
        (((0x1001, 0x3000),), ValueError, "multiple of the page size"),
        (((0x3000, 0x1000),), ValueError, "reversed"),
        (((0x1000, 0x1000),), ValueError, "empty"),
        (((-PAGE, PAGE),), ValueError, "negative"),
        (((0, 1 << 60),), ValueError, "beyond the address space"),
        (((0x1000, 0x2000),), ValueError, "nothing is mapped"),
        ((bytearray(9), (0x1000, 0x2000)), ValueError, "nothing is mapped"),
    ],
)
def test_what_is_no_writable_memory(objects, error, says):
    with pytest.raises(error, match=says):
        pagemap.track(*objects)


@pytest.mark.parametrize(
    ("options", "says"), [({"granularity": "byte"}, "granularity"), ({"mode": "execute"}, "mode")]
)
def test_choices(options, says):
    with plain() as memory:
        with pytest.raises(ValueError, match=says):
            pagemap.track(bounds(memory), **options)
        assert not is_registered(memory)


def test_accesses_where_the_kernel_cannot_tell():
    if pagemap.features().rwp_async:
        pytest.skip("this kernel can")
    with plain() as memory:
        with pytest.raises(pagemap.UnsupportedError, match=r"Linux 7\.3"):
            pagemap.track(bounds(memory), mode="access")
        assert not is_registered(memory)


def test_a_hole_in_the_range():
    with plain() as memory:
        memory.unmap(8, 4)
        with pytest.raises(ValueError, match=f"nothing is mapped at {memory.at(8):#x}-{memory.at(12):#x}"):
            pagemap.track(bounds(memory))
        assert not is_registered(memory)
        memory.write(1)  # and is not protected either
        assert not any(
            entry & witness.ENTRY_WRITE_PROTECTED for entry in witness.entries(memory.start, memory.at(8))
        )


def test_memory_that_another_tracker_holds():
    with plain() as memory, pagemap.track((memory.at(0), memory.at(8))) as first:
        with pytest.raises(OSError, match="another userfaultfd") as raised:
            pagemap.track(bounds(memory))
        assert raised.value.errno == 16
        memory.write(1, 40)
        assert pages_in(first.collect(), memory) == {1}
        with pagemap.track((memory.at(8), memory.at(PAGES))) as second:  # what is left is to be had
            memory.write(2, 41)
            assert pages_in(first.collect(), memory) == {2}
            assert pages_in(second.collect(), memory) == {41}


def test_a_file_that_may_not_be_written():
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x" * 4 * PAGE)
        file.flush()
        descriptor = os.open(file.name, os.O_RDONLY)
        with Memory(4, READ, SHARED, fd=descriptor) as memory:
            os.close(descriptor)
            with pytest.raises(PermissionError, match="may not be written"):
                pagemap.track(bounds(memory))


def test_read_only_memory_that_may_become_writable():
    with Memory(4) as memory:
        memory.write(0)
        memory.protect(READ)
        with pagemap.track(bounds(memory)) as tracker:
            memory.protect(READ | mmap.PROT_WRITE)
            memory.write(2)
            assert pages_in(tracker.collect(), memory) == {2}


def test_an_ordinary_user(need):
    need("root")
    code = """
    with SMALL_PAGES["plain"]() as memory, SMALL_PAGES["file_private"]() as file:
        for granularity in ("native", "page"):
            with pagemap.track(bounds(memory), bounds(file), granularity=granularity) as tracker:
                memory.write(1, 5, 60)
                found = pagemap.regions.clip(tracker.collect(), *bounds(memory))
                assert pages_in(found, memory) == {1, 5, 60}
                file.write(7)
                assert pages_in(tracker.collect(), file) == {7}
        array = numpy.zeros(1 << 20)
        with pagemap.track(array) as tracker:
            array[1 << 19] = 1
            assert len(tracker.collect())
    try:
        pagemap.attach(1)
    except PermissionError as error:
        assert "process 1" in str(error), error
    print(os.geteuid())
    """
    start = "from tracked import SMALL_PAGES, bounds, pages_in\n" + children.BECOME_NOBODY
    assert children.run(start + textwrap.dedent(code)) == "65534\n"
