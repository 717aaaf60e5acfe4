"""A heat map of characters, for a terminal without a display."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from pagemap import analysis, plot
from pagemap.maps import VmaTable, printable

from ._output import size
from ._series import seconds

Floats = npt.NDArray[np.float64]

SHADES = " ░▒▓█"
"""Without colours: none, up to a quarter, a half, three quarters, all of the darkest cell."""

RAMP = ((253, 231, 37), (94, 201, 98), (33, 145, 140), (59, 82, 139), (68, 1, 84))
"""viridis, from little to much: the same colours as in the pictures."""

NAMES = 22


def heatmap(source: analysis.Source, vmas: VmaTable, out: Console, height: int = 24) -> list[Text]:
    """Lines: time from left to right, addresses upwards, VMA names at the left, holes left out.

    In colour, a character is two cells high (upper half blocks).
    """
    colour = out.color_system is not None and not out.no_color and out.is_terminal
    width = max(min(out.width, 120) - NAMES - 2, 10)
    grid = analysis.heatmap(source, rows=width, columns=height * (2 if colour else 1), min_hole=1 << 16)
    if not grid.counts.size:
        return [Text("no pages in this series")]
    share = grid.fraction.T[::-1]
    if colour and len(share) % 2:
        share = np.vstack((share, np.zeros((1, share.shape[1]))))
    top = float(share.max()) or 1.0
    cells = share / top
    # A series of fewer samples than there are columns is drawn wider.
    repeat = max(width // cells.shape[1], 1)
    cells = np.repeat(cells, repeat, axis=1)
    rows = (
        [half_blocks(cells[i], cells[i + 1]) for i in range(0, len(cells), 2)]
        if colour
        else [shades(row) for row in cells]
    )
    names = names_of_rows(grid.axes, vmas, len(rows))
    lines = [Text(f"{name:>{NAMES}} ") + row for name, row in zip(names, rows, strict=True)]
    axes = grid.axes
    length = seconds(int(axes.time_ns[-1] - axes.time_ns[0]))
    lines.append(Text(f"{'':{NAMES}} 0{length:>{cells.shape[1] - 1}}"))
    cell = size(axes.column_pages * axes.page_size)
    legend = Text(
        f"{'':{NAMES}} a line: {cell if not colour else size(2 * axes.column_pages * axes.page_size)}"
    )
    legend.append("; share of its pages in a sample: 0% ")
    legend += ramp() if colour else Text(SHADES)
    legend.append(f" {top:.0%}" if top >= 0.05 else f" {top:.2%}")
    return [*lines, legend]


def half_blocks(upper: Floats, lower: Floats) -> Text:
    line = Text()
    for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
        if not above and not below:
            line.append(" ")
        elif not above:
            line.append("▄", Style(color=shade(below)))
        else:
            line.append("▀", Style(color=shade(above), bgcolor=shade(below) if below else None))
    return line


def shades(row: Floats) -> Text:
    levels = np.ceil(row * (len(SHADES) - 1)).astype(np.int64)
    return Text("".join(SHADES[level] for level in levels))


def shade(value: float) -> Color:
    at = min(max(value, 0.0), 1.0) * (len(RAMP) - 1)
    low = min(int(at), len(RAMP) - 2)
    mixed = (round(a + (b - a) * (at - low)) for a, b in zip(RAMP[low], RAMP[low + 1], strict=True))
    return Color.from_rgb(*mixed)


def ramp(cells: int = 12) -> Text:
    text = Text()
    for i in range(cells):
        text.append("█", Style(color=shade((i + 1) / cells)))
    return text


def names_of_rows(axes: analysis.HeatAxes, vmas: VmaTable, rows: int) -> list[str]:
    """For each line, from the top: the VMA that has most of it, unless the line above says so already."""
    found = plot.extents(axes, vmas)
    bounds = np.linspace(int(axes.position[-1]), 0, rows + 1)
    names: list[str] = []
    before = ""
    for high, low in itertools.pairwise(bounds.tolist()):
        overlaps = [(min(high, end) - max(low, begin), label) for begin, end, label in found]
        share, label = max(overlaps, default=(0, ""))
        label = label if share > 0 else ""
        names.append(plot.shortened(printable(label), NAMES) if label != before else "")
        before = label
    return names
