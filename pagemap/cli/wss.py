"""`pagemap wss`: the working set of a process, now, or in a trace."""

from __future__ import annotations

import time

import click
from rich.text import Text

from pagemap import analysis
from pagemap.attach import attach

from ._output import console
from ._params import ProcessId
from ._series import Duration, choose, process_of
from ._summary import working_set


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
def command(what: str, interval: float, duration: float, pid: int | None) -> None:
    """Distinct pages written within windows of growing length: mean, least and most over all windows."""
    from .report import as_table

    out = console()
    for title, source in sources(what, interval, duration, pid):
        out.print(Text(title, style="bold"))
        grid = working_set(source)
        out.print(as_table(grid) if grid.rows else "nothing to say: too few samples")


def sources(
    what: str, interval: float, duration: float, pid: int | None
) -> list[tuple[str, analysis.Source]]:
    """(title, series) of a process that is looked at now, or of the recordings of a trace."""
    if not what.isdigit():
        recordings = choose(what, pid)
        return [(process_of(r), r) for r in recordings]
    number = ProcessId().convert(what, None, None)
    if duration < interval or interval <= 0:
        raise click.UsageError("--duration must be --interval or more, which must be positive")
    samples = []
    with attach(number) as tracker:
        begin = time.monotonic_ns()
        try:
            for stamp, found in tracker.rounds(interval, int(duration / interval)):
                samples.append((max(stamp, begin + 1), found))
        except (KeyboardInterrupt, ProcessLookupError):
            if not samples:
                raise
    series = analysis.Series.from_samples(samples, begin_ns=begin)
    return [(f"process {number}", series)]
