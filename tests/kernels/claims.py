"""What docs/kernels.md says of each kernel, computed from the lines of facts.py; `–` where it has none."""

from __future__ import annotations

from collections.abc import Callable, Iterable

Fact = dict[str, str]
Verdict = Callable[[Fact], str]


def parse(output: str) -> dict[str, Fact]:
    """name -> key -> value, from the lines of one run."""
    facts = {}
    for line in output.splitlines():
        if line.startswith("FACT "):
            _, _, _, name, *values = line.split()
            facts[name] = dict(value.split("=", 1) for value in values)
    return facts


def reported(key: str) -> Verdict:
    """Were all, some or none of the pages reported?"""

    def verdict(fact: Fact) -> str:
        count, of = fact[key].split("/")
        return "yes" if count == of else "no" if count == "0" else fact[key]

    return verdict


def survives(key: str) -> Verdict:
    return lambda fact: "deadlock" if fact.get("hangs") else "yes" if key in fact else "no"


def equal(key: str, value: str) -> Verdict:
    return lambda fact: "yes" if fact[key] == value else "no"


def value(key: str, unit: str = "") -> Verdict:
    return lambda fact: f"{fact[key]}{unit}"


def categories(fact: Fact) -> str:
    return f"0–{max(int(bit) for bit in fact['categories'].split(','))}"


def access(fact: Fact) -> str:
    return "yes" if "9" in fact["categories"].split(",") else "no"


def whole_walk(fact: Fact) -> str:
    walk_end, end = fact["walk_end_page"], fact["end_page"]
    return "yes" if walk_end == end else f"no: page {walk_end} of {end}"


CLAIMS: list[tuple[str, str, Verdict]] = [
    ("category bits of `PAGEMAP_SCAN`", "features", categories),
    ("access tracking (`PAGE_IS_ACCESSED`)", "features", access),
    ("soft-dirty bits", "soft_dirty", equal("bits", "1,0,1")),
    ("`walk_end` is the end after 513 regions", "stale_walk_end", whole_walk),
    ("`WRITTEN` outside registered memory", "unregistered", reported("present.exact")),
    (
        "never touched, registered: reported once, exact masks, no page table",
        "never.table.exact",
        reported("start"),
    ),
    ("the same inside a page table", "never.some.exact", reported("start")),
    ("the same inside a page table, other masks", "never.some.general", reported("start")),
    ("page tables that the first scan of 1 GiB of it allocates", "hole_cost", value("kib", " KiB")),
    (
        "`MADV_DONTNEED` inside a page table reported, exact masks",
        "drop.anon.dontneed.some.exact",
        reported("dropped"),
    ),
    ("the same with other masks", "drop.anon.dontneed.some.general", reported("dropped")),
    (
        "`MADV_DONTNEED` of a whole page table, exact masks",
        "drop.anon.dontneed.table.exact",
        reported("dropped"),
    ),
    ("`MADV_DONTNEED` of a huge page, exact masks", "drop.thp.dontneed.table.exact", reported("dropped")),
    (
        "the same, found by a second scan for unprotected holes",
        "repair.thp.table.history",
        reported("dropped"),
    ),
    ("`MADV_DONTNEED` of swapped pages, whole page table", "swap.dropped", reported("table")),
    (
        "`MADV_DONTNEED` of private copies of a file",
        "drop.private_file.dontneed.some.exact",
        reported("dropped"),
    ),
    ("`MADV_REMOVE` of shared memory", "drop.shmem.remove.some.exact", reported("dropped")),
    ("`MADV_DONTNEED` of a hugetlb page", "hugetlb.dropped", reported("dropped")),
    ("`MADV_FREE`, once reclaimed", "free.reclaimed", reported("reclaimed")),
    ("guard regions installed over protected pages", "guard.installed", reported("written")),
    ("written, then swapped out", "swap.dirty", equal("out", "1536")),
    (
        "written between `mremap` and the next registration",
        "mremap.anon.written",
        reported("registered_written"),
    ),
    ("the same when swapped out", "mremap.swapped.written", reported("registered_written")),
    (
        "survives write protection of a hugetlb hole, exact masks",
        "hugetlb.private.hole.written",
        survives("reported"),
    ),
    ("the same with `category_mask` 0", "hugetlb.private.hole.none", survives("reported")),
    (
        "survives write protection of a part of a huge page without `vec`",
        "thp.partial.without_vec",
        survives("returned"),
    ),
]


def table(kernels: dict[str, dict[str, Fact]]) -> str:
    """A Markdown table: a line for each claim with the fact that measures it, a column for each kernel."""
    rows = [["", "measured by", *kernels], ["---"] * (2 + len(kernels))]
    for text, name, verdict in CLAIMS:
        rows.append([text, f"`{name}`", *_cells(name, verdict, kernels.values())])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cells(name: str, verdict: Verdict, kernels: Iterable[dict[str, Fact]]) -> list[str]:
    cells = []
    for facts in kernels:
        fact = facts.get(name, {})
        if "failed" in fact or "signal" in fact:
            raise SystemExit(f"facts.py failed at {name}: {fact}")
        cells.append("–" if not fact or "error" in fact or "skipped" in fact else verdict(fact))
    return cells
