"""The endurance test of soak.py, scaled down; `make soak` runs it for as long as you like."""

import pytest
import soak


def test_a_little_of_it():
    """Its targets end with an error when an mremap fails. A VMA that is registered in part is two, and mremap
    refuses it: that was so where the target mapped memory between the listing and the registration."""
    first, last, lives = soak.soak(5, lifetime=1)
    soak.check(first, last)
    assert lives >= 2, "as many targets died"


def test_the_check_notices():
    with pytest.raises(AssertionError, match="descriptors"):
        soak.check((10, 1, 1000, 50), (11, 1, 1000, 50))
