"""The endurance test of soak.py, scaled down; `make soak` runs it for as long as you like."""

import pytest
import soak


def test_a_little_of_it():
    first, last, lives = soak.soak(5, lifetime=2)
    soak.check(first, last)
    assert lives >= 6, "three targets or more died"


def test_the_check_notices():
    with pytest.raises(AssertionError, match="descriptors"):
        soak.check((10, 1, 1000, 50), (11, 1, 1000, 50))
