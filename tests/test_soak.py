"""The endurance test of soak.py, scaled down; `make soak` runs it for as long as you like."""

import pytest
import soak

from pagemap import VmaTable
from pagemap.layout import pieces


def test_a_little_of_it():
    first, last, lives = soak.soak(5, lifetime=1)
    soak.check(first, last)
    assert lives >= 2, "as many targets died"


def test_the_check_notices():
    with pytest.raises(AssertionError, match="descriptors"):
        soak.check((10, 1, 1000, 50), (11, 1, 1000, 50))


def test_what_is_registered_reaches_to_the_next_vma():
    """It was each VMA as listed: one that grew meanwhile was registered in part and became two, so that the
    target's mremap failed with EFAULT. The soak saw targets die of it."""
    text = b"1000-3000 rw-p 0 00:00 0\n5000-6000 rw-p 0 00:00 0\n6000-7000 r--p 0 00:00 0\n"
    part = pieces(VmaTable.parse(text), 0x2000, 0x9000)
    assert part.starts.tolist() == [0x2000, 0x5000, 0x6000]
    assert part.ends.tolist() == [0x5000, 0x6000, 0x9000]
    assert len(pieces(VmaTable.parse(text), 0x3000, 0x5000).ends) == 0
