"""Each engine agrees with the witness, and with Query.matches, about every kind of memory."""

import numpy as np
import pytest
import witness
from memory import KINDS

import pagemap
from pagemap import Category, PageMap, Query


@pytest.fixture(params=KINDS)
def kind(request, need):
    chosen = KINDS[request.param]
    need(*chosen.needs)
    with chosen.build() as made:
        yield request.param, made


def comparable(engine, told):
    """What the engine and the witness can both tell: WRITTEN means something in registered memory only."""
    features = pagemap.features()
    known = int(features.categories if engine == "scan" else features.read_categories)
    if not features.pfn:
        known &= ~(witness.PFNZERO | witness.HUGE)
    if not all(categories & witness.WPALLOWED for categories in told.values()):
        known &= ~witness.WRITTEN
    return known & sum(witness.NAMES.values())


def queries(known):
    bits = [bit for bit in witness.NAMES.values() if bit & known]
    yield {"report": known}
    for bit in bits:
        yield {"require": bit}
        yield {"require": bit, "report": known}
        yield {"exclude": bit, "report": known}
        yield {"any_of": bit | witness.PRESENT, "exclude": known & witness.FILE & ~bit, "report": bit}
    yield {"any_of": witness.PRESENT | witness.SWAPPED}
    yield {"any_of": known, "report": 0}


def test_it_was_made(kind):
    name, made = kind
    shown = set(witness.pages(made.start, made.end).values())
    shown |= {categories & ~witness.SOFT_DIRTY for categories in shown}
    for wanted in KINDS[name].shows:
        assert wanted in shown, (name, shown)


def test_engines_agree_with_the_witness(kind, engine):
    _, made = kind
    told = witness.pages(made.start, made.end, engine)
    with PageMap(engine=engine) as pm:
        for arguments in queries(comparable(engine, told)):
            query = Query(**arguments)
            truth = witness.regions(told, **arguments)
            area = {"start": made.start, "end": made.end}
            assert pm.scan(query, **area).tolist() == truth, (arguments, truth)
            assert pm.scan(query, **area, workers=2).tolist() == truth
            assert [r for batch in pm.iter_scan(query, **area, batch_size=2) for r in batch.tolist()] == truth
            part = sum(end - start for start, end, _ in truth) // witness.PAGE * 2 // 3
            cut = witness.regions(told, **arguments, max_pages=part)
            assert pm.scan(query, **area, max_pages=part).tolist() == cut


def test_query_matches_says_what_the_kernel_does(kind, need):
    need("scan")
    _, made = kind
    told = witness.pages(made.start, made.end)
    known = comparable("scan", told)
    with PageMap(engine="scan") as pm:
        everything = pm.scan(Query(report=known), start=made.start, end=made.end)
        for arguments in queries(known):
            query = Query(**arguments)
            picked = everything[query.matches(everything["categories"])]
            answer = pm.scan(query, start=made.start, end=made.end)
            assert np.sum(picked["end"] - picked["start"]) == np.sum(answer["end"] - answer["start"])
            assert [query.matches(int(c)) for c in everything["categories"]] == query.matches(
                everything["categories"]
            ).tolist()


def test_entries_are_the_kernels(kind, engine):
    _, made = kind
    with PageMap(engine=engine) as pm:
        assert pm.entries(made.start, made.end).tolist() == witness.entries(made.start, made.end)


def test_every_category_has_a_kind_that_shows_it():
    shown = {bit for kind in KINDS.values() for mask in kind.shows for bit in Category(mask)}
    assert shown == {Category(bit) for bit in witness.NAMES.values()}
