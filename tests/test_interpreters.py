"""The extension in interpreters with a GIL of their own (PEP 684, Python 3.12), side by side and one after
the other. NumPy refuses such interpreters, so it is the extension that is used there, not the package.
"""

import os
import sys
import threading

import children
import pytest

from pagemap import _pagemap

if sys.version_info >= (3, 13):
    import _interpreters as interpreters
elif sys.version_info >= (3, 12):
    import _xxsubinterpreters as interpreters
else:
    interpreters = None

pytestmark = pytest.mark.skipif(
    interpreters is None, reason="interpreters with a GIL of their own: Python 3.12"
)

USE = f"""
import importlib.util, os
spec = importlib.util.spec_from_file_location("pagemap._pagemap", {_pagemap.__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
maps = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
buffer = module.RegionBuffer(64)
for _ in range(20):
    records = module.parse_maps(module.read_maps(maps))
    assert len(records) % 56 == 0
    first = int.from_bytes(records[:8], "little")
    ranges = memoryview(records[:16]).cast("Q")
    length, _, _ = buffer.read(0, pagemap, ranges, 0, 1 << 46, 0, 0, 0, 0, 8)
    with memoryview(buffer) as view:
        assert length == 0 or int.from_bytes(view.cast("B")[:8], "little") >= first
    try:
        buffer.resize("x")
    except TypeError:
        pass
    else:
        raise AssertionError("not refused")
os.close(pagemap)
os.close(maps)
"""


def in_an_interpreter(code):
    if sys.version_info >= (3, 13):
        number = interpreters.create("isolated")
        try:
            failed = interpreters.exec(number, code)
        finally:
            interpreters.destroy(number)
        assert failed is None, failed
    else:
        number = interpreters.create(isolated=True)
        try:
            interpreters.run_string(number, code)
        finally:
            interpreters.destroy(number)


def test_one_after_the_other():
    """Twenty come and go: no descriptor stays, and the module of this interpreter is as before."""
    in_an_interpreter(USE)
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(20):
        in_an_interpreter(USE)
    assert sorted(os.listdir("/proc/self/fd")) == before
    buffer = _pagemap.RegionBuffer(3)
    with memoryview(buffer), pytest.raises(BufferError):
        buffer.resize(4)


def test_side_by_side():
    """Each in a thread of its own, at the same time: with a GIL for each they really are."""
    errors = []

    def run():
        try:
            for _ in range(5):
                in_an_interpreter(USE)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert errors == []


@pytest.mark.skipif(sys.version_info < (3, 13), reason="3.12 keeps 1.7 MB of every interpreter itself")
def test_an_interpreter_gives_its_memory_back():
    """Interpreters that load the extension cost no more than as many that do not; what a free-threaded Python
    keeps of each anyway varies.
    """
    said = children.run(
        f"""
import sys, gc
sys.path.insert(0, {os.path.dirname(__file__)!r})
import test_interpreters as t
def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1])
def grown(code):
    for _ in range(10):
        t.in_an_interpreter(code)
    before = resident()
    for _ in range(60):
        t.in_an_interpreter(code)
    return resident() - before
without = grown("import importlib.util, os")
print(without, grown(t.USE))
"""
    )
    without, using = map(int, said.split())
    assert using < 1.1 * without + 256, "pages of 4 KiB"
