"""Pictures of series and scans, by matplotlib, which is imported when the first one is drawn.

Each function takes what the analysis of the same name takes, a recording or its result, draws into `ax`, and
returns it; without `ax` it makes a figure (``ax.figure``): one of pyplot's where pyplot is in use already,
else a bare one, which needs no display. MiB are of 2**20 bytes, colours safe for the colour-blind.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import analysis, regions
from ._sweep import I64
from .categories import PAGE_SIZE
from .maps import VmaTable, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIB = 1 << 20
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#999999"
"""Okabe and Ito's colours, which people with any kind of colour vision can tell apart."""

MAX_POINTS = 1500
"""What a picture's width can show: longer curves become a band from least to most, with the mean in it."""


def new_axes(ax: Axes | None, size: tuple[float, float] = (9.0, 4.0)) -> Axes:
    """`ax`, or that of a new figure. ImportError without matplotlib."""
    if ax is not None:
        return ax
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'pagemap-scan[plot]'") from error
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        made: Axes = pyplot.subplots(figsize=size, layout="constrained")[1]
        return made
    return Figure(figsize=size, dpi=100, layout="constrained").add_subplot()


# Words


def title_of(source: Any, what: str) -> str:
    """What was recorded, for a title: "redis-server 1234 on web1: pages written"."""
    meta = getattr(source, "metadata", None)
    if meta is None:
        return what
    return printable(f"{meta.name or 'process'} {meta.pid} on {meta.host}: {what}")


def is_resident(source: Any) -> bool:
    return getattr(getattr(source, "metadata", None), "kind", "dirty") == "resident"


def label_of(vma: Any) -> str:
    """What people know a VMA by; anonymous memory by its address."""
    if not vma.name:
        return f"anon {vma.start:x}"
    return printable(os.path.basename(vma.name) if vma.name.startswith("/") else str(vma.name))


def shortened(text: str, length: int = 26) -> str:
    return text if len(text) <= length else f"{text[: length - 9]}…{text[-8:]}"


def clock(nanoseconds: int) -> tuple[float, str]:
    """A unit for times up to so many ns: (ns in it, its name)."""
    for unit, name in ((3600e9, "h"), (60e9, "min"), (1e9, "s"), (1e6, "ms")):
        if nanoseconds >= 2 * unit:
            return unit, name
    return 1e6, "ms"


# Pictures


def heatmap(
    source: analysis.Source | analysis.HeatMap,
    vmas: VmaTable | None = None,
    *,
    ax: Axes | None = None,
    rows: int = 400,
    columns: int = 300,
    min_hole: int = 1 << 16,
) -> Axes:
    """Which pages were written when: time from left to right, addresses upwards, holes left out.

    The colour of a cell says which share of its pages a sample has, on average; white: none. rows, columns:
    at most so many cells of time and address; min_hole: bytes, see analysis.HeatAxes.fit. vmas: names for the
    addresses; default: those of a recording.
    """
    grid = (
        source
        if isinstance(source, analysis.HeatMap)
        else analysis.heatmap(source, rows=rows, columns=columns, min_hole=min_hole)
    )
    vmas = getattr(source, "vmas", None) if vmas is None else vmas
    ax = new_axes(ax, (10.0, 5.5))
    from matplotlib.colors import Normalize

    resident = is_resident(source)
    ax.set_title(title_of(source, f"pages {'resident' if resident else 'written'}, by time and address"))
    if not grid.counts.size:
        return nothing(ax)
    axes, share = grid.axes, grid.fraction
    times = axes.time_ns - axes.time_ns[0]
    if times[-1] == times[0]:
        # One sample whose interval is not known: a column needs some width.
        times = np.array([0, 1_000_000])
    unit, name = clock(int(times[-1]))
    edges = np.append(np.arange(axes.shape[1]) * axes.column_pages, axes.position[-1]) * axes.page_size / MIB
    image = ax.pcolormesh(
        times / unit,
        edges,
        np.ma.masked_equal(share.T, 0),
        cmap="viridis_r",
        norm=Normalize(0, float(share.max())),
        rasterized=True,
    )
    figure = ax.get_figure()
    assert figure is not None
    bar = figure.colorbar(image, ax=ax, pad=0.02, fraction=0.03, location="bottom", shrink=0.5, aspect=40)
    bar.ax.xaxis.set_major_formatter(
        lambda value, _: f"{value:.0%}" if share.max() >= 0.05 else f"{value:.2%}"
    )
    bar.set_label(
        f"share of a cell's pages that are {'resident' if resident else 'written in a sample'}; white: none"
    )
    ax.set_xlabel(f"time since the beginning ({name})")
    ax.set_ylabel("memory shown, in order of address (MiB)")
    for hole in spaced(axes.position[1:-1], int(axes.position[-1]) // 100):
        ax.axhline(hole * axes.page_size / MIB, color=GREY, linewidth=0.3)
    if vmas is not None:
        name_addresses(ax, axes, vmas)
    return ax


def spaced(places: I64, distance: int) -> list[int]:
    """Those of some sorted places that are so far from the one before: lines side by side are a blot."""
    kept: list[int] = []
    for place in places.tolist():
        if not kept or place - kept[-1] >= distance:
            kept.append(place)
    return kept


def name_addresses(ax: Axes, axes: analysis.HeatAxes, vmas: VmaTable) -> None:
    """VMA names at the right of a heat map, the largest first, as many as there is room for."""
    total = int(axes.position[-1])
    wanted = []
    for low, high, label in extents(axes, vmas):
        wanted.append(((high - low) / total, (low + high) / 2 / total, label))
    side = ax.secondary_yaxis("right")
    taken: list[tuple[float, str]] = []
    for _, middle, label in sorted(wanted, key=lambda one: -one[0]):
        if len(taken) < 24 and all(abs(middle - other) >= 0.035 for other, _ in taken):
            taken.append((middle, label))
    scale = total * axes.page_size / MIB
    side.set_yticks([at * scale for at, _ in taken], [shortened(label) for _, label in taken], fontsize=8)


def extents(axes: analysis.HeatAxes, vmas: VmaTable) -> list[tuple[int, int, str]]:
    """(from, to, name) in pages on the address axis, of VMAs that show; neighbours of a name are one."""
    low, high = axes.place(vmas.array["start"]), axes.place(vmas.array["end"])
    found: list[tuple[int, int, str]] = []
    for i in np.flatnonzero(high > low).tolist():
        label = label_of(vmas[i])
        if found and found[-1][2] == label and found[-1][1] == low[i]:
            found[-1] = (found[-1][0], int(high[i]), label)
        else:
            found.append((int(low[i]), int(high[i]), label))
    return found


def nothing(ax: Axes) -> Axes:
    """Says that there is nothing to draw."""
    ax.text(0.5, 0.5, "no pages in this series", ha="center", va="center", transform=ax.transAxes)
    ax.set_xticks([])
    ax.set_yticks([])
    return ax


def rate(source: analysis.Source | analysis.Rate, *, ax: Axes | None = None) -> Axes:
    """How much is written, over time: MiB/s (of a series of residency: how much is resident, MiB).

    Of more samples than fit: the mean, and a band from the least to the most.
    """
    found = source if isinstance(source, analysis.Rate) else analysis.dirty_rate(source)
    ax = new_axes(ax)
    resident = is_resident(source)
    ax.set_title(title_of(source, "memory resident" if resident else "memory written"))
    page = found.timeline.page_size
    known = np.ones(len(found.pages), np.bool_) if resident else found.duration_ns > 0
    values = (found.pages * page if resident else found.bytes_per_s)[known] / MIB
    if not values.size:
        return nothing(ax)
    ends = found.time_ns[known] - found.timeline.begin_ns
    begins = ends - found.duration_ns[known]
    unit, name = clock(max(int(ends[-1]), 1))
    ax.set_xlabel(f"time since the beginning ({name})")
    ax.set_ylabel("resident or swapped (MiB)" if resident else "distinct pages written (MiB/s)")
    if len(values) <= MAX_POINTS:
        edges = np.append(begins[:1], ends) / unit
        if len(values) == 1:
            ax.plot(ends / unit, values, "o", color=BLUE)
        ax.stairs(values, edges, color=BLUE, fill=not resident, alpha=0.35)
        ax.stairs(values, edges, color=BLUE, baseline=None)
    else:
        cut = np.linspace(0, len(values), MAX_POINTS + 1).astype(np.int64)[:-1]
        middle = (begins[cut] + ends[np.append(cut[1:], len(ends)) - 1]) / 2 / unit
        weights = np.ones(len(values)) if resident else found.duration_ns[known].astype(np.float64)
        mean = np.add.reduceat(values * weights, cut) / np.add.reduceat(weights, cut)
        least, most = np.minimum.reduceat(values, cut), np.maximum.reduceat(values, cut)
        ax.fill_between(middle, least, most, color=BLUE, alpha=0.25, linewidth=0, label="least to most")
        ax.plot(middle, mean, color=BLUE, linewidth=1, label="mean")
        ax.legend(frameon=False)
    ax.margins(x=0.01)
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    return ax


def working_set(
    source: analysis.Source | analysis.WorkingSet,
    taus_ns: npt.ArrayLike | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """How much is written within a window of time, as a curve over the window's length.

    The mean over all windows that lie in the series, and a band from the least to the most. taus_ns: see
    analysis.working_set.
    """
    found = source if isinstance(source, analysis.WorkingSet) else analysis.working_set(source, taus_ns)
    ax = new_axes(ax)
    ax.set_title(title_of(source, f"working set ({'resident' if is_resident(source) else 'pages written'})"))
    shown = found.windows > 0
    if not shown.any():
        return nothing(ax)
    scale = found.timeline.page_size / MIB
    tau = found.tau_ns[shown] / 1e9
    least, most = found.min_pages[shown] * scale, found.max_pages[shown] * scale
    ax.fill_between(tau, least, most, color=BLUE, alpha=0.2, linewidth=0, label="least to most")
    ax.plot(tau, found.mean_pages[shown] * scale, "o-", color=BLUE, markersize=4, label="mean of all windows")
    if len(tau) == 1:
        ax.vlines(tau, least, most, color=BLUE, alpha=0.4)
    ax.set_xscale("log")
    ax.set_xticks(tau[:: -(-len(tau) // 16)])
    ax.set_xticks([], minor=True)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_xlabel("length of the window (s)")
    ax.set_ylabel("distinct pages (MiB)")
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, loc="upper left")
    return ax


def address_space(
    found: regions.Regions, vmas: VmaTable, *, ax: Axes | None = None, limit: int = 24, title: str = ""
) -> Axes:
    """What a scan found, by VMA: bars in MiB, the highest address at the top.

    found: regions with PRESENT, SWAPPED and, better, HUGE reported (``pm.scan(Query(any_of=PRESENT | SWAPPED,
    report=PRESENT | SWAPPED | HUGE))``). VMAs of one name side by side are one bar; those with the least
    pages share the bar "others" beyond `limit`.
    """
    ax = new_axes(ax, (9.0, 6.0))
    ax.set_title(title or "populated memory by mapping", loc="left")
    table = regions.by_vma(found, vmas)
    bars = grouped(table, vmas)
    bars = [bar for bar in bars if bar[1].sum()]
    if not bars:
        return nothing(ax)
    if len(bars) > limit:
        keep = sorted(range(len(bars)), key=lambda i: -int(bars[i][1].sum()))[:limit]
        rest = [bars[i] for i in range(len(bars)) if i not in set(keep)]
        others: I64 = np.sum([values for _, values, _ in rest], axis=0, dtype=np.int64)
        bars = [(f"{len(rest)} others", others, sum(size for *_, size in rest))] + [
            bars[i] for i in sorted(keep)
        ]
    place = np.arange(len(bars))
    left: npt.NDArray[np.float64] = np.zeros(len(bars))
    for column, (name, colour) in enumerate(
        (("present", BLUE), ("huge pages", ORANGE), ("swapped", VERMILION))
    ):
        part = np.array([values[column] for _, values, _ in bars]) * PAGE_SIZE / MIB
        if part.any():
            ax.barh(place, part, left=left, color=colour, label=name, height=0.75)
        left = left + part
    for at, (end, (_, values, size)) in enumerate(zip(left, bars, strict=True)):
        full = int(values.sum()) * PAGE_SIZE / size
        ax.annotate(
            f" {end:.3g} MiB, {full:.0%} of the mapping",
            (end, at),
            va="center",
            fontsize=7.5,
            color="#444444",
        )
    ax.set_yticks(place, [shortened(label) for label, *_ in bars], fontsize=8)
    ax.set_xlim(0, float(left.max()) * 1.3)
    ax.margins(y=0.01)
    ax.set_xlabel("populated memory (MiB)")
    ax.set_ylabel("mapping, in order of address")
    ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderpad=0)
    ax.grid(axis="x", alpha=0.3)
    return ax


def grouped(table: npt.NDArray[Any], vmas: Iterable[Any]) -> list[tuple[str, I64, int]]:
    """(name, pages present, huge and swapped, bytes mapped); neighbours of one name as one."""
    found: list[tuple[str, I64, int]] = []
    for record, vma in zip(table, vmas, strict=True):
        huge, swapped = int(record["HUGE"]), int(record["SWAPPED"])
        values = np.array([max(int(record["pages"]) - huge - swapped, 0), huge, swapped])
        label = label_of(vma)
        if found and found[-1][0] == label:
            _, before, size = found[-1]
            found[-1] = (label, before + values, size + vma.end - vma.start)
        else:
            found.append((label, values, vma.end - vma.start))
    return found
