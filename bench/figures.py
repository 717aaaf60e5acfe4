"""The pictures of the report. One question each, answered by its title."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm

OURS, C, PYTHON, MINCORE, BARRIER = "#0b5fa5", "#444444", "#d9730d", "#2e8540", "#b3261e"
plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})


@dataclass(frozen=True)
class Line:
    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "o-"


def times(ratio: float) -> str:
    """A ratio for the eye: three digits are noise."""
    if ratio >= 20:
        return f"{ratio:,.0f}×"
    return f"{ratio:.1f}×" if ratio >= 1.95 else f"{ratio:.2f}×"


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return path


def matrix(
    path: Path, rows: Sequence[str], columns: Sequence[str], ratios: np.ndarray[Any, Any], title: str
) -> Path:
    """Who takes how many times as long as scan(): blue where scan() is faster, red where it is slower."""
    figure, axes = plt.subplots(figsize=(1.75 * len(columns) + 3, 0.62 * len(rows) + 1.9))
    colour = np.clip(np.log2(ratios), -3, 6)
    axes.imshow(colour, cmap="RdBu", norm=TwoSlopeNorm(0, -3, 6), aspect="auto")
    for (i, k), ratio in np.ndenumerate(ratios):
        if np.isfinite(ratio):
            strong = colour[i, k] > 4 or colour[i, k] < -2
            axes.text(k, i, times(ratio), ha="center", va="center", color="white" if strong else "black")
        else:
            axes.text(k, i, "–", ha="center", va="center", color="#888888")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(-0.5, len(columns)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(rows)), minor=True)
    axes.grid(which="minor", color="white", linewidth=3)
    axes.tick_params(which="minor", length=0)
    figure.suptitle(title, x=0.02, ha="left", y=1.06, fontsize=14, fontweight="bold")
    figure.text(
        0.02,
        0.985,
        "how many times as long it takes as scan() on the same memory; blue: scan() is faster, red: slower",
        fontsize=10.5,
        color="#444444",
    )
    return _save(figure, path)


def lines(path: Path, title: str, subtitle: str, xlabel: str, ylabel: str, series: Sequence[Line]) -> Axes:
    """Lines with their names at their ends, on logarithmic axes; the caller sets the ticks and saves."""
    figure, axes = plt.subplots(figsize=(9.5, 5.4))
    for line in series:
        width = 3.0 if line.colour == OURS else 1.8
        axes.plot(line.x, line.y, line.style, color=line.colour, linewidth=width, markersize=5)
    axes.set_yscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(axis="y", color="#dddddd")
    figure.suptitle(title, x=0.06, ha="left", y=1.0, fontsize=14, fontweight="bold")
    figure.text(0.06, 0.92, subtitle, fontsize=10.5, color="#444444")
    return axes


def name_ends(axes: Axes, series: Sequence[Line]) -> None:
    """Labels to the right of the last points, pushed apart where lines end close together."""
    low, high = (np.log10(v) for v in axes.get_ylim())
    gap = (high - low) * 0.055
    ends = sorted(series, key=lambda line: line.y[-1])
    at = -np.inf
    for line in ends:
        at = max(float(np.log10(line.y[-1])), at + gap)
        axes.annotate(
            line.label,
            xy=(line.x[-1], line.y[-1]),
            xytext=(1.02, (at - low) / (high - low)),
            textcoords="axes fraction",
            va="center",
            color=line.colour,
            fontweight="bold" if line.colour == OURS else "normal",
        )


def finish(axes: Axes, path: Path) -> Path:
    return _save(axes.get_figure(), path)


def bars(
    path: Path,
    title: str,
    subtitle: str,
    groups: Sequence[str],
    series: dict[str, tuple[str, Sequence[float]]],
) -> Path:
    """Horizontal bars, nanoseconds, each with its number."""
    figure, axes = plt.subplots(figsize=(9.5, 1.1 + 0.42 * len(groups) * (len(series) + 1)))
    position, ticks = 0.0, []
    for g in range(len(groups)):
        first = position
        for label, (colour, values) in series.items():
            axes.barh(position, values[g], color=colour, height=0.85)
            axes.text(values[g] * 1.08, position, f"{values[g]:,.0f} ns   {label}", va="center", color=colour)
            position += 1
        ticks.append((first + position - 1) / 2)
        position += 0.8
    axes.set_yticks(ticks, groups)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(left=1)
    axes.set_xlabel("time of one store (logarithmic)")
    axes.set_xticks([1, 10, 100, 1e3, 1e4, 1e5], ["1 ns", "10 ns", "100 ns", "1 µs", "10 µs", "100 µs"])
    axes.minorticks_off()
    axes.set_xlim(1, max(max(v) for _, v in series.values()) * 40)
    figure.suptitle(title, x=0.02, ha="left", y=1.06, fontsize=14, fontweight="bold")
    figure.text(0.02, 0.965, subtitle, fontsize=10.5, color="#444444")
    return _save(figure, path)
