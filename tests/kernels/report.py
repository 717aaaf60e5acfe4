"""The matrix as a table: what each kernel's runs of the suite passed, failed and skipped, and why."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from guest import Boot, Outcome


@dataclass
class Suite:
    """One run of pytest: counts, and the names or reasons behind them. `broken` says why there are none."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    broken: str = ""


def read_suite(outcome: Outcome, timed_out: bool) -> Suite:
    """What pytest wrote to junit.xml. A run that left no report, or an empty one, is broken, never passed."""
    suite = Suite()
    report = outcome.folder / "junit.xml"
    if outcome.status is None:
        suite.broken = (
            "did not end within the time limit" if timed_out else "the guest stopped before the end"
        )
    elif not report.exists():
        suite.broken = f"no report, exit status {outcome.status}"
    if suite.broken:
        return suite
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        if case.find("failure") is not None or case.find("error") is not None:
            if name not in suite.failed:  # one that fails and cannot be undone stands there twice
                suite.failed.append(name)
        elif (skip := case.find("skipped")) is not None:
            suite.skipped[skip.get("message") or "no reason given"] += 1
        else:
            suite.passed += 1
    if not suite.passed and not suite.failed:
        suite.broken = f"nothing ran, exit status {outcome.status}"
    elif outcome.status not in (0, 1):
        suite.broken = f"pytest stopped with exit status {outcome.status}"
    return suite


@dataclass(frozen=True)
class Row:
    """The suite of one user on one kernel."""

    release: str
    user: str
    suite: Suite
    boot: Boot

    def good(self) -> bool:
        return not (self.suite.failed or self.suite.broken or self.boot.complaints)


def table(rows: list[Row]) -> str:
    """A Markdown table and, below, what failed and why tests were skipped."""
    lines = [
        "| kernel | user | passed | failed | skipped | seconds |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        suite = row.suite
        skipped = sum(suite.skipped.values())
        counts = (
            f"{suite.passed} | {len(suite.failed)} | {skipped}"
            if not suite.broken
            else f"{suite.broken} | – | –"
        )
        lines.append(f"| {row.release} | {row.user} | {counts} | {row.boot.seconds:.0f} |")
    lines += ["", *_reasons(rows), *_failures(rows)]
    return "\n".join(lines).rstrip() + "\n"


def _reasons(rows: list[Row]) -> list[str]:
    """Each reason to skip once, with the runs that gave it and how often."""
    where: dict[str, list[str]] = {}
    for row in rows:
        for reason, count in row.suite.skipped.items():
            where.setdefault(reason, []).append(f"{row.release} {row.user} ({count})")
    return (
        ["Skipped:", "", *(f"- {reason}: {', '.join(runs)}" for reason, runs in sorted(where.items())), ""]
        if where
        else []
    )


def _failures(rows: list[Row]) -> list[str]:
    lines = [f"- {row.release} {row.user}: {name}" for row in rows for name in row.suite.failed]
    lines += [
        f"- {row.release} {row.user}, the kernel itself: {line}"
        for row in rows
        for line in row.boot.complaints
    ]
    return ["Failed:", "", *lines, ""] if lines else []


def replace_section(document: Path, name: str, text: str) -> None:
    """Puts `text` between the document's markers <!-- name --> and <!-- /name -->."""
    opening, closing = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    content = document.read_text()
    if content.count(opening) != 1 or content.count(closing) != 1:
        raise SystemExit(f"{document} needs the markers {opening.strip()} and {closing}, once each")
    head, _, rest = content.partition(opening)
    document.write_text(f"{head}{opening}\n{text}\n{closing}{rest.partition(closing)[2]}")
