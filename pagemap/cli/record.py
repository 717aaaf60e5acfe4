"""`pagemap record`: a series of samples into a trace, of a process or of a command that it starts."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click
from rich.status import Status

from pagemap import Category, PageMap, Query, features, regions
from pagemap.attach import attach
from pagemap.errors import UnsupportedError
from pagemap.maps import printable

from ._child import Child, Stop
from ._group import Failure, Unsupported, describe
from ._output import console, pages, size
from ._params import ProcessId
from ._series import Duration, open_trace, seconds

if TYPE_CHECKING:
    from pagemap.trace import Recorder

GRACE = 5.0
"""Seconds that a command has after Ctrl-C."""


@click.command(
    short_help="Record which pages a process writes, over time.",
    epilog="""\b
Examples:
  pagemap record $(pgrep -o redis) -o redis.trace
  pagemap record -o job.trace -- python job.py --fast
  pagemap record 1234 --interval 20ms --duration 10s
  pagemap record 1234 --resident --interval 1s
  pagemap report redis.trace             then look at it
  pagemap heatmap redis.trace

\b
A trace is a directory of Parquet files: host=HOST/pid=PID/*.parquet. Several
recordings may share one. Of one that was killed, all but the last second or 1%
can be read.
Ctrl-C and SIGTERM end a recording in good order, with code 0. A COMMAND, which
Ctrl-C on a terminal reaches too, then has 5 seconds to end by itself before it is
terminated; SIGTERM and --duration terminate it at once. The code is its own in
any case, but 0 where --duration ended it.
Dirty pages need ptrace rights for a moment (the same user and
kernel.yama.ptrace_scope 0, or sudo); --resident needs less.""",
)
@click.argument("what", nargs=-1, required=True, metavar="PID | -- COMMAND [ARGUMENT]…")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False),
    default="pagemap.trace",
    show_default=True,
    metavar="FILE",
    help="The trace: a directory, made when it is not there.",
)
@click.option(
    "-i", "--interval", type=Duration(), default="100ms", show_default=True, help="Time between samples."
)
@click.option("-d", "--duration", type=Duration(), help="End after this time; a COMMAND is then terminated.")
@click.option("--resident", is_flag=True, help="Record what is resident or swapped, not what is written.")
def command(
    what: tuple[str, ...], output: str, interval: float, duration: float | None, resident: bool
) -> None:
    """Samples a process, or a COMMAND that is started, until it ends, --duration is over, or Ctrl-C.

    Each sample holds the pages that were written since the one before; with --resident, those that are
    resident or swapped.
    A COMMAND is seen from its first instruction on; a program that it replaces itself by (exec) from some
    milliseconds on, in a command that is older than 5 seconds from up to 50 on. Its exit code is passed on;
    128 and the number of a signal that ended it.
    """
    from pagemap.trace.recorder import warmed_up

    try:
        warmed_up()  # before the command starts: it would stand still meanwhile
    except ImportError as error:
        raise Unsupported(str(error)) from error
    child = None
    out = console(sys.stderr)
    if len(what) == 1 and (what[0] == "self" or what[0].isdigit()):
        pid = ProcessId().convert(what[0], None, None)
        if pid == os.getpid():
            raise click.UsageError("a recording of the recorder says nothing: give another process")
    else:
        child = Child(what)
        pid = child.pid
    try:
        with stop_event() as stop:
            begin = time.monotonic()
            directory, why = record_once(
                pid, output, interval, duration, resident, stop, child.resume if child else None
            )
            while child is not None and why == "exited" and not child.has_exited():
                # It has replaced itself by another program (a shell's exec, an interpreter's launcher).
                left = None if duration is None else max(begin + duration - time.monotonic(), 0.0)
                try:
                    directory, why = record_once(pid, output, interval, left, resident, stop, lambda: None)
                except ProcessLookupError:
                    pass  # its memory goes a moment before the process does
                except PermissionError:
                    if not child.has_exited(0.2):  # that, too, is said of a process that exits
                        raise
            if child is not None and stop.number == signal.SIGINT and not child.has_exited(GRACE):
                out.print(f"process {pid} does not end at Ctrl-C, and is terminated")
    except OSError as error:
        if child is not None and child.end():
            saved = f"; what was saved: pagemap report {output}" if os.path.isdir(output) else ""
            raise Failure(f"{describe(error)}; the command was ended{saved}") from error
        raise
    finally:
        ended_by_us = child is not None and child.end()
    tell(out, output, directory)
    out.print(f"now: pagemap report {output}")
    if child is not None and not (ended_by_us and why == "duration"):
        code = child.returncode or 0
        click.get_current_context().exit(code if code >= 0 else 128 - code)


@contextlib.contextmanager
def stop_event() -> Iterator[Stop]:
    """An event that Ctrl-C and SIGTERM set."""
    stop = Stop()

    def handle(number: int, frame: object) -> None:
        stop.number = number
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def record_once(
    pid: int,
    output: str,
    interval: float,
    duration: float | None,
    resident: bool,
    stop: Stop,
    ready: Callable[[], None] | None = None,
) -> tuple[str, str]:
    """One recording: its directory, and why it ended.

    ready: for a command. It is called when nothing is missed any more; that the command exits or replaces
    its program is noticed before the next sample is due.
    """
    from pagemap import trace

    wanted = Category.PRESENT | Category.SWAPPED
    known = features().categories if features().scan else features().read_categories
    query = Query(any_of=wanted, report=wanted | (Category.HUGE & known))
    err = console(sys.stderr)
    with contextlib.ExitStack() as stack:
        try:
            source: Any = stack.enter_context(PageMap(pid) if resident else attach(pid))
        except UnsupportedError as error:
            raise Unsupported(f"{error.strerror}; --resident works without") from error
        on_sample = None
        if err.is_terminal:
            status = stack.enter_context(Status(f"recording process {pid}", console=err))
            on_sample = show_progress(status, pid)
        recorder = stack.enter_context(trace.Recorder(source, output, query=query, interval=interval))
        if ready is not None:
            stack.enter_context(stop.watching(pid))
            ready()
        recorder.run(duration, stop=stop, on_sample=on_sample)
    return str(recorder.directory), recorder.ended or ""


def show_progress(status: Status, pid: int) -> Callable[[Recorder, Any], None]:
    """Says how far it is, five times a second."""
    begin = shown = time.monotonic()

    def on_sample(recorder: Recorder, found: Any) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown < 0.2:
            return
        shown = now
        what = "written in" if recorder.metadata.kind == "dirty" else "in"
        status.update(
            f"process {pid}: {seconds((now - begin) * 1e9)}, {recorder.timing.samples} samples,"
            f" {pages(regions.page_count(found))} {what} the last (Ctrl-C ends)"
        )

    return on_sample


def tell(out: Any, output: str, directory: str) -> None:
    """What was recorded, and how well the time was kept."""
    recording = max(open_trace(directory), key=lambda r: r.metadata.begin_ns)
    timing = recording.timing
    files = sum(part.path.stat().st_size for part in recording.parts)
    mean = timing.late_sum_ns / max(timing.samples, 1)
    length = seconds(recording.timeline.end_ns - recording.metadata.begin_ns)
    out.print(
        f"{output}: process {recording.pid} ({printable(recording.name)}),"
        f" {timing.samples} sample{'s' * (timing.samples != 1)} in {length},"
        f" {size(files)}; ended: {printable(recording.ended)}"
    )
    if not timing.samples:
        interval = seconds(recording.metadata.interval_ns)
        out.print(f"it ended before the first sample was due: try a shorter --interval than {interval}")
        return
    out.print(
        f"samples were late by {seconds(mean)} on average, {seconds(timing.late_max_ns)} at most;"
        f" {timing.missed} were left out; a scan took up to {seconds(timing.scan_max_ns)}"
    )
