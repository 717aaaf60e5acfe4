"""`pagemap doctor`: what this kernel, this user and this process may do, and why not."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from typing import Any

import click
from rich.text import Text

from pagemap import Category, Features, ScanFlag, features

from ._group import Unsupported, describe
from ._output import console, new_table
from ._params import label

_SUBJECTS = {
    "scan": "the PAGEMAP_SCAN ioctl",
    "wp_async": "tracking writes with userfaultfd",
    "wp_drop": "pages dropped by MADV_DONTNEED are seen",
    "rwp_async": "tracking reads and writes with userfaultfd",
    "soft_dirty": "soft-dirty pages are recorded",
    "procmap_query": "the PROCMAP_QUERY ioctl",
    "pfn": "page frame numbers are visible",
}
"""What the fields of Features mean; one that is not here is shown by its name alone."""


@click.command(
    epilog="""\b
Examples:
  pagemap doctor
  sudo pagemap doctor            what root may do
  pagemap doctor --json | jq .why

\b
--json: {"kernel", "machine", "uid", "scan": bool, "categories": [NAME…],
  "read_categories": [NAME…], "flags": [NAME…], "wp_async", "wp_drop",
  "rwp_async", "soft_dirty", "procmap_query", "pfn": bool, "why": {KEY: TEXT…}}
KEY is one of these fields, or the NAME of a category or flag.

The exit code is 0 as soon as one engine works, else 3.""",
)
@click.option("--json", "as_json", is_flag=True, help="For programs and bug reports: JSON.")
def command(as_json: bool) -> None:
    """What works here, and why the rest does not. Probes; changes nothing."""
    try:
        found = features()
    except OSError as error:
        raise Unsupported(
            f"neither engine works here: {describe(error)}. Is /proc mounted, and has the kernel"
            " CONFIG_PROC_PAGE_MONITOR?"
        ) from error
    if as_json:
        print(json.dumps(as_document(found), indent=1))
    else:
        print_table(found)


def abilities(found: Features) -> dict[str, bool]:
    """The fields that say yes or no."""
    values = ((field.name, getattr(found, field.name)) for field in dataclasses.fields(found))
    return {name: value for name, value in values if isinstance(value, bool)}


def as_document(found: Features) -> dict[str, Any]:
    """The features as plain values: names for categories and flags."""
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "uid": os.geteuid(),
        "categories": [str(c.name) for c in Category if c in found.categories],
        "read_categories": [str(c.name) for c in Category if c in found.read_categories],
        "flags": [str(f.name) for f in ScanFlag if f in found.flags],
        **abilities(found),
        "why": dict(found.why),
    }


def print_table(found: Features) -> None:
    out = console()
    out.print(f"Linux {platform.release()}, {platform.machine()}, uid {os.geteuid()}\n")
    table = new_table()
    table.add_column("")
    table.add_column("what")
    table.add_column("why not", overflow="fold")

    def row(works: bool, what: str, why: str) -> None:
        table.add_row(Text("yes", "green") if works else Text("no", "red"), Text(what), Text(why))

    for name, works in abilities(found).items():
        subject = _SUBJECTS.get(name)
        row(works, f"{name}: {subject}" if subject else name, found.why.get(name, ""))
    for flag in ScanFlag:
        row(flag in found.flags, f"flag {flag.name}", found.why.get(str(flag.name), ""))
    table.add_section()
    for category in Category:
        scans, reads = category in found.categories, category in found.read_categories
        why = found.why.get(str(category.name), "")
        if scans != reads:
            why = "" if scans else f"the read engine only: {why}"
        if category is Category.SOFT_DIRTY and scans and not found.soft_dirty:
            why = "known, but never set here: see soft_dirty above"
        engines = " and ".join(name for name, on in (("scan", scans), ("read", reads)) if on)
        row(scans or reads, f"category {label(category)}" + (f": {engines}" if engines else ""), why)
    out.print(table)
