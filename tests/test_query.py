"""Query: the rule, the masks that the kernel gets for it, and what is reported when nobody says."""

import copy
import pickle

import numpy as np
import pytest
import witness
from hypothesis import assume, given
from hypothesis import strategies as st

from pagemap import Category, Query, ScanFlag

masks = st.one_of(st.integers(0, 0b1_1111_1111), st.integers(0, (1 << 64) - 1))


def kernels_rule(c, inverted, mask, anyof):
    """pagemap_scan_is_interesting_page(), as its documentation puts it."""
    c ^= inverted
    return (c & mask) == mask and (anyof == 0 or c & anyof != 0)


@given(masks, masks, masks, st.none() | masks, st.lists(masks, min_size=1, max_size=20))
def test_matches_is_the_kernels_rule_on_the_masks(require, exclude, any_of, report, pages):
    exclude &= ~require
    assume(not any_of or any_of & ~exclude)
    query = Query(require, exclude, any_of, report)
    inverted, mask, anyof, returned = query.masks()
    answers = query.matches(np.array(pages, np.uint64))
    assert answers.dtype == np.bool_
    for categories, answer in zip(pages, answers.tolist(), strict=True):
        assert query.matches(categories) is answer
        assert answer == kernels_rule(categories, inverted, mask, anyof)
        plain = (
            categories & require == require
            and not categories & exclude
            and (not any_of or bool(categories & any_of))
        )
        assert answer == plain
    assert returned == (require | (any_of & ~exclude) if report is None else report)
    assert all(0 <= m < 1 << 64 for m in query.masks())


def test_a_category_that_is_excluded_does_not_match_by_being_absent():
    query = Query(any_of=Category.PRESENT | Category.FILE, exclude=Category.FILE)
    assert query.masks()[2] == Category.PRESENT
    assert not query.matches(0)
    assert query.matches(int(Category.PRESENT))


@given(st.integers(0, 511))
def test_matches_keeps_shapes(categories):
    array = np.full((3, 4), categories, np.uint64)
    answer = Query.POPULATED.matches(array)
    assert answer.shape == (3, 4)
    assert (answer == witness.selected(categories, any_of=witness.PRESENT | witness.SWAPPED)).all()


def test_what_is_reported_is_what_the_selection_names():
    assert Query.POPULATED.masks() == (0, 0, 8 | 16, 8 | 16)
    assert Query.WRITTEN.masks() == (0, 2, 0, 2), "the exact masks of the kernel's fast path"
    assert Query.PRESENT.masks() == (0, 8, 0, 8)
    assert Query.SWAPPED.masks() == (0, 16, 0, 16)
    assert Query.HUGE.masks() == (0, 64, 0, 64)
    assert Query().masks() == (0, 0, 0, 0)
    assert Query(exclude=Category.PRESENT).masks() == (8, 8, 0, 0)
    assert Query(Category.PRESENT, report=0).masks() == (0, 8, 0, 0)
    assert Query.WRITTEN.report is None


def test_it_is_a_value():
    one, two = Query(Category.PRESENT, Category.FILE), Query(8, 4)
    assert one == two
    assert hash(one) == hash(two)
    assert one != Query(8, 4, report=8)
    assert len({one, two, Query.PRESENT, Query(require=8)}) == 2
    assert pickle.loads(pickle.dumps(one)) == one
    assert copy.deepcopy(one).masks() == one.masks()
    with pytest.raises(AttributeError):
        one.require = Category.FILE
    assert repr(one).startswith("Query(require=<Category.PRESENT: 8>, exclude=<Category.FILE: 4>")


@given(masks)
def test_categories_without_a_name_are_kept(bits):
    query = Query(any_of=bits) if bits else Query()
    assert query.masks() == (0, 0, bits, bits)
    assert int(query.any_of) == bits
    assert Query(bits).masks() == (0, bits, 0, bits)
    assert Query(exclude=bits, report=bits).masks() == (bits, bits, 0, bits)


def test_the_kernels_values():
    assert {c.name: int(c) for c in Category} == {**witness.NAMES, "ACCESSED": 1 << 9}
    assert {f.name: int(f) for f in ScanFlag} == {"WP_MATCHING": 1, "CHECK_WPASYNC": 2}
