"""Which memory is hugetlb, found out while it comes and goes: no hugetlb page is touched here."""

import os

import pytest
from memory import SHARED, Memory
from witness import PAGE

import pagemap
from pagemap.layout import huge_devices, layout, smaps_page_size
from pagemap.maps import VmaTable
from pagemap.registration import page_size_finder

HUGE = 2 << 20
FIRST, SECOND, OTHER = 0x7F0000000000, 0x7F0000400000, 0x7F0000800000
TABLE = VmaTable.parse(
    b"7f0000000000-7f0000200000 rw-p 00000000 00:0f 100                /anon_hugepage (deleted)\n"
    b"7f0000400000-7f0000600000 rw-p 00000000 00:0f 101                /anon_hugepage (deleted)\n"
    b"7f0000800000-7f0000a00000 rw-s 00000000 00:01 102                /dev/zero (deleted)\n"
    b"7f0000c00000-7f0000e00000 rw-p 00000000 fe:01 103                /usr/lib/file\n"
    b"7f0001000000-7f0001200000 rw-p 00000000 00:00 0\n"
)


@pytest.mark.parametrize("gone", [(), (FIRST,), (SECOND,), (FIRST, SECOND)])
def test_hugetlb_that_goes_away_while_it_is_asked_is_not_plain(gone):
    """No scan that protects may come to it: not to what has gone, nor to others of its device."""
    inodes = {FIRST: 100, SECOND: 101, OTHER: 102}
    asked = []

    def page_size_of(address, inode):
        assert inodes[address] == inode
        asked.append(address)
        return None if address in gone else PAGE if address == OTHER else HUGE

    devices = huge_devices(TABLE, page_size_of)
    assert devices == {0x0F: HUGE}
    assert asked == [OTHER, *([FIRST, SECOND] if FIRST in gone else [FIRST])]
    found = layout(TABLE, devices, ())
    assert found.huge["start"].tolist() == [FIRST, SECOND]
    assert found.plain["start"].tolist() == [OTHER, 0x7F0000C00000, 0x7F0001000000]


def test_an_answer_is_about_the_file_that_was_asked_about(need):
    """Not about what has taken its place, and not about what comes after it."""
    with Memory(4, SHARED) as memory, pagemap.PageMap() as pm:
        inode = pm.vmas()[pm.vmas().find(memory.start)].inode

        def by_smaps(address, inode):
            return smaps_page_size(os.getpid(), address, inode)

        for page_size_of in (page_size_finder(pm), by_smaps):
            assert page_size_of(memory.start + PAGE, inode) == PAGE
            assert page_size_of(memory.start, inode + 1) is None
            assert page_size_of(0, inode) is None
        memory.unmap(0, 2)
        for page_size_of in (page_size_finder(pm), by_smaps):
            assert page_size_of(memory.start, inode) is None
            assert page_size_of(memory.start + 2 * PAGE, inode) == PAGE
