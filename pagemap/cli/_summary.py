"""What there is to say of a recording, as facts and tables: for the terminal, and for the HTML report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from pagemap import analysis, regions
from pagemap.maps import printable
from pagemap.query import category_names

from ._output import size
from ._series import process_of, seconds

if TYPE_CHECKING:
    from pagemap.trace import Recording

HOTTEST = 15
BANDWIDTH = 125_000_000
"""Bytes/s of a network of 1 Gbit/s, for the question whether a live migration would converge."""


@dataclass(frozen=True)
class Grid:
    """A table: a title, a sentence on how to read it, headings and rows; the last column is text."""

    title: str
    note: str
    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Summary:
    """A recording in words: (what, value) pairs, and tables."""

    title: str
    facts: list[tuple[str, str]]
    grids: list[Grid] = field(default_factory=list)


def summarize(recording: Recording) -> Summary:
    """Reads the recording once for each question, chunk by chunk."""
    meta, timeline = recording.metadata, recording.timeline
    rate = analysis.dirty_rate(recording)
    heat = analysis.heat(recording)
    facts = origin(recording)
    if not len(timeline.time_ns):
        facts.append(("samples", "none: there is nothing to analyse"))
        return Summary(title(recording), facts)
    if meta.kind == "dirty":
        facts += dirty_facts(recording, rate, heat)
        grids = [
            working_set(recording),
            rewritten(recording),
            contiguity(recording),
            hottest(recording, heat),
        ]
    else:
        facts += resident_facts(rate, heat)
        grids = [last_sample(recording), hottest(recording, heat)]
    return Summary(title(recording), facts, [grid for grid in grids if grid.rows])


def title(recording: Recording) -> str:
    what = "written" if recording.metadata.kind == "dirty" else "resident"
    return f"{process_of(recording)}: pages {what} over time"


def origin(recording: Recording) -> list[tuple[str, str]]:
    meta, timing, timeline = recording.metadata, recording.timing, recording.timeline
    started = datetime.fromtimestamp(meta.begin_ns / 1e9, UTC)
    n = len(timeline.time_ns)
    pace = f"one each {seconds(meta.interval_ns)}" if meta.interval_ns else "as fast as it went"
    facts = [
        ("command", printable(" ".join(meta.command)) or "(kernel thread, or gone)"),
        (
            "recorded",
            f"{started:%Y-%m-%d %H:%M:%S} UTC, {printable(meta.kernel)}; ended: {printable(recording.ended)}",
        ),
        (
            "samples",
            f"{n} in {seconds(timeline.end_ns - meta.begin_ns)}, {pace}",
        ),
        (
            "timing",
            f"late by {seconds(timing.late_sum_ns / max(timing.samples, 1))} on average,"
            f" {seconds(timing.late_max_ns)} at most; {timing.missed} left out;"
            f" a scan took {seconds(timing.scan_sum_ns / max(timing.samples, 1))} on average",
        ),
    ]
    if abs(timing.wall_step_ns) > 50_000_000:
        facts.append(
            ("clock", f"the wall clock moved by {seconds(timing.wall_step_ns)}: times are its first")
        )
    facts.append(("memory", f"{size(meta.memory_bytes)} populated at the beginning"))
    return facts


def dirty_facts(recording: Recording, rate: analysis.Rate, heat: analysis.Heat) -> list[tuple[str, str]]:
    page = rate.timeline.page_size
    per_s = rate.bytes_per_s[~np.isnan(rate.bytes_per_s)]
    written = int(heat.pages.sum()) * page
    facts = [
        ("written", f"{size(written)} of distinct pages, {size(int(rate.pages.sum()) * page)} in all samples")
    ]
    if per_s.size:
        low, middle, high = np.percentile(per_s, [10, 50, 90])
        facts.append(
            (
                "rate",
                f"{size(middle)}/s median, {size(low)}/s to {size(high)}/s eight times in ten,"
                f" {size(per_s.max())}/s at most",
            )
        )
    memory = max(recording.metadata.memory_bytes, written)
    move = analysis.migrate(recording, memory_bytes=memory, bandwidth=BANDWIDTH)
    verdict = {True: "converges", False: "does not converge", None: "not known"}[move.converged]
    stop = f", {seconds(move.downtime_ns)} of standstill" if move.downtime_ns is not None else ""
    facts.append(
        ("migration", f"over 1 Gbit/s {verdict}: {move.why}; {size(move.sent_bytes)} sent{stop}"),
    )
    return facts


def resident_facts(rate: analysis.Rate, heat: analysis.Heat) -> list[tuple[str, str]]:
    page = rate.timeline.page_size
    low, high = int(rate.pages.min()), int(rate.pages.max())
    ever = int(heat.pages.sum())
    always = int(heat.pages[heat.samples == len(rate.pages)].sum())
    return [
        ("size", f"{size(low * page)} to {size(high * page)}, {size(int(rate.pages[-1]) * page)} at the end"),
        ("pages", f"{size(ever * page)} at some time, {size(always * page)} all the time"),
    ]


def working_set(source: analysis.Source) -> Grid:
    found = analysis.working_set(source)
    page, most = found.timeline.page_size, max(int(np.max(found.max_pages, initial=0)), 1)
    columns = zip(
        found.tau_ns, found.windows, found.mean_pages, found.min_pages, found.max_pages, strict=True
    )
    rows = [
        (
            seconds(int(tau)),
            size(mean * page),
            size(int(low) * page),
            size(int(high) * page),
            str(int(windows)),
            bar(mean / most),
        )
        for tau, windows, mean, low, high in columns
        if windows
    ]
    return Grid(
        "Working set",
        "distinct pages written within a window of time, over all windows that fit",
        ("window", "mean", "least", "most", "windows", ""),
        rows,
    )


def rewritten(recording: Recording) -> Grid:
    found = analysis.redirty_intervals(recording)
    total = int(found.writes.sum())
    rows = []
    for low, high, writes in zip(found.edges_ns[:-1], found.edges_ns[1:], found.writes, strict=True):
        if writes:
            upper = seconds(int(high)) if high < np.iinfo(np.int64).max else "…"
            rows.append((f"{seconds(int(low))} to {upper}", share(int(writes), total), bar(writes / total)))
    once = size(found.once * recording.metadata.page_size)
    return Grid(
        "Written again after",
        f"time between two samples that have the same page; {once} were written in one sample only",
        ("interval", "writes", ""),
        rows,
    )


def contiguity(recording: Recording) -> Grid:
    found = analysis.run_lengths(recording)
    total, page = max(int(found.pages.sum()), 1), recording.metadata.page_size
    rows = [
        (
            f"{size(int(low) * page)} to {size(int(high) * page)}",
            str(int(runs)),
            share(int(pages), total),
            bar(pages / total),
        )
        for low, high, runs, pages in zip(
            found.edges[:-1], found.edges[1:], found.runs, found.pages, strict=True
        )
        if runs
    ]
    return Grid(
        "Contiguity",
        "how long the runs of adjacent pages are, and what share of the pages is in them",
        ("run length", "runs", "pages", ""),
        rows,
    )


def hottest(recording: Recording, heat: analysis.Heat) -> Grid:
    """The VMAs with most page-writes (or page-samples, for residency)."""
    vmas, page = recording.vmas, recording.metadata.page_size
    table = heat.by_vma(vmas)
    total = max(int((heat.pages * heat.samples).sum()), 1)
    samples = max(len(heat.timeline.time_ns), 1)
    order = [
        int(i) for i in np.argsort(-table["writes"].astype(np.int64), kind="stable") if table["writes"][i]
    ]
    rows = [
        vma_row(vmas[i], int(table["pages"][i]), int(table["writes"][i]), total, samples, page)
        for i in order[:HOTTEST]
    ]
    rest = total - sum(int(table["writes"][i]) for i in order[:HOTTEST])
    if rest and rows:
        distinct = int(heat.pages.sum()) - sum(int(table["pages"][i]) for i in order[:HOTTEST])
        rows.append(("", size(distinct * page), "", share(rest, total), "", "all others"))
    what = "writes" if recording.metadata.kind == "dirty" else "samples"
    return Grid(
        "Hottest VMAs",
        f"by share of all page-{what}; often: in how many of the samples a page of it is, on average",
        ("address", "pages", "of VMA", f"share of {what}", "often", "name"),
        rows,
    )


def vma_row(vma: Any, pages: int, writes: int, total: int, samples: int, page: int) -> tuple[str, ...]:
    length = (vma.end - vma.start) // page
    return (
        f"{vma.start:012x}",
        size(pages * page),
        f"{pages / length:.0%}",
        share(writes, total),
        share(writes, pages * samples),
        printable(vma.name) or "anonymous",
    )


def share(part: int, whole: int) -> str:
    ratio = part / whole if whole else 0
    return "<1%" if 0 < ratio < 0.005 else f"{ratio:.0%}"


def last_sample(recording: Recording) -> Grid:
    """The last sample's pages by category."""
    last = None
    for last in recording:  # noqa: B007  # the last chunk is wanted
        pass
    assert last is not None
    counts = regions.totals(last.regions(len(last) - 1))
    rows = [
        (size(count * last.page_size), category_names(category).lower())
        for category, count in counts.items()
        if count
    ]
    return Grid("By category", "the pages of the last sample", ("size", "category"), rows)


def bar(ratio: float, width: int = 30) -> str:
    return "█" * round(ratio * width) or ("▏" if ratio else "")
