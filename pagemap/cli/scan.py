"""`pagemap scan`: the pages of a process by category, VMA by VMA or region by region."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
import numpy.typing as npt

from pagemap import PAGE_SIZE, Category, PageMap, Query, VmaTable, features, regions
from pagemap.maps import printable

from ._output import console, pages, pages_table, size
from ._params import Address, CategoryName, ProcessId, combined, label

DEFAULT_ORDER = (
    Category.PRESENT,
    Category.SWAPPED,
    Category.HUGE,
    Category.FILE,
    Category.PFNZERO,
    Category.GUARD,
)
"""What is a fact in any memory; written, soft-dirty and accessed are so only where somebody tracks them."""


@dataclass(frozen=True)
class Picture:
    """What one scan found."""

    pid: int
    engine: str
    categories: Category
    regions: npt.NDArray[Any]
    vmas: VmaTable
    tracked: bool
    """Whether somebody tracks its writes, and memory where nothing is counts as swapped therefore."""

    def rows(self, start: int, end: int | None) -> list[tuple[Any, Any]]:
        """(Vma, record of regions.by_vma) for each VMA that has a part in [start, end)."""
        table = regions.by_vma(self.regions, self.vmas)
        stop = 1 << 64 if end is None else end
        return [
            (vma, record)
            for vma, record in zip(self.vmas, table, strict=True)
            if vma.end > start and vma.start < stop
        ]


def default_categories(engine: str) -> Category:
    """The categories that are shown when none is named: those of DEFAULT_ORDER that the engine can tell."""
    known = features().categories if engine == "scan" else features().read_categories
    return Category(combined(DEFAULT_ORDER) & known)


def query_of(categories: Category, engine: str) -> Query:
    """Pages that have one of `categories`; for none named, populated pages with all that can be told."""
    if categories:
        return Query(any_of=categories, report=categories)
    return Query(any_of=Category.PRESENT | Category.SWAPPED, report=default_categories(engine))


def program_name(pid: int) -> str:
    """The name in /proc/PID/comm, printable; "?" where that has gone."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="surrogateescape") as comm:
            return printable(comm.read().rstrip("\n"))
    except OSError:
        return "?"


@click.command(
    short_help="The pages of a process by category, VMA by VMA.",
    epilog="""\b
Examples:
  pagemap scan self
  pagemap scan $(pgrep -o redis) --category huge --category swapped
  pagemap scan 1 --regions --start 0x7f0000000000
  pagemap scan 1 --json | jq '.totals.PRESENT * .page_size'
  pagemap scan 1 --csv > vmas.csv

\b
Categories, as the kernel counts them:
  present swapped huge file zero guard    always facts; shown by default
  written soft_dirty accessed wpallowed   facts only where somebody tracks writes
`swapped` includes guard regions. `huge` means mapped by a huge page.

\b
--json, VMAs: {"pid", "engine", "page_size", "categories": [NAME…],
  "totals": {"pages", NAME: pages…}, "vmas": [{"start", "end", "permissions",
  "offset", "dev", "inode", "name", "pages", NAME: pages…}…]}
--json, --regions: {"pid", "engine", "page_size", "categories",
  "regions": [{"start", "end", "categories": [NAME…]}…]}
Addresses and offsets are integers in bytes, end exclusive; counts are in pages;
NAME is PRESENT, SWAPPED, … as in pagemap.Category. --csv has the same fields as
columns, the categories of a region joined by |. Both list every VMA in order of
address, without a limit.""",
)
@click.argument("pid", type=ProcessId(), metavar="PID|self")
@click.option(
    "-c",
    "--category",
    "wanted",
    type=CategoryName(),
    multiple=True,
    metavar="NAME",
    help="Only pages with this category; several times for pages with one of them.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "scan", "read"]),
    default="auto",
    show_default=True,
    help="scan: the PAGEMAP_SCAN ioctl. read: the entries of /proc/PID/pagemap.",
)
@click.option("--start", type=Address(), default=0, help="Look from this address on.")
@click.option("--end", type=Address(), help="Look below this address.")
@click.option("--regions", "by_region", is_flag=True, help="The regions themselves, not sums for each VMA.")
@click.option("--json", "as_json", is_flag=True, help="For programs: JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="For programs and spreadsheets: CSV.")
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(min=0),
    default=30,
    show_default=True,
    help="Show so many VMAs in the table, the largest first; 0 for all.",
)
def command(
    pid: int,
    wanted: tuple[Category, ...],
    engine: str,
    start: int,
    end: int | None,
    by_region: bool,
    as_json: bool,
    as_csv: bool,
    limit: int,
) -> None:
    """The pages of a process by category: a table of its VMAs, the largest first.

    PID is the number of a process, or `self`. The process runs on meanwhile, so the picture is
    smeared over the time of the scan.
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")
    if end is not None and start > end:
        raise click.UsageError(f"--start {start:#x} is above --end {end:#x}")
    with PageMap(pid, engine=engine) as pm:  # type: ignore[arg-type]
        query = query_of(combined(wanted), pm.engine)
        report = Category(query.masks()[3])
        try:
            if by_region:
                show_regions(pm, report, pm.iter_scan(query, start=start, end=end), as_json, as_csv)
                return
            found = pm.scan(query, start=start, end=end)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        picture = Picture(pid, pm.engine, report, found, pm.vmas(), is_tracked(pm))
    rows = picture.rows(start, end)
    if as_json:
        print_json(picture, rows)
    elif as_csv:
        print_csv(picture, rows)
    else:
        print_table(picture, rows, limit, list(wanted))


def is_tracked(pm: PageMap) -> bool:
    """Whether a userfaultfd write-protects memory that is called swapped; the read engine cannot tell."""
    if pm.engine != "scan" or Category.WPALLOWED not in features().categories:
        return False
    marked = Query(require=Category.WPALLOWED | Category.SWAPPED, report=Category(0))
    return any(len(batch) for batch in pm.iter_scan(marked))


def names(categories: int) -> list[str]:
    """The names of the categories in a mask."""
    return [str(category.name) for category in Category(categories)]


def head(pm: Picture | PageMap, categories: Category) -> dict[str, Any]:
    return {
        "pid": pm.pid,
        "engine": pm.engine,
        "page_size": PAGE_SIZE,
        "categories": names(categories),
    }


def records(picture: Picture, rows: list[tuple[Any, Any]]) -> Iterator[dict[str, Any]]:
    for vma, record in rows:
        yield {
            "start": vma.start,
            "end": vma.end,
            "permissions": vma.permissions,
            "offset": vma.offset,
            "dev": vma.dev,
            "inode": vma.inode,
            "name": vma.name,
            "pages": int(record["pages"]),
            **{name: int(record[name]) for name in names(picture.categories)},
        }


def totals(picture: Picture) -> dict[str, int]:
    counts = regions.totals(picture.regions)
    return {
        "pages": regions.page_count(picture.regions),
        **{str(category.name): counts[category] for category in picture.categories},
    }


def print_json(picture: Picture, rows: list[tuple[Any, Any]]) -> None:
    document = {
        **head(picture, picture.categories),
        "totals": totals(picture),
        "vmas": list(records(picture, rows)),
    }
    print(json.dumps(document, indent=1))


def print_csv(picture: Picture, rows: list[tuple[Any, Any]]) -> None:
    console()
    columns = ["start", "end", "permissions", "offset", "dev", "inode", "name", "pages"]
    writer = csv.DictWriter(sys.stdout, [*columns, *names(picture.categories)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records(picture, rows))


def print_table(picture: Picture, rows: list[tuple[Any, Any]], limit: int, wanted: list[Category]) -> None:
    counts = regions.totals(picture.regions)
    total = regions.page_count(picture.regions)
    shown = wanted or [c for c in DEFAULT_ORDER if counts[c] or c is Category.PRESENT]
    filled = sorted((row for row in rows if row[1]["pages"]), key=lambda row: -int(row[1]["pages"]))
    listed = filled[: limit or None]
    out = console()
    program = program_name(picture.pid)
    out.print(
        f"Process {picture.pid} ({program}), engine {picture.engine}: {pages(total)}"
        f" in {len(filled)} of {len(rows)} VMAs\n"
    )
    lead = ("address", "perm", "size")
    body = (
        ((f"{vma.start:012x}", vma.permissions, size(vma.end - vma.start)), record, vma.name)
        for vma, record in listed
    )
    out.print(pages_table(lead, body, (("", "", ""), counts), shown, out.width))
    if len(listed) < len(filled):
        rest = sum(int(record["pages"]) for _, record in filled[len(listed) :])
        out.print(f"and {pages(rest)} in {len(filled) - len(listed)} smaller VMAs (--limit 0 shows them)")
    if counts[Category.GUARD] and Category.SWAPPED in shown:
        out.print("swapped includes the guard regions, as the kernel counts")
    if picture.tracked and Category.SWAPPED in shown:
        out.print("swapped includes marks where nothing is: somebody tracks this process's writes")


def show_regions(
    pm: PageMap, categories: Category, batches: Iterator[npt.NDArray[Any]], as_json: bool, as_csv: bool
) -> None:
    """Prints the regions as they come: a process may have millions."""
    write = sys.stdout.write
    texts: dict[int, str] = {}
    if as_json:
        opening = json.dumps(head(pm, categories))[:-1]
        write(f'{opening}, "regions": [')
        separator = "\n"
        for batch in batches:
            for start, end, mask in batch.tolist():
                text = texts.get(mask) or texts.setdefault(mask, json.dumps(names(mask)))
                write(f'{separator}{{"start": {start}, "end": {end}, "categories": {text}}}')
                separator = ",\n"
        write("\n]}\n")
    elif as_csv:
        write("start,end,categories\n")
        for batch in batches:
            for start, end, mask in batch.tolist():
                text = texts.get(mask) or texts.setdefault(mask, "|".join(names(mask)))
                write(f"{start},{end},{text}\n")
    else:
        for batch in batches:
            for start, end, mask in batch.tolist():
                text = texts.get(mask) or texts.setdefault(mask, " ".join(map(label, Category(mask))))
                write(f"{start:012x}-{end:012x} {size(end - start):>9}  {text}\n")
