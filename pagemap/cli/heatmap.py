"""`pagemap heatmap`: which pages were written when, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ._group import Unsupported
from ._output import console
from ._series import choose_one, process_of


@click.command(
    short_help="A trace as a picture: time by address.",
    epilog="""\b
Examples:
  pagemap heatmap                         ./pagemap.trace in the terminal
  pagemap heatmap redis.trace -o redis.png
  pagemap heatmap redis.trace -o redis.svg
  pagemap heatmap fleet.trace --pid 1234

\b
Time goes from left to right, addresses upwards; memory that was never written is
left out. The darker, the more of a cell's pages were written in a sample.""",
)
@click.argument("trace", default="pagemap.trace", metavar="FILE")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PNG",
    help="Write a picture (.png, .svg, .pdf); without, draw in the terminal.",
)
@click.option("--pid", type=int, help="The recording of this process.")
@click.option(
    "--lines", type=click.IntRange(2, 500), default=24, show_default=True, help="Height in the terminal."
)
def command(trace: str, output: Path | None, pid: int | None, lines: int) -> None:
    """Draws which pages of a process were written when, or were resident."""
    if output is not None:
        check_suffix(output)
    recording = choose_one(trace, pid)
    if output is None:
        from . import _blocks

        out = console()
        for line in _blocks.heatmap(recording, recording.vmas, out, lines):
            out.print(line, no_wrap=True, crop=False)
        return
    try:
        from pagemap import plot

        figure: Any = plot.heatmap(recording).figure
    except ImportError as error:
        raise Unsupported(str(error)) from error
    figure.savefig(output, dpi=120)
    count = recording.timing.samples
    click.echo(f"{output}: {process_of(recording)}, {count} sample{'s' * (count != 1)}")


def check_suffix(output: Path) -> None:
    """UsageError unless the name says what kind of picture it is: without, matplotlib chooses another."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise Unsupported("pictures need matplotlib: pip install 'pagemap-scan[plot]'") from error
    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if output.suffix[1:].lower() not in known:
        raise click.BadParameter(
            f"'{output}' needs a suffix that says what kind of picture: .{', .'.join(known)}",
            param_hint="--output",
        )
