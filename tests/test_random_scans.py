"""Random memory, random queries, random ranges and batch sizes: one answer, whoever gives it."""

import machine
import memory
import numpy as np
import pytest
import witness
from hypothesis import given, note
from hypothesis import strategies as st
from memory import ANONYMOUS, NONE, PRIVATE, READ, SHARED, WRITE, Memory

import pagemap
from pagemap import Category, PageMap, Query

# What is done to a stretch of the layout; all pages of the stretch are fresh private memory before.
STRETCHES = (
    "untouched",
    "written",
    "read",
    "hole",
    "shared",
    "shared untouched",
    "read-only",
    "not readable",
    "written and dropped",
    "guard",
    "guard over written",
    "swapped",
    "alternating",
)


def lay_out(made, first, count, stretch):
    pages = range(first, first + count)
    match stretch:
        case "written":
            made.write(*pages)
        case "read":
            made.read(*pages)
        case "hole":
            made.unmap(first, count)
        case "shared":
            made.replace(first, count, READ | WRITE, SHARED | ANONYMOUS)
            made.write(*pages)
        case "shared untouched":
            made.replace(first, count, READ | WRITE, SHARED | ANONYMOUS)
        case "read-only":
            made.write(*pages)
            made.protect(READ, first, count)
        case "not readable":
            made.write(*pages)
            made.protect(NONE, first, count)
        case "written and dropped":
            made.write(*pages)
            made.advise(memory.DONTNEED, first, count)
        case "guard":
            made.advise(memory.GUARD_INSTALL, first, count)
        case "guard over written":
            made.write(*pages)
            made.advise(memory.GUARD_INSTALL, first, count)
        case "swapped":
            made.write(*pages)
            made.swap_out(first, count)
        case "alternating":
            made.write(*pages[::2])


categories = st.integers(0, sum(witness.NAMES.values()))
RULES = ("require", "exclude", "any_of")


def _selection(roles):
    """A category has at most one role in a selection, and most have none: else nothing would be selected."""
    bits = list(zip(roles, witness.NAMES.values(), strict=True))
    return {rule: sum(bit for role, bit in bits if role == rule) for rule in RULES}


selections = st.lists(
    st.sampled_from([*RULES, *["any_of"] * 2, *[None] * 7]),
    min_size=len(witness.NAMES),
    max_size=len(witness.NAMES),
).map(_selection)


@pytest.fixture(params=["scan", "read"])
def pm(request, need):
    if request.param == "scan":
        need("scan")
    with PageMap(engine=request.param) as opened:
        yield opened


@pytest.fixture
def possible(request, need):
    """The stretches that this machine can make."""
    impossible = set()
    if machine.guard():
        impossible |= {"guard", "guard over written"}
    try:
        need("swap")
    except pytest.skip.Exception:
        impossible.add("swapped")
    return [stretch for stretch in STRETCHES if stretch not in impossible]


@given(data=st.data())
def test_one_answer_whoever_gives_it(pm, possible, data):
    stretches = st.tuples(st.sampled_from(possible), st.integers(1, 9))
    layout = data.draw(st.lists(stretches, min_size=1, max_size=12), "layout")
    size = sum(count for _, count in layout)
    with Memory(size, READ | WRITE, PRIVATE | ANONYMOUS) as made:
        first = 0
        for stretch, count in layout:
            lay_out(made, first, count, stretch)
            first += count
        told = witness.pages(made.start - witness.PAGE, made.end + witness.PAGE)
        features = pagemap.features()
        known = int(features.categories if pm.engine == "scan" else features.read_categories)
        known &= sum(witness.NAMES.values()) & ~witness.WRITTEN
        if not features.pfn:
            known &= ~witness.PFNZERO
        low = data.draw(st.integers(-1, size))
        high = data.draw(st.integers(low, size + 1))
        area = {"start": made.at(low), "end": made.at(high)}
        told = {address: bits for address, bits in told.items() if area["start"] <= address < area["end"]}

        for _ in range(3):
            arguments = data.draw(selections, "selection")
            arguments = {rule: bits & known for rule, bits in arguments.items()}
            arguments["report"] = data.draw(st.none() | categories.map(lambda bits: bits & known))
            query = Query(**arguments)
            truth = witness.regions(told, **arguments)
            note(f"{query} {truth}")

            answer = pm.scan(query, **area)
            assert answer.tolist() == truth
            assert witness.is_canonical(answer.tolist())
            assert pm.scan(query, **area, workers=data.draw(st.integers(1, 3))).tolist() == truth

            batch_size = data.draw(st.integers(1, 5))
            batches = [batch.tolist() for batch in pm.iter_scan(query, **area, batch_size=batch_size)]
            assert all(0 < len(batch) <= batch_size for batch in batches)
            assert [region for batch in batches for region in batch] == truth

            max_pages = data.draw(st.integers(0, size + 2))
            cut = witness.regions(told, **arguments, max_pages=max_pages)
            assert pm.scan(query, **area, max_pages=max_pages).tolist() == cut

            picked = {page for page, bits in told.items() if query.matches(bits)}
            assert picked == {page for start, end, _ in truth for page in range(start, end, witness.PAGE)}


@given(data=st.data())
def test_decoding_entries_is_the_rule_on_each(data):
    """The run decoder alone, on entries that no kernel would give."""
    several = st.lists(st.sampled_from(list(witness.IN_ENTRIES)), max_size=2).map(set).map(sum)
    kinds = several.filter(lambda bits: bits < 3 << 62)
    runs = data.draw(st.lists(st.tuples(kinds, st.integers(1, 6), st.integers(0, 1 << 40)), max_size=12))
    told, words, address = {}, [], 1 << 30
    for word, length, frame in runs:
        for page in range(length):
            words.append(word | frame + page)
            told[address] = sum(bit for flag, bit in witness.IN_ENTRIES.items() if word & flag)
            address += witness.PAGE
    selection = data.draw(selections)
    require, exclude, any_of = (selection[rule] for rule in RULES)
    report = data.draw(categories) & data.draw(categories)
    max_pages = data.draw(st.integers(0, 20))
    room = data.draw(st.integers(1, 12))
    vec = np.zeros(room, pagemap.REGION_DTYPE)
    n, walk_end = pagemap._pagemap.decode_entries(
        np.array(words, np.uint64),
        1 << 30,
        vec,
        max_pages,
        exclude,
        require | exclude,
        any_of,
        report,
    )
    whole = witness.regions(told, require, exclude, any_of, report, max_pages or None)
    assert vec[:n].tolist() == whole[:room]
    assert not vec[n:]["end"].any()
    if len(whole) > room:
        assert walk_end == whole[room][0]
    elif max_pages and sum(end - start for start, end, _ in whole) == max_pages * witness.PAGE:
        assert whole[-1][1] <= walk_end <= address
    else:
        assert walk_end == address


def test_categories_named_here_are_the_packages():
    assert {c.name: int(c) for c in Category if c.name in witness.NAMES} == witness.NAMES
