"""`pagemap wss`: the working set of a process, now, or in a trace."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import click
from rich.text import Text

from pagemap import analysis
from pagemap.attach import attach

from ._output import console
from ._params import ProcessId
from ._series import Duration, choose, process_of
from ._summary import working_set

if TYPE_CHECKING:
    from pagemap.trace import Recording


@click.command(
    short_help="The working set: how much is written within a window of time.",
    epilog="""\b
Examples:
  pagemap wss $(pgrep -o redis)            look for 10 seconds
  pagemap wss 1234 --duration 1m --interval 1s
  pagemap wss redis.trace                  of a trace

\b
A window's working set is the number of distinct pages written in it (Denning,
1968), so it grows with the window; where it stops growing, the program has
written all that it writes.

Ctrl-C ends the look at a process early, with code 0; before the first sample, with
130.""",
)
@click.argument("what", default="pagemap.trace", metavar="PID|FILE")
@click.option(
    "-i", "--interval", type=Duration(), default="100ms", show_default=True, help="PID: between samples."
)
@click.option(
    "-d", "--duration", type=Duration(), default="10s", show_default=True, help="PID: look so long."
)
@click.option("--pid", type=int, help="FILE: only the recordings of this process.")
@click.pass_context
def command(ctx: click.Context, what: str, interval: float, duration: float, pid: int | None) -> None:
    """Distinct pages written within windows of growing length: mean, least and most over all windows."""
    from .report import as_table

    out = console()
    if what == "self" or what.isdigit():
        if pid is not None:
            raise click.UsageError("--pid is for a trace; the process is named already")
        found = [of_process(what, interval, duration)]
    else:
        for name in ("interval", "duration"):
            if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--{name} is for a process, not for a trace")
        found = [of_recording(recording) for recording in choose(what, pid)]
    for title, source in found:
        out.print(Text(title, style="bold"))
        grid = working_set(source)
        out.print(as_table(grid) if grid.rows else "nothing to say: too few samples")


def of_recording(recording: Recording) -> tuple[str, analysis.Source]:
    """(title, series)"""
    title = process_of(recording)
    if recording.metadata.kind == "resident":
        title += ": pages that were resident or swapped, not those that were written"
    return title, recording


def of_process(what: str, interval: float, duration: float) -> tuple[str, analysis.Source]:
    """(title, series) of a process that is looked at now."""
    number = ProcessId().convert(what, None, None)
    if number == os.getpid():
        raise click.UsageError("this command's own writes say nothing: give another process")
    if duration < interval or interval <= 0:
        raise click.UsageError("--duration must be --interval or more, which must be positive")
    samples = []
    with attach(number) as tracker:
        begin = time.monotonic_ns()
        try:
            for stamp, found in tracker.rounds(
                interval, round(duration * 1e9) // max(round(interval * 1e9), 1)
            ):
                samples.append((max(stamp, begin + 1), found))
        except (KeyboardInterrupt, ProcessLookupError):
            if not samples:
                raise
    series = analysis.Series.from_samples(samples, begin_ns=begin)
    return f"process {number}", series
