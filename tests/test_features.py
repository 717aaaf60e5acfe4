"""features(): each claim is tried, and each absence has its reason."""

import errno
import mmap
import os
import re
import sys

import children
import machine
import pytest
import witness
from memory import Memory

import pagemap
from pagemap import Category, PageMap, Query, ScanFlag


@pytest.mark.parametrize("name", ["scan", "wp_async", "rwp_async", "procmap_query", "soft_dirty"])
def test_what_there_is_by_the_kernels_own_word(name):
    assert getattr(pagemap.features(), name) == (machine.PROBES[name]() is None)


def test_what_is_missing_has_a_reason_and_nothing_else_has():
    found = pagemap.features()
    missing = {
        name
        for name in ("scan", "wp_async", "rwp_async", "soft_dirty", "procmap_query", "pfn")
        if not getattr(found, name)
    }
    missing |= {c.name for c in Category if c not in found.categories}
    missing |= {f.name for f in ScanFlag if f not in found.flags}
    reasons = {name: why for name, why in found.why.items() if hasattr(found, name) or name.isupper()}
    assert missing <= set(reasons)
    assert all(len(why.split()) >= 4 for why in found.why.values()), found.why
    for name in set(reasons) - missing:
        assert not getattr(found, name, True), f"{name} works, but has a reason why not"
    with pytest.raises(TypeError):
        found.why["scan"] = "changed"
    with pytest.raises(AttributeError):
        found.scan = False


def test_every_category_that_it_claims_can_be_asked_for(engine):
    found = pagemap.features()
    known = found.categories if engine == "scan" else found.read_categories
    with Memory(4) as memory, PageMap(engine=engine) as pm:
        memory.write(0)
        area = {"start": memory.start, "end": memory.end}
        for category in Category:
            for query in (
                Query(category),
                Query(exclude=category),
                Query(any_of=category),
                Query(report=category),
            ):
                if category in known:
                    pm.scan(query, **area)
                else:
                    with pytest.raises(pagemap.UnsupportedError, match=f"cannot tell {category.name}"):
                        pm.scan(query, **area)


def test_frames_are_visible_or_not(need):
    assert pagemap.features().pfn == witness_sees_a_frame()


def witness_sees_a_frame():
    with Memory(1) as memory:
        memory.write(0)
        return bool(witness.entries(memory.start, memory.end)[0] & witness.PFN)


def test_asynchronous_write_protection_works_as_claimed():
    assert pagemap.features().wp_async == (machine.wp_async() is None)


def test_soft_dirty_is_recorded_as_claimed():
    """Cleared by clear_refs, set by a write: in a child, for all of whose pages it is cleared."""
    claimed = pagemap.features().soft_dirty
    out = children.run(
        """
import mmap, os, witness
memory = mmap.mmap(-1, 2 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[0] = memory[4096] = 1
import ctypes
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
try:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("4")
except OSError:
    pass
memory[0] = 2
print([bool(word >> 55 & 1) for word in witness.entries(start, start + 2 * 4096)])
"""
    )
    assert out.strip() == ("[True, False]" if claimed else "[False, False]")


def test_it_is_asked_once():
    assert pagemap.features() is pagemap.features()


def test_another_user_has_other_features(need):
    """Asked anew when the effective user changes: rights may be dropped while the program runs."""
    need("root")
    children.run(
        """
import ctypes, os, pagemap
assert pagemap.features().pfn
os.seteuid(65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
assert not pagemap.features().pfn
assert "CAP_SYS_ADMIN" in pagemap.features().why["pfn"]
os.seteuid(0)
assert pagemap.features().pfn
"""
    )


def test_no_probe_leaves_a_descriptor():
    children.run(
        """
import gc, os, pagemap
gc.collect()
before = sorted(os.listdir("/proc/self/fd"))
pagemap.features()
gc.collect()
assert sorted(os.listdir("/proc/self/fd")) == before
"""
    )


def test_the_end_of_the_address_space_is_the_kernels(engine):
    """The last entry is there, and the one behind it is not."""
    limit = pagemap.scanner.address_space_end()
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        assert len(os.pread(fd, 16, (limit // witness.PAGE - 1) * 8)) == 8
        assert os.pread(fd, 8, limit // witness.PAGE * 8) == b""
    finally:
        os.close(fd)
    with PageMap(engine=engine) as pm:
        assert pm.entries(limit - witness.PAGE, limit).shape == (1,)


def probed_anew():
    module = sys.modules["pagemap.features"]
    return module._probe.__wrapped__(os.geteuid(), 0)


def refusing(monkeypatch, advices, code):
    """As on a kernel whose madvise refuses these."""

    class Refusing(mmap.mmap):
        def madvise(self, advice, *where):
            if advice in advices:
                raise OSError(code, os.strerror(code))
            return super().madvise(advice, *where)

    monkeypatch.setattr(mmap, "mmap", Refusing)


def test_a_kernel_without_transparent_huge_pages(monkeypatch):
    """CONFIG_TRANSPARENT_HUGEPAGE is off, as in every PREEMPT_RT kernel: there is nothing to switch off."""
    expected = pagemap.features()
    refusing(monkeypatch, {mmap.MADV_HUGEPAGE, mmap.MADV_NOHUGEPAGE}, errno.EINVAL)
    assert probed_anew() == expected


def test_what_cannot_be_tried_does_not_work_and_says_so(need, monkeypatch):
    need("wp_async")
    refusing(monkeypatch, {mmap.MADV_DONTNEED}, errno.EPERM)
    found = probed_anew()
    assert found.wp_async
    assert not found.wp_drop
    assert "could not be tried (Operation not permitted)" in found.why["wp_drop"]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.EINVAL, r"Linux 5\.11"),
        (errno.ENOSYS, "CONFIG_USERFAULTFD"),
        (errno.EPERM, "seccomp"),
    ],
)
def test_why_there_is_no_userfaultfd(monkeypatch, code, says):
    def refused(flags, owner):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(pagemap._pagemap, "userfaultfd", refused)
    found = probed_anew()
    assert not found.wp_async
    assert not found.wp_drop
    for name in ("wp_async", "rwp_async", "wp_drop"):
        assert re.search(says, found.why[name])
